"""The mathematics of AlexNet, forward and backward, on NHWC arrays.

Sizes follow the original program (`layers-145.cfg`), which rounds up:
`out = 1 + ceil((in + 2 padding - window) / stride)`; or down, as torch. Beyond
the right and bottom edge a convolution reads zeros and a pooling nothing.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.runtime import platforms
from alexnet_jax.runtime.platforms import materialize

Pads = tuple[tuple[int, int], ...]  # ((top, bottom), (left, right)) in pixels
Window = tuple[int, int, int]  # rows, columns, channels

ACTIVATIONS = {
  "relu": jax.nn.relu,
  "tanh": jnp.tanh,
  "scaled_tanh": lambda x: 1.7159 * jnp.tanh(x * (2 / 3)),
  "sigmoid": jax.nn.sigmoid,
  "none": lambda x: x,
}


def fold_in(keys_B: jax.Array, value: int) -> jax.Array:
  """Returns a new random key for each of the old ones."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys_B, value)


def output_size(
  size: int, window: int, stride: int, padding: int = 0, ceil_mode: bool = True
) -> int:
  """Returns the pixels that a sliding window leaves along an axis.

  Raises:
    ValueError: the window is wider than the padded input.
  """
  room = size + 2 * padding - window
  if room < 0:
    raise ValueError(
      f"its window of {window} pixels is wider than {size} pixels with padding"
      f" {padding}; enlarge crop_size_px or shrink the window"
    )
  return 1 + (-(-room // stride) if ceil_mode else room // stride)


def window_pads(
  x: jax.Array, window: int, stride: int, padding: int, ceil_mode: bool
) -> Pads:
  """Returns the pads with which whole windows cover a map."""

  def after(size):
    count = output_size(size, window, stride, padding, ceil_mode)
    return (count - 1) * stride + window - size - padding

  return tuple((padding, after(size)) for size in x.shape[1:3])


def pad(x_BxHxWxC: jax.Array, pads: Pads, value: float = 0.0) -> jax.Array:
  """Pads maps with a value; a negative pad cuts rows or columns off."""
  config = [(0, 0, 0), *((*each, 0) for each in pads), (0, 0, 0)]
  return lax.pad(x_BxHxWxC, jnp.array(value, x_BxHxWxC.dtype), config)


def slices(x: jax.Array, window: int, stride: int) -> list[jax.Array]:
  """Returns a strided view of padded maps for each place of the window."""
  rows, cols = ((size - window) // stride + 1 for size in x.shape[1:3])
  return [
    x[
      :,
      i : i + (rows - 1) * stride + 1 : stride,
      j : j + (cols - 1) * stride + 1 : stride,
    ]
    for i in range(window)
    for j in range(window)
  ]


def _towers(x: jax.Array, kernel: jax.Array, towers: int):
  """Yields the channels or units of each tower, and its weights."""
  return zip(*(jnp.split(a, towers, -1) for a in (x, kernel)), strict=True)


def conv(
  x_BxHxWxC: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None,
  *,
  stride: int,
  padding: int,
  ceil_mode: bool,
  towers: int,
) -> jax.Array:
  """Convolves the channels of each tower with its own filters, one by one.

  XLA's `feature_group_count` does the same, 3 to 14 times slower on CPU.

  Args:
    x_BxHxWxC: input, towers side by side along the channels.
    kernel: [side, side, C / towers, filters], filters in tower order.
    bias: [filters], or None for no bias.
    stride: in pixels, both axes.
    padding: in pixels, before the first row and column.
    ceil_mode: whether the last window may pass the right and bottom edge.
    towers: blocks of channels; 1 where every filter sees every channel.

  Returns:
    [B, H', W', filters] in the dtype of `x_BxHxWxC`.
  """
  pads = window_pads(x_BxHxWxC, len(kernel), stride, padding, ceil_mode)
  blocks = [
    lax.conv_general_dilated(
      materialize(x),
      w,
      (stride, stride),
      pads,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    for x, w in _towers(x_BxHxWxC, kernel, towers)
  ]
  y = jnp.concatenate([materialize(block) for block in blocks], axis=-1)
  return y if bias is None else platforms.add_bias(y, bias.astype(y.dtype))


def dense(
  x_BxN: jax.Array,
  kernel: jax.Array,
  bias: jax.Array,
  *,
  towers: int,
  dtype: Any = None,
) -> jax.Array:
  """Multiplies the units of each tower by their own weights.

  Args:
    x_BxN: input, towers side by side.
    kernel: [N / towers, units], units in tower order.
    bias: [units].
    towers: blocks of units; 1 where every unit sees every input.
    dtype: of the sums and of the result [B, units]; by default that of `x_BxN`.
  """
  blocks: Any = [
    platforms.matmul(materialize(x), w, dtype or x.dtype)
    for x, w in _towers(x_BxN, kernel, towers)
  ]
  y = jnp.concatenate(blocks, axis=-1)
  return platforms.add_bias(materialize(y), bias.astype(y.dtype))


def flatten(x_BxHxWxC: jax.Array, towers: int) -> jax.Array:
  """Lays out maps as units [B, N], those of a tower together."""
  blocks = jnp.split(x_BxHxWxC, towers, axis=-1)
  return jnp.concatenate([b.reshape(b.shape[0], -1) for b in blocks], axis=-1)


def _max_and_argmax(
  x: jax.Array, window: int, stride: int, ceil_mode: bool
) -> tuple[jax.Array, jax.Array]:
  pads = window_pads(x, window, stride, 0, ceil_mode)
  best, *others = slices(pad(x, pads, -jnp.inf), window, stride)
  winner = jnp.zeros(best.shape, jnp.int8)
  for index, candidate in enumerate(others, start=1):
    better = candidate > best
    best = jnp.where(better, candidate, best)
    winner = jnp.where(better, jnp.int8(index), winner)
  return best, winner


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(
  x_BxHxWxC: jax.Array, window: int, stride: int, ceil_mode: bool = True
) -> jax.Array:
  """Takes the maximum of each window (paper 3.4).

  Its gradient goes to the first maximum, as in XLA, whose own is slow on CPU.

  Args:
    x_BxHxWxC: input; no NaN.
    window: side in pixels, at most 11 (the winner is kept in 8 bits).
    stride: in pixels; windows overlap if it is below the window.
    ceil_mode: as in `conv`.
  """
  return _max_and_argmax(x_BxHxWxC, window, stride, ceil_mode)[0]


def _max_pool_forward(x, window, stride, ceil_mode):
  best, winner = _max_and_argmax(x, window, stride, ceil_mode)
  return best, (winner, x.shape[1:3])


def _max_pool_backward(window, stride, ceil_mode, residuals, dy):
  del ceil_mode  # The shapes tell.
  winner, sides = residuals
  return (unpool(dy, winner, sides, window, stride),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def unpool(
  dy: jax.Array,
  winner: jax.Array | None,
  sides: tuple[int, int],
  window: int,
  stride: int,
) -> jax.Array:
  """Adds up on each pixel the gradients of its windows: [B, *sides, C].

  The pixels are taken in blocks of stride x stride. Each window begins with a
  block, so the same few windows, counted from the block, cover all its pixels.
  The gradient dy goes to the place `winner` (int8) of a window, or to all.
  """
  batch, *outputs, channels = dy.shape
  reach = -(-window // stride)  # windows over a block, along an axis
  rows, cols = (count + reach - 1 for count in outputs)
  pads = ((reach - 1, reach - 1),) * 2
  dy = materialize(pad(dy, pads))
  winner = None if winner is None else materialize(pad(winner, pads))
  place = np.arange(reach * stride).reshape(reach, stride)
  dx = jnp.zeros((), dy.dtype)
  for down in range(reach):
    for right in range(reach):

      def covering(x, top=reach - 1 - down, left=reach - 1 - right):
        return x[:, top : top + rows, None, left : left + cols, None]

      i, j = np.ix_(place[down], place[right])
      places = np.where((i < window) & (j < window), i * window + j, -1)
      places = places[None, None, :, None, :, None]
      gets = places >= 0
      if winner is not None:
        gets = covering(winner) == places.astype(np.int8)
      dx = dx + jnp.where(gets, covering(dy), jnp.zeros((), dy.dtype))
  dx = dx.reshape(batch, rows * stride, cols * stride, channels)
  # A pixel that no window reads gets 0; pixels past the edge are cut off.
  cuts = tuple(
    (0, side - n) for side, n in zip(sides, dx.shape[1:3], strict=True)
  )
  return materialize(pad(dx, cuts))


def window_sum(x: jax.Array, towers: int, window: Window) -> jax.Array:
  """Sums a window around each activity, within its map and tower."""
  grouped = x.reshape(*x.shape[:-1], towers, x.shape[-1] // towers)
  rows, cols, channels = window
  sizes = (1, rows, cols, 1, channels)
  return lax.reduce_window(
    grouped,
    np.zeros((), x.dtype),
    lax.add,
    window_dimensions=sizes,
    window_strides=(1, 1, 1, 1, 1),
    padding=[(size // 2, size // 2) for size in sizes],
  ).reshape(x.shape)


def inverse_power(s: jax.Array, beta: float) -> jax.Array:
  """Returns `s ** -beta`."""
  if beta == 0.75:  # Roots cost less than a logarithm and exp.
    return lax.rsqrt(s * lax.sqrt(s))
  return s**-beta


def _denominator(x, towers, window, k, alpha):
  x = x.astype(jnp.float32)
  return k + alpha * window_sum(x * x, towers, window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def response_norm(
  x_BxHxWxC: jax.Array,
  towers: int,
  window: Window,
  k: float,
  alpha: float,
  beta: float,
) -> jax.Array:
  """Divides each activity by the activities around it (paper 3.3).

  `x / (k + alpha * sum of x^2 over the window) ** beta`. The sum ends at the
  edges of the map and at the first and last channel of a tower.

  Args:
    x_BxHxWxC: input, towers side by side along the channels.
    towers: blocks of channels that do not see one another.
    window: odd; the paper sums over 5 channels, `type=rnorm` of
      `layers-145.cfg` over 5 x 5 pixels.
    k: additive constant (paper: 2; Caffe: 1).
    alpha: weight of the sum, not of the mean (paper: 1e-4; the original program
      and Caffe divide theirs by the size of the window).
    beta: exponent (paper: 0.75).

  Returns:
    The shape and dtype of the input; computed in float32.
  """
  s = _denominator(x_BxHxWxC, towers, window, k, alpha)
  y = x_BxHxWxC.astype(jnp.float32) * inverse_power(s, beta)
  return y.astype(x_BxHxWxC.dtype)


def _response_norm_forward(x, towers, window, k, alpha, beta):
  return response_norm(x, towers, window, k, alpha, beta), x


def _response_norm_backward(towers, window, k, alpha, beta, x, dy):
  # s is computed again: that costs less than the memory to keep it.
  s = _denominator(x, towers, window, k, alpha)
  scaled = dy.astype(jnp.float32) * inverse_power(s, beta)
  x32 = x.astype(jnp.float32)
  neighbours = window_sum(scaled * x32 / s, towers, window)
  dx = scaled - (2 * alpha * beta) * x32 * neighbours
  return (dx.astype(x.dtype),)


response_norm.defvjp(_response_norm_forward, _response_norm_backward)


def dropout(
  x_BxN: jax.Array, keys_B: jax.Array, rate: float, axis: str | None = None
) -> jax.Array:
  """Zeroes each unit with probability `rate`; the rest are not rescaled.

  Args:
    x_BxN: activities, of one axis or, as maps, of three.
    keys_B: a random key per example, so that its mask depends neither on the
      batch around it nor on the device.
    rate: probability of a zero (paper 4.2: 0.5).
    axis: mesh axis that units or channels are split over; each device then uses
      its part of the whole mask.
  """
  count = x_BxN.shape[-1]
  parts = lax.axis_size(axis) if axis else 1
  whole = (*x_BxN.shape[1:-1], count * parts)
  keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, whole))(
    keys_B
  )
  if axis:
    first = lax.axis_index(axis) * count
    keep = lax.dynamic_slice_in_dim(keep, first, count, axis=-1)
  return jnp.where(keep, x_BxN, jnp.zeros((), x_BxN.dtype))
