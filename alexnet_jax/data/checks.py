"""Whether a data set is what a config says, before the first step."""

import concurrent.futures
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.data import batches, records, statistics
from alexnet_jax.runtime import cli, errors

# Images that the check at the start looks at, and the least for a verdict.
_SAMPLE, _SMALLEST_SAMPLE = 256, 16
# Bytes of a data set, and at a time, that a fingerprint reads.
_FINGERPRINTED, _BLOCK = 2**28, 2**16


def fingerprint(splits: Iterable[records.Examples]) -> dict[str, str]:
  """Returns a digest of each file of some splits, by its name.

  It is of the size and of every nth block, n being 1 up to `_FINGERPRINTED`
  bytes in all: replaced files are seen, a single bit in a large one need not
  be. (ArrayRecord and the images have checks of their own.)

  Args:
    splits: each from `records.open_split`.
  """
  files = sorted({file for examples in splits for file in examples.files})
  sizes = [file.stat().st_size for file in files]
  stride = -(-sum(sizes) // _FINGERPRINTED)

  def digest(file: Path, size: int) -> str:
    total = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
      for start in range(0, size, stride * _BLOCK):
        stream.seek(start)
        total.update(stream.read(_BLOCK))
    return total.hexdigest()[:16]

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    found = list(pool.map(digest, files, sizes))
  return {file.name: value for file, value in zip(files, found, strict=True)}


def check(examples: records.Examples, config: Any) -> statistics.Statistics:
  """Compares a training split with a config, before the first step.

  Args:
    examples: the training split.
    config: a whole config.

  Returns:
    Mean image and colour axes: those beside the shards, or, where there are
    none, those of the split.

  Raises:
    InputError: images or a mean image of another size, another number of
      classes, a mean that is not that of the images, or a damaged example.
  """
  dataset, size = examples.dataset, config.image_size_px
  height, width, _ = dataset.shape
  _compare(dataset, "num_classes", config.num_classes, len(dataset.class_names))
  if height and height == width:
    _compare(dataset, "image_size_px", size, height)
  held = _statistics(examples, config)
  _compare(dataset, "image_size_px", size, len(held.mean_image))
  count = min(len(examples), _SAMPLE)
  sample = np.linspace(0, len(examples) - 1, count).astype(int)
  samples = (batches.load(examples, indices, size) for indices in [sample])
  batch = next(batches.WithTimeout(samples, config.input_timeout_s))
  colours = batch["image"].mean((1, 2))
  seen, told = colours.mean(0), held.mean_image.mean((0, 1))
  # Six standard errors, as if a black and a white image had been seen too, and
  # two levels for what JPEG does to a colour.
  spread = np.concatenate([colours, [[0] * 3, [255] * 3]]).std(0)
  bound = 6 * spread / np.sqrt(count) + 2
  if count >= _SMALLEST_SAMPLE and not (np.abs(seen - told) <= bound).all():
    raise errors.InputError(
      f"mean_image.npy in {str(dataset.directory)!r} is not of these images:"
      f" its mean colour is {told.round(1).tolist()}, that of {count} training"
      f" images {seen.round(1).tolist()}; prepare the data set again."
    )
  return held


def _compare(
  dataset: records.Dataset, field: str, asked: int, found: int
) -> None:
  if asked != found:
    raise errors.InputError(
      f"{field}={asked} but {str(dataset.directory)!r} has {found}; pass"
      f" --config.{field}={found}."
    )


def _statistics(
  examples: records.Examples, config: Any
) -> statistics.Statistics:
  directory = examples.dataset.directory
  if any((directory / name).exists() for name in statistics.FILES):
    return statistics.read(directory)
  size = config.image_size_px
  sums = statistics.Sums.zero(size)
  stream = batches.eval_batches(
    examples, size_px=size, batch_size=64, threads=config.reader_threads
  )
  with cli.progress("images measured", len(examples)) as advance:
    for batch in batches.WithTimeout(stream, config.input_timeout_s):
      held = batch["image"][batch["mask"] > 0]
      for image in held:
        sums.add_image(image)
      advance(len(held))
  return sums.statistics()
