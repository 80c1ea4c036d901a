"""The net that ships with the package: 185 classes of Tiny-ImageNet, 64 px.

A two-tower net of 3.0 million parameters. Its first rate stays to the end; a
second run with a rate that falls to 0 starts from its weights. No original;
experiments/tiny_imagenet has the commands and the figures.

Changes from configs/alexnet.py: num_classes, network.*, data_dir,
image_size_px, crop_size_px, input_scale, test_split, test_views, batch_size,
schedule, warmup_epochs, total_epochs.

  alexnet train --config=tiny_imagenet
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = alexnet.get_config().unlock()
  net = config.network
  for name, width in (
    ("conv1", 48), ("conv2", 128), ("conv3", 192), ("conv4", 192),
    ("conv5", 128),
  ):  # fmt: skip
    net[name].filters = width
  net.conv1.kernel = 5
  net.conv1.stride = 2
  net.fc6.units = net.fc7.units = 1024
  for name in net.layers:
    net[name].bias = 0.0
  net.initialization = "he"
  # He's weights want inputs near 1, and LRN an alpha for such inputs.
  config.input_scale = (1 / 64, 1 / 64, 1 / 64)
  net.lrn.k = 1.0
  net.lrn.alpha = 0.2
  net.dropout_rate = 0.3  # Half would need more passes than the time allows.
  config.num_classes = 185
  config.data_dir = "data/tiny_imagenet"
  config.image_size_px = 64
  config.test_split = "validation"
  config.test_views = 10
  config.batch_size = 64
  config.schedule = "epochs"
  config.warmup_epochs = 0.25
  config.total_epochs = 60.0
  return config.lock()
