"""Eight virtual CPU devices and strict rules, for every test."""

import os
import signal

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# The tests' own runs leave no programs at the user's (see `tiny_runs`).
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""

import jax
import pytest

# A shell's background jobs ignore it, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module")
def quick_compilation():
  """For whole steps, which compile for longer than they run.

  Operations and nets are tested as users compile them, and so are real runs.
  """
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """The generated data set of the tiny runs."""
  from tiny_runs import COUNTS

  from alexnet_jax.data.prepare import shapes

  directory = tmp_path_factory.mktemp("data") / "shapes"
  shapes.generate(directory, size_px=32, workers=0, **COUNTS)
  return directory
