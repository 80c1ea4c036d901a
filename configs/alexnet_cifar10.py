"""The two-tower AlexNet for 32 px pictures, for ablations on CIFAR-10.

Five convolutions, three overlapping pools and three fully connected layers,
linked as the paper's; conv1 sees every pixel (stride 1), so that the pools
make 28, 14, 7 and 3 of a 28 px crop. Widths, first weights, rates and length
fit a short run. The last tenth of the training images is held out to choose
rates by. No original.

Changes from configs/alexnet.py: network.*, num_classes, data_dir, train_split,
validation_split, image_size_px, schedule, learning_rate_drop_epochs,
total_epochs, log_every_steps, checkpoint_every_steps, dead_after_steps.

  python -m alexnet_jax.data.prepare --source=cifar10.tar.xz \
    --output=data/cifar10 --size=32
  python -m alexnet_jax.main --config=configs/alexnet_cifar10.py
"""

from typing import Any

from ml_collections import ConfigDict

from configs import alexnet


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = alexnet.get_config().unlock()
  net = config.network
  for name, filters, kernel, padding in (
    ("conv1", 32, 5, 2), ("conv2", 64, 5, 2), ("conv3", 96, 3, 1),
    ("conv4", 96, 3, 1), ("conv5", 64, 3, 1),
  ):  # fmt: skip
    net[name].filters = filters
    net[name].kernel = kernel
    net[name].padding = padding
    net[name].stride = 1
  net.fc6.units = net.fc7.units = 256
  for name in net.layers:
    net[name].sigma = 0.05
  config.num_classes = 10
  config.data_dir = "data/cifar10"
  config.train_split = "train[:90%]"
  config.validation_split = "train[90%:]"
  config.image_size_px = 32
  config.schedule = "epochs"
  config.learning_rate_drop_epochs = (10.0, 11.5)
  config.total_epochs = 12.0
  config.log_every_steps = 88
  config.checkpoint_every_steps = 1000
  config.dead_after_steps = 2000
  return config.lock()
