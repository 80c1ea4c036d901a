"""For the runs of this folder that are trained in this process."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="module")
def kept_programs(tmp_path_factory):
  """What one run has compiled, the next need not."""
  values = {
    "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }
  before = {name: getattr(jax.config, name) for name in values}
  for names in (values, before):
    for name, value in names.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    if names is values:
      yield
