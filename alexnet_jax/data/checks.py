"""Checks before the first step that a data set is what the config says."""

import concurrent.futures
import functools
import hashlib
import itertools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.data import batches, records, statistics
from alexnet_jax.runtime import errors, machine

# Images whose mean colour is compared, and the fewest that allow a verdict.
_SAMPLE, _SMALLEST_SAMPLE = 256, 16
# Bytes of a data set that a fingerprint reads, in blocks of so many.
_FINGERPRINTED, _BLOCK = 2**28, 2**16


def fingerprint(examples: records.Examples) -> dict[str, str]:
  """Returns a digest of each file of a split, by file name.

  It covers the size and, of more than `_FINGERPRINTED` bytes, every nth block.
  For single bits ArrayRecord and the images have their own checks.
  """
  files = sorted(set(examples.files))
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


def check(
  splits: Mapping[str, records.Examples], config: Any
) -> statistics.Statistics | None:
  """Compares splits with a config, and decodes a sample of each.

  Returns the statistics beside the shards, or None. Raises InputError if the
  number of classes or the size of the images differs, the mean is not that of
  train, or an example of the samples cannot be used.
  """
  dataset, size = splits["train"].dataset, config.image_size_px
  check_size(dataset, size, fixed=config.init_inherits)
  if config.num_classes != (classes := len(dataset.class_names)):
    raise errors.InputError(
      f"num_classes={config.num_classes} but {str(dataset.directory)!r} has"
      f" {classes}; pass --config.num_classes={classes}."
    )
  samples = map(functools.partial(_sample, size_px=size), splits.values())
  samples = batches.with_timeout(samples, config.input_timeout_s)
  images = dict(zip(splits, samples, strict=True))["train"]
  if not any((dataset.directory / name).exists() for name in statistics.FILES):
    return None
  stats, count = statistics.read(dataset.directory, size), len(images)
  colours = images.mean((1, 2))
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


def _sample(examples: records.Examples, size_px: int) -> np.ndarray:
  """Returns some images of a split, uint8 [N, S, S, 3]."""
  count = min(len(examples), _SAMPLE)
  indices = np.linspace(0, len(examples) - 1, count).astype(int)
  if all(examples[int(index)].label == -1 for index in indices):
    raise examples.error("has no labels (each is -1, as where they are secret)")
  return batches.load(examples, indices, size_px)["image"]


def check_size(
  dataset: records.Dataset, size_px: int, fixed: bool = True
) -> None:
  """Raises InputError if the images of a data set have another size.

  `fixed` says that the net is trained, so it can take no other.
  """
  height, width, _ = dataset.shape
  if height and height == width != size_px:
    directory = str(dataset.directory)
    source, output = map(shlex.quote, (directory, f"{directory}_{size_px}"))
    other = f", or pass --config.image_size_px={height}"
    raise errors.InputError(
      f"image_size_px={size_px} but the images in {directory!r} have {height}"
      f" px; prepare again with --size={size_px} and use that: alexnet prepare"
      f" --size={size_px} --source={source} --output={output}"
      f"{'' if fixed else other}."
    )


def measure(examples: records.Examples, config: Any) -> statistics.Statistics:
  """Returns the statistics of all examples of a split."""
  sums = statistics.Sums.zero(config.image_size_px)
  for batch in batches.all_once(examples, config, "images measured"):
    for image in batch["image"]:
      sums.add_image(image)
  return sums.statistics()


def overlaps(splits: Mapping[str, records.Examples]) -> list[str]:
  """Returns a text for each split that has examples of train."""
  train, *others = splits.values()
  texts = []
  for other in others:
    shared = sum(
      max(min(a.skip + a.take, b.skip + b.take) - max(a.skip, b.skip), 0)
      for a, b in itertools.product(train.parts, other.parts)
      if a.filename == b.filename
    )
    if shared:
      texts.append(
        f"{other.field}={other.split!r} has {shared:,} examples of"
        f" {train.field}={train.split!r}"
      )
  return texts
