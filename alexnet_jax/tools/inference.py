"""A trained net for use from Python.

model = alexnet_jax.load("runs/quickstart")
model.predict(images)  # probabilities of its classes
model.features(images, layer="fc7")
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from alexnet_jax import augment, networks
from alexnet_jax.data import decode as image_files
from alexnet_jax.data import statistics
from alexnet_jax.model import Network
from alexnet_jax.parallel import placement
from alexnet_jax.runs import run_files, trained
from alexnet_jax.runtime import errors, platforms

# Batch sizes to compile for; any number of images is split into these.
_BATCHES = (64, 8, 1)


@jax.enable_x64(False)
def load(workdir: str | Path, step: str = "newest") -> "Model":
  """Opens a run that was trained, or imported by `alexnet convert`.

  `step` is `newest`, `best` (by validation) or a number. Raises InputError if
  there is no such checkpoint, or a damaged one.
  """
  run = trained.load_run(Path(workdir), placement.make_mesh(1), step)
  size_px = run.config.image_size_px
  names, trained_with = run_files.read_run_metadata(Path(workdir), size_px)
  if len(names) != run.config.num_classes:
    raise errors.InputError(
      f"workdir={str(workdir)!r} names {len(names)} of its"
      f" {run.config.num_classes} classes; put its class_names.json back."
    )
  return Model(run, names, trained_with)


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

  Attributes:
    config: of the run.
    step: of the checkpoint.
    class_names: in the order of the labels.
    labels: by class name, and by the WNID that ImageNet's names begin with;
      a name that two classes share is left out.
    shapes: of the outputs that `features` gives for one image, by layer.
    layers: the names of these outputs, to the logits.
  """

  def __init__(
    self,
    run: trained.TrainedRun,
    class_names: Sequence[str],
    trained_with: statistics.Statistics,
  ):
    """See `load`."""
    self.config = run.config
    self.step = run.step
    self.class_names = tuple(class_names)
    words = [
      (word, label)
      for label, name in enumerate(self.class_names)
      for word in (name, *re.findall(r"^n\d{8}(?= )", name))
    ]
    counts = collections.Counter(word for word, _ in words)
    self.labels = {word: label for word, label in words if counts[word] == 1}
    self.net = run.net
    self.members = run.members
    self.augmentation = augment.from_config(run.config, trained_with)
    self._outputs = _outputs(run.net.network)
    self.shapes = {
      name: networks.rows(part)[-1].output_shape
      for name, part in self._outputs.items()
    }
    self.layers = tuple(self.shapes)
    run_forward = platforms.jit(self._forward, static_argnames="layer")
    self._run = jax.enable_x64(False)(run_forward)

  def predict(self, images: Any, views: int = 1) -> np.ndarray:
    """Returns the probability of each class, float32 [N, K].

    Args:
      images: uint8 [N, H, W, 3] in RGB, 0..255, or any iterable of such images
        of any sizes; they are scaled and cropped to squares as by `prepare`.
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
    return np.concatenate(found)

  def features(self, images: Any, layer: str = "fc7") -> np.ndarray:
    """Returns a layer's output for the centre view of each image.

    It is float32 [N, H, W, C] or [N, units]; of an ensemble [M, N, ...].

    Args:
      images: as for `predict`.
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
    return nets[0] if len(nets) == 1 else nets

  def _batches(self, images: Any) -> Iterator[np.ndarray]:
    remaining = iter(images)
    while held := list(itertools.islice(remaining, _BATCHES[0])):
      while held:
        size = next(size for size in _BATCHES if size <= len(held))
        yield self._squares(held[:size])
        del held[:size]

  def _squares(self, images: Sequence[Any]) -> np.ndarray:
    """Returns uint8 [N, S, S, 3], the images as in the net's data set."""
    size = self.config.image_size_px
    squares = np.empty((len(images), size, size, 3), np.uint8)
    for square, image in zip(squares, images, strict=True):
      pixels = np.asarray(image)
      fits = pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
      if not fits or not pixels.size:
        raise errors.InputError(
          f"an image is {pixels.dtype} {list(pixels.shape)}; each must be uint8"
          " [H, W, 3] in RGB, of 0 to 255."
        )
      if pixels.shape != square.shape:
        pixels = image_files.square(Image.fromarray(pixels), size)
      square[:] = pixels
    return squares

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
