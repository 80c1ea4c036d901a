"""The nets whose weights are in circulation, and which of them a file holds."""

import dataclasses
from typing import Any

import numpy as np

from alexnet_jax import model, networks
from alexnet_jax.runs import config_files, torch_layout
from alexnet_jax.runs.torch_layout import LoadedWeights
from alexnet_jax.runtime import errors
from alexnet_jax.tools.convert import caffe


@dataclasses.dataclass(frozen=True)
class KnownNet:
  """A net as another program trained it."""

  config: str  # name of the config that has its layers
  bgr: bool  # whether its first filters take blue first
  mean: tuple[float, ...]  # of R, G and B, 0..255, subtracted from its input
  scale: tuple[float, ...]  # of R, G and B, multiplied after that
  crop_size_px: int  # side of the image


_CAFFE = {
  "bgr": True,
  # ilsvrc_2012_mean.npy, averaged over the pixels (Caffe's classification.py).
  "mean": (122.67891434, 116.66876762, 104.00698793),
  "scale": (1.0, 1.0, 1.0),
  "crop_size_px": 227,
}
NETS = {
  "torchvision": KnownNet(
    "one_weird_trick",
    bgr=False,
    # Its `normalize` is for pixels of 0..1.
    mean=tuple(255 * x for x in (0.485, 0.456, 0.406)),
    scale=tuple(1 / (255 * x) for x in (0.229, 0.224, 0.225)),
    crop_size_px=224,
  ),
  "bvlc_alexnet": KnownNet("bvlc_alexnet", **_CAFFE),
  "bvlc_reference_caffenet": KnownNet("caffenet", **_CAFFE),
}
# Eigenvectors, in columns, and eigenvalues, ascending, of the covariance of
# ImageNet's pixels of 0..1 (datasets/imagenet.lua of fb.resnet.torch).
_AXES = (
  (0.4009, 0.7192, -0.5675),
  (-0.8140, -0.0045, -0.5808),
  (0.4203, -0.6948, -0.5836),
)
COLOURS = (
  np.array(_AXES, np.float32),
  np.sqrt([0.0045, 0.0188, 0.2175]).astype(np.float32) * 255,
)


def config_of(known: KnownNet, weights: torch_layout.Arrays) -> Any:
  """Returns the whole config of a known net with the widths of some weights."""
  config: Any = config_files.load_config(known.config).unlock()
  sizes = {name: values.size for name, values in weights.items()}
  config.num_classes = sizes.get("fc8.bias", config.num_classes)
  config.crop_size_px = known.crop_size_px
  net = config.network
  net.conv1.ceil_mode = False  # Other programs round down.
  for name in ("fc6", "fc7"):
    net[name].units = sizes.get(f"{name}.bias", net[name].units)
  config.input_scale = known.scale
  config.test_split = "validation"  # ImageNet's test labels are secret.
  config.test_views = 1
  return config.copy_and_resolve_references().lock()


def differences(
  network: model.Network, weights: LoadedWeights
) -> tuple[int, str]:
  """Returns how many arrays and steps of a file are not a net's, and which."""
  there: dict[str, Any] = {name: x.shape for name, x in weights.arrays.items()}
  here: dict[str, Any] = dict(torch_layout.shapes(network))
  if weights.steps is not None:
    for found, steps in ((there, weights.steps), (here, caffe.steps(network))):
      found.update({f"step {n:02}": step for n, step in enumerate(steps, 1)})
  count = sum(there.get(name) != here.get(name) for name in there | here)
  return count, errors.differences(there, here, ("in the file", "in the net"))


def detect(weights: LoadedWeights, name: str | None = None) -> tuple[str, Any]:
  """Returns name and config of the net that a file fits.

  `name`, in `NETS`, is the only one that is tried.
  """
  names = [name] if name else list(NETS)
  configs = {name: config_of(NETS[name], weights.arrays) for name in names}
  differing = {
    name: differences(networks.from_config(config), weights)
    for name, config in configs.items()
  }
  fitting = [name for name in names if not differing[name][0]]
  if len(fitting) == 1:
    return fitting[0], configs[fitting[0]]
  if fitting:
    raise errors.InputError(
      f"the file fits {' and '.join(fitting)}, whose weights look the same;"
      " pass --net=NAME with the one that it is."
    )
  nearest = min(names, key=lambda name: differing[name][0])
  raise errors.InputError(
    f"the file fits no known net. Compared with {nearest}:"
    f" {differing[nearest][1]}. Known: {', '.join(NETS)}."
  )
