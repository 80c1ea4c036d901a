"""Draws a trained net and what it makes of images, as PNG and PDF.

alexnet figures --workdir=RUN --output=DIR

filters      conv1, towers apart (the paper's Fig. 3)
activations  the maps of each layer for one image
occlusion    what hiding each part of that image does to its class
confusion    labels by predicted classes, on a split
classes      the surest and the worst answers for each class
neighbours   images that are near in the last hidden layer (Fig. 4, right)
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from alexnet_jax.data import batches, records
from alexnet_jax.data import decode as image_files
from alexnet_jax.runs import opened
from alexnet_jax.runtime import cli, errors
from alexnet_jax.tools import features, inference
from alexnet_jax.tools.figures import drawings, plots

_ACROSS = 6  # Images in a row.
_CLASSES = 5  # In `classes` and `neighbours`, where none are named.


def hide(
  image: np.ndarray, square_px: int, stride_px: int, colour: np.ndarray
) -> tuple[np.ndarray, tuple[int, int]]:
  """Returns copies of an image with a square painted over each part of it.

  Args:
    image: uint8 [S, S, 3].
    square_px: side of the square.
    stride_px: between one square and the next.
    colour: of the square, [3].

  Returns:
    uint8 [R * C, S, S, 3], row by row, and (R, C). Squares are centred on a
    grid that spans the image, and cut at its edges.
  """
  side = image.shape[0]
  middles = np.arange(stride_px // 2, side, stride_px)
  copies = []
  for row in middles:
    for column in middles:
      copy = image.copy()
      top, left = (max(0, at - square_px // 2) for at in (row, column))
      bottom, right = (at - square_px // 2 + square_px for at in (row, column))
      copy[top:bottom, left:right] = colour
      copies.append(copy)
  return np.stack(copies), (len(middles), len(middles))


class _Look:
  """A net, an image and a split; what is asked of them once is kept."""

  def __init__(self, model: inference.Model, options: Any):
    """Reads the image that is asked for, before anything is drawn.

    Raises:
      InputError: it cannot be read.
    """
    self.model = model
    self.options = options
    if options.image:
      self.image = _read(options.image, model.config.image_size_px)

  @functools.cached_property
  def examples(self) -> records.Examples:
    asked = self.options
    config = self.model.config
    held = opened.examples_of(config, asked.data_dir, asked.split)
    if held.dataset.class_names != self.model.class_names:
      raise errors.InputError(
        f"{str(held.dataset.directory)!r} has other classes than the run;"
        " name the data of its classes with --data_dir."
      )
    return held

  def images(self, indices: Any) -> np.ndarray:
    """Returns images of the split, uint8 [N, S, S, 3]."""
    size = self.model.config.image_size_px
    return batches.load(self.examples, np.asarray(indices), size)["image"]

  @functools.cached_property
  def image(self) -> np.ndarray:
    """The image that is asked for, or the first of the split."""
    return self.images([0])[0]

  @property
  def chosen(self) -> list[int]:
    """The labels of the classes that are asked for, or of the first ones."""
    names = self.model.class_names
    held = np.unique(self.split[2])
    if not self.options.classes:
      return held[:_CLASSES].tolist()
    labels = [self.model.labels[name] for name in self.options.classes]
    for label in labels:
      if label not in held:
        raise errors.InputError(
          f"--classes={names[label]!r} has no image in the split; name others."
        )
    return labels

  @functools.cached_property
  def split(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities [N, K], hidden features [N, D], labels [N] of the split."""
    model = self.model
    hidden = model.layers[-2]
    found = [
      (model.predict(images), model.features(images, hidden), labels)
      for images, labels in features.batches_of(model, self.examples)
    ]
    shares, units, labels = map(np.concatenate, zip(*found, strict=True))
    return shares, units.reshape(len(units), -1), labels


def _read(file: str, size_px: int) -> np.ndarray:
  """Returns the image in a file, uint8 [S, S, 3].

  Raises:
    InputError: it cannot be read.
  """
  try:
    return image_files.square(
      image_files.decode(Path(file).read_bytes()), size_px
    )
  except (OSError, image_files.UnreadableError) as e:
    reason = getattr(e, "strerror", None) or e
    raise errors.InputError(
      f"--image={file!r} cannot be read ({reason}); name an image."
    ) from e


