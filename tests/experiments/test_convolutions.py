"""Four algorithms of convolution, and their gradients, against a loop."""

import functools
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.runtime import errors
from experiments.convolutions import algorithms as convolutions


def loop(x, kernel, dy, stride, pads):
  """The result and both gradients, pixel by pixel in float64.

  Args:
    x: [B, H, W, C].
    kernel: [window, window, C, O].
    dy: from the shape of the result to its gradient.
    stride: in pixels.
    pads: ((top, bottom), (left, right)).
  """
  x, kernel = np.float64(x), np.float64(kernel)
  batch, height, width, _ = x.shape
  window, _, _, filters = kernel.shape
  (top, bottom), (left, right) = pads
  rows = range(-top, height + bottom - window + 1, stride)
  cols = range(-left, width + right - window + 1, stride)
  y = np.zeros((batch, len(rows), len(cols), filters))
  dx, dkernel = np.zeros(x.shape), np.zeros(kernel.shape)
  dy = np.float64(dy(y.shape))
  for a, first_row in enumerate(rows):
    for b, first_col in enumerate(cols):
      for i, j in np.ndindex(window, window):
        row, col = first_row + i, first_col + j
        if 0 <= row < height and 0 <= col < width:
          y[:, a, b] += x[:, row, col] @ kernel[i, j]
          dx[:, row, col] += dy[:, a, b] @ kernel[i, j].T
          dkernel[i, j] += x[:, row, col].T @ dy[:, a, b]
  return y, dx, dkernel


def normal(seed, shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Case(NamedTuple):
  """Shapes and places of a convolution."""

  shape: tuple[int, int, int, int]
  filters: int
  window: int
  stride: int
  pads: tuple[tuple[int, int], tuple[int, int]]

  def inputs(self):
    """Input and kernel."""
    kernel = self.window, self.window, self.shape[-1], self.filters
    return normal(0, self.shape), normal(1, kernel)

  def expected(self, inputs):
    """Result and gradients of the loop."""
    dy = functools.partial(normal, 2)
    return loop(*inputs, dy, self.stride, self.pads)


def evenly(low, high=None):
  return ((low, low if high is None else high),) * 2


STRIDED = {
  "conv1, past the edge": Case((2, 24, 22, 3), 4, 11, 4, ((0, 3), (0, 1))),
  "padded and cut": Case((6, 9, 8, 4), 3, 4, 2, ((3, -1), (-2, 2))),
}
FIVES = {
  "conv2": Case((6, 7, 8, 4), 3, 5, 1, evenly(2)),
  "5x5, padded and cut": Case((1, 9, 8, 4), 3, 5, 1, ((-1, 4), (6, -2))),
}
THREES = {
  "3x3, smaller than a tile": Case((2, 2, 1, 4), 3, 3, 1, evenly(1)),
  "3x3, padded and cut": Case((2, 8, 7, 4), 3, 3, 1, ((-3, 2), (1, -2))),
}
ANY = STRIDED | FIVES | THREES
ALGORITHMS = {
  "direct": (convolutions.direct, STRIDED),
  "im2col": (convolutions.im2col, ANY),
  "im2col in groups": (functools.partial(convolutions.im2col, group=4), ANY),
  "fft": (convolutions.fft, ANY),
  "F(2x2, 3x3)": (functools.partial(convolutions.winograd, tile=2), THREES),
  "F(4x4, 3x3)": (functools.partial(convolutions.winograd, tile=4), THREES),
  "F(2x2, 5x5)": (functools.partial(convolutions.winograd, tile=2), FIVES),
}

quick_jit = functools.partial(  # Compiles in half the time.
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def actual(algorithm, case, inputs, jit=jax.jit):
  """The result and both gradients of an algorithm."""

  @jit
  def all_three(x, kernel):
    def convolve(x, kernel):
      return algorithm(x, kernel, case.stride, case.pads)

    y, pull_back = jax.vjp(convolve, x, kernel)
    return y, *pull_back(jnp.asarray(normal(2, y.shape), y.dtype))

  return all_three(*inputs)


def relative_errors(values, expected):
  """The largest error of each, relative to the largest value."""
  for value, wanted in zip(values, expected, strict=True):
    assert value.shape == wanted.shape
  return [
    np.abs(np.float64(value) - wanted).max() / np.abs(wanted).max()
    for value, wanted in zip(values, expected, strict=True)
  ]


@pytest.mark.parametrize(
  ("name", "geometry"),
  [(name, g) for name, (_, cases) in ALGORITHMS.items() for g in cases],
)
def test_algorithm_equals_the_loop(name, geometry):
  """Catches a tile, pad, place or frequency that is off by one."""
  case, (algorithm, _) = ANY[geometry], ALGORITHMS[name]
  inputs = case.inputs()
  values = actual(algorithm, case, inputs, quick_jit)
  assert max(relative_errors(values, case.expected(inputs))) < 1e-5
  assert {value.dtype for value in values} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_bfloat16_is_added_up_in_float32(name):
  """Catches transforms in bfloat16: errors of several percent."""
  algorithm, _ = ALGORITHMS[name]
  case = Case((2, 7, 6, 64), 8, 5 if "5x5" in name else 3, 1, evenly(1))
  inputs = [jnp.asarray(x, jnp.bfloat16) for x in case.inputs()]
  values = actual(algorithm, case, inputs, quick_jit)
  assert {value.dtype for value in values} == {jnp.dtype("bfloat16")}
  # dy is rounded to 2^-9 of each number, as results are.
  assert max(relative_errors(values, case.expected(inputs))) < 2**-7


# Winograd's matrices.


def multiplied(matrix, vector):
  return [
    sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix
  ]


WINOGRAD = [
  (tile, window)
  for window, tiles in convolutions.TILES.items()
  for tile in tiles
]


@pytest.mark.parametrize(("tile", "window"), WINOGRAD)
def test_winograd_is_exact_in_fractions(tile, window):
  """Of every unit weight and unit datum, and so of all by linearity."""
  a, g, b_transposed = convolutions.cook_toom(tile, window)
  size = tile + window - 1
  for weight in range(window):
    for place in range(size):
      weights = [Fraction(k == weight) for k in range(window)]
      data = [Fraction(k == place) for k in range(size)]
      products = [
        u * v
        for u, v in zip(
          multiplied(g, weights), multiplied(b_transposed, data), strict=True
        )
      ]
      sums = multiplied(zip(*a, strict=True), products)
      assert sums == [Fraction(k + weight == place) for k in range(tile)]


@pytest.mark.parametrize(("tile", "window"), WINOGRAD)
def test_only_the_transform_of_the_kernel_is_rounded(tile, window):
  transforms = convolutions.cook_toom(tile, window)
  for matrix in (transforms.output, transforms.data):
    for entry in (entry for row in matrix for entry in row):
      assert Fraction(float(np.float32(float(entry)))) == entry


def test_what_has_no_algorithm_is_refused():
  def refused(words, algorithm, window, *arguments):
    x, kernel = Case((1, 9, 9, 2), 2, window, 1, evenly(0)).inputs()
    with pytest.raises(errors.InputError, match=words):
      algorithm(x, kernel, *arguments)

  winograd = convolutions.winograd
  refused(r"stride=2 .* slides by 1", winograd, 3, 2, evenly(0), 2)
  refused(r"F\(4x4, 5x5\) is no known", winograd, 5, 1, evenly(0), 4)
  cut = ((0, 0), (1, -8))
  refused("window=3 is wider than", convolutions.direct, 3, 1, cut)
