"""Convolution by four algorithms: one signature, equal results.

`f(x_BxHxWxC, kernel_HWIO, stride, pads) -> y_BxH'xW'xO` slides a square window
as machine learning does (a correlation): `H' = 1 + (H + pads - window) //
stride`. A pad is a count of zeros before the first and after the last pixel of
an axis; a negative one cuts pixels off. Results have the dtype of the input
and are summed in float32. The package convolves as `direct` does.

Both gradients of a convolution are convolutions. The input's gradient convolves
dy, dilated by the stride, with the kernel turned by 180 degrees. The kernel's
gradient convolves the input with dy as the window. Each algorithm computes both
in its own way.
"""

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.ops import Pads, pad
from alexnet_jax.runtime import errors


def _outputs(
  x: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> list[int]:
  """Returns the height and width of the result."""
  window = len(kernel)
  sizes = [
    size + sum(pad) for size, pad in zip(x.shape[1:3], pads, strict=True)
  ]
  if min(sizes) < window:
    raise errors.InputError(
      f"{window=} is wider than the padded input of {sizes[0]} x {sizes[1]}"
      f" pixels; try a window of {max(min(sizes), 1)} or more padding."
    )
  return [(size - window) // stride + 1 for size in sizes]


def _unpad(x: jax.Array, pads: Pads, sides: Sequence[int]) -> jax.Array:
  """Keeps the pixels of the input, of H x W, in what belongs to its padding.

  Args:
    x: [B, _, _, C] from the first padded pixel on; zero past its end.
    pads: of the input.
    sides: H and W.
  """
  return pad(
    x,
    tuple(
      (-low, side + low - size)
      for (low, _), side, size in zip(pads, sides, x.shape[1:3], strict=True)
    ),
  )


def direct(
  x_BxHxWxC: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> jax.Array:
  """Convolves by what XLA has: sums over the window, in place.

  Args:
    x_BxHxWxC: input.
    kernel: [window, window, C, O].
    stride: in pixels, both axes.
    pads: ((top, bottom), (left, right)) in pixels; negative cuts off.

  Returns:
    [B, H', W', O] in the dtype of the input.

  Raises:
    InputError: the window is wider than the padded input.
  """
  _outputs(x_BxHxWxC, kernel, stride, pads)
  return lax.conv_general_dilated(
    x_BxHxWxC,
    kernel,
    (stride, stride),
    pads,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


# im2col.


def _patches(x_BxHxWxC: jax.Array, window: int, stride: int) -> jax.Array:
  """Lays out padded images as a [B H' W', window^2 C] matrix."""
  rows, cols = ((n - window) // stride + 1 for n in x_BxHxWxC.shape[1:3])

  def along(x, axis, count):
    last = (count - 1) * stride + 1
    views = [
      lax.slice_in_dim(x, start, start + last, stride, axis)
      for start in range(window)
    ]
    return jnp.concatenate(views, axis=-1)

  # First along the rows, then down the columns: far quicker to compile than
  # all places of the window at once.
  matrix = along(along(x_BxHxWxC, 2, cols), 1, rows)
  return matrix.reshape(-1, matrix.shape[-1])


def _add_patches(matrix: jax.Array, stride: int) -> jax.Array:
  """Adds up patches where they lie, the transpose of `_patches` (col2im).

  Pixels whose places leave the same remainder by the stride see the same
  places of a window: each of these sets is a sum of shifted maps, and the sets
  are interleaved. (Dilating the maps instead is slow on CPU.)

  Args:
    matrix: [B, H', W', window, window, C].
    stride: in pixels.

  Returns:
    [B, H, W, C] from the first padded pixel on, with zeros past the last.
  """

  def along(x, axis):
    window = x.shape[3]
    reach = -(-window // stride) - 1
    config = [(0, 0, 0)] * (x.ndim - 1)

    def pixels(remainder):
      total = jnp.zeros((), x.dtype)
      for shift, place in enumerate(range(remainder, window, stride)):
        config[axis] = (shift, reach - shift, 0)
        total += lax.pad(x[:, :, :, place], jnp.zeros((), x.dtype), config)
      return jnp.broadcast_to(total, shape)

    shape = [*x.shape[:3], *x.shape[4:]]
    shape[axis] += reach
    y = jnp.stack([pixels(r) for r in range(stride)], axis + 1)
    shape[axis] *= stride
    return y.reshape(shape)

  return along(along(matrix, 1), 2)


def _groups(x: jax.Array, group: int) -> jax.Array:
  """Splits a batch into groups of a size that divides it."""
  return x.reshape(-1, math.gcd(len(x), group), *x.shape[1:])


def _gemm(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def im2col(
  x_BxHxWxC: jax.Array,
  kernel: jax.Array,
  stride: int,
  pads: Pads,
  group: int = 0,
) -> jax.Array:
  """Convolves by one GEMM of the matrix of all patches with the filters.

  For conv1 an image makes 3025 patches of 363 numbers, for 96 filters. The
  matrix is about (window / stride)^2 times as large as the input.

  Args:
    x_BxHxWxC: input.
    kernel: [window, window, C, O].
    stride: in pixels, both axes.
    pads: ((top, bottom), (left, right)) in pixels; negative cuts off.
    group: images in a GEMM, so that their patches fit a cache; the greatest
      number that divides this and the batch is taken. 0 means all.

  Returns:
    [B, H', W', O] in the dtype of the input.

  Raises:
    InputError: the window is wider than the padded input.

  Source: Chellapilla et al. 2006; cuDNN, arXiv 1410.0759.
  """
  rows, cols = _outputs(x_BxHxWxC, kernel, stride, pads)
  window, _, _, filters = kernel.shape
  y = lax.map(
    lambda x: _gemm(_patches(x, window, stride), kernel.reshape(-1, filters)),
    _groups(pad(x_BxHxWxC, pads), group),
  )
  return y.reshape(-1, rows, cols, filters).astype(x_BxHxWxC.dtype)


def _im2col_forward(x, kernel, stride, pads, group):
  return im2col(x, kernel, stride, pads, group), (x, kernel)


def _im2col_backward(stride, pads, group, residuals, dy):
  x, kernel = residuals
  window, _, channels, filters = kernel.shape

  def to_input(dy):
    matrix = _gemm(dy, kernel.reshape(-1, filters).T)
    shape = (*dy.shape[:3], window, window, channels)
    return _add_patches(matrix.reshape(shape), stride)

  def to_kernel(x, dy):
    return _gemm(_patches(x, window, stride).T, dy.reshape(-1, filters))

  sides = x.shape[1:3]
  x, dys = _groups(pad(x, pads), group), _groups(dy, group)
  dx = lax.map(to_input, dys)
  dx = _unpad(dx.reshape(len(dy), *dx.shape[2:]), pads, sides)
  dkernel, _ = lax.scan(
    lambda total, some: (total + to_kernel(*some), None),
    to_kernel(x[0], dys[0]),
    (x[1:], dys[1:]),
  )
  dkernel = dkernel.reshape(kernel.shape)
  return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


im2col.defvjp(_im2col_forward, _im2col_backward)


# FFT.


def _spectrum_sides(x: jax.Array, pads: Pads) -> list[int]:
  """Sides without wrap-around: the padded input's or the next 2^a 3^b 5^c."""
  return [
    next(n for n in itertools.count(size + sum(pad)) if 30**16 % n == 0)
    for size, pad in zip(x.shape[1:3], pads, strict=True)
  ]


def _maps_to_spectra(x_BxHxWxC: jax.Array, sides: Sequence[int]) -> jax.Array:
  """Returns [U, V, B, C], complex; V = W / 2 + 1 as the maps are real."""
  maps = jnp.moveaxis(x_BxHxWxC.astype(jnp.float32), 3, 1)
  return jnp.moveaxis(jnp.fft.rfft2(maps, s=sides), (2, 3), (0, 1))


def _spectra_to_maps(spectra: jax.Array, sides: Sequence[int]) -> jax.Array:
  """Returns [B, H, W, C] of [U, V, B, C]."""
  spectra = jnp.moveaxis(spectra, (0, 1), (2, 3))
  return jnp.moveaxis(jnp.fft.irfft2(spectra, s=sides), 1, 3)


def _waves(
  sides: Sequence[int], window: int, sign: int
) -> tuple[np.ndarray, np.ndarray]:
  """exp(2 pi i sign u x / side) down and across: [U, window], [V, window]."""
  rows, cols = sides

  def waves(side, count):
    turns = np.outer(np.arange(count), np.arange(window)) / side
    return np.exp(2j * np.pi * sign * turns).astype(np.complex64)

  return waves(rows, rows), waves(cols, cols // 2 + 1)


def _kernel_to_spectra(
  kernel: jax.Array, sides: Sequence[int], sign: int = -1
) -> jax.Array:
  """Returns [U, V, C, O]; a few pixels need small matrices and no FFT.

  Args:
    kernel: [window, window, C, O].
    sides: of the maps that it is to be multiplied with.
    sign: of the exponent; 1 for the conjugate.
  """
  down, across = _waves(sides, len(kernel), sign)
  half = jnp.einsum("vy,xyco->xvco", across, kernel.astype(jnp.complex64))
  return jnp.einsum("ux,xvco->uvco", down, half)


def _spectra_to_kernel(
  spectra: jax.Array, sides: Sequence[int], window: int
) -> jax.Array:
  """Returns the first pixels [window, window, C, O] of [U, V, C, O]."""
  down, across = _waves(sides, window, 1)
  # All frequencies but the lowest, and the highest of an even number, stand
  # for their mirror image too.
  rows, cols = sides
  across[1 : (cols + 1) // 2] *= 2
  half = jnp.einsum("ux,uvco->xvco", down, spectra)
  sums = jnp.einsum("vy,xvco->xyco", across, half).real
  return sums / (rows * cols)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def fft(
  x_BxHxWxC: jax.Array, kernel: jax.Array, stride: int, pads: Pads
) -> jax.Array:
  """Convolves by products of spectra, summed over the channels.

  A GEMM [B, C] x [C, O] for each of about H W / 2 frequencies, whatever the
  window. A stride saves nothing: all places are computed, and some are kept.

  Args:
    x_BxHxWxC: input.
    kernel: [window, window, C, O].
    stride: in pixels, both axes.
    pads: ((top, bottom), (left, right)) in pixels; negative cuts off.

  Returns:
    [B, H', W', O] in the dtype of the input.

  Raises:
    InputError: the window is wider than the padded input.

  Source: Mathieu et al. 2013, arXiv 1312.5851.
  """
  rows, cols = _outputs(x_BxHxWxC, kernel, stride, pads)
  sides = _spectrum_sides(x_BxHxWxC, pads)
  x = _maps_to_spectra(pad(x_BxHxWxC, pads), sides)
  y = x @ _kernel_to_spectra(kernel, sides, sign=1)
  y = _spectra_to_maps(y, sides)[:, ::stride, ::stride][:, :rows, :cols]
  return y.astype(x_BxHxWxC.dtype)


def _fft_forward(x, kernel, stride, pads):
  return fft(x, kernel, stride, pads), (x, kernel)


def _fft_backward(stride, pads, residuals, dy):
  x, kernel = residuals
  sides = _spectrum_sides(x, pads)
  dilation = (0, 0, stride - 1)
  config = [(0, 0, 0), dilation, dilation, (0, 0, 0)]
  dilated = lax.pad(dy, jnp.zeros((), dy.dtype), config)
  dy = _maps_to_spectra(dilated, sides)
  dx = dy @ _kernel_to_spectra(kernel, sides).swapaxes(2, 3)
  dx = _unpad(_spectra_to_maps(dx, sides), pads, x.shape[1:3])
  dkernel = _maps_to_spectra(pad(x, pads), sides).swapaxes(2, 3) @ dy.conj()
  dkernel = _spectra_to_kernel(dkernel, sides, len(kernel))
  return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


fft.defvjp(_fft_forward, _fft_backward)


# Winograd.

Matrix = tuple[tuple[Fraction, ...], ...]

TILES = {3: (2, 4), 5: (2,)}
"""Sides of a tile of the result, for each window that there is one for."""
POINTS = (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2))
"""1/2 beside -2 rounds better than the usual 2."""


class Transforms(NamedTuple):
  """The matrices of F(m, r), with n = m + r - 1.

  `output.T @ ((kernel @ g) * (data @ d))` are the m sums that the r weights g
  make as they slide over the n numbers d.

  Attributes:
    output: A of the paper, [n, m].
    kernel: G of the paper, [n, r].
    data: B^T of the paper, [n, n].
  """

  output: Matrix
  kernel: Matrix
  data: Matrix


@functools.cache
def cook_toom(tile: int, window: int) -> Transforms:
  """Derives the transforms of F(tile, window), exact.

  The product of two polynomials of `tile` and `window` coefficients is found
  by its values at n - 1 points and its highest coefficient ("the value at
  infinity"), by Lagrange's formula; the transpose of this is a correlation.

  Args:
    tile: m, the numbers that come out.
    window: r, the weights; `tile + window - 2` points of `POINTS` are used.

  Source: Lavin and Gray 2015, arXiv 1509.09308; Winograd 1980.
  """
  points = POINTS[: tile + window - 2]

  def polynomial(roots):
    """Coefficients of the product of all x - root, lowest first."""
    product = [Fraction(1)]
    for root in roots:
      shifted, scaled = [0, *product], [*(root * c for c in product), 0]
      product = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return product

  def powers(count):
    rows = [[point**k for k in range(count)] for point in points]
    return [*rows, [Fraction(k == count - 1) for k in range(count)]]

  bases = [polynomial(p for p in points if p != point) for point in points]
  scales = [
    math.prod(point - p for p in points if p != point) for point in points
  ]
  kernel = [
    [entry / scale for entry in row]
    for row, scale in zip(powers(window), [*scales, 1], strict=True)
  ]
  data = [*([*base, Fraction(0)] for base in bases), polynomial(points)]
  return Transforms(
    *(tuple(map(tuple, rows)) for rows in (powers(tile), kernel, data))
  )


def _mix(matrix: Matrix, views: Sequence[jax.Array]) -> jax.Array:
  """Returns the rows of `matrix @ views`, stacked; zeros cost nothing."""
  return jnp.stack(
    [
      functools.reduce(
        operator.add,
        [float(c) * v for c, v in zip(row, views, strict=True) if c],
      )
      for row in matrix
    ]
  )


def _mix_axes(matrix: Matrix, x: jax.Array) -> jax.Array:
  """Mixes along both of the first two axes, which change places."""
  x = _mix(matrix, list(x))
  return _mix(matrix, [x[:, i] for i in range(x.shape[1])])


def _mix_tiles(
  matrix: Matrix, x_BxHxWxC: jax.Array, step: int, counts: Sequence[int]
) -> jax.Array:
  """Mixes along the rows and columns of overlapping tiles.

  Args:
    matrix: [n, size].
    x_BxHxWxC: images, covered by tiles of `size` x `size` pixels.
    step: from a tile to the next, in pixels.
    counts: tiles down and across.

  Returns:
    [n^2, B tiles, C] in float32: a matrix for each place in a tile.
  """

  def along(x, axis, count):
    last = (count - 1) * step + 1
    views = [
      lax.slice_in_dim(x, start, start + last, step, axis)
      for start in range(len(matrix[0]))
    ]
    return _mix(matrix, views)

  down, across = counts
  y = along(along(x_BxHxWxC.astype(jnp.float32), 1, down), 3, across)
  return y.reshape(len(matrix) ** 2, -1, x_BxHxWxC.shape[-1])


def _tile_counts(tile: int, outputs: Sequence[int]) -> list[int]:
  return [-(-size // tile) for size in outputs]


def _data_tiles(x, window, pads, tile, outputs):
  counts = _tile_counts(tile, outputs)
  pads = tuple(
    (low, high + count * tile - size)
    for (low, high), count, size in zip(pads, counts, outputs, strict=True)
  )
  data = cook_toom(tile, window).data
  return _mix_tiles(data, pad(x, pads), tile, counts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def winograd(
  x_BxHxWxC: jax.Array,
  kernel: jax.Array,
  stride: int,
  pads: Pads,
  tile: int = 2,
) -> jax.Array:
  """Convolves tile by tile with fewer multiplications.

  F(2x2, 3x3) multiplies 2.25 times, F(4x4, 3x3) 4 times and F(2x2, 5x5) 2.78
  times less often than the definition, if the tiles fit; the larger the tile,
  the larger the rounding errors.

  Args:
    x_BxHxWxC: input.
    kernel: [window, window, C, O]; a window of 3 or 5.
    stride: 1.
    pads: ((top, bottom), (left, right)) in pixels; negative cuts off.
    tile: side in pixels of the part of the result that is made at a time: 2,
      or for a window of 3 also 4.

  Returns:
    [B, H', W', O] in the dtype of the input.

  Raises:
    InputError: a stride, window or tile that there are no transforms for, or
      the window is wider than the padded input.

  Source: Lavin and Gray 2015, arXiv 1509.09308.
  """
  outputs = _outputs(x_BxHxWxC, kernel, stride, pads)
  window, _, _, filters = kernel.shape
  if stride != 1:
    raise errors.InputError(
      f"{stride=} is not for Winograd, which slides by 1; try direct or im2col."
    )
  if tile not in TILES.get(window, ()):
    known = ", ".join(
      f"F({m}x{m}, {r}x{r})" for r, sides in TILES.items() for m in sides
    )
    raise errors.InputError(
      f"F({tile}x{tile}, {window}x{window}) is no known Winograd algorithm;"
      f" try {known}, or direct."
    )
  transforms = cook_toom(tile, window)
  v = _data_tiles(x_BxHxWxC, window, pads, tile, outputs)
  u = _mix_axes(transforms.kernel, kernel.astype(jnp.float32))
  y = _gemm(v, u.reshape(len(v), *u.shape[2:]))

  side = len(transforms.data)
  counts = _tile_counts(tile, outputs)
  y = y.reshape(side, side, len(x_BxHxWxC), *counts, filters)
  y = _mix_axes(tuple(zip(*transforms.output, strict=True)), y)
  y = y.transpose(2, 3, 0, 4, 1, 5)
  y = y.reshape(len(x_BxHxWxC), *(count * tile for count in counts), filters)
  return y[:, : outputs[0], : outputs[1]].astype(x_BxHxWxC.dtype)


def _winograd_forward(x, kernel, stride, pads, tile):
  return winograd(x, kernel, stride, pads, tile), (x, kernel)


def _winograd_backward(stride, pads, tile, residuals, dy):
  x, kernel = residuals
  # What the input gets is a convolution of dy with the kernel turned round.
  reach = len(kernel) - 1
  new_pads = tuple((reach - low, reach - high) for low, high in pads)
  turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  dx = winograd(dy, turned, stride, new_pads, tile)

  transforms = cook_toom(tile, len(kernel))
  outputs = dy.shape[1:3]
  v = _data_tiles(x, len(kernel), pads, tile, outputs)
  counts = _tile_counts(tile, outputs)
  dy = pad(
    dy,
    tuple(
      (0, count * tile - size)
      for count, size in zip(counts, outputs, strict=True)
    ),
  )
  dy = _mix_tiles(transforms.output, dy, tile, counts)
  du = _gemm(v.swapaxes(1, 2), dy)
  side = len(transforms.data)
  du = du.reshape(side, side, *du.shape[1:])
  dkernel = _mix_axes(tuple(zip(*transforms.kernel, strict=True)), du)
  return dx, dkernel.astype(kernel.dtype)


winograd.defvjp(_winograd_forward, _winograd_backward)
