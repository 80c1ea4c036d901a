"""Run 145-2010: run 145's net trained on ILSVRC-2010.

Original: 37.473 % top-1, 16.999 % top-5 error on its test set with ten views
(paper: 37.5 and 17.0), 39.025 and 18.295 with the central one. Its rates were
lowered by hand at other epochs.

Changes from configs/run145.py: data_dir, learning_rate_drop_epochs,
learning_rate_of_layers, colour_noise_epochs, total_epochs.

  alexnet train --config=run145_2010
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run145


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run145.get_config().unlock()
  config.data_dir = "data/imagenet2010"
  config.learning_rate_drop_epochs = (23.0, 51.0, 78.0)
  config.learning_rate_of_layers = ((68.0, "conv1", 1e-5), (72.0, "conv1", 0.0))
  config.colour_noise_epochs = 68.0
  config.total_epochs = 93.0
  return config.lock()
