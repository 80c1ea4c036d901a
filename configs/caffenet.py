"""CaffeNet (bvlc_reference_caffenet of BVLC/caffe): pooling before norm, k = 1.

Original: 42.6 % top-1, 19.6 % top-5 error on ILSVRC-2012 validation, central
view, at iteration 310,000. Its norm sums over the channels of both groups. Its
images were squeezed to 256 x 256, which `prepare` does not do.

Changes from configs/alexnet.py: network.conv1.then, network.conv2.then,
network.lrn.k, network.lrn.alpha, network.lrn.across_towers, network.fc6.sigma,
network.fc7.sigma, network.dropout_rescaled, crop_size_px, colour_noise,
test_views, batch_size, weight_decay_of_biases, learning_rate_of_biases,
schedule, learning_rate_drop_epochs.

  alexnet train --config=caffenet --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = alexnet.get_config().unlock()
  net = config.network
  net.conv1.then = net.conv2.then = ("activation", "max_pool", "lrn")
  net.lrn.k = 1.0  # caffe.proto's default
  net.lrn.alpha = 1e-4 / 5  # lrn_layer.cpp divides by the window
  net.lrn.across_towers = True  # lrn_layer.cpp knows no groups
  net.fc6.sigma = net.fc7.sigma = 0.005  # train_val.prototxt, here and below
  net.dropout_rescaled = True  # dropout_layer.cpp
  config.crop_size_px = 227
  config.colour_noise = 0.0  # readme.md
  config.test_views = 1
  config.batch_size = 256
  config.weight_decay_of_biases = False  # decay_mult
  config.learning_rate_of_biases = 2.0  # lr_mult
  config.schedule = "epochs"
  # solver.prototxt: every 100,000 iterations of 450,000; 1,281,167 images.
  config.learning_rate_drop_epochs = (19.98, 39.96, 59.95, 79.93)
  return config.lock()
