"""Run 146-2012-2011: a sixth convolution, fine-tuned on ILSVRC-2012.

Original: 38.990 % top-1, 16.622 % top-5 error on its validation set with ten
views (paper: "1 CNN*", 39.0 and 16.6). It goes on from run 146-2011 with a new
last layer, whose rate was 0.01 from batch file 300 (of 1024 images, as we take
it) to epoch 9 of the log. Rates fell in epochs 22 and 42, those of conv1 in 5
and 7; the colour noise ended in 38, the run in 54.

Changes from configs/run146_2009.py: network.fc8.units, init_from, num_classes,
data_dir, reinit_layers, learning_rate_drop_epochs, learning_rate_of_layers,
colour_noise_epochs, total_epochs.

  alexnet train --config=run146 --config.test_split=validation
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import run146_2009


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run146_2009.get_config().unlock()
  config.init_from = "runs/run146_2011"
  config.num_classes = 1000
  config.data_dir = "data/imagenet"
  config.reinit_layers = ()  # fc8 has another size.
  config.learning_rate_drop_epochs = (21.0, 41.0)
  config.learning_rate_of_layers = (
    (0.0, "conv1", 1e-4),
    (4.0, "conv1", 1e-5),
    (6.0, "conv1", 0.0),
    (0.0, "conv6/bias", 0.022),
    (0.24, "fc8", 0.01),
    (8.0, "fc8", 1e-3),
    (21.0, "fc8", 1e-4),
    (41.0, "fc8", 1e-5),
  )
  config.colour_noise_epochs = 37.0
  config.total_epochs = 53.0
  return config.lock()
