"""The nets whose weights are in circulation, and which of them a file is of."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from alexnet_jax import networks
from alexnet_jax.runs import config_files
from alexnet_jax.runtime import errors
from alexnet_jax.tools.convert import arrays, files, layer_strings


@dataclasses.dataclass(frozen=True)
class Known:
  """A net as others have trained it.

  Attributes:
    config: the file in configs/ that has its layers.
    bgr: whether its first filters take blue first.
    mean: of R, G and B, 0..255, that it was trained without.
    scale: by which R, G and B were multiplied then.
    crop_size_px: side of the image.
  """

  config: str
  bgr: bool
  mean: tuple[float, ...]
  scale: tuple[float, ...]
  crop_size_px: int


_CAFFE = {
  "bgr": True,
  # ilsvrc_2012_mean.npy, averaged over the pixels (Caffe's classification.py).
  "mean": (122.67891434, 116.66876762, 104.00698793),
  "scale": (1.0, 1.0, 1.0),
  "crop_size_px": 227,
}
# torchvision's normalize: of 0..1.
_MEAN, _SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NETS = {
  "torchvision": Known(
    "one_weird_trick",
    bgr=False,
    mean=tuple(255 * x for x in _MEAN),
    scale=tuple(1 / (255 * x) for x in _SD),
    crop_size_px=224,
  ),
  "bvlc_alexnet": Known("bvlc_alexnet", **_CAFFE),
  "bvlc_reference_caffenet": Known("caffenet", **_CAFFE),
}
# Covariance of ImageNet's pixels, of 0..1: its eigenvectors, in columns, and
# eigenvalues, ascending (datasets/imagenet.lua of fb.resnet.torch).
_AXES = (
  (0.4009, 0.7192, -0.5675),
  (-0.8140, -0.0045, -0.5808),
  (0.4203, -0.6948, -0.5836),
)
COLOURS = (
  np.array(_AXES, np.float32),
  np.sqrt([0.0045, 0.0188, 0.2175]).astype(np.float32) * 255,
)


def config_of(
  known: Known, found: files.Found | None = None, num_classes: int = 1000
) -> Any:
  """Returns the whole config of a known net, of 256 px images.

  Args:
    known: the net.
    found: a file, for what may be otherwise than at first: units, the side of
      the image, and whether pools may pass the edge.
    num_classes: where no file tells.
  """
  found = found or files.Found({})
  file = config_files.CONFIGS / f"{known.config}.py"
  config: Any = config_files.load_config(str(file)).unlock()
  sizes = {name: values.size for name, values in found.arrays.items()}
  config.num_classes = sizes.get("fc8.bias", num_classes)
  config.crop_size_px = found.input_size_px or known.crop_size_px
  net = config.network
  net.conv1.ceil_mode = False  # Others round down.
  for name in ("fc6", "fc7"):
    net[name].units = sizes.get(f"{name}.bias", net[name].units)
  inside = iter(found.pools_inside or ())
  for name in net.layers:
    net[name].then = tuple(
      "max_pool_floor" if word == "max_pool" and next(inside, False) else word
      for word in net[name].then
    )
  config.input_scale = known.scale
  # ImageNet's test labels are secret.
  config.test_split = "validation"
  config.test_views = 1
  return config.copy_and_resolve_references().lock()


def differences(network: networks.Network, found: files.Found) -> list[str]:
  """Returns what a file lacks of a net, has beside it, or has otherwise."""
  wanted = arrays.shapes(network)
  held = {name: values.shape for name, values in found.arrays.items()}

  def own(name: str) -> str:
    layer, dot, kind = name.rpartition(".")
    return f"{found.own_names.get(layer, layer)}{dot}{kind}"

  missing = (f"{own(name)} is missing" for name in wanted if name not in held)
  extra = (f"{own(name)} is too many" for name in held if name not in wanted)
  other = (
    f"{own(name)} is {list(held[name])}, not {list(shape)}"
    for name, shape in wanted.items()
    if held.get(name, shape) != shape
  )
  # By turns: of what is shown there is some of each.
  turns = itertools.zip_longest(missing, extra, other)
  lines = [line for turn in turns for line in turn if line]
  if found.steps is not None:
    pairs = itertools.zip_longest(
      found.steps, layer_strings.steps(network), fillvalue="the end"
    )
    lines += [
      f"step {number} is {there}, not {here}"
      for number, (there, here) in enumerate(pairs, start=1)
      if there != here
    ][:1]
  return lines


def detect(found: files.Found, asked: str = "") -> tuple[list[str], Any]:
  """Returns the names of the nets that a file fits, and the first one's config.

  Args:
    found: what the file holds.
    asked: the one name in `NETS` that is tried; by default all.

  Raises:
    InputError: none fits, or not the one that was asked for.
  """
  if asked and asked not in NETS:
    raise errors.unknown("--net", asked, NETS)
  names = [asked] if asked else list(NETS)
  configs = {name: config_of(NETS[name], found) for name in names}
  lines = {
    name: differences(networks.from_config(config), found)
    for name, config in configs.items()
  }
  fitting = [name for name in names if not lines[name]]
  if fitting:
    return fitting, configs[fitting[0]]
  nearest = min(names, key=lambda name: len(lines[name]))
  raise errors.InputError(
    f"it is no net that is known here. Beside {nearest}:"
    f" {errors.first_few(lines[nearest])}. Known: {', '.join(NETS)}."
  )


def to_rgb(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns arrays whose first filters took blue first, with red first."""
  return {**found, "conv1.weight": found["conv1.weight"][:, ::-1]}


def is_torchvisions(network: networks.Network, config: Any) -> bool:
  """Whether torchvision's class computes what a net does, from its weights."""
  # Its class takes other sizes by averaging to 6 x 6; this net has no such
  # layer, so its own must come to that.
  sizes = arrays.shapes(network).get("fc6.weight", (0, 0))
  if sizes[1] != 6 * 6 * 256:
    return False
  asked = files.Found({}, None, config.crop_size_px, [True] * 3)
  theirs = config_of(NETS["torchvision"], asked, config.num_classes)
  try:
    like = networks.from_config(theirs)
  except errors.InputError:
    return False  # Its input is too small for theirs.

  def facts(net: networks.Network) -> tuple[Any, ...]:
    sizes = [row.output_shape for row in networks.rows(net)]
    return layer_strings.steps(net), arrays.shapes(net), sizes

  dropouts = [
    layer
    for layer in (*network.features, *network.classifier)
    if isinstance(layer, networks.Dropout)
  ]
  return facts(network) == facts(like) and all(x.rescaled for x in dropouts)
