"""A narrow two-tower AlexNet for images of your own, in minutes on a laptop.

`--config=small:SIZE` is for images of SIZE px, from 32 to 256; 64 without it.
conv1's stride grows with SIZE, so the multiply-accumulates of all sizes are
within a factor of about three. He's initial weights suit these widths; with the
paper's, the loss may stay at chance for long. No original.

Changes from configs/alexnet.py: network.*, image_size_px, crop_size_px,
input_scale, batch_size, schedule, target_factor, total_epochs, log_every_steps.

  alexnet train --config=small --config.data_dir=DIR --config.num_classes=5
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config(size: str = "64") -> ConfigDict:
  """Returns the config for images of a size in pixels."""
  if not (size.isdecimal() and 32 <= int(size) <= 256):
    raise ValueError(f"small:{size} must be small:SIZE, 32 to 256 px")
  config: Any = alexnet.get_config().unlock()
  net = config.network
  for name, width in (
    ("conv1", 48), ("conv2", 128), ("conv3", 192), ("conv4", 192),
    ("conv5", 128),
  ):  # fmt: skip
    net[name].filters = width
  net.conv1.stride = round(int(size) / 32)
  net.conv1.kernel = max(5, 2 * net.conv1.stride + 1)
  net.fc6.units = net.fc7.units = 1024
  for name in net.layers:
    net[name].bias = 0.0
  net.initialization = "he"
  # He's weights want inputs near 1, and LRN an alpha for such inputs.
  config.input_scale = (1 / 64, 1 / 64, 1 / 64)
  net.lrn.k = 1.0
  net.lrn.alpha = 0.2
  config.image_size_px = int(size)
  config.batch_size = 64
  config.schedule = "linear"
  config.target_factor = 1000.0
  config.total_epochs = 30.0
  config.log_every_steps = 20
  return config.lock()
