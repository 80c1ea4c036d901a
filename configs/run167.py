"""Run 167: run 166's rates, and no norm after conv2.

Original: 40.488 % top-1, 18.118 % top-5 error on ILSVRC-2012 validation with
ten views; not in the paper. The colour noise ended in epoch 63 of the log, and
conv1 was frozen in 73.

Changes from configs/run166.py: network.conv2.then, colour_noise_epochs.

  alexnet train --config=run167 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run166


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run166.get_config().unlock()
  config.network.conv2.then = ("activation", "max_pool")
  config.colour_noise_epochs = 62.0
  return config.lock()
