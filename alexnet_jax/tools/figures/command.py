"""Draws a trained net and what it makes of images, as PNG and PDF.

  alexnet figures --workdir=RUN --output=DIR

filters      conv1, towers apart (the paper's Fig. 3)
activations  the maps of each layer for one image
occlusion    the probability of its class with each part of it hidden
confusion    labels by predicted classes, on a split
classes      the surest and the worst predictions for each class
neighbours   images that are near in the last hidden layer (Fig. 4, right)
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from alexnet_jax import networks
from alexnet_jax.data import batches, records
from alexnet_jax.runs import trained
from alexnet_jax.runtime import cli, errors
from alexnet_jax.tools import features, inference
from alexnet_jax.tools.figures import drawings, plots

_ACROSS = 6  # Images in a row.
_CLASSES = 5  # In `classes` and `neighbours`, if none are named.


def hide(
  image: np.ndarray, square_px: int, stride_px: int, colour: np.ndarray
) -> np.ndarray:
  """Returns copies of an image with a square painted over each part of it.

  Centres are `stride_px` apart, and squares are cut at the image's edges. From
  uint8 [S, S, 3]: [R, R, S, S, 3], by row and column of the square.
  """
  middles = np.arange(stride_px // 2, len(image), stride_px)
  lows = middles - square_px // 2
  parts = [slice(max(low, 0), low + square_px) for low in lows]
  copies = np.tile(image, (len(parts), len(parts), 1, 1, 1))
  for row, column in np.ndindex(copies.shape[:2]):
    copies[row, column, parts[row], parts[column]] = colour
  return copies


@dataclasses.dataclass
class FigureContext:
  """The net, the image and the split that figures are drawn from."""

  model: inference.Model
  options: Any  # the flags

  @functools.cached_property
  def examples(self) -> records.Examples:
    """The split."""
    examples = trained.examples_of(
      self.model.config, self.options.data_dir, self.options.split
    )
    if examples.dataset.class_names != self.model.class_names:
      raise errors.InputError(
        f"{str(examples.dataset.directory)!r} has other classes than the run;"
        " name the data of its classes with --data_dir."
      )
    return examples

  def images(self, indices: Any) -> np.ndarray:
    """Returns images of the split, uint8 [N, S, S, 3]."""
    size = self.model.config.image_size_px
    return batches.load(self.examples, np.asarray(indices), size)["image"]

  @functools.cached_property
  def image(self) -> np.ndarray:
    """The image of --image, or the first of the split."""
    if file := self.options.image:
      return self.model.square(file)
    return self.images([0])[0]

  @functools.cached_property
  def predictions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities [N, K], hidden features [N, D], labels [N] of the split."""
    model = self.model
    parts = [
      (
        model.predict(batch["image"]),
        model.features(batch["image"], model.layers[-2]),
        batch["label"],
      )
      for batch in batches.all_once(self.examples, model.config, "images")
    ]
    shares, hidden, labels = map(np.concatenate, zip(*parts, strict=True))
    return shares, hidden.reshape(len(hidden), -1), labels

  @property
  def chosen(self) -> list[int]:
    """The labels of --classes, or the first ones of the split."""
    present = np.unique(self.predictions[2]).tolist()
    chosen = [self.model.labels[name] for name in self.options.classes]
    for label, name in zip(chosen, self.options.classes, strict=True):
      if label not in present:
        raise errors.InputError(
          f"--classes={name!r} has no image in the split; name others."
        )
    return chosen or present[:_CLASSES]


def _filters(context: FigureContext) -> Figure:
  network = context.model.net.network
  names = networks.layer_names(network)
  # Run 131 has a layer over the blurred image before it.
  name = "conv1" if "conv1" in names else names[0]
  kernel = context.model.members[0]["features"][name]["kernel"]
  return drawings.filters(np.asarray(kernel), network.towers)


