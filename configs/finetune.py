"""Fine-tuning: another run's net on new classes; its last layer starts anew.

Net, image size, crop and mean image are those of the run in init_from, which
was trained here or imported; fields on the command line override them. The last
layer learns ten times as fast as the others. No original.

Changes from configs/alexnet.py: init_inherits, learning_rate,
learning_rate_of_reinit_layers, schedule, learning_rate_drop_epochs,
total_epochs.

  alexnet train --config=finetune \
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
  config.init_inherits = True
  config.learning_rate = 0.001
  config.learning_rate_of_reinit_layers = 10.0
  config.schedule = "epochs"
  config.learning_rate_drop_epochs = (8.0,)
  config.total_epochs = 12.0
  return config.lock()
