"""Run 145-half: one tower of about half the net, on one GPU, on ILSVRC-2010.

Original: 39.168 % top-1, 18.229 % top-5 error on its test set with ten views:
two towers are worth 1.7 and 1.2 (paper 3.2). conv5 is as wide as both towers.
By the log (layer-params-145-half.cfg) the rates fell in epochs 20 and 48,
conv1's also in 66, and in 72 to 0; ended in epoch 96. Two things are open: the
file ends with 1e-5 for all weights, which the log does not have, and with 0.002
for the biases of conv1 and conv2: here since the second drop.

Changes from configs/run145_2010.py: network.towers, network.conv1.filters,
network.conv2.filters, network.conv3.filters, network.conv4.filters,
learning_rate_drop_epochs, learning_rate_of_layers, schedule_of_biases,
colour_noise_epochs, total_epochs.

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
  config.learning_rate_drop_epochs = (19.0, 47.0)
  config.learning_rate_of_layers = (
    (47.0, "conv1/bias", 0.002),
    (47.0, "conv2/bias", 0.002),
    (65.0, "conv1/kernel", 1e-5),
    (71.0, "conv1/kernel", 0.0),
  )
  config.schedule_of_biases = "constant"
  config.colour_noise_epochs = 65.0
  config.total_epochs = 95.0
  return config.lock()
