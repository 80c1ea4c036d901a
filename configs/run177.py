"""Run 177: run 170 with dropout on conv4.

Original: 40.690 % top-1, 18.304 % top-5 error on ILSVRC-2012 validation with
ten views; not in the paper.

Changes from configs/run170.py: network.conv4.then.

  alexnet train --config=run177 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run170


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run170.get_config().unlock()
  config.network.conv4.then = ("activation", "dropout")
  return config.lock()