def _filters(look: _Look) -> Figure:
  model = look.model
  first = model.config.network.layers[0]
  kernel = np.asarray(model.members[0]["features"][first]["kernel"])
  return drawings.filters(kernel, model.config.network.towers)


def _activations(look: _Look) -> Figure:
  model = look.model
  maps = {
    layer: model.features([look.image], layer)[0]
    for layer, shape in model.shapes.items()
    if len(shape) == 3
  }
  return drawings.activations(look.image, maps)


def _occlusion(look: _Look) -> Figure:
  model, image = look.model, look.image
  whole = model.predict([image])[0]
  best = int(whole.argmax())
  square = max(1, len(image) // 5)
  grey = model.augmentation.mean_image.mean(axis=(0, 1))
  copies, shape = hide(image, square, max(1, len(image) // 16), grey)
  shares = model.predict(copies)[:, best].reshape(shape)
  name = model.class_names[best]
  return drawings.occlusion(image, shares, float(whole[best]), name, square)


def _confusion(look: _Look) -> Figure:
  shares, _, labels = look.split
  counts = np.zeros((shares.shape[1],) * 2, np.int64)
  np.add.at(counts, (labels, shares.argmax(axis=1)), 1)
  return drawings.confusion(counts, look.model.class_names)


def _classes(look: _Look) -> Figure:
  shares, _, labels = look.split
  names = look.model.class_names
  rows = []
  for label in look.chosen:
    (own,) = np.nonzero(labels == label)
    order = own[np.argsort(-shares[own, label], kind="stable")]
    for what, some in (("surest", order[:_ACROSS]), ("worst", order[::-1])):
      some = some[:_ACROSS]
      best = shares[some].argmax(axis=1)
      words = [
        f"{share:.0%} {names[k]}"
        for k, share in zip(best, shares[some, best], strict=True)
      ]
      rows.append((f"{names[label]}, {what}", list(look.images(some)), words))
  return drawings.rows_of_images(rows)


def _neighbours(look: _Look) -> Figure:
  _, units, labels = look.split
  names = look.model.class_names
  queries = np.array([np.argmax(labels == label) for label in look.chosen])
  found = features.nearest(units, units[queries], _ACROSS + 1)
  rows = []
  for query, near in zip(queries, found, strict=True):
    near = near[near != query][:_ACROSS]
    words = ["query", *(names[labels[index]] for index in near)]
    seen = list(look.images([query, *near]))
    rows.append((names[labels[query]], seen, words))
  return drawings.rows_of_images(rows)


FIGURES: dict[str, Callable[[_Look], Figure]] = {
  "filters": _filters,
  "activations": _activations,
  "occlusion": _occlusion,
  "confusion": _confusion,
  "classes": _classes,
  "neighbours": _neighbours,
}


def main(_: Any) -> None:
  """Runs the command."""
  options = flags.FLAGS
  for name in options.only:
    if name not in FIGURES:
      raise errors.unknown("--only", name, FIGURES)
  cli.keep_memory()
  cli.keep_programs()
  model = inference.load(options.workdir, options.step)
  features.check_single(model)
  look = _Look(model, options)
  for name in options.classes:
    if name not in model.labels:
      raise errors.unknown("--classes", name, model.labels)
  folder = Path(options.output)
  cli.make_folder("--output", folder)
  for name in options.only or FIGURES:
    plot = FIGURES[name](look)
    for suffix in drawings.SUFFIXES:
      plots.save(plot, folder / f"{name}{suffix}")
    print(f"wrote {folder / name}.png and .pdf", flush=True)


def _define_flags() -> None:
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_string("step", "newest", "Checkpoint: newest, best or a step.")
  flags.DEFINE_string("output", None, "Folder for the files.", required=True)
  flags.DEFINE_list("only", [], "Which to draw; all by default.")
  flags.DEFINE_list(
    "classes",
    [],
    "Of classes and neighbours, by name or WNID; the first five by default.",
  )
  flags.DEFINE_string("image", "", "Image file; by default the split's first.")
  flags.DEFINE_string("data_dir", "", "Data set; by default the run's.")
  flags.DEFINE_string("split", "", "Split; by default the run's test split.")


def command() -> None:
  """`alexnet figures`."""
  cli.run(main, _define_flags)
