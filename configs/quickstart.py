"""A narrow two-tower AlexNet on generated shapes, in minutes on a laptop.

Widths, conv1's filters and initial weights suit 64 px images; batch size, rates
and length suit a short run. No original.

Changes from configs/alexnet.py: num_classes, network.*, data_dir,
generate_shapes, image_size_px, crop_size_px, test_views, batch_size, schedule,
learning_rate_drop_epochs, total_epochs, log_every_steps,
checkpoint_every_steps, check_learning_after_steps.

  alexnet train
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = alexnet.get_config().unlock()
  net = config.network
  for name, width in (
    ("conv1", 32), ("conv2", 64), ("conv3", 96), ("conv4", 96), ("conv5", 96),
  ):  # fmt: skip
    net[name].filters = width
  net.conv1.kernel = 7
  net.conv1.stride = 3
  net.fc6.units = net.fc7.units = 256
  for name in net.layers:
    net[name].sigma = 0.05
  config.num_classes = 10
  config.data_dir = "data/shapes"
  config.generate_shapes = True
  config.image_size_px = 64
  config.test_views = 1
  config.batch_size = 64
  config.schedule = "epochs"
  config.learning_rate_drop_epochs = (7.0, 8.5)
  config.total_epochs = 9.0
  config.log_every_steps = 50
  config.checkpoint_every_steps = 500
  config.check_learning_after_steps = 250
  return config.lock()
