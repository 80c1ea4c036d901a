"""Caffe's AlexNet (bvlc_alexnet of BVLC/caffe): biases of 0.1, k = 1.

Original: 42.9 % top-1, 19.8 % top-5 error on ILSVRC-2012 validation, central
view, at iteration 360,000. Otherwise as configs/caffenet.py.

Changes from configs/caffenet.py: network.conv1.then, network.conv2.then,
network.conv2.bias, network.conv4.bias, network.conv5.bias, network.fc6.bias,
network.fc7.bias.

  alexnet train --config=bvlc_alexnet --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import caffenet


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = caffenet.get_config().unlock()
  net = config.network
  net.conv1.then = net.conv2.then = ("activation", "lrn", "max_pool")
  for layer in (net.conv2, net.conv4, net.conv5, net.fc6, net.fc7):
    layer.bias = 0.1  # train_val.prototxt
  return config.lock()
