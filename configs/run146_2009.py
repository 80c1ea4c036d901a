"""Run 146-2009: a sixth convolution; the first pre-training of run 146.

No original figure. It was trained on the 10,184 classes of ImageNet's Fall 2009
release. It began with run 145's convolutions; the others were drawn anew and
had ten times the rate until batch file 1600 of epoch 2; it was ended at file
6491 of epoch 6. We take files of 1024 images, the most that convdata.py draws
noise for, of 8.9 million (paper 7).

Changes from configs/run145.py: network.layers, network.conv6.*,
network.fc8.units, init_from, num_classes, data_dir, reinit_layers,
learning_rate, learning_rate_of_biases, learning_rate_drop_epochs,
learning_rate_of_layers, colour_noise_epochs, total_epochs.

  alexnet train --config=run146_2009
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
  config.init_from = "runs/run145"
  config.num_classes = 10_184
  config.data_dir = "data/fall2009"
  config.reinit_layers = ("conv6", "fc6", "fc7", "fc8")
  config.learning_rate = 0.001
  config.learning_rate_of_biases = 20.0  # 0.02
  config.learning_rate_drop_epochs = ()
  config.learning_rate_of_layers = (
    (0.0, "conv6/bias", 0.002),
    *((0.0, layer, 0.01) for layer in config.reinit_layers),
    *((1.18, layer, 0.001) for layer in config.reinit_layers),
  )
  config.colour_noise_epochs = None
  config.total_epochs = 5.75
  return config.lock()
