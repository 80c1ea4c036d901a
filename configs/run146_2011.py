"""Run 146-2011: the second pre-training of run 146, after run 146-2009.

No original figure. It was trained on the 21,843 classes of ImageNet's Fall 2011
release. A linear layer of 2 x 1024 units stands before the last
(layers-146-2011.cfg). It began with the convolutions of run 146-2009; the fc
layers had ten times the rate until epoch 6; it was ended at batch file 11295 of
epoch 8, of 14.2 million images in files of 1024, as we take it.

Changes from configs/run146_2009.py: network.layers, network.fc8.units,
network.fc9.*, init_from, num_classes, data_dir, reinit_layers,
learning_rate_of_layers, total_epochs.

  alexnet train --config=run146_2011
"""

from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.configs import alexnet, run146_2009


def get_config() -> ConfigDict:
  """Returns the config."""
  config: Any = run146_2009.get_config().unlock()
  net = config.network
  net.layers = (*net.layers, "fc9")
  net.fc8 = alexnet.dense(2 * 1024, then=())
  net.fc9 = alexnet.dense(config.get_ref("num_classes"), then=())
  config.init_from = "runs/run146_2009"
  config.num_classes = 21_843
  config.data_dir = "data/fall2011"
  config.reinit_layers = ("fc6", "fc7", "fc8", "fc9")
  config.learning_rate_of_layers = (
    (0.0, "conv6/bias", 0.002),
    *((0.0, layer, 0.01) for layer in config.reinit_layers),
    *((5.0, layer, 0.001) for layer in config.reinit_layers),
  )
  config.total_epochs = 7.8
  return config.lock()
