"""The two-tower AlexNet for 32 px pictures, for ablations on CIFAR-10.

Five convolutions, three overlapping pools and three fully connected layers,
linked as in the paper; the sides of a 28 px crop are 15, 7, 7, 3, 3, 3, 3, 1.
Widths, initial weights, batch size, rates and length suit a short run: biases
start at 0, rates fall linearly, and conv1, whose inputs reach from -128 to 127,
has rates of its own. The last tenth of the training images is the validation
split. No original.

Changes from configs/alexnet.py: network.*, num_classes, data_dir, train_split,
validation_split, image_size_px, crop_size_px, batch_size, learning_rate,
learning_rate_of_layers, schedule, total_epochs, log_every_steps,
checkpoint_every_steps, check_learning_after_steps.

  alexnet prepare --source=cifar10.tar.xz --output=data/cifar10 --size=32
  alexnet train --config=alexnet_cifar10
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = alexnet.get_config().unlock()
  net = config.network
  for name, width in (
    ("conv1", 64), ("conv2", 128), ("conv3", 192), ("conv4", 192),
    ("conv5", 128), ("fc6", 512), ("fc7", 512),
  ):  # fmt: skip
    net[name]["filters" if "filters" in net[name] else "units"] = width
    net[name].sigma = 0.04
    net[name].bias = 0.0
  net.conv1.kernel = 5
  net.conv1.stride = 2
  net.conv1.padding = 2
  net.conv1.sigma = 0.01
  net.fc8.sigma = 0.03
  config.num_classes = 10
  config.data_dir = "data/cifar10"
  config.train_split = "train[:90%]"
  config.validation_split = "train[90%:]"
  config.image_size_px = 32
  config.batch_size = 64
  config.learning_rate = 0.03
  config.learning_rate_of_layers = (
    (0.0, "conv1", 0.00075), (8.0, "conv1", 0.0003), (12.0, "conv1", 0.0001),
  )  # fmt: skip
  config.schedule = "linear"
  config.total_epochs = 14.0
  config.log_every_steps = 352
  config.checkpoint_every_steps = 5000
  config.check_learning_after_steps = 0
  return config.lock()
