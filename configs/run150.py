"""Run 150: the towers do not meet below the last layer.

Original: 41.828 % top-1, 19.330 % top-5 error on ILSVRC-2012 validation with
ten views; not in the paper. conv2 has 160 filters and fc6 4096 units in each
tower instead. Rates fell in epochs 25, 49 and 79 of the log, conv1's also in 66
and 72; ended in epoch 92.

Changes from configs/run145.py: network.conv3.sees_all_towers,
network.fc6.sees_all_towers, network.fc7.sees_all_towers, network.conv2.filters,
network.fc6.units, learning_rate_drop_epochs, learning_rate_of_layers,
colour_noise_epochs, total_epochs.

  alexnet train --config=run150 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run145


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run145.get_config().unlock()
  net = config.network
  for layer in (net.conv3, net.fc6, net.fc7):
    layer.sees_all_towers = False
  net.conv2.filters = 2 * 160
  net.fc6.units = 2 * 4096
  config.learning_rate_drop_epochs = (24.0, 48.0, 78.0)
  config.learning_rate_of_layers = ((65.0, "conv1", 1e-5), (71.0, "conv1", 0.0))
  config.colour_noise_epochs = 65.0
  config.total_epochs = 91.0
  return config.lock()
