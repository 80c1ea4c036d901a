"""Run 170: run 145's net with rates that fall by schedule.

Original: 40.528 % top-1, 18.048 % top-5 error on ILSVRC-2012 validation with
ten views; not in the paper. The rate of the weights falls to a 250th in four
rates, that of the biases to a tenth in two (lr.cu). In epoch 68 of the log the
colour noise ended, in 74 conv1 was frozen; the length is read as in run 166.
Trained again with images that fade in, it came to 40.250 and 18.116 %.

Changes from configs/run145.py: schedule, learning_rate_drop_epochs,
learning_rate_of_layers, schedule_of_biases, colour_noise_epochs.

  alexnet train --config=run170 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run145


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run145.get_config().unlock()
  config.schedule = "dexp"
  config.learning_rate_drop_epochs = ()
  config.learning_rate_of_layers = ((73.0, "conv1", 0.0),)
  config.schedule_of_biases = "dexp"
  config.colour_noise_epochs = 67.0
  return config.lock()
