"""Run 145-2010: run 145's net trained on ILSVRC-2010.

Original: 37.473 % top-1, 16.999 % top-5 error on its test set with ten views
(paper: 37.5 and 17.0), 39.025 and 18.295 with the central one. Rates fell in
epochs 23, 51 and 78 of the log, conv1's also in 68 and 72; ended in epoch 93.
The file ends with 0.002 for the biases, and its log does not say since when:
here from half of the run, where the schedules of the later runs lower it.

Changes from configs/run145.py: data_dir, learning_rate_drop_epochs,
learning_rate_of_layers, schedule_of_biases, colour_noise_epochs, total_epochs.

  alexnet train --config=run145_2010
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run145


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run145.get_config().unlock()
  config.data_dir = "data/imagenet2010"
  config.learning_rate_drop_epochs = (22.0, 50.0, 77.0)
  config.learning_rate_of_layers = ((67.0, "conv1", 1e-5), (71.0, "conv1", 0.0))
  config.schedule_of_biases = "dexp"
  config.colour_noise_epochs = 67.0
  config.total_epochs = 92.0
  return config.lock()
