"""Run 131: response normalization with k = 1 (minDiv 1).

Original: 40.934 % top-1, 18.574 % top-5 error on ILSVRC-2012 validation with
ten views; not in the paper. On record is "LRN on conv1 directly, minDiv 1"; the
former is run 145's order too, and all else here is run 145's.

Changes from configs/run145.py: network.lrn.k.

  alexnet train --config=configs/run131.py \
    --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from configs import run145


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run145.get_config().unlock()
  config.network.lrn.k = 1.0
  return config.lock()
