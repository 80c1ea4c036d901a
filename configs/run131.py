"""Run 131: response normalization with k = 1 (minDiv 1).

Original: 40.934 % top-1, 18.574 % top-5 error on ILSVRC-2012 validation with
ten views; not in the paper. On record is "LRN on conv1 directly, minDiv 1". Run
145 has that order too; everything else here is run 145's.

Changes from configs/run145.py: network.lrn.k.

  alexnet train --config=run131 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run145


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run145.get_config().unlock()
  config.network.lrn.k = 1.0
  return config.lock()
