"""A trained net, opened to be asked.

model = alexnet_jax.load("runs/quickstart")
model.predict(images)  # probabilities of its classes
model.features(images, layer="fc7")
"""

import collections
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from alexnet_jax import augment, evaluate, networks
from alexnet_jax.data import decode as image_files
from alexnet_jax.data import statistics
from alexnet_jax.model import AlexNet
from alexnet_jax.parallel import placement
from alexnet_jax.runs import opened, run_files
from alexnet_jax.runtime import errors, platforms

# One program is compiled for each; any number of images is cut into these.
_SIZES = (64, 8, 1)


class Model:
  """A trained net, or an ensemble whose answers are averaged.

  Attributes:
    config: of the run.
    step: of the checkpoint.
    class_names: in the order of the labels.
    labels: by class name, and by the WNID that ImageNet's names begin with;
      without the names that two classes have.
    shapes: of what `features` can give for an image, by layer, in order.
    layers: their names, from the image to the logits.
  """

  def __init__(
    self,
    run: opened.Run,
    class_names: Sequence[str],
    held: statistics.Statistics,
  ):
    """Takes an opened run; see `load`.

    Args:
      run: opened on one device.
      class_names: of the labels.
      held: mean image and colours, with which it was trained.
    """
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
    self.augmentation = augment.from_config(run.config, held)
    self._cuts = networks.outputs(run.net.network)
    self._programs: dict[str, Callable[..., jax.Array]] = {}
    self.shapes = {
      name: networks.rows(cut)[-1].output_shape
      for name, cut in self._cuts.items()
    }
    self.layers = tuple(self.shapes)

  def predict(self, images: Any, views: int = 1) -> np.ndarray:
    """Returns the probability of each class.

    Args:
      images: uint8 [N, H, W, 3] in RGB, 0..255, or a list of such images of
        any sizes: scaled and cut to a square as `prepare` does it.
      views: 1, the centre, or 10, whose probabilities are averaged (paper 4.1).

    Returns:
      float32 [N, K].

    Raises:
      InputError: images of another kind, or other views.
    """
    if views not in evaluate.VIEWS:
      raise errors.InputError(f"views={views} must be 1 or 10.")
    config = self.config
    places = augment.views(views, config.image_size_px, config.crop_size_px)
    answer = self._jitted("")
    found = [np.zeros((0, config.num_classes), np.float32)]
    for batch in self._batches(images):
      parts = [answer(p, batch, at) for p in self.members for at in places]
      found.append(np.asarray(sum(parts) / len(parts)))
    return np.concatenate(found)

  def features(self, images: Any, layer: str = "fc7") -> np.ndarray:
    """Returns what a layer makes of the centre view of each image.

    Args:
      images: as for `predict`.
      layer: one of `layers`, which are named as Caffe does: conv1 and fc7 are
        after the activation, and before dropout's factor.

    Returns:
      float32 [N, H, W, C] of maps or [N, units]; of an ensemble [M, N, ...],
      by net.

    Raises:
      InputError: images of another kind, or no such layer.
    """
    if layer not in self._cuts:
      raise errors.unknown("layer", layer, self.layers)
    config = self.config
    (centre,) = augment.views(1, config.image_size_px, config.crop_size_px)
    found = [np.zeros((len(self.members), 0, *self.shapes[layer]), np.float32)]
    look = self._jitted(layer)
    for batch in self._batches(images):
      found.append(np.stack([look(p, batch, centre) for p in self.members]))
    each = np.concatenate(found, axis=1)
    return each[0] if len(each) == 1 else each

  def squares(self, images: Any) -> np.ndarray:
    """Returns uint8 [N, S, S, 3], images as the net's data set has them.

    Raises:
      InputError: images of another kind.
    """
    size = self.config.image_size_px
    squares = np.empty((len(images), size, size, 3), np.uint8)
    for square, image in zip(squares, images, strict=True):
      pixels = np.asarray(image)
      fits = pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
      if not fits or not pixels.size:
        raise errors.InputError(
          f"an image is {pixels.dtype} {list(pixels.shape)}; it must be uint8"
          " [H, W, 3] in RGB, of 0 to 255, one of a list."
        )
      if pixels.shape != square.shape:
        pixels = image_files.square(Image.fromarray(pixels), size)
      square[:] = pixels
    return squares

  def _batches(self, images: Any) -> Iterator[np.ndarray]:
    start = 0
    while start < len(images):
      size = next(size for size in _SIZES if size <= len(images) - start)
      yield self.squares(images[start : start + size])
      start += size

  def _jitted(self, layer: str) -> Callable[..., jax.Array]:
    """Returns `(params, images, view) -> outputs` of a layer.

    Of no layer, the probabilities.
    """
    if layer not in self._programs:
      net: Any = self.net
      method = "__call__"
      if layer:
        net = AlexNet(self._cuts[layer], net.dtype)
        method = "__call__" if net.network.classifier else "extract"

      def look(params, images, view):
        seen = augment.look(images, view, self.augmentation)
        found = net.apply({"params": params}, seen, method=method)
        found = found.astype(jnp.float32)
        return found if layer else jax.nn.softmax(found)

      self._programs[layer] = platforms.jit(look)
    return self._programs[layer]


def load(workdir: str | Path, step: str = "newest") -> Model:
  """Opens a run to ask it.

  Args:
    workdir: of a run that was trained here, or written by `convert`.
    step: checkpoint: `newest`, `best` (by validation) or a number.

  Raises:
    InputError: no run, no such checkpoint, or a damaged one.
  """
  mesh = placement.make_mesh(1)
  run = opened.open_run(Path(workdir), mesh, step)
  return Model(run, *run_files.read_run_metadata(Path(workdir)))
