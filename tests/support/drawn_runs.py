"""Runs with drawn weights, as training would have left them."""

import json

import jax
import numpy as np

from alexnet_jax import networks
from alexnet_jax.configs import alexnet
from alexnet_jax.data import records, statistics
from alexnet_jax.data.prepare import shapes
from alexnet_jax.parallel import ensemble
from alexnet_jax.runs import checkpoint

NAMES = ("cat", "dog", "owl", "cow", "bee", "ant")


def small_config(**fields):
  """The paper's net, narrow, on 67 of 72 pixels."""
  config = alexnet.get_config().unlock()
  widths = {"conv1": 8, "conv2": 16, "conv3": 16, "conv4": 16, "conv5": 16}
  for name, filters in widths.items():
    config.network[name].filters = filters
    config.network[name].sigma = 0.05
  for name in ("fc6", "fc7"):
    config.network[name].units = 32
    config.network[name].sigma = 0.2
  config.network.fc8.sigma = 0.5
  config.update(image_size_px=72, crop_size_px=67, num_classes=len(NAMES))
  config.update_from_flattened_dict(fields)
  return config.copy_and_resolve_references().lock()


def _draw(config, module, seed):
  """Draws weights as the model would, without compiling it."""
  rng = np.random.default_rng(seed)
  size = config.crop_size_px
  image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
  return {
    stack: {
      name: {
        "kernel": rng.normal(
          0, config.network[name].sigma, layer["kernel"].shape
        ).astype(np.float32),
        "bias": np.full(
          layer["bias"].shape, config.network[name].bias, np.float32
        ),
      }
      for name, layer in layers.items()
    }
    for stack, layers in shapes.items()
  }


def write_run(folder, config, names=NAMES, seeds=(0,)):
  """Writes a run of one net, or of an ensemble; returns params and mean."""
  module = networks.make_model(config)
  each = [_draw(config, module, seed) for seed in seeds]
  params = ensemble.stack(each) if len(each) > 1 else each[0]
  mean = np.random.default_rng(9).uniform(90, 160, (config.image_size_px,) * 2)
  mean = np.stack([mean, mean + 5, mean - 9], axis=2).astype(np.float32)
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(config.to_dict()))
  (folder / "class_names.json").write_text(json.dumps(names))
  held = statistics.Statistics(mean, np.eye(3), np.ones(3))
  statistics.write(folder, held)
  checkpoint.write_params(folder, params)
  return each, mean


def write_run_on_shapes(place, crop_size_px, **counts):
  """Writes place/data, shapes of 32 px, and place/run, a net for them."""
  data = place / "data"
  shapes.generate(data, size_px=32, workers=0, **counts)
  fields = {
    "network.layers": ("conv1", "fc6", "fc8"),
    "network.conv1.kernel": 5,
    "image_size_px": 32,
    "crop_size_px": crop_size_px,
    "num_classes": 10,
    "data_dir": str(data),
  }
  names = records.open_directory(data).class_names
  write_run(place / "run", small_config(**fields), names)
  return place
