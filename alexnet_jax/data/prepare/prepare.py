"""From any images to square shards, once; tools/prepare.py is the command."""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.data import decode
from alexnet_jax.data.prepare import shards, sources
from alexnet_jax.runtime import errors


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
  what was left out or is scarce. Raises InputError.
  """
  with shards.claim(output) as work:
    found = sources.find(
      source, splits, work / "spool", seed=seed, synsets=synsets
    )
    by_class = shards.write(
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
  counts = {split: labels.total() for split, labels in by_class.items()}
  bad = sum(map(len, found.splits.values())) - sum(counts.values())
  notes = [f"left out, as they cannot be read: {bad:,} images"] if bad else []
  for split, labels in by_class.items():
    least, what = (2, "at most one") if split == "train" else (1, "no")
    few = [x for i, x in enumerate(found.class_names) if labels[i] < least]
    if few:
      few = errors.first_few(few)
      notes.append(f"note: {split} has {what} image of each of: {few}")
  return counts, found.class_names, found.notes + notes
