"""The net that ships with the package: 185 classes of Tiny-ImageNet, 64 px.

Its rate stays to the end; a short second run from its weights, with a rate that
falls to 0, ends it. experiments/tiny_imagenet has commands and figures.
No original.

Changes from configs/small.py: network.dropout_rate, network.fc8.units,
num_classes, data_dir, test_split, schedule, target_factor, warmup_epochs,
total_epochs, log_every_steps.

  alexnet train --config=tiny_imagenet
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import small


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = small.get_config().unlock()
  config.network.dropout_rate = 0.3
  config.num_classes = 185
  config.data_dir = "data/tiny_imagenet"
  config.test_split = "validation"
  config.schedule = "epochs"
  config.target_factor = 250.0
  config.warmup_epochs = 0.25
  config.total_epochs = 60.0
  config.log_every_steps = 100
  return config.lock()
