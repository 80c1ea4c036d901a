"""cifar_19pct on random crops, for a short run on a laptop.

28 px crops and mirror images; weight decay and bias rates as in the paper. The
last tenth of the training images is the validation split. No original.

Changes from configs/cifar_19pct.py: train_split, validation_split,
crop_size_px, random_crop, mirror, weight_decay, weight_decay_of_biases,
weight_decay_of_layers, learning_rate_of_biases, learning_rate_drop_epochs,
total_epochs.

  alexnet train --config=cifar10
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import cifar_19pct


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = cifar_19pct.get_config().unlock()
  config.train_split = "train[:90%]"
  config.validation_split = "train[90%:]"
  config.crop_size_px = 28
  config.random_crop = True
  config.mirror = True
  config.weight_decay = 0.0005
  config.weight_decay_of_biases = True
  config.weight_decay_of_layers = ()
  config.learning_rate_of_biases = 1.0
  config.learning_rate_drop_epochs = (12.0, 14.0)
  config.total_epochs = 15.0
  return config.lock()
