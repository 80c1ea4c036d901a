"""A look at a data set: images, what the net sees of them, mean, classes.

  alexnet show --data=DIR --output=PNG

Each row has an image as it is stored and random views of it as they enter the
net, the mean image subtracted and 128 added. Below are the mean image and the
number of images of each class. `--config` names whose views they are.
"""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib import figure

from alexnet_jax import augment
from alexnet_jax.data import batches, checks, records, statistics
from alexnet_jax.runs import config_files
from alexnet_jax.runtime import cli, errors

_ROWS, _VIEWS = 6, 4
_NAMED_CLASSES = 30  # More bars than these have no room for names.


def net_input(
  images: np.ndarray, count: int, augmentation: augment.Augmentation, seed: int
) -> np.ndarray:
  """Returns random views of images, as they enter the net in training.

  Args:
    images: uint8 [B, S, S, 3].
    count: views of each.
    augmentation: what is done to them.
    seed: of the views.

  Returns:
    float32 [B, count, crop, crop, 3].
  """
  repeated = jnp.repeat(jnp.asarray(images), count, axis=0)
  view_key, colour_key = jax.random.split(jax.random.key(seed))
  views = augment.augment(
    repeated,
    jax.random.split(view_key, len(repeated)),
    jax.random.split(colour_key, len(repeated)),
    0,
    augmentation,
  )
  return np.asarray(views).reshape(len(images), count, *views.shape[1:])


def draw(
  examples: records.Examples,
  held: statistics.Statistics,
  config: Any,
  seed: int,
) -> figure.Figure:
  """Returns the picture of a split.

  Args:
    examples: of the split.
    held: from `source.check`.
    config: a whole config.
    seed: of the choice of images and of views.
  """
  names = examples.dataset.class_names
  count = min(_ROWS, len(examples))
  rng = np.random.default_rng(seed)
  chosen = rng.choice(len(examples), count, replace=False)
  batch = batches.load(examples, chosen, config.image_size_px)
  augmentation = augment.from_config(config, held)
  views = net_input(batch["image"], _VIEWS, augmentation, seed)

  page = figure.Figure((10, 2 * count + 3.5), layout="constrained")
  parts: Any = page.subfigures(2, 1, height_ratios=[2 * count, 3.5])
  top, bottom = parts
  rows = top.subplots(count, 1 + _VIEWS, squeeze=False)
  for row, image, label, seen in zip(
    rows, batch["image"], batch["label"], views, strict=True
  ):
    row[0].imshow(image)
    row[0].set_title(_short(names[label]), fontsize=9)
    for axes, view in zip(row[1:], seen, strict=True):
      axes.imshow(np.clip(view + 128, 0, 255).astype(np.uint8))
    for axes in row:
      axes.set_axis_off()
  seen_as = "as the net sees it, less the mean, plus 128"
  rows[0][1].set_title(seen_as, loc="left", fontsize=9)

  mean, bars = bottom.subplots(1, 2, width_ratios=[1, 3])
  mean.imshow(held.mean_image.round().astype(np.uint8))
  mean.set_title("mean image", fontsize=9)
  mean.set_axis_off()
  counts = count_labels(examples)
  bars.bar(np.arange(len(names)), counts)
  bars.yaxis.get_major_locator().set_params(integer=True)
  bars.set_title(
    f"{examples.split}: {len(examples):,} images, {counts.min():,} to"
    f" {counts.max():,} of each of {len(names)} classes",
    fontsize=9,
  )
  if len(names) <= _NAMED_CLASSES:
    short = [_short(name) for name in names]
    bars.set_xticks(np.arange(len(names)), short, rotation=90, fontsize=8)
  else:
    bars.set_xlabel("label", fontsize=8)
  return page


def count_labels(examples: records.Examples) -> np.ndarray:
  """Returns how many examples each class has, int [K]."""
  labels = np.empty(len(examples), np.int64)
  with cli.progress("labels counted", len(examples)) as advance:
    for index in range(len(examples)):
      labels[index] = label = examples[index].label
      if not 0 <= label < len(examples.dataset.class_names):
        raise examples.unusable(index, f"label {label}")
      advance(1)
  return np.bincount(labels, minlength=len(examples.dataset.class_names))


def _short(name: str) -> str:
  text = name if len(name) <= 24 else f"{name[:23]}…"
  return text.replace("$", r"\$")  # It would begin a formula.


def main(_) -> None:
  """Runs the command."""
  args = flags.FLAGS
  output = Path(args.output)
  if output.suffix.lower() != ".png":
    raise errors.InputError(f"output={args.output!r} must end in .png.")
  dataset = records.open_directory(Path(args.data))
  examples = records.open_split(dataset, args.split, "split")
  height, width, _ = dataset.shape
  if height and height == width:
    args.config.image_size_px = height
  args.config.num_classes = len(dataset.class_names)
  config, _ = config_files.config()
  page = draw(examples, checks.check(examples, config), config, args.seed)
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
      # The font lacks some scripts, and shows their letters as boxes.
      warnings.filterwarnings("ignore", "Glyph")
      page.savefig(output, dpi=110)
  except OSError as e:
    raise errors.InputError(
      f"output={args.output!r} cannot be written ({e.strerror}); choose"
      " another place."
    ) from e
  print(f"wrote {output}")


def _define_flags() -> None:
  flags.DEFINE_string(
    "data", None, "Directory that prepare or TFDS made.", required=True
  )
  flags.DEFINE_string("output", None, "PNG file to write.", required=True)
  flags.DEFINE_string("split", "train", "Split, or a slice of one.")
  flags.DEFINE_integer("seed", 0, "Another seed shows other images.")
  config_files.define_config(config_files.CONFIGS / "alexnet.py")


def command() -> None:
  """`alexnet show`."""
  cli.run(main, _define_flags)
