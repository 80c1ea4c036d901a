"""The one-tower AlexNet of the textbooks: 62.3 M parameters, 1.1 G MACs.

No original run. With --config.crop_size_px=227 the net is the same.

Changes from configs/alexnet.py: network.towers.

  alexnet train --config=one_tower
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = alexnet.get_config().unlock()
  config.network.towers = 1
  return config.lock()
