"""The paper as printed (Krizhevsky, Sutskever, Hinton, NIPS 2012).

Every other config starts from this one, so this is the list of all fields.
Original run: 40.7 % top-1 and 18.2 % top-5 error on ILSVRC-2012 validation,
averaged over ten views.

  python -m alexnet_jax.main --config=configs/alexnet.py --workdir=DIR
"""

from typing import Any

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
  """Returns the base config."""
  config: Any = ConfigDict()

  # The net: a function of networks.py and its arguments.
  config.network = ConfigDict()
  config.network.table = "alexnet"
  config.network.activation = "relu"  # 3.1
  config.network.towers = 2  # 3.2
  config.network.conv_filters = (96, 256, 384, 384, 256)  # 3.5
  config.network.fc_features = (4096, 4096)  # 3.5
  config.network.conv1_kernel = 11  # 3.5
  config.network.conv1_stride = 4  # 3.5
  config.network.pool_window = 3  # 3.4, the stride being 2
  config.network.lrn_layers = ("conv1", "conv2")  # 3.5
  config.network.dropout_layers = ("fc6", "fc7")  # 4.2
  config.network.dropout_rate = 0.5  # 4.2
  config.network.sigma = 0.01  # 5
  config.num_classes = 1000
  config.compute_dtype = "float32"  # or bfloat16

  # The data: a directory that data/prepare.py made, and splits of it in TFDS's
  # words ("" for none). ImageNet's test labels are secret, so there the
  # validation split is the test: --config.test_split=validation.
  config.data_dir = "data/imagenet"
  config.generate_shapes = False  # draw data_dir if it does not exist
  config.train_split = "train"
  config.validation_split = "validation"
  config.test_split = "test"
  config.image_size_px = 256  # 2
  config.reader_threads = 2

  # Augmentation (4.1).
  config.crop_size_px = config.get_ref("image_size_px") * 7 // 8  # 224 of 256
  config.random_crop = True
  config.mirror = True
  # In standard deviations along each axis (convdata.py; the paper prints the
  # eigenvalue).
  config.colour_noise = 0.1

  # Learning (5). The paper divides the rate by 10, three times, when the
  # validation error stops to improve; these are run 145's epochs for it.
  config.batch_size = 128
  config.learning_rate = 0.01
  config.learning_rate_drop_epochs = (25.0, 51.0, 79.0)
  config.learning_rate_drop_factor = 0.1
  config.momentum = 0.9
  config.weight_decay = 0.0005
  config.total_epochs = 90.0
  config.total_steps = config_dict.placeholder(int)  # instead, where given
  config.seed = 0

  # What is written down, and when.
  config.log_every_steps = 100
  config.evaluate_every_epochs = 1.0
  config.checkpoint_every_steps = 2000
  config.checkpoints_to_keep = 3
  return config.lock()
