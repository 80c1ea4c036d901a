"""The four-layer net on CIFAR-10 (paper Fig. 1, cuda-convnet's 19 % net).

What changes: the net, 32 px images with 28 px crops, no colour noise, the rate
and its drops. The last tenth of the training images is held out to validate.
Original: 25 % training error in Fig. 1; about 19 % test error for
layers-19pct.cfg, trained on whole images for longer.

  python -m alexnet_jax.data.prepare --source=cifar10.tar.xz \
    --output=data/cifar10 --size=32
  python -m alexnet_jax.main --config=configs/cifar10.py
"""

from ml_collections import ConfigDict

from configs import alexnet


def get_config() -> ConfigDict:
  """Returns the config."""
  config = alexnet.get_config().unlock()
  config.network = ConfigDict({"table": "four_layer", "activation": "relu"})
  config.num_classes = 10
  config.data_dir = "data/cifar10"
  config.train_split = "train[:90%]"
  config.validation_split = "train[90%:]"
  config.image_size_px = 32
  config.colour_noise = 0.0
  config.learning_rate = 0.001
  config.learning_rate_drop_epochs = (12.0, 14.0)
  config.total_epochs = 15.0
  config.checkpoint_every_steps = 1000
  return config.lock()