def _activations(context: FigureContext) -> Figure:
  model = context.model
  maps = {
    layer: model.features([context.image], layer)[0]
    for layer, shape in model.shapes.items()
    if len(shape) == 3
  }
  return drawings.activations(context.image, maps)


def _occlusion(context: FigureContext) -> Figure:
  model, image = context.model, context.image
  (probabilities,) = model.predict([image])
  best = int(probabilities.argmax())
  square_px, stride_px = max(1, len(image) // 5), max(1, len(image) // 16)
  grey = model.augmentation.mean_image.mean(axis=(0, 1))
  copies = hide(image, square_px, stride_px, grey)
  hidden = model.predict(copies.reshape(-1, *image.shape))[:, best]
  hidden = hidden.reshape(copies.shape[:2])
  name = model.class_names[best]
  return drawings.occlusion(image, hidden, probabilities[best], name, square_px)


def _confusion(context: FigureContext) -> Figure:
  probabilities, _, labels = context.predictions
  counts = np.zeros((probabilities.shape[1],) * 2, np.int64)
  np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
  return drawings.confusion(counts, context.model.class_names)


def _classes(context: FigureContext) -> Figure:
  probabilities, _, labels = context.predictions
  names = context.model.class_names
  rows = []
  for label in context.chosen:
    (own,) = np.nonzero(labels == label)
    order = own[np.argsort(-probabilities[own, label], kind="stable")]
    for what, ordered in (("surest", order), ("worst", order[::-1])):
      some = ordered[:_ACROSS]
      best = probabilities[some].argmax(axis=1)
      words = [
        f"{probability:.0%} {names[k]}"
        for k, probability in zip(best, probabilities[some, best], strict=True)
      ]
      rows.append((f"{names[label]}, {what}", context.images(some), words))
  return drawings.rows_of_images(rows)


def _neighbours(context: FigureContext) -> Figure:
  _, hidden, labels = context.predictions
  names = context.model.class_names
  queries = np.array([np.argmax(labels == label) for label in context.chosen])
  rows = []
  nearest = features.nearest(hidden, hidden[queries], _ACROSS + 1)
  for query, near in zip(queries, nearest, strict=True):
    near = near[near != query][:_ACROSS]
    words = ["query", *(names[labels[index]] for index in near)]
    rows.append((names[labels[query]], context.images([query, *near]), words))
  return drawings.rows_of_images(rows)


FIGURES: dict[str, Callable[[FigureContext], Figure]] = {
  "filters": _filters,
  "activations": _activations,
  "occlusion": _occlusion,
  "confusion": _confusion,
  "classes": _classes,
  "neighbours": _neighbours,
}


def main(_: Any) -> None:
  options = flags.FLAGS
  for name in options.only:
    if name not in FIGURES:
      raise errors.unknown("--only", name, FIGURES)
  cli.configure_process()
  model = inference.load_single(options.workdir, options.step)
  for name in options.classes:
    if name not in model.labels:
      raise errors.unknown("--classes", name, model.labels)
  context = FigureContext(model, options)
  folder = Path(options.output)
  cli.make_folder("--output", folder)
  for name in options.only or FIGURES:
    plot = FIGURES[name](context)
    for suffix in drawings.SUFFIXES:
      plots.save(plot, folder / f"{name}{suffix}")
    cli.echo(f"wrote {folder / name}.png and .pdf")


def define_flags() -> None:
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_string("step", "newest", "Checkpoint: newest, best or a step.")
  flags.DEFINE_string("output", None, "Folder for the files.", required=True)
  flags.DEFINE_list("only", [], "Which to draw; all by default.")
  flags.DEFINE_list("classes", [], "Names or WNIDs; by default the first five.")
  flags.DEFINE_string("image", "", "Image file; by default the split's first.")
  flags.DEFINE_string("data_dir", "", "Data set; by default the run's.")
  flags.DEFINE_string("split", "", "Split; by default the run's test split.")
