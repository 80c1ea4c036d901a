"""Run 148: no normalization layer at all (paper 3.3).

Original: 42.034 % top-1, 19.362 % top-5 error on ILSVRC-2012 validation with
ten views: normalization is worth 1.4 and 1.2. Rates fell in epochs 22, 44 and
86 of the log, conv1's also in 69 and 73; ended in epoch 97.

Changes from configs/run145.py: network.conv1.then, network.conv2.then,
learning_rate_drop_epochs, learning_rate_of_layers, colour_noise_epochs,
total_epochs.

  alexnet train --config=run148 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run145


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run145.get_config().unlock()
  config.network.conv1.then = ("max_pool", "activation")
  config.network.conv2.then = ("activation", "max_pool")
  config.learning_rate_drop_epochs = (21.0, 43.0, 85.0)
  config.learning_rate_of_layers = ((68.0, "conv1", 1e-5), (72.0, "conv1", 0.0))
  config.colour_noise_epochs = 68.0
  config.total_epochs = 96.0
  return config.lock()
