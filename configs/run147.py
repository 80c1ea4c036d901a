"""Run 147: pooling that does not overlap (paper 3.4).

Original: 41.058 % top-1, 18.510 % top-5 error on ILSVRC-2012 validation with
ten views: overlap is worth 0.4 and 0.3. The padding changes with the windows,
so that fc6 still sees 6 x 6 pixels (sides 55, 28, 26, 13, 11, 6). Rates fell in
epochs 23, 51 and 79 of the log, when conv1 was frozen; ended in epoch 90. The
log has no end of the colour noise. The rate of the biases is 0.02 in a copy of
the file from epoch 23 (layer-params-147.cfg.save) and 0.002 in the last one:
here since half of the run, where the schedules of the later runs lower it.

Changes from configs/run145.py: network.pool_window, network.conv2.padding,
network.conv5.padding, learning_rate_drop_epochs, learning_rate_of_layers,
schedule_of_biases, colour_noise_epochs, total_epochs.

  alexnet train --config=run147 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run145


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run145.get_config().unlock()
  config.network.pool_window = 2
  config.network.conv2.padding = 1
  config.network.conv5.padding = 0
  config.learning_rate_drop_epochs = (22.0, 50.0, 78.0)
  config.learning_rate_of_layers = ((78.0, "conv1", 0.0),)
  config.schedule_of_biases = "dexp"
  config.colour_noise_epochs = None
  config.total_epochs = 89.0
  return config.lock()
