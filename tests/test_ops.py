"""Every operation and its gradients against literal numpy and plain jax."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import lax

from alexnet_jax import ops
from alexnet_jax.layers import run131
from alexnet_jax.layers.average_pool import average_pool

POOLS = {"max_pool": ops.max_pool, "average_pool": average_pool}


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(actual, expected, tolerance=1e-5):
  """Relative to the largest value, as sums of many terms round."""
  expected = np.asarray(expected)
  assert np.shape(actual) == expected.shape
  scale = np.abs(expected).max()
  np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


# One operation each: ours, the loop, a plain spelling in jax, and its inputs.


class Case(NamedTuple):
  """What must agree; the gradient of `loop` is taken by differences."""

  ours: Callable
  loop: Callable
  plain: Callable
  inputs: tuple


def conv_case(shape, filters, kernel, stride, padding, towers, ceil=True):
  settings = {
    "stride": stride,
    "padding": padding,
    "towers": towers,
    "ceil_mode": ceil,
  }

  def plain(x, w, b):
    pads = (padding, padding + (stride - 1 if ceil else 0))
    y = lax.conv_general_dilated(
      x,
      w,
      (stride, stride),
      (pads, pads),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=towers,
    )
    return y + b.reshape(1, 1, 1, -1)

  return Case(
    functools.partial(ops.conv, **settings),
    functools.partial(oracles.conv, **settings),
    plain,
    (
      normal(0, *shape),
      normal(1, kernel, kernel, shape[-1] // towers, filters),
      normal(2, filters),
    ),
  )


def dense_case(towers):
  def plain(x, w, b):
    x = x.reshape(len(x), towers, -1)
    w = w.reshape(w.shape[0], towers, -1)
    return jnp.einsum("btn,ntu->btu", x, w).reshape(len(x), -1) + b[None]

  def loop(x, w, b):
    y = np.tile(b, (len(x), 1))
    inputs, units = x.shape[1] // towers, len(b) // towers
    for unit in range(len(b)):
      first = unit // units * inputs
      for i in range(inputs):
        y[:, unit] += x[:, first + i] * w[i, unit]
    return y

  inputs = normal(0, 3, 12), normal(1, 12 // towers, 8), normal(2, 8)
  return Case(functools.partial(ops.dense, towers=towers), loop, plain, inputs)


def flatten_case(towers):
  def loop(x):
    batch, height, width, channels = x.shape
    size = channels // towers
    y = np.zeros((batch, x[0].size))
    for row, col, c in np.ndindex(height, width, channels):
      pixel = (c // size * height + row) * width + col
      y[:, pixel * size + c % size] = x[:, row, col, c]
    return y

  def plain(x):
    x = x.reshape(*x.shape[:3], towers, -1)
    return x.transpose(0, 3, 1, 2, 4).reshape(len(x), -1)

  x = normal(0, 2, 3, 4, 8)
  return Case(lambda x: ops.flatten(x, towers), loop, plain, (x,))


def window_reduce(x, start, combine, window, stride):
  pads = (0, stride - 1)
  return lax.reduce_window(
    x,
    start,
    combine,
    (1, window, window, 1),
    (1, stride, stride, 1),
    ((0, 0), pads, pads, (0, 0)),
  )


def plain_max_pool(x, window, stride):
  return window_reduce(x, -jnp.inf, lax.max, window, stride)


def plain_average_pool(x, window, stride):
  total = window_reduce(x, 0.0, lax.add, window, stride)
  return total / window_reduce(jnp.ones_like(x), 0.0, lax.add, window, stride)


def pool_case(name, plain, shape, window, stride):
  sizes = {"window": window, "stride": stride}
  return Case(
    lambda x: POOLS[name](x, window, stride),
    functools.partial(getattr(oracles, name), **sizes),
    functools.partial(plain, **sizes),
    (normal(0, *shape),),
  )


def lrn_case(towers, k, alpha, beta=0.75, window=5):
  def plain(x):
    y = x.reshape(*x.shape[:-1], towers, -1)
    reach = window // 2
    squares = jnp.pad(y * y, [(0, 0)] * 4 + [(reach, reach)])
    energy = sum(squares[..., i : i + y.shape[-1]] for i in range(window))
    return (y / (k + alpha * energy) ** beta).reshape(x.shape)

  settings = {"towers": towers, "k": k, "alpha": alpha, "beta": beta}
  return Case(
    lambda x: ops.response_norm(x, towers, (1, 1, window), k, alpha, beta),
    functools.partial(oracles.local_response_norm, **settings, n=window),
    plain,
    (100 * normal(0, 2, 3, 4, 16),),
  )


def map_norm_case(window, alpha):
  def plain(x):
    reach = (window // 2, window // 2)
    squares = jnp.pad(x * x, ((0, 0), reach, reach, (0, 0)))
    _, height, width, _ = x.shape
    energy = sum(
      squares[:, i : i + height, j : j + width]
      for i in range(window)
      for j in range(window)
    )
    return x / (1 + alpha * energy) ** 0.75

  settings = {"k": 1.0, "alpha": alpha, "beta": 0.75, "window": window}
  return Case(
    lambda x: ops.response_norm(x, 1, (window, window, 1), 1.0, alpha, 0.75),
    functools.partial(oracles.map_norm, **settings),
    plain,
    (100 * normal(0, 2, 6, 7, 3),),
  )


def activation_case(name, formula):
  return Case(
    ops.ACTIVATIONS[name],
    functools.partial(formula, np),
    functools.partial(formula, jnp),
    (normal(0, 40),),
  )


CONTRAST = {"window": 5, "k": 1.0, "alpha": 1e-3 / 25, "beta": 0.75}
BLUR = {"sigma": 4.0, "window": 9, "stride": 4}


def plain_contrast_norm(x):
  def total(x):
    pads = ((0, 0), (2, 2), (2, 2), (0, 0))
    ones = (1, 1, 1, 1)
    return lax.reduce_window(x, 0.0, lax.add, (1, 5, 5, 1), ones, pads)

  deviations = x - total(x) / total(jnp.ones_like(x))
  return x / (1 + 1e-3 / 25 * total(deviations**2)) ** 0.75


def plain_blur(x):
  weights = jnp.exp(-((np.arange(9.0) - 4) ** 2) / 32).astype(x.dtype)
  weights = weights / weights.sum()
  kernel = jnp.outer(weights, weights)[:, :, None, None]
  return lax.conv_general_dilated(
    x,
    jnp.tile(kernel, (1, 1, 1, 3)),
    (4, 4),
    ((4, 4), (4, 4)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=3,
  )


NORMS = {
  "lrn of the paper": lrn_case(2, 2.0, 1e-4),
  "lrn of run 145": lrn_case(2, 2.0, 1e-4 / 5),
  "lrn of Caffe": lrn_case(1, 1.0, 1e-4 / 5),
  "lrn of another power and window": lrn_case(4, 1.0, 1e-4, 0.5, 3),
  "map norm of run 145": map_norm_case(5, 1e-3 / 25),
  "map norm of 18pct": map_norm_case(3, 5e-5 / 9),
}
CASES = NORMS | {
  "contrast norm of run 131": Case(
    functools.partial(run131.contrast_norm, **CONTRAST),
    functools.partial(oracles.contrast_norm, **CONTRAST),
    plain_contrast_norm,
    (100 * normal(0, 2, 6, 7, 3),),
  ),
  "blur of run 131": Case(
    functools.partial(run131.blur, **BLUR),
    functools.partial(oracles.blurred_samples, **BLUR),
    plain_blur,
    (normal(0, 2, 21, 14, 3),),
  ),
  # Images, of which a CPU takes up to four at once; then maps.
  "conv1": conv_case((8, 20, 23, 3), 4, 11, 4, 0, 1),
  "conv1 of Caffe": conv_case((3, 22, 24, 3), 4, 11, 4, 0, 1, ceil=False),
  "conv1 of torchvision": conv_case((6, 20, 22, 3), 4, 11, 4, 2, 1, ceil=False),
  "conv of grey towers": conv_case((4, 9, 10, 2), 4, 5, 2, 1, 2),
  "conv2": conv_case((3, 7, 8, 8), 6, 5, 1, 2, 2),
  "conv3": conv_case((2, 5, 6, 8), 5, 3, 1, 1, 1),
  "conv of four towers": conv_case((2, 5, 6, 16), 8, 3, 2, 1, 4),
  "conv of four towers, floor": conv_case((2, 6, 7, 16), 8, 3, 2, 1, 4, False),
  "conv with gaps": conv_case((2, 7, 8, 10), 6, 2, 3, 0, 2),
  "dense": dense_case(1),
  "dense in two towers": dense_case(2),
  "flatten": flatten_case(1),
  "flatten in two towers": flatten_case(2),
}
for side, window, stride in (
  (8, 3, 2), (9, 3, 2), (9, 2, 2), (6, 3, 1), (10, 5, 2), (7, 2, 3),
):  # fmt: skip
  for name, plain in (
    ("max_pool", plain_max_pool),
    ("average_pool", plain_average_pool),
  ):
    CASES[f"{name} {window}/{stride} of {side}"] = pool_case(
      name, plain, (2, side, side, 3), window, stride
    )
FORMULAS = {
  "relu": lambda xp, x: xp.where(x > 0, x, 0 * x),
  "tanh": lambda xp, x: 1 - 2 / (1 + xp.exp(2 * x)),
  "scaled_tanh": lambda xp, x: 1.7159 * (1 - 2 / (1 + xp.exp(4 * x / 3))),
  "sigmoid": lambda xp, x: 1 / (1 + xp.exp(-x)),
  "none": lambda xp, x: x,
}
CASES |= {
  name: activation_case(name, formula) for name, formula in FORMULAS.items()
}


quick_jit = functools.partial(  # Compiles in half the time.
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def pulled_back(op, inputs, cotangent, jit=jax.jit):
  """The output of an operation and the gradient of each input."""

  @jit
  def both(inputs, cotangent):
    y, pull_back = jax.vjp(op, *inputs)
    return y, pull_back(cotangent)

  return both(inputs, cotangent)


@functools.cache
def ours(name):
  case = CASES[name]
  cotangent = normal(3, *jax.eval_shape(case.ours, *case.inputs).shape)
  return *pulled_back(case.ours, case.inputs, cotangent), cotangent


def slope(loop, inputs, argument, place, cotangent, step=1e-3):
  """Central difference of sum(loop * cotangent) in one entry, in float64."""
  totals = []
  for signed in (step, -step):
    moved = [np.array(x, np.float64) for x in inputs]
    moved[argument].flat[place] += signed
    totals.append((loop(*moved) * np.float64(cotangent)).sum())
  return (totals[0] - totals[1]) / (2 * step)


def test_every_activation_has_a_case():
  assert set(FORMULAS) == set(ops.ACTIVATIONS)


@pytest.mark.parametrize("name", CASES)
def test_operation_equals_the_loop(name):
  close(ours(name)[0], CASES[name].loop(*CASES[name].inputs))


@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_differences_of_the_loop(name):
  _, gradients, cotangent = ours(name)
  _, loop, _, inputs = CASES[name]
  for argument, gradient in enumerate(gradients):
    count = min(gradient.size, 20)
    places = np.random.default_rng(4).permutation(gradient.size)[:count]
    expected = [slope(loop, inputs, argument, p, cotangent) for p in places]
    error = np.ravel(gradient)[places] - expected
    assert np.abs(error).max() < 1e-4 * np.abs(gradient).max()


@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_plain_autodiff(name):
  y, gradients, cotangent = ours(name)
  case = CASES[name]
  plain_y, plain_gradients = pulled_back(
    case.plain, case.inputs, cotangent, quick_jit
  )
  close(y, plain_y)
  for gradient, plain in zip(gradients, plain_gradients, strict=True):
    close(gradient, plain)


@pytest.mark.parametrize("name", NORMS)
def test_norm_cases_are_loud_enough_to_tell(name):
  case = NORMS[name]
  quiet = case.loop(1e-6 * case.inputs[0]) * 1e6
  assert np.abs(ours(name)[0] - quiet).max() > 0.1 * np.abs(quiet).max()


# Sides with every remainder by every stride, two to a shape.

SHAPES = [(side, 34 - side) for side in range(5, 17)]


@pytest.mark.parametrize("ceil", [True, False])
def test_conv_equals_the_loop_at_every_side(ceil):
  """Catches an overhang that is wrong for some remainder by the stride."""
  cases = [
    conv_case((1, *sides, channels), 4, *settings, ceil)
    for sides in SHAPES
    for channels, *settings in ((8, 5, 2, 2, 2), (3, 3, 4, 1, 1))
  ]
  ys = quick_jit(
    lambda inputs: [
      case.ours(*args) for case, args in zip(cases, inputs, strict=True)
    ]
  )([case.inputs for case in cases])
  for y, case in zip(ys, cases, strict=True):
    close(y, case.loop(*case.inputs))


@pytest.mark.slow
def test_floor_loop_equals_torch_at_every_side():
  """Catches an oracle that rounds down wrongly, as ours would then too."""
  torch = pytest.importorskip("torch")
  for sides in SHAPES:
    case = conv_case((1, *sides, 8), 4, 5, 2, 2, 2, ceil=False)
    x, w, b = map(torch.tensor, case.inputs)
    y = torch.nn.functional.conv2d(
      x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), b, 2, 2, groups=2
    )
    close(y.permute(0, 2, 3, 1).numpy(), case.loop(*case.inputs))


@pytest.mark.parametrize("size", [(3, 2), (2, 2)])
def test_pools_equal_the_loop_at_every_side(size):
  xs = [normal(0, 1, *sides, 2) for sides in SHAPES]
  largest, means = quick_jit(
    lambda xs: [
      [pool(x, *size) for x in xs] for pool in (ops.max_pool, average_pool)
    ]
  )(xs)
  for x, y, mean in zip(xs, largest, means, strict=True):
    close(y, oracles.max_pool(x, *size), 0)
    close(mean, oracles.average_pool(x, *size))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(3, 2), (2, 2), (5, 3)])
def test_pool_inside_is_torchs_and_so_is_its_gradient(size):
  torch = pytest.importorskip("torch")
  xs = [normal(0, 1, side, side + 7, 2) for side in range(5, 11)]

  def pooled(xs):
    return [ops.max_pool(x, *size, False) for x in xs]

  def total(xs):
    return sum((y**2).sum() for y in pooled(xs))

  ys, back = quick_jit(pooled)(xs), quick_jit(jax.grad(total))(xs)
  for x, y, dx in zip(xs, ys, back, strict=True):
    images = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).requires_grad_()
    theirs = torch.nn.functional.max_pool2d(images, *size)
    (theirs**2).sum().backward()
    close(y, theirs.detach().permute(0, 2, 3, 1).numpy(), 0)
    close(dx, images.grad.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("size", [(3, 2), (2, 2), (3, 1), (5, 2), (2, 3)])
def test_tied_maxima_get_the_gradient_that_xla_sends(size):
  """Catches split ties: plain autodiff through slices shares the gradient."""
  random = np.random.default_rng(0)
  x = random.integers(0, 3, (2, 10, 13, 3)).astype(np.float32)
  shape = oracles.max_pool(x, *size).shape
  cotangent = random.integers(-9, 10, shape).astype(np.float32)
  _, (dx,) = pulled_back(lambda x: ops.max_pool(x, *size), (x,), cotangent)
  _, (expected,) = pulled_back(
    lambda x: plain_max_pool(x, *size), (x,), cotangent, quick_jit
  )
  np.testing.assert_array_equal(dx, expected)
  assert dx.sum() == cotangent.sum()


def test_dropout_keeps_its_share_unscaled():
  keys = jax.random.split(jax.random.key(0), 64)
  y = np.asarray(ops.dropout(jnp.full((64, 4096), 3.0), keys, 0.25))
  assert set(np.unique(y)) == {0.0, 3.0}
  # 262,144 draws: 6 standard deviations are 0.0051 (false alarm 2e-9).
  assert abs((y > 0).mean() - 0.75) < 6 * np.sqrt(0.25 * 0.75 / y.size)
  assert not np.array_equal(y[0], y[1])


def test_dropout_mask_depends_on_the_examples_key_alone():
  keys = jax.random.split(jax.random.key(0), 8)
  x = jnp.ones((8, 100))
  whole = ops.dropout(x, keys, 0.5)
  np.testing.assert_array_equal(ops.dropout(x[5:], keys[5:], 0.5), whole[5:])


def test_dropout_sends_the_gradient_to_what_it_kept():
  keys = jax.random.split(jax.random.key(0), 8)
  x, cotangent = normal(0, 8, 100), normal(1, 8, 100)
  y, (dx,) = pulled_back(lambda x: ops.dropout(x, keys, 0.5), (x,), cotangent)
  kept = np.asarray(y) != 0
  np.testing.assert_array_equal(y, np.where(kept, x, 0))
  np.testing.assert_array_equal(dx, np.where(kept, cotangent, 0))
