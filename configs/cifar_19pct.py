"""The four-layer CIFAR-10 net of cuda-convnet, on whole images.

Original: 19 % test error (layers-19pct.cfg, layer-params-19pct.cfg). With
--config.weight_decay=0 --config.weight_decay_of_layers='()' it is the likely
net of the paper's Fig. 1, whose config is not on record. The number of epochs
is that of layer-params-18pct.cfg.

Changes from configs/alexnet.py: network.*, num_classes, data_dir,
validation_split, image_size_px, crop_size_px, random_crop, mirror,
colour_noise, test_views, weight_decay, weight_decay_of_biases,
weight_decay_of_layers, learning_rate, learning_rate_of_biases, schedule,
learning_rate_drop_epochs, total_epochs, checkpoint_every_steps.

  alexnet prepare --source=cifar10.tar.xz --output=data/cifar10 --size=32
  alexnet train --config=cifar_19pct
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = alexnet.get_config().unlock()
  net = config.network
  for name in net.layers:
    del net[name]
  net.layers = ("conv1", "conv2", "conv3", "fc10")
  net.towers = 1
  averaged = ("activation", "average_pool")
  net.conv1 = alexnet.conv(
    32, 5, padding=2, sigma=1e-4, then=("max_pool", "activation")
  )
  net.conv2 = alexnet.conv(32, 5, padding=2, then=averaged)
  net.conv3 = alexnet.conv(64, 5, padding=2, then=averaged)
  net.fc10 = alexnet.dense(config.get_ref("num_classes"), then=())
  config.num_classes = 10
  config.data_dir = "data/cifar10"
  config.validation_split = ""
  config.image_size_px = 32
  config.crop_size_px = 32
  config.random_crop = False
  config.mirror = False
  config.colour_noise = 0.0
  config.test_views = 1
  config.weight_decay = 0.004  # wc
  config.weight_decay_of_biases = False
  config.weight_decay_of_layers = (("fc10", 3.0),)
  config.learning_rate = 0.001  # epsW
  config.learning_rate_of_biases = 2.0  # epsB
  config.schedule = "epochs"
  config.learning_rate_drop_epochs = (120.0, 130.0)
  config.total_epochs = 140.0
  config.checkpoint_every_steps = 1000
  return config.lock()
