"""A trained net for use from Python.

model = alexnet_jax.load("runs/quickstart")
model.predict("dog.jpg")  # probabilities of its classes
model.features(images, layer="fc7")
"""

import collections
import copy
import dataclasses
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from alexnet_jax import augment, networks
from alexnet_jax.data import decode
from alexnet_jax.model import AlexNet, Network
from alexnet_jax.parallel import placement
from alexnet_jax.runs import config_files, trained
from alexnet_jax.runtime import cli, errors, files, platforms

# Batch sizes to compile for; any number of images is split into these.
_BATCHES = (64, 8, 1)


@jax.enable_x64(False)
def load(workdir: str | Path = "pretrained", step: str = "newest") -> "Model":
  """Opens the net that ships with the package, or a run in a folder.

  `step` is `newest`, `best` (by validation) or a number. Raises InputError if
  there is no such checkpoint, or a damaged one.
  """
  return Model(trained.load_run(workdir, placement.make_mesh(1), step))


def from_config(config: str | ConfigDict, **fields: Any) -> AlexNet:
  """Returns the net of a config, a flax module without parameters.

  It takes float32 [N, S, S, 3], RGB of 0..255 less the mean image, times the
  config's input_scale, and gives logits. S is its `network.input_size_px`.

  Args:
    config: a config, or what `--config=` takes, such as `alexnet`.
    **fields: fields of it to change, such as `num_classes=5`.

  Raises:
    InputError: a field breaks a rule, or shapes do not fit together.
  """
  if isinstance(config, str):
    config = config_files.load_config(config)
  new: Any = copy.deepcopy(config).lock()  # With its references.
  with cli.refuse_unknown_fields():
    new.update_from_flattened_dict(fields)
  new = new.copy_and_resolve_references()
  config_files.check(new)
  if new.init_inherits:
    raise errors.InputError(
      "this config takes its net from a run, not from its own fields; open that"
      f" net by alexnet_jax.load({new.init_from!r}).net."
    )
  return networks.make_model(new)


def load_single(workdir: str | Path, step: str = "newest") -> "Model":
  """Opens a run as `load` does; raises InputError for an ensemble."""
  model = load(workdir, step)
  if len(model.members) > 1:
    raise errors.InputError(
      f"workdir={str(workdir)!r} is an ensemble of {len(model.members)} nets,"
      " which cannot be taken as one; choose a run of a single net."
    )
  return model


class Model:
  """A trained net, or an ensemble whose predictions are averaged.

  Images may be one or many. One is the path of a file, a PIL image, or an array
  [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], grey, RGB or RGBA: uint8 of 0..255,
  or floats of 0..1. Many are an array [N, H, W, C], or any iterable of these.
  Sizes may differ; each is made upright, laid on white and cropped to a square
  as by `prepare`. What is returned for one image has no axis N.

  Attributes:
    config: of the run.
    step: of the checkpoint.
    class_names: in the order of the labels.
    statistics: the mean image and the colours of what it was trained on.
    labels: by class name, and by the WNID that ImageNet's names begin with;
      a name that two classes share is left out.
    shapes: of the outputs that `features` gives for one image, by layer.
    layers: the names of these outputs, to the logits.
  """

  def __init__(self, run: trained.TrainedRun):
    """See `load`."""
    self.config = run.config
    self.step = run.step
    self.class_names = run.class_names
    self.statistics = run.statistics
    words = [
      (word, label)
      for label, name in enumerate(self.class_names)
      for word in (name, *re.findall(r"^n\d{8}(?= )", name))
    ]
    counts = collections.Counter(word for word, _ in words)
    self.labels = {word: label for word, label in words if counts[word] == 1}
    self.net = run.net
    self.members = run.members
    self.augmentation = augment.from_config(run.config, run.statistics)
    self._outputs = _outputs(run.net.network)
    self.shapes = {
      name: networks.rows(part)[-1].output_shape
      for name, part in self._outputs.items()
    }
    self.layers = tuple(self.shapes)
    run_forward = platforms.jit(self._forward, static_argnames="layer")
    self._run = jax.enable_x64(False)(run_forward)

  def __repr__(self) -> str:
    """Returns net, classes, size and step in a line."""
    names = networks.layer_names(self.net.network)
    return (
      f"Model({names[0]} to {names[-1]}, nets={len(self.members)},"
      f" classes={len(self.class_names)},"
      f" image_size_px={self.config.image_size_px}, step={self.step})"
    )

  def predict(self, images: Any, views: int = 1) -> np.ndarray:
    """Returns the probability of each class, float32 [N, K] or [K].

    Args:
      images: one or many, as above.
      views: 1, the centre, or 10, whose probabilities are averaged (paper 4.1).
    """
    if views not in augment.VIEWS:
      raise errors.InputError(f"views={views} must be 1 or 10.")
    config = self.config
    places = augment.views(views, config.image_size_px, config.crop_size_px)
    found = [np.zeros((0, config.num_classes), np.float32)]
    for batch in self._batches(images):
      parts = [
        self._run(params, batch, place)
        for params in self.members
        for place in places
      ]
      found.append(np.asarray(sum(parts) / len(parts)))
    rows = np.concatenate(found)
    return rows[0] if _is_one(images) else rows

  def features(self, images: Any, layer: str = "fc7") -> np.ndarray:
    """Returns a layer's output for the centre view of each image.

    It is float32 [N, H, W, C] or [N, units], of one image without N; of an
    ensemble of M nets [M, N, ...].

    Args:
      images: one or many, as above.
      layer: one of `layers`, which have Caffe's names. conv1 and fc7 are after
        their activation, and before dropout's factor.
    """
    if layer not in self.shapes:
      raise errors.unknown("layer", layer, self.layers)
    config = self.config
    (centre,) = augment.views(1, config.image_size_px, config.crop_size_px)
    found = [np.zeros((len(self.members), 0, *self.shapes[layer]), np.float32)]
    for batch in self._batches(images):
      each = [self._run(p, batch, centre, layer=layer) for p in self.members]
      found.append(np.stack(each))
    nets = np.concatenate(found, axis=1)
    nets = nets[:, 0] if _is_one(images) else nets
    return nets[0] if len(nets) == 1 else nets

  def _batches(self, images: Any) -> Iterator[np.ndarray]:
    remaining = iter([images] if _is_one(images) else images)
    while held := list(itertools.islice(remaining, _BATCHES[0])):
      while held:
        size = next(size for size in _BATCHES if size <= len(held))
        yield np.stack([self.square(image) for image in held[:size]])
        del held[:size]

  def square(self, image: Any) -> np.ndarray:
    """Returns an image as the net's data set has it, uint8 [S, S, 3]."""
    try:
      return square(image, self.config.image_size_px)
    except decode.UnreadableError as e:
      is_file = isinstance(image, str | os.PathLike)
      what = repr(os.fspath(image)) if is_file else "an image"
      raise errors.InputError(f"{what} cannot be used ({e}).") from e

  def _forward(
    self, params: Any, images: jax.Array, view: jax.Array, layer: str = ""
  ) -> jax.Array:
    """Returns a layer's output for one view, "" being the softmax."""
    net: Any = self.net
    if layer:
      net = net.clone(network=self._outputs[layer])
    method = "__call__" if net.network.classifier else "extract"
    images = augment.test_view(images, view, self.augmentation)
    found = net.apply({"params": params}, images, method=method)
    found = found.astype(jnp.float32)
    return found if layer else jax.nn.softmax(found)


