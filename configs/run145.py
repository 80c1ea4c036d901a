"""Run 145, the net of the 2012 submission, as it was run (layers-145.cfg).

Original: 40.664 % top-1, 18.210 % top-5 error on ILSVRC-2012 validation, ten
views, after 91 epochs.

Changes from configs/alexnet.py: network.conv1.then, network.conv2.then,
network.conv5.then, network.conv3.sigma, network.conv4.sigma,
network.conv5.sigma, network.lrn.alpha, images_per_view, colour_noise_epochs,
colour_noise_divisor, weight_decay_of_biases, learning_rate_of_biases,
biases_follow_schedule, learning_rate_of_layers, schedule,
learning_rate_drop_epochs, total_epochs.

  alexnet train --config=run145 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = alexnet.get_config().unlock()
  net = config.network
  # layers-145.cfg: the first norm is below its ReLU, a norm within each map
  # follows the second.
  net.conv1.then = ("lrn", "max_pool", "activation")
  net.conv2.then = ("activation", "lrn", "map_norm", "max_pool")
  net.conv5.then = ("max_pool", "activation")
  net.lrn.alpha = 1e-4 / 5  # layer.py divides by the window
  net.conv3.sigma = net.conv4.sigma = net.conv5.sigma = 0.03  # layers-145.cfg
  config.images_per_view = 32  # convdata.py
  config.colour_noise_divisor = 1.1  # convdata.py
  # layers-145.cfg and its log; rates were lowered by hand.
  config.weight_decay_of_biases = False
  config.learning_rate_of_biases = 2.0  # 0.02, and it stays
  config.biases_follow_schedule = False
  config.schedule = "epochs"
  config.learning_rate_drop_epochs = (25.0, 51.0, 79.0)
  config.learning_rate_of_layers = ((67.0, "conv1", 1e-5), (72.0, "conv1", 0.0))
  config.colour_noise_epochs = 67.0
  config.total_epochs = 91.0
  return config.lock()
