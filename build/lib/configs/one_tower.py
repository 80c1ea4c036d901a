"""The one-tower AlexNet of the textbooks: 62.3 M parameters, 1.1 G MACs.

What changes: network.towers = 1. No original run.

  python -m alexnet_jax.main --config=configs/one_tower.py
"""

from ml_collections import ConfigDict

from configs import alexnet


def get_config() -> ConfigDict:
  """Returns the config."""
  config = alexnet.get_config().unlock()
  config.network.towers = 1
  return config.lock()
