"""cifar_19pct with a hidden layer of 64 units, for a short run.

Original: 26 % test error in 80 seconds (cuda-convnet's layers-80sec.cfg and
layer-params-80sec.cfg, which drop the rate after 8 epochs and give no end).

Changes from configs/cifar_19pct.py: network.layers, network.fc64.*,
network.fc10.sigma, weight_decay_of_layers, learning_rate_drop_epochs,
total_epochs.

  alexnet train --config=cifar_80sec
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet, cifar_19pct


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = cifar_19pct.get_config().unlock()
  net = config.network
  net.layers = ("conv1", "conv2", "conv3", "fc64", "fc10")
  net.fc64 = alexnet.dense(64, sigma=0.1, then=("activation",))
  net.fc10.sigma = 0.1
  config.weight_decay_of_layers = (("fc64", 0.03), ("fc10", 0.03))
  config.learning_rate_drop_epochs = (8.0,)
  config.total_epochs = 10.0
  return config.lock()
