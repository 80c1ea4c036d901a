"""Turns any images into square shards, once.

  alexnet prepare --source=IMAGES --output=DIR

IMAGES is a folder, a tar or a zip of CLASS/IMAGE or SPLIT/CLASS/IMAGE, perhaps
inside one more folder; a list file of PATH and LABEL; a folder with the
ILSVRC-2012 tars; a TFDS directory; or `tfds:NAME`. If it has no splits, a
seeded tenth of each class goes to `validation` and another to `test`. If the
command is killed, the same command continues. `--splits=test` makes a test
split alone, for `alexnet evaluate --data_dir=DIR`.
"""

import functools
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from alexnet_jax.data import decode
from alexnet_jax.data.prepare import shards, sources, splits
from alexnet_jax.runtime import cli, errors


def encode(item: Any, *, size_px: int, raw: bool) -> tuple[np.ndarray, bytes]:
  """Returns the square of an image, uint8 [S, S, 3], and the bytes to store.

  A JPEG that already is such a square is kept byte for byte. Raises OSError,
  with name and reason, for a damaged image.
  """
  try:
    data = item.read()
    decoded = decode.decode(data)
  except (OSError, errors.InputError, decode.UnreadableError) as e:
    reason = getattr(e, "strerror", None) or e
    raise OSError(f"{item.name}: {reason}") from e
  pixels = decode.square(decoded, size_px)
  if raw:
    return pixels, pixels.tobytes()
  if decode.is_plain_jpeg(data, size_px):
    return pixels, data
  return pixels, shards.encode_jpeg(pixels)


def prepare(
  source: str,
  output: Path,
  *,
  size_px: int = 256,
  raw: bool = False,
  splits: str = "",
  seed: int = 0,
  synsets: str = "",
  skip_bad: bool = False,
  workers: int | None = None,
) -> tuple[dict[str, int], list[str], list[str]]:
  """Writes the shards of a source; the arguments are the command's flags.

  Returns the number of examples of each split, the class names, and lines on
  what was left out. Raises InputError.
  """
  with shards.claim(output) as work:
    found = sources.find(
      source, splits, work / "spool", seed=seed, synsets=synsets
    )
    counts = shards.write(
      work,
      output,
      found.splits,
      class_names=found.class_names,
      size_px=size_px,
      encoder=functools.partial(encode, size_px=size_px, raw=raw),
      raw=raw,
      skip_bad=skip_bad,
      workers=workers,
    )
  bad = sum(map(len, found.splits.values())) - sum(counts.values())
  notes = [f"left out, as they cannot be read: {bad:,} images"] if bad else []
  return counts, found.class_names, found.notes + notes


def main(_) -> None:
  args = flags.FLAGS
  names = ("raw", "splits", "seed", "synsets", "skip_bad", "workers")
  options: dict[str, Any] = {name: args[name].value for name in names}
  counts, class_names, notes = prepare(
    args.source, Path(args.output), size_px=args.size, **options
  )
  lines = [f"{split}: {count:,} images" for split, count in counts.items()]
  for line in (*notes, *lines, f"wrote {args.output}"):
    cli.echo(line)
  if "train" not in counts:
    return
  fields = {"data_dir": args.output, "num_classes": len(class_names)}
  fields["image_size_px"] = args.size
  if counts["train"] < 128:
    fields["batch_size"] = counts["train"]
  for split in ("validation", "test"):
    if split not in counts:
      fields[f"{split}_split"] = ""
  if "validation" not in counts:
    fields["schedule"] = "epochs"  # The plateau needs a validation error.
  words = [f"--config.{name}={value}" for name, value in fields.items()]
  command = shlex.join(["alexnet", "train", "--config=alexnet", *words])
  cli.echo(f"to train: {command}")


def define_flags() -> None:
  text, integer = flags.DEFINE_string, flags.DEFINE_integer
  text("source", None, "Images to read; see above.", required=True)
  text("output", None, "Directory to make.", required=True)
  integer("size", 256, "Side in pixels.", 8, 4096)
  integer("seed", 0, "Another seed holds out other images.", 0)
  integer("workers", None, "Processes; one per core by default.", 0)
  flags.DEFINE_bool("raw", False, "Store pixels: more room, faster to read.")
  text(
    "splits",
    "",
    "NAME, NAME=FOLDER or NAME=SHARE (of each class of train, held out), with"
    f" commas; by default the source's own or, if none, {splits.HOLDOUT}.",
  )
  text("synsets", "", "File of WNID WORDS in order of the labels.")
  flags.DEFINE_bool("skip_bad", False, "Leave out unreadable images.")
