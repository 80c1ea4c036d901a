"""Run 135: run 131 with k = 2 (minDiv).

Original: 41.070 % top-1, 18.416 % top-5 error on ILSVRC-2012 validation with
ten views; not in the paper. Rates fell in epochs 20, 47 and 81 of the log,
those of conv1 and conv2 also in 66 and 75; ended in epoch 96.

Changes from configs/run131.py: network.lrn.k, learning_rate_drop_epochs,
total_epochs.

  alexnet train --config=run135 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run131


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run131.get_config().unlock()
  config.network.lrn.k = 2.0
  config.learning_rate_drop_epochs = (19.0, 46.0, 80.0)
  config.total_epochs = 95.0
  return config.lock()
