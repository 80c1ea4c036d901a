"""Fine-tuning: another run's net on new classes; its last layer starts anew.

Without init_from it is the net that ships with the package, whose images have
64 px. Net, image size, crop, scale of the input and mean image are those of
that run, which was trained here or imported; fields on the command line
override them. The last layer learns ten times as fast as the others.
No original.

Changes from configs/alexnet.py: init_from, init_inherits, learning_rate,
learning_rate_of_reinit_layers, batch_size, schedule, target_factor,
total_epochs, log_every_steps.

  alexnet train --config=finetune --config.data_dir=DIR --config.num_classes=5
  alexnet train --config=finetune --workdir=runs/from_mine \
    --config.init_from=RUN --config.data_dir=DIR --config.num_classes=5

A rate of 0 freezes a layer: --config.learning_rate_of_layers="((0.0, 'conv1',
0.0), (0.0, 'conv2', 0.0))".
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = alexnet.get_config().unlock()
  config.init_from = "pretrained"
  config.init_inherits = True
  config.learning_rate = 0.001
  config.learning_rate_of_reinit_layers = 10.0
  config.batch_size = 64
  config.schedule = "linear"
  config.target_factor = 1000.0
  config.total_epochs = 15.0
  config.log_every_steps = 20
  return config.lock()
