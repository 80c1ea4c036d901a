"""A narrow two-tower AlexNet on generated shapes, in minutes on a laptop.

What changes: widths, conv1's filters and the first weights fit 64 px images;
the batch, the rate's drops and the length fit a short run. No original.

  python -m alexnet_jax.main
"""

from typing import Any

from ml_collections import ConfigDict

from configs import alexnet


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = alexnet.get_config().unlock()
  config.network.conv_filters = (32, 64, 96, 96, 96)
  config.network.fc_features = (256, 256)
  config.network.conv1_kernel = 7
  config.network.conv1_stride = 3
  config.network.sigma = 0.05
  config.num_classes = 10
  config.data_dir = "data/shapes"
  config.generate_shapes = True
  config.image_size_px = 64
  config.batch_size = 64
  config.learning_rate_drop_epochs = (7.0, 8.5)
  config.total_epochs = 9.0
  config.log_every_steps = 50
  config.evaluate_every_epochs = 1.0
  config.checkpoint_every_steps = 500
  return config.lock()
