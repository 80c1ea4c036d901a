"""Run 150: the towers do not meet below the last layer.

Original: 41.828 % top-1, 19.330 % top-5 error on ILSVRC-2012 validation with
ten views; not in the paper. To make up for the missing links, conv2 has 160
filters and fc6 and fc7 have 4096 units in each tower. The log gives five epochs
at which rates changed; we assume the same changes as in run 145.

Changes from configs/run145.py: network.conv3.sees_all_towers,
network.fc6.sees_all_towers, network.fc7.sees_all_towers,
network.conv2.filters, network.fc6.units, network.fc7.units,
learning_rate_drop_epochs, learning_rate_of_layers, colour_noise_epochs,
total_epochs.

  alexnet train --config=run150 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run145


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run145.get_config().unlock()
  net = config.network
  net.conv3.sees_all_towers = net.fc6.sees_all_towers = (
    net.fc7.sees_all_towers
  ) = False
  net.conv2.filters = 2 * 160
  net.fc6.units = net.fc7.units = 2 * 4096
  config.learning_rate_drop_epochs = (25.0, 49.0, 79.0)
  config.learning_rate_of_layers = ((66.0, "conv1", 1e-5), (72.0, "conv1", 0.0))
  config.colour_noise_epochs = 66.0
  config.total_epochs = 92.0
  return config.lock()
