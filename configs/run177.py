"""Run 177: run 170 with dropout on conv4, which keeps 0.8.

Original: 40.690 % top-1, 18.304 % top-5 error on ILSVRC-2012 validation with
ten views; not in the paper. The colour noise ended in epoch 60 of the log, and
conv1 was frozen in 73.

Changes from configs/run170.py: network.conv4.then,
network.dropout_rate_of_layers, learning_rate_of_layers, colour_noise_epochs.

  alexnet train --config=run177 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run170


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run170.get_config().unlock()
  config.network.conv4.then = ("activation", "dropout")
  config.network.dropout_rate_of_layers = (("conv4", 0.2),)
  config.learning_rate_of_layers = ((72.0, "conv1", 0.0),)
  config.colour_noise_epochs = 59.0
  return config.lock()
