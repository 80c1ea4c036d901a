"""Draws a data set: images, views as the net sees them, mean image, classes.

alexnet show --data=DIR --output=PNG [--config=NAME]
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib import figure

from alexnet_jax import augment
from alexnet_jax.data import batches, checks, records, statistics
from alexnet_jax.data.records import Examples
from alexnet_jax.runs import config_files
from alexnet_jax.runtime import cli, errors
from alexnet_jax.tools.figures import plots

_ROWS, _VIEWS, _NAMED_CLASSES = 6, 4, 30


def net_input(
  images: np.ndarray, count: int, augmentation: augment.Augmentation, seed: int
) -> np.ndarray:
  """Returns `count` views of each image, float32 [B, count, crop, crop, 3]."""
  repeated = jnp.repeat(jnp.asarray(images), count, axis=0)
  # Examples of one group would share their view.
  index = jnp.arange(len(repeated)) * augmentation.images_per_view
  views = augment.training_views(repeated, index, 0, seed, augmentation)
  return np.asarray(views).reshape(len(images), count, *views.shape[1:])


def draw(
  examples: Examples, stats: statistics.Statistics, config: Any, seed: int
) -> figure.Figure:
  """Returns the figure of a split; the seed chooses images and views."""
  names = [plots.plain(name, 24) for name in examples.dataset.class_names]
  rows = min(_ROWS, len(examples))
  chosen = np.random.default_rng(seed).choice(len(examples), rows, False)
  batch = batches.load(examples, chosen, config.image_size_px)
  images, augmentation = batch["image"], augment.from_config(config, stats)
  views = net_input(images, _VIEWS, augmentation, seed)
  page = figure.Figure((10, 2 * rows + 3.5), layout="constrained")
  parts: Any = page.subfigures(2, 1, height_ratios=[2 * rows, 3.5])
  grid = parts[0].subplots(rows, 1 + _VIEWS, squeeze=False)
  for row in range(rows):
    grid[row, 0].imshow(images[row])
    grid[row, 0].set_title(names[batch["label"][row]], fontsize=9)
    for axes, view in zip(grid[row, 1:], views[row], strict=True):
      axes.imshow(np.clip(view + 128, 0, 255).astype(np.uint8))
  grid[0, 1].set_title("minus the mean, plus 128", loc="left", fontsize=9)
  mean, bars = parts[1].subplots(1, 2, width_ratios=[1, 3])
  mean.imshow(stats.mean_image.round().astype(np.uint8))
  mean.set_title("mean image", fontsize=9)
  for axes in (*grid.flat, mean):
    axes.set_axis_off()
  counts = count_labels(examples)
  bars.bar(np.arange(len(names)), counts)
  bars.yaxis.get_major_locator().set_params(integer=True)
  bars.set_title(
    f"{examples.split}: {len(examples):,} images, {counts.min():,} to"
    f" {counts.max():,} in each of {len(names)} classes",
    fontsize=9,
  )
  if len(names) <= _NAMED_CLASSES:
    bars.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=8)
  return page


def count_labels(examples: Examples) -> np.ndarray:
  """Returns the number of examples of each class, int [K]."""
  counts = np.zeros(len(examples.dataset.class_names), np.int64)
  with cli.progress("labels counted", len(examples)) as advance:
    for index in range(len(examples)):
      label = examples[index].label
      if not 0 <= label < len(counts):
        raise examples.unusable(index, f"label {label}")
      counts[label] += 1
      advance(1)
  return counts


def main(_) -> None:
  args = flags.FLAGS
  if not args.output.lower().endswith(".png"):
    raise errors.InputError(f"output={args.output!r} must end in .png.")
  dataset = records.open_directory(Path(args.data))
  examples = records.open_split(dataset, args.split, "--split")
  height, width, _ = dataset.shape
  if height and height == width:
    args.config.image_size_px = height
  args.config.num_classes = len(dataset.class_names)
  config, _ = config_files.config()
  config_files.check(config)
  stats = checks.check({"train": examples}, config)
  stats = stats or checks.measure(examples, config)
  page = draw(examples, stats, config, args.seed)
  cli.make_folder("output", Path(args.output).parent)
  plots.save(page, Path(args.output), dpi=110)
  cli.echo(f"wrote {args.output}")


def define_flags() -> None:
  flags.DEFINE_string("data", None, "Directory of images.", required=True)
  flags.DEFINE_string("output", None, "PNG file to write.", required=True)
  flags.DEFINE_string("split", "train", "Split, or a slice of one.")
  flags.DEFINE_integer("seed", 0, "Another seed shows other images.", 0)
  config_files.define_config("alexnet")
