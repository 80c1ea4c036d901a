"""The mathematics of AlexNet, forward and backward, on NHWC arrays.

Sizes follow the original program's ceil geometry (`layers-145.cfg`):
`out = 1 + ceil((in + 2 padding - window) / stride)`; what a window reads past
the right and bottom edge is zero for a convolution and absent for a pooling.
A convolution can round down instead, as torch does.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.runtime import platforms
from alexnet_jax.runtime.platforms import materialize

Pads = tuple[tuple[int, int], ...]
"""((top, bottom), (left, right)) in pixels; negative ones cut off."""

ACTIVATIONS = {
  "relu": jax.nn.relu,
  "tanh": jnp.tanh,
  "scaled_tanh": lambda x: 1.7159 * jnp.tanh(x * (2 / 3)),
  "sigmoid": jax.nn.sigmoid,
  "none": lambda x: x,
}


def output_size(
  size: int, window: int, stride: int, padding: int = 0, ceil: bool = True
) -> int:
  """Returns the side in pixels that a convolution or pooling leaves.

  Args:
    size: side of the input in pixels.
    window: side of the window in pixels.
    stride: in pixels.
    padding: zeros on either side, in pixels.
    ceil: round up, so that a last window may pass the edge; else down.
  """
  room = size + 2 * padding - window
  return 1 + (-(-room // stride) if ceil else room // stride)


def _overhang(
  size: int, window: int, stride: int, padding: int = 0, ceil: bool = True
) -> int:
  """Pixels of padding after the last one; negative where pixels go unread."""
  last = (output_size(size, window, stride, padding, ceil) - 1) * stride
  return last + window - size - padding


def pad(
  x_BxHxWxC: jax.Array, pads: Pads, *, dilation: int = 1, value: float = 0.0
) -> jax.Array:
  """Spreads rows and columns apart, then pads them or cuts them off.

  Args:
    x_BxHxWxC: maps.
    pads: in pixels; negative cuts off.
    dilation: distance in pixels between what were neighbours.
    value: of the new pixels.

  Returns:
    [B, H', W', C].
  """
  config = [(low, high, dilation - 1) for low, high in pads]
  config = [(0, 0, 0), *config, (0, 0, 0)]
  return lax.pad(x_BxHxWxC, jnp.array(value, x_BxHxWxC.dtype), config)


def _slices(x: jax.Array, window: int, stride: int) -> list[jax.Array]:
  """The window * window strided views of a padded input, row by row."""
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


@jax.custom_vjp
def _add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
  """Adds a number to each channel or unit."""
  return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


_add_bias.defvjp(
  lambda y, bias: (_add_bias(y, bias), None),
  lambda _, dy: (dy, platforms.by_platform(platforms.COLUMN_SUM, dy)),
)


@jax.custom_vjp
def _multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return x @ kernel


def _multiply_backward(residuals, dy):
  x, kernel = residuals
  return platforms.by_platform(platforms.TIMES_TRANSPOSED, dy, kernel), x.T @ dy


_multiply.defvjp(lambda x, w: (_multiply(x, w), (x, w)), _multiply_backward)


def conv(
  x_BxHxWxC: jax.Array,
  kernel: jax.Array,
  bias: jax.Array,
  *,
  stride: int,
  padding: int,
  ceil: bool,
  towers: int,
) -> jax.Array:
  """Convolves each tower's channel block with its own filters.

  One convolution per tower, concatenated: XLA's `feature_group_count` computes
  the same and is 3 to 14 times slower on CPU.

  Args:
    x_BxHxWxC: input, towers side by side along the channels.
    kernel: [kernel, kernel, C / towers, filters], filters in tower order.
    bias: [filters].
    stride: in pixels, both axes.
    padding: in pixels, before the first row and column.
    ceil: whether a last window may pass the right and bottom edge.
    towers: number of channel blocks; 1 where every filter sees every channel.

  Returns:
    [B, H', W', filters] in the dtype of `x_BxHxWxC`.
  """
  window = kernel.shape[0]
  pads = tuple(
    (padding, _overhang(size, window, stride, padding, ceil))
    for size in x_BxHxWxC.shape[1:3]
  )

  blocks = [
    materialize(
      lax.conv_general_dilated(
        materialize(x),
        w,
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
      )
    )
    for x, w in zip(
      jnp.split(x_BxHxWxC, towers, axis=-1),
      jnp.split(kernel, towers, axis=-1),
      strict=True,
    )
  ]
  y = blocks[0] if towers == 1 else jnp.concatenate(blocks, axis=-1)
  return _add_bias(y, bias)


def dense(
  x_BxN: jax.Array, kernel: jax.Array, bias: jax.Array, *, towers: int
) -> jax.Array:
  """Multiplies each tower's block of units by its own weights.

  Args:
    x_BxN: input, towers side by side.
    kernel: [N / towers, units], units in tower order.
    bias: [units].
    towers: number of blocks; 1 where every unit sees every unit below.

  Returns:
    [B, units].
  """
  blocks = [
    _multiply(materialize(x), w)
    for x, w in zip(
      jnp.split(x_BxN, towers, axis=-1),
      jnp.split(kernel, towers, axis=-1),
      strict=True,
    )
  ]
  y = blocks[0] if towers == 1 else jnp.concatenate(blocks, axis=-1)
  return _add_bias(materialize(y), bias)


def flatten(x_BxHxWxC: jax.Array, towers: int) -> jax.Array:
  """Lays out maps as units [B, N], those of a tower together."""
  blocks = jnp.split(x_BxHxWxC, towers, axis=-1)
  return jnp.concatenate([b.reshape(b.shape[0], -1) for b in blocks], axis=-1)


def _pool_pads(
  x: jax.Array, window: int, stride: int, ceil: bool = True
) -> Pads:
  return tuple(
    (0, _overhang(size, window, stride, ceil=ceil)) for size in x.shape[1:3]
  )


def _max_and_argmax(
  x: jax.Array, window: int, stride: int, ceil: bool
) -> tuple[jax.Array, jax.Array]:
  x = pad(x, _pool_pads(x, window, stride, ceil), value=-jnp.inf)
  best, *others = _slices(x, window, stride)
  winner = jnp.zeros(best.shape, jnp.int8)
  for index, candidate in enumerate(others, start=1):
    better = candidate > best
    best = jnp.where(better, candidate, best)
    winner = jnp.where(better, jnp.int8(index), winner)
  return best, winner


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(
  x_BxHxWxC: jax.Array, window: int, stride: int, ceil: bool = True
) -> jax.Array:
  """Takes the maximum of each window (paper 3.4); overlapping if it is wider.

  The backward pass sends the whole gradient to the first maximum of a window,
  as the select-and-scatter of XLA does, which is slow on CPU.

  Args:
    x_BxHxWxC: input; no NaN.
    window: side in pixels, at most 11 (the winner is kept in 8 bits).
    stride: in pixels.
    ceil: whether a last window may pass the right and bottom edge.

  Returns:
    [B, H', W', C].
  """
  return _max_and_argmax(x_BxHxWxC, window, stride, ceil)[0]


def _max_pool_forward(x, window, stride, ceil):
  best, winner = _max_and_argmax(x, window, stride, ceil)
  return best, (winner, x.shape[1:3])


def _max_pool_backward(window, stride, ceil, residuals, dy):
  del ceil  # The shapes tell.
  winner, sides = residuals
  return (_unpool(dy, winner, sides, window, stride),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _unpool(
  dy: jax.Array,
  winner: jax.Array | None,
  sides: tuple[int, int],
  window: int,
  stride: int,
) -> jax.Array:
  """Adds up on each pixel what the windows over it send back.

  Pixels are seen as blocks of stride x stride: a window begins with a block,
  and the same few windows, counted from there, cover all pixels of a block.

  Args:
    dy: [B, H', W', C].
    winner: int8 place in each window that gets all of it; None if all places
      get it.
    sides: H and W of the pooled input.
    window: side in pixels.
    stride: in pixels.

  Returns:
    [B, H, W, C].
  """
  batch, *outputs, channels = dy.shape
  reach = -(-window // stride)
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
      sent = places >= 0
      if winner is not None:
        sent = covering(winner) == places.astype(np.int8)
      dx = dx + jnp.where(sent, covering(dy), jnp.zeros((), dy.dtype))
  dx = dx.reshape(batch, rows * stride, cols * stride, channels)
  # Pixels that no window reads get nothing; those past the edge are not there.
  return materialize(
    pad(
      dx,
      tuple(
        (0, side - size)
        for side, size in zip(sides, dx.shape[1:3], strict=True)
      ),
    )
  )


def _window_pixels(x: jax.Array, window: int, stride: int) -> jax.Array:
  """Counts the real pixels in each window: [1, H', W', 1]."""
  ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
  ones = pad(ones, _pool_pads(x, window, stride))
  return functools.reduce(jnp.add, _slices(ones, window, stride))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def average_pool(x_BxHxWxC: jax.Array, window: int, stride: int) -> jax.Array:
  """Averages each window over the pixels that it really holds.

  Args:
    x_BxHxWxC: input.
    window: side in pixels.
    stride: in pixels.

  Returns:
    [B, H', W', C].

  Source: the average pooling of cuda-convnet's `layers-19pct.cfg`.
  """
  x = pad(x_BxHxWxC, _pool_pads(x_BxHxWxC, window, stride))
  total = functools.reduce(jnp.add, _slices(x, window, stride))
  return total / _window_pixels(x_BxHxWxC, window, stride)


def _average_pool_forward(x, window, stride):
  counts = _window_pixels(x, window, stride)
  return average_pool(x, window, stride), (counts, x.shape[1:3])


def _average_pool_backward(window, stride, residuals, dy):
  counts, sides = residuals
  return (_unpool(dy / counts, None, sides, window, stride),)


average_pool.defvjp(_average_pool_forward, _average_pool_backward)


Span = tuple[int, int, int]
"""Rows, columns and channels that a response norm sums over, all odd."""


def _window_sum(x: jax.Array, towers: int, span: Span) -> jax.Array:
  """Sums a window around each activity, clipped at the edges of its tower."""
  grouped = x.reshape(*x.shape[:-1], towers, x.shape[-1] // towers)
  rows, cols, channels = span
  window = (1, rows, cols, 1, channels)
  return lax.reduce_window(
    grouped,
    jnp.zeros((), x.dtype),
    lax.add,
    window_dimensions=window,
    window_strides=(1, 1, 1, 1, 1),
    padding=[(size // 2, size // 2) for size in window],
  ).reshape(x.shape)


def _inverse_power(s: jax.Array, beta: float) -> jax.Array:
  if beta == 0.75:  # Roots cost less than a logarithm and exp.
    return lax.rsqrt(s * lax.sqrt(s))
  return s**-beta


def _denominator(x, towers, span, k, alpha):
  x = x.astype(jnp.float32)
  return k + alpha * _window_sum(x * x, towers, span)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _response_norm(x, towers, span, k, alpha, beta):
  """Returns x / (k + alpha * sum of x^2 over the span) ** beta."""
  s = _denominator(x, towers, span, k, alpha)
  y = x.astype(jnp.float32) * _inverse_power(s, beta)
  return y.astype(x.dtype)


def _response_norm_forward(x, towers, span, k, alpha, beta):
  return _response_norm(x, towers, span, k, alpha, beta), x


def _response_norm_backward(towers, span, k, alpha, beta, x, dy):
  # s is computed anew: cheaper than the memory to keep it.
  s = _denominator(x, towers, span, k, alpha)
  scaled = dy.astype(jnp.float32) * _inverse_power(s, beta)
  x32 = x.astype(jnp.float32)
  spread = _window_sum(scaled * x32 / s, towers, span)
  dx = scaled - (2 * alpha * beta) * x32 * spread
  return (dx.astype(x.dtype),)


_response_norm.defvjp(_response_norm_forward, _response_norm_backward)


def local_response_norm(
  x_BxHxWxC: jax.Array,
  towers: int,
  k: float,
  alpha: float,
  beta: float,
  window: int,
) -> jax.Array:
  """Divides each activity by its neighbours' energy (paper 3.3).

  `x / (k + alpha * sum of x^2 over window channels) ** beta`, the sum clipped
  at the first and last channel of a tower.

  Args:
    x_BxHxWxC: input, towers side by side along the channels.
    towers: number of channel blocks that do not see each other.
    k: additive constant (paper: 2; Caffe: 1).
    alpha: weight of the sum itself, not of the mean (paper: 1e-4; the program
      and Caffe divide theirs by the window).
    beta: exponent (paper: 0.75).
    window: number of channels in the sum, odd (paper: n = 5).

  Returns:
    [B, H, W, C] in the dtype of the input; computed in float32.
  """
  return _response_norm(x_BxHxWxC, towers, (1, 1, window), k, alpha, beta)


def map_norm(
  x_BxHxWxC: jax.Array, k: float, alpha: float, beta: float, window: int
) -> jax.Array:
  """Divides each activity by the energy around it in its own map.

  `x / (k + alpha * sum of x^2 over window x window pixels) ** beta`, the sum
  clipped at the edges of the map.

  Args:
    x_BxHxWxC: input.
    k: additive constant.
    alpha: weight of the sum itself (run 145: 1e-3 / 25).
    beta: exponent.
    window: side of the square in pixels, odd.

  Returns:
    [B, H, W, C] in the dtype of the input; computed in float32.

  Source: `type=rnorm` of `layers-145.cfg`.
  """
  return _response_norm(x_BxHxWxC, 1, (window, window, 1), k, alpha, beta)


def dropout(
  x_BxN: jax.Array, keys_B: jax.Array, rate: float, axis: str | None = None
) -> jax.Array:
  """Zeroes each unit with probability `rate`; the rest are not rescaled.

  Each example has its own key, so that its mask depends neither on the batch
  around it nor on the device that computes it.

  Args:
    x_BxN: activities, of one axis or, as maps, of three.
    keys_B: one random key per example.
    rate: probability of a zero (paper 4.2: 0.5).
    axis: of the mesh that units or channels are split over, each device having
      its part of the whole mask.

  Returns:
    The shape of `x_BxN`.
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
