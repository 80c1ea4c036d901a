"""Any images into square shards, once.

  alexnet prepare --source=IMAGES --output=DIR

IMAGES is a folder, a tar (with any compression) or a zip of CLASS/IMAGE or
SPLIT/CLASS/IMAGE, perhaps inside one more folder; a list file of PATH and
LABEL; a folder with the ILSVRC-2012 tars; a TFDS directory; or `tfds:NAME`.
Where it has no splits, a seeded tenth of each class goes to `validation` and
another to `test`. Killed, it goes on where it was when it is run again.
"""

import functools
from pathlib import Path

import numpy as np
from absl import flags

from alexnet_jax.data import decode
from alexnet_jax.data.prepare import archives, shards, sources
from alexnet_jax.runtime import cli, errors


def encode(
  item: archives.Item, *, size_px: int, quality: int, raw: bool
) -> tuple[np.ndarray, bytes]:
  """Returns an image as a square of pixels, and what is stored of it.

  A JPEG that is such a square already is kept byte for byte.

  Args:
    item: an image file in any format that `images.decode` knows.
    size_px: side of the square.
    quality: of the JPEG, 1 to 100.
    raw: store the pixels, not a JPEG.

  Raises:
    OSError: it is not a whole image; the message names it and says why.
  """
  try:
    data = item.read()
    decoded = decode.decode(data)
  except (OSError, errors.InputError, decode.UnreadableError) as e:
    reason = getattr(e, "strerror", None) or e
    raise OSError(f"{_readable(item.name)}: {reason}") from e
  pixels = decode.square(decoded, size_px)
  if raw:
    return pixels, pixels.tobytes()
  if decode.is_plain_jpeg(data, size_px):
    return pixels, data
  return pixels, shards.encode_jpeg(pixels, quality)


def _readable(name: str) -> str:
  """Returns a file's name as text, whatever bytes it has."""
  return name.encode("utf-8", "backslashreplace").decode()


def prepare(
  source: str,
  output: Path,
  *,
  size_px: int = 256,
  quality: int = shards.JPEG_QUALITY,
  raw: bool = False,
  splits: str = "",
  seed: int = 0,
  synsets: str = "",
  skip_bad: bool = False,
  workers: int | None = None,
) -> tuple[dict[str, int], list[str], list[str]]:
  """Writes the shards of a source.

  Args:
    source: see `listing.find`.
    output: directory to make; must not exist.
    size_px: side of the stored images.
    quality: of the JPEGs, 1 to 100.
    raw: store pixels, not JPEGs: eight times the room, and faster to read.
    splits: see `listing.find`.
    seed: of what is held out.
    synsets: see `listing.find`.
    skip_bad: leave out images that cannot be read.
    workers: processes; the number of cores by default, 0 for none.

  Returns:
    The number of examples of each split, the class names, and lines on what was
    left out.

  Raises:
    InputError: see `listing.find`, `shards.claim` and `shards.write`; a number
      out of its range.
  """
  shards.check_size(size_px)
  if not 1 <= quality <= 100:
    raise errors.InputError(f"quality={quality} is not from 1 to 100.")
  if workers is not None and workers < 0:
    raise errors.InputError(f"workers={workers} must not be negative.")
  with shards.claim(output) as work:
    try:
      found = sources.find(
        source, splits, work / "spool", seed=seed, synsets=synsets
      )
    except (OSError, RecursionError) as e:
      if getattr(e, "errno", None) in archives.NO_ROOM:
        raise  # The spool's fault, and so the output's.
      raise errors.InputError(
        f"source={source!r} cannot be read ({e}); mend it."
      ) from e
    counts = {split: len(items) for split, items in found.splits.items()}
    with cli.progress("images", sum(counts.values())) as advance:
      bad = shards.write(
        work,
        output,
        found.splits,
        class_names=found.class_names,
        size_px=size_px,
        encoder=functools.partial(
          encode, size_px=size_px, quality=quality, raw=raw
        ),
        description=f"Prepared from {_readable(Path(source).name)}.",
        raw=raw,
        skip_bad=skip_bad,
        workers=workers,
        on_progress=advance,
      )
  for split, _ in bad:
    counts[split] -= 1
  notes = list(found.notes)
  if bad:
    notes.append(f"left out {len(bad)} images, see {output}/skipped.json:")
    notes += [f"  {reason}" for _, reason in bad[:10]]
    notes += ["  ..."] if len(bad) > 10 else []
  return counts, found.class_names, notes


def _command(
  output: str, size_px: int, class_names: list[str], counts: dict[str, int]
) -> str:
  """Returns the command that trains on what was written."""
  fields = {"data_dir": output, "num_classes": len(class_names)}
  if size_px != 256:
    fields["image_size_px"] = size_px
  if counts["train"] < 128:
    fields["batch_size"] = counts["train"]
  fields |= {
    f"{s}_split": "" for s in ("validation", "test") if s not in counts
  }
  if "validation" not in counts:
    fields["schedule"] = "epochs"  # No validation error, no plateau.
  flags = " ".join(f"--config.{name}={fields[name]}" for name in fields)
  return f"alexnet train --config=configs/alexnet.py {flags}"


def main(_) -> None:
  """Runs the command."""
  args = flags.FLAGS
  for name in ("source", "output"):
    if not args[name].value:
      raise errors.InputError(f"--{name}= is empty; give a path.")
  counts, class_names, notes = prepare(
    args.source,
    Path(args.output),
    size_px=args.size,
    quality=args.quality,
    raw=args.raw,
    splits=args.splits,
    seed=args.seed,
    synsets=args.synsets,
    skip_bad=args.skip_bad,
    workers=args.workers,
  )
  for note in notes:
    print(note)
  for split, count in counts.items():
    print(f"{split}: {count:,} images")
  print(f"wrote {args.output}; to train:")
  print(f"  {_command(args.output, args.size, class_names, counts)}")


def _define_flags() -> None:
  flags.DEFINE_string(
    "source",
    None,
    "Folder, tar, zip, list file, folder of ILSVRC-2012 tars, TFDS directory or"
    " tfds:NAME.",
    required=True,
  )
  flags.DEFINE_string("output", None, "Directory to make.", required=True)
  flags.DEFINE_integer("size", 256, "Side of the stored images in pixels.")
  flags.DEFINE_integer(
    "quality", shards.JPEG_QUALITY, "Of the JPEGs, 1 to 100."
  )
  flags.DEFINE_bool(
    "raw", False, "Store pixels, not JPEGs: more room, faster to read."
  )
  flags.DEFINE_string(
    "splits",
    "",
    "NAME, NAME=FOLDER or NAME=SHARE (of each class of train, held out), with"
    " commas. By default the source's own, or, if it has none,"
    f" {sources.HOLDOUT}.",
  )
  flags.DEFINE_integer("seed", 0, "Another seed holds other images out.")
  flags.DEFINE_string(
    "synsets", "", "File of WNID WORDS in order of the labels, for ImageNet."
  )
  flags.DEFINE_bool("skip_bad", False, "Leave out images that are unreadable.")
  flags.DEFINE_integer("workers", None, "Processes; the number of cores.")


def command() -> None:
  """`alexnet prepare`."""
  cli.run(main, _define_flags)
