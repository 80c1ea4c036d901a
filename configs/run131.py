"""Run 131: an earlier net, whose conv2 also sees a blurred image.

Original: 40.934 % top-1, 18.574 % top-5 error on ILSVRC-2012 validation with
ten views; not in the paper. conv1 has 32 filters a tower. conv2 adds to its
filters over pool1 filters over the image, blurred and at a quarter of the
resolution. The norm within maps is by contrast, and k = 1 (layers-131.cfg).
Rates fell in epochs 22, 46 and 81 of the log, those of conv1 and conv2 also in
66 and 75; ended in epoch 100. The biases' rate is read as in run 147.

Changes from configs/run145.py: network.layers, network.conv1.filters,
network.conv2.then, network.blur0.*,
network.conv2_image.*, network.conv2_sum.*, network.lrn.k,
learning_rate_drop_epochs, learning_rate_of_layers, schedule_of_biases,
colour_noise_epochs, total_epochs.

  alexnet train --config=run131 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet, run145


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run145.get_config().unlock()
  net = config.network
  net.layers = (
    "conv2_sum", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8",
  )  # fmt: skip
  net.conv1.filters = 2 * 32
  net.conv2.then = ()
  net.blur0 = alexnet.words("blur")
  net.conv2_image = alexnet.conv(256, 5, stride=2, bias=None, then=())
  net.conv2_sum = alexnet.add(
    ("blur0", "conv2_image"),
    ("conv1", "conv2"),
    then=("activation", "lrn", "contrast_norm", "max_pool"),
  )
  net.lrn.k = 1.0  # minDiv
  config.learning_rate_drop_epochs = (21.0, 45.0, 80.0)
  config.learning_rate_of_layers = tuple(
    (epoch, layer, rate)
    for epoch, rate in ((65.0, 1e-5), (74.0, 0.0))
    for layer in ("conv1", "conv2", "conv2_image")
  )
  config.schedule_of_biases = "dexp"
  config.colour_noise_epochs = 65.0
  config.total_epochs = 99.0
  return config.lock()
