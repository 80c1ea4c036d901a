"""Run 135: run 131 with k = 2 (minDiv 2).

Original: 41.070 % top-1, 18.416 % top-5 error on ILSVRC-2012 validation with
ten views; not in the paper. Every field on record is the same as in run 145,
whose error differs by 0.4: what else differed is not known.

Changes from configs/run131.py: network.lrn.k.

  alexnet train --config=run135 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run131


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run131.get_config().unlock()
  config.network.lrn.k = 2.0
  return config.lock()
