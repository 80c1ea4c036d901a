"""The net of "One weird trick" (arXiv 1404.5997) as torchvision has it.

Original: 43.478 % top-1, 20.934 % top-5 error on ILSVRC-2012 validation,
central view (torchvision's weights, 61,100,840 parameters). One tower, fewer
filters, no response normalization; dropout comes before fc6 and fc7 instead of
after and is rescaled in training. Initial weights and training are the paper's.

Changes from configs/alexnet.py: network.towers, network.conv1.filters,
network.conv1.padding, network.conv1.ceil_mode, network.conv1.then,
network.conv2.filters, network.conv2.then, network.conv4.filters,
network.conv5.then, network.fc7.then, network.dropout_rescaled.

  alexnet train --config=one_weird_trick
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = alexnet.get_config().unlock()
  net = config.network
  net.towers = 1
  net.conv1.filters = 64
  net.conv1.padding = 2
  net.conv1.ceil_mode = False
  net.conv2.filters = 192
  net.conv4.filters = 256
  net.conv1.then = net.conv2.then = ("activation", "max_pool")
  net.conv5.then = ("activation", "max_pool", "dropout")
  net.fc7.then = ("activation",)
  net.dropout_rescaled = True
  return config.lock()
