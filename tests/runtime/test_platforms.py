"""What is chosen by the platform computes the same on every one."""

import os
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.runtime import platforms


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Every table with its arguments and what numpy makes of them, in float64.
TABLES = {
  "MATERIALIZE": ((normal(0, 3, 4),), lambda x: x),
  "COLUMN_SUM": ((normal(0, 5, 6, 7, 8),), lambda y: y.sum((0, 1, 2))),
  "TIMES_TRANSPOSED": (
    (normal(0, 5, 8), normal(1, 6, 8)),
    lambda x, kernel: x @ kernel.T,
  ),
}


def test_every_table_is_here():
  tables = {
    name
    for name, value in vars(platforms).items()
    if isinstance(value, dict) and "default" in value
  }
  assert tables == {*TABLES, "ALL_FINITE"}


@pytest.mark.parametrize("name", TABLES)
def test_all_platforms_compute_what_numpy_does(name):
  args, oracle = TABLES[name]
  expected = oracle(*(x.astype(np.float64) for x in args))
  for compute in getattr(platforms, name).values():
    found = platforms.jit(compute)(*args)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("platform", platforms.ALL_FINITE)
def test_one_number_that_is_not_finite_is_found_anywhere(platform, bad):
  check = platforms.jit(platforms.ALL_FINITE[platform])
  x = np.full((3, 4, 5), np.finfo(np.float32).max)
  assert check(x)
  for index in np.ndindex(x.shape):
    y = x.copy()
    y[index] = bad
    assert not check(y)
  assert not check(np.array([1, 2, bad], np.float32))
  large = np.ones((3000, 2000), np.float32)
  for index in ((0, 0), (1499, 1000), (2999, 1999)):
    y = large.copy()
    y[index] = bad
    assert not check(y)


def test_what_two_need_is_computed_once():
  """Catches a compiler that no longer knows the option behind `materialize`."""

  def both(x):
    y = platforms.materialize(jnp.tanh(x))
    return y.T + 1, y[::2] * 3

  x = normal(0, 64, 64)
  program = platforms.jit(both).lower(x).compile()
  fused = program.as_text()
  assert fused.count("tanh(") == 1
  assert fused.count("opt-barrier") == (jax.default_backend() == "cpu")
  turned, thinned = program(x)
  np.testing.assert_allclose(turned, np.tanh(x).T + 1, atol=1e-5)
  np.testing.assert_allclose(thinned, np.tanh(x)[::2] * 3, atol=1e-5)


def test_gradients_pass_through():
  x, cotangent = normal(0, 5), normal(1, 5)
  y, pull_back = jax.vjp(lambda x: platforms.materialize(2 * x), x)
  np.testing.assert_array_equal(y, 2 * x)
  np.testing.assert_array_equal(pull_back(cotangent)[0], 2 * cotangent)


def test_memory_that_was_freed_is_not_asked_of_the_system_again():
  """Page faults of a process that again and again fills and frees 20 MB."""
  work = """
import resource, sys
import numpy as np
from alexnet_jax.runtime import cli

if sys.argv[1] == "kept":
  cli.configure_process()

def take():
  [np.ones(2_500_000) for _ in range(2)]

take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
  take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
  faults = {}
  for how in ("kept", "as it is"):
    command = [sys.executable, "-c", work, how]
    # numpy would ask for huge pages.
    environment = os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"}
    result = subprocess.run(
      command, capture_output=True, text=True, env=environment
    )
    faults[how] = int(result.stdout)
  if platform.libc_ver()[0] != "glibc":
    pytest.skip("another C library")
  assert faults["kept"] < 100
  assert faults["as it is"] > 10 * 50
