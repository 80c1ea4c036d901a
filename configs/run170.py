"""Run 170: the rate falls in equal ratios at equal times (dexp).

Original: 40.528 % top-1 error on ILSVRC-2012 validation with ten views, 40.250
and 18.116 % top-5 after a restart; not in the paper. Only the schedule is on
record (lr.cu). Its factor and number of rates, 250 in 4 rates, are taken from
cuda-convnet2's ImageNet nets; its length and the bias rate are run 145's. No
layer is frozen, and the colour noise stays on.

Changes from configs/run145.py: schedule, learning_rate_drop_epochs,
learning_rate_of_layers, colour_noise_epochs.

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
  config.learning_rate_of_layers = ()
  config.colour_noise_epochs = None
  return config.lock()
