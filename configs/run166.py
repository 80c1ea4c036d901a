"""Run 166: the second response normalization comes before its ReLU too.

Original: 41.096 % top-1, 18.674 % top-5 error on ILSVRC-2012 validation with
ten views; not in the paper.

Changes from configs/run145.py: network.conv2.then.

  alexnet train --config=run166 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run145


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run145.get_config().unlock()
  config.network.conv2.then = ("lrn", "activation", "map_norm", "max_pool")
  return config.lock()
