"""cifar_19pct with response normalization within maps after two of its pools.

Original: 18 % test error in 20 minutes (cuda-convnet's layers-18pct.cfg and
layer-params-18pct.cfg, whose `type=rnorm` is the norm within maps).

Changes from configs/cifar_19pct.py: network.conv1.then, network.conv2.then,
network.map_norm.window, network.map_norm.alpha, weight_decay_of_layers.

  alexnet train --config=cifar_18pct
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import cifar_19pct


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = cifar_19pct.get_config().unlock()
  net = config.network
  net.conv1.then = ("max_pool", "activation", "map_norm")
  net.conv2.then = ("activation", "average_pool", "map_norm")
  net.map_norm.window = 3
  net.map_norm.alpha = 5e-5 / 9  # layer.py divides by the window's pixels
  config.weight_decay_of_layers = (("fc10", 1.0),)
  return config.lock()
