"""Every operation against literal numpy, its gradients against differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

from alexnet_jax import ops


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(actual, expected, tolerance=1e-5):
  """Relative to the largest value, as sums of many terms round."""
  expected = np.asarray(expected)
  assert np.shape(actual) == expected.shape
  scale = np.abs(expected).max()
  np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


CONVS = [  # side, channels, filters, kernel, stride, padding, towers
  (20, 3, 8, 11, 4, 0, 1),
  (23, 3, 8, 7, 2, 0, 1),
  (9, 8, 12, 5, 1, 2, 2),
  (6, 12, 8, 3, 1, 1, 4),
  (6, 5, 7, 3, 1, 1, 1),
  (7, 4, 6, 2, 3, 0, 2),
]


@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("batch", [3, 8])
def test_conv_equals_the_loop(case, batch):
  side, channels, filters, kernel, stride, padding, towers = case
  x = normal(0, batch, side, side, channels)
  w = normal(1, kernel, kernel, channels // towers, filters)
  b = normal(2, filters)
  y = ops.conv(x, w, b, stride=stride, padding=padding, towers=towers)
  close(y, oracles.conv(x, w, b, stride, padding, towers))


@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("batch", [3, 8])
def test_conv_gradients_equal_differences(case, batch):
  side, channels, filters, kernel, stride, padding, towers = case
  conv = functools.partial(
    ops.conv, stride=stride, padding=padding, towers=towers
  )
  x = normal(0, batch, side, side, channels)
  w = normal(1, kernel, kernel, channels // towers, filters)
  b = normal(2, filters)
  # A linear map of each argument: wide steps of the difference are exact.
  check_grads(conv, (x, w, b), order=1, modes=["rev"], eps=1.0, rtol=2e-3)


def test_conv_is_the_same_by_gemm_and_by_lax():
  x, w = normal(0, 8, 23, 23, 3), normal(1, 7, 7, 3, 8)
  settings = {"stride": 2, "pads": ((0, 0), (0, 0))}
  by_lax = ops._correlate_by_lax(x, w, **settings)
  close(ops._correlate_by_gemm(x, w, **settings), by_lax)
  dy = normal(2, *by_lax.shape)
  close(
    ops._kernel_gradient_by_gemm(x, w, dy, **settings),
    ops._kernel_gradient_by_lax(x, w, dy, **settings),
  )


POOLS = [(side, 3, 2) for side in range(5, 14)] + [
  (8, 2, 2),
  (9, 2, 2),
  (7, 3, 1),
  (9, 3, 3),
  (11, 5, 2),
]


@pytest.mark.parametrize(("side", "window", "stride"), POOLS)
def test_pools_equal_the_loop(side, window, stride):
  x = normal(side, 2, side, side, 3)
  close(ops.max_pool(x, window, stride), oracles.max_pool(x, window, stride), 0)
  close(
    ops.average_pool(x, window, stride),
    oracles.average_pool(x, window, stride),
  )


@pytest.mark.parametrize(("side", "window", "stride"), POOLS)
def test_pool_gradients_equal_differences(side, window, stride):
  # Values a whole unit apart: no difference changes which one is largest.
  count = 2 * side * side * 2
  x = np.random.default_rng(side).permutation(count).astype(np.float32)
  x = x.reshape(2, side, side, 2)
  for pool in (ops.max_pool, ops.average_pool):
    check_grads(
      lambda x, pool=pool: pool(x, window, stride),
      (x,),
      order=1,
      modes=["rev"],
      eps=0.1,
      rtol=2e-3,
    )


def test_tied_maximum_sends_its_gradient_to_the_first():
  """Catches split ties: plain autodiff through slices shares the gradient."""
  x = jnp.zeros((1, 3, 3, 1))
  dx = jax.grad(lambda x: ops.max_pool(x, 3, 2).sum())(x)
  expected = np.zeros((1, 3, 3, 1))
  expected[0, 0, 0, 0] = 1
  np.testing.assert_array_equal(dx, expected)


LRN = {"k": 2.0, "alpha": 1e-1, "beta": 0.75, "window": 5}


@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize("beta", [0.75, 0.5])
def test_lrn_equals_the_loop(towers, beta):
  x = normal(0, 2, 3, 3, 12)
  y = ops.local_response_norm(x, towers, 2.0, 0.1, beta, 5)
  close(y, oracles.local_response_norm(x, towers, k=2.0, alpha=0.1, beta=beta))


@pytest.mark.parametrize("towers", [1, 2])
def test_lrn_gradient_equals_differences(towers):
  x = normal(0, 2, 3, 3, 12)
  check_grads(
    lambda x: ops.local_response_norm(x, towers, 2.0, 0.1, 0.75, 5),
    (x,),
    order=1,
    modes=["rev"],
    eps=1e-2,
    rtol=1e-2,
  )


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


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("relu", lambda x: np.maximum(x, 0)),
    ("tanh", np.tanh),
    ("scaled_tanh", lambda x: 1.7159 * np.tanh(2 * x / 3)),
    ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    ("none", lambda x: x),
  ],
)
def test_activation_is_its_formula(name, expected):
  x = normal(0, 100)
  close(ops.ACTIVATIONS[name](x), expected(x), 1e-6)
