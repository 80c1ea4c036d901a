"""Checks before the first step that a data set is what the config says."""

import concurrent.futures
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.data import batches, records, statistics
from alexnet_jax.runtime import errors, machine

# Images whose mean colour is compared, and the fewest that allow a verdict.
_SAMPLE, _SMALLEST_SAMPLE = 256, 16
# Bytes of a data set that a fingerprint reads, in blocks of so many.
_FINGERPRINTED, _BLOCK = 2**28, 2**16


def fingerprint(splits: Iterable[records.Examples]) -> dict[str, str]:
  """Returns a digest of each file of some splits, by file name.

  It covers the size and, of more than `_FINGERPRINTED` bytes, every nth block.
  For single bits ArrayRecord and the images have their own checks.
  """
  files = sorted({file for examples in splits for file in examples.files})
  sizes = [file.stat().st_size for file in files]
  stride = -(-sum(sizes) // _FINGERPRINTED)

  def digest(file: Path, size: int) -> str:
    sha256 = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
      for start in range(0, size, stride * _BLOCK):
        stream.seek(start)
        sha256.update(stream.read(_BLOCK))
    return sha256.hexdigest()[:16]

  with concurrent.futures.ThreadPoolExecutor(machine.cpu_count()) as pool:
    digests = pool.map(digest, files, sizes)
    return {file.name: text for file, text in zip(files, digests, strict=True)}


def check(examples: records.Examples, config: Any) -> statistics.Statistics:
  """Compares a training split with a config; returns its statistics.

  Raises InputError if the number of classes or the size of the images differs,
  the mean is not that of the images, or an example is damaged.
  """
  dataset, size = examples.dataset, config.image_size_px
  height, width, _ = dataset.shape
  _compare(dataset, "num_classes", config.num_classes, len(dataset.class_names))
  if height and height == width:
    _compare(dataset, "image_size_px", size, height)
  stats = _statistics(examples, config)
  _compare(dataset, "image_size_px", size, len(stats.mean_image))
  count = min(len(examples), _SAMPLE)
  sample = np.linspace(0, len(examples) - 1, count).astype(int)
  samples = (batches.load(examples, indices, size) for indices in [sample])
  batch = next(batches.with_timeout(samples, config.input_timeout_s))
  colours = batch["image"].mean((1, 2))
  actual, stored = colours.mean(0), stats.mean_image.mean((0, 1))
  # Six standard errors, with a black and a white image added to the sample, and
  # two levels for what JPEG does to a colour.
  sd = np.concatenate([colours, [[0] * 3, [255] * 3]]).std(0)
  bound = 6 * sd / np.sqrt(count) + 2
  if count >= _SMALLEST_SAMPLE and (np.abs(actual - stored) > bound).any():
    raise errors.InputError(
      f"mean_image.npy in {str(dataset.directory)!r} is not of these images:"
      f" its mean colour is {stored.round(1).tolist()}, but that of {count}"
      f" images is {actual.round(1).tolist()}; prepare the data set again."
    )
  return stats


def _compare(dataset: records.Dataset, field: str, ours: int, its: int) -> None:
  if ours != its:
    raise errors.InputError(
      f"{field}={ours} but {str(dataset.directory)!r} has {its}; pass"
      f" --config.{field}={its}."
    )


def _statistics(
  examples: records.Examples, config: Any
) -> statistics.Statistics:
  """Reads the statistics beside the shards, or measures the split."""
  directory = examples.dataset.directory
  if any((directory / name).exists() for name in statistics.FILES):
    return statistics.read(directory)
  sums = statistics.Sums.zero(config.image_size_px)
  for batch in batches.all_once(examples, config, "images measured"):
    for image in batch["image"]:
      sums.add_image(image)
  return sums.statistics()