def _is_one(images: Any) -> bool:
  is_file = isinstance(images, str | os.PathLike | Image.Image)
  return is_file or getattr(images, "ndim", 0) in (2, 3)


def square(image: Any, size_px: int) -> np.ndarray:
  """Returns an image of a kind that `Model` takes as uint8 [S, S, 3].

  Raises UnreadableError; its text is the reason.
  """
  try:
    match image:
      case str() | os.PathLike():
        opened = decode.decode(files.read(Path(image)))
      case Image.Image():
        opened = decode.to_rgb(image)
      case _:
        opened = decode.to_rgb(_from_array(np.asarray(image)))
    return decode.square(opened, size_px)
  except (OSError, decode.UnreadableError, MemoryError) as e:
    reason = getattr(e, "strerror", None) or " ".join(str(e).split())
    raise decode.UnreadableError(reason or "it is too large") from e


def _from_array(pixels: np.ndarray) -> Image.Image:
  is_float = jnp.issubdtype(pixels.dtype, jnp.floating)
  in_range = is_float and ((pixels >= 0) & (pixels <= 1)).all()
  has_shape = pixels.ndim == 2 or pixels.shape[2:] in ((1,), (3,), (4,))
  if not (has_shape and pixels.size and (in_range or pixels.dtype == np.uint8)):
    raise decode.UnreadableError(
      f"{pixels.dtype} {list(pixels.shape)}; it must be uint8 of 0..255, or"
      " floats of 0..1 without NaN, and [H, W] or [H, W, 1, 3 or 4]"
    )
  if is_float:
    pixels = np.rint(pixels * 255).astype(np.uint8)
  is_grey = pixels.shape[2:] == (1,)
  return Image.fromarray(pixels[:, :, 0] if is_grey else pixels)


def _outputs(network: Network) -> dict[str, Network]:
  """Returns the net up to each output that has a name, in order.

  Names are Caffe's: norm1 and pool1 follow conv1, and conv1 and fc6 are after
  their activation. The last layer's outputs are the logits.
  """
  found: dict[str, Network] = {}
  name = number = ""
  layers = (*network.features, *network.classifier)
  for count, layer in enumerate(layers, start=1):
    if layer.output_name is None:
      continue
    named = [x.name for x in networks.flat([layer]) if x.name]
    if named:
      name = named[-1]
      number = name.removeprefix("conv").removeprefix("fc")
    elif layer.output_name:
      name = layer.output_name + number
    found[name] = dataclasses.replace(
      network,
      features=layers[:count][: len(network.features)],
      classifier=layers[len(network.features) : count],
    )
  return found
