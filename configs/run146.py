"""Run 146: a sixth convolution over the last pooling, for fine-tuning.

Original (146-2012-2011): pre-trained on the Fall 2011 release of ImageNet, then
fine-tuned on ILSVRC-2012: 38.990 % top-1, 16.622 % top-5 error on its
validation set with ten views (paper: "1 CNN*", 39.0 and 16.6). The rates of the
fine-tuning are not on record; here they are 1e-3, 1e-4 and 1e-5 for 13 epochs
each.

Changes from configs/run145.py: network.layers, network.conv6.*, learning_rate,
learning_rate_drop_epochs, learning_rate_of_layers, colour_noise_epochs,
total_epochs.

Pre-train on the larger set with run 145's rates for all layers, then fine-tune.
The last layer starts anew, as the classes are others:

  alexnet train --config=run146 --workdir=runs/fall2011 \
    --config.data_dir=data/fall2011 --config.num_classes=21841 \
    --config.learning_rate=0.01 --config.total_epochs=91 \
    --config.learning_rate_drop_epochs='(25.0, 51.0, 79.0)'
  alexnet train --config=run146 \
    --config.init_from=runs/fall2011 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet, run145


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run145.get_config().unlock()
  net = config.network
  net.layers = (
    "conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7", "fc8",
  )  # fmt: skip
  net.conv6 = alexnet.conv(
    256, 3, padding=1, sees_all_towers=True, sigma=0.03, bias=1.0
  )
  config.learning_rate = 0.001
  config.learning_rate_drop_epochs = (13.0, 26.0)
  config.learning_rate_of_layers = ()
  config.colour_noise_epochs = None
  config.total_epochs = 39.0
  return config.lock()
