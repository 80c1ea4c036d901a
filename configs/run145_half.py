"""Run 145-half: one tower of about half the net, on one GPU, on ILSVRC-2010.

Original: 39.168 % top-1, 18.229 % top-5 error on its test set with ten views:
two towers are worth 1.7 and 1.2 (paper 3.2). The log says that the rates
changed after epochs 20, 48, 66 and 72 and that the bias rates of conv1 and
conv2 ended at 0.002. We assume that the third change was conv1's and the
noise's, and the fourth that of all weights.

Changes from configs/run145_2010.py: network.towers, network.conv1.filters,
network.conv2.filters, network.conv3.filters, network.conv4.filters,
learning_rate_drop_epochs, learning_rate_of_layers, colour_noise_epochs,
total_epochs.

  alexnet train --config=run145_half
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run145_2010


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run145_2010.get_config().unlock()
  config.network.towers = 1
  config.network.conv1.filters = 48
  config.network.conv2.filters = 128
  config.network.conv3.filters = 192
  config.network.conv4.filters = 192
  config.learning_rate_drop_epochs = (20.0, 48.0, 72.0)
  config.learning_rate_of_layers = (
    (66.0, "conv1", 1e-5),
    (72.0, "conv1/bias", 0.002),
    (72.0, "conv2/bias", 0.002),
  )
  config.colour_noise_epochs = 66.0
  config.total_epochs = 96.0
  return config.lock()
