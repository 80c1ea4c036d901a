"""Run 166: all norms below their ReLU, and rates that fall by schedule.

Original: 41.096 % top-1, 18.674 % top-5 error on ILSVRC-2012 validation with
ten views; not in the paper. The rate of the weights falls to a thousandth in
four rates, that of the biases to a tenth in two (lr.cu). In epoch 64 of the log
the colour noise ended, in 73 conv1 was frozen. The end is not logged: we take
90 passes, since run 170 was resumed "for 55 more epochs", one of which is 137.

Changes from configs/run145.py: network.conv2.then, schedule, target_factor,
learning_rate_drop_epochs, learning_rate_of_layers, schedule_of_biases,
colour_noise_epochs.

  alexnet train --config=run166 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run145


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run145.get_config().unlock()
  config.network.conv2.then = ("lrn", "map_norm", "max_pool", "activation")
  config.schedule = "dexp"
  config.target_factor = 1000.0
  config.learning_rate_drop_epochs = ()
  config.learning_rate_of_layers = ((72.0, "conv1", 0.0),)
  config.schedule_of_biases = "dexp"
  config.colour_noise_epochs = 63.0
  return config.lock()
