"""Prepared shards into batches: TFDS opens them, Grain feeds them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds

from alexnet_jax import errors
from alexnet_jax.data import shards

# Batches that Grain keeps ready; each of 128 256 px images is 25 MB.
_PREFETCHED_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A prepared directory, opened.

  Attributes:
    directory: where it is.
    builder: the TFDS builder that reads it.
    class_names: name of each label.
    image_size_px: side of the stored images.
    statistics: mean image and colour axes of the training split.
  """

  directory: Path
  builder: tfds.core.DatasetBuilder
  class_names: tuple[str, ...]
  image_size_px: int
  statistics: shards.Statistics


def open_dataset(directory: Path) -> Dataset:
  """Opens a directory that `prepare` made.

  Raises:
    InputError: no such directory, or not one of ours.
  """
  if not directory.is_dir():
    raise errors.InputError(
      f"data_dir={str(directory)!r} does not exist; make it with python -m"
      f" alexnet_jax.data.prepare --source=DIR_OR_TAR --output={directory}."
    )
  statistics = shards.read_statistics(directory)
  try:
    builder = tfds.builder_from_directory(directory)
  # TFDS raises errors of many kinds for metadata that is missing or damaged.
  except Exception as e:
    raise errors.InputError(
      f"data_dir={str(directory)!r} cannot be opened ({e}); make it again with"
      " python -m alexnet_jax.data.prepare."
    ) from e
  features: Any = builder.info.features
  return Dataset(
    directory,
    builder,
    tuple(features["label"].names),
    statistics.mean_image.shape[0],
    statistics,
  )


def open_split(dataset: Dataset, field: str, split: str) -> Any:
  """Returns the random-access examples of a split, images still encoded.

  Args:
    dataset: from `open_dataset`.
    field: the config field that names the split, for the error.
    split: a split or a slice of one in TFDS's words: `train[:90%]`.

  Raises:
    InputError: no such split, or an empty one.
  """
  builder: Any = dataset.builder
  known = ", ".join(sorted(builder.info.splits))
  try:
    count = builder.info.splits[split].num_examples
  except (ValueError, KeyError) as e:
    raise errors.InputError(
      f"{field}={split!r} is no split of {str(dataset.directory)!r}, which has"
      f" {known}, nor a slice of one; --config.{field}=SPLIT names another"
      " (validation and test may be empty)."
    ) from e
  if not count:
    raise errors.InputError(f"{field}={split!r} holds no examples; widen it.")
  return builder.as_data_source(
    split, decoders={"image": tfds.decode.SkipDecoding()}
  )


def _decode(example: dict[str, Any]) -> dict[str, np.ndarray]:
  return {
    "image": shards.decode_jpeg(example["image"]),
    "label": np.array(example["label"], np.int32),
  }


def _iterate(batches: grain.MapDataset, threads: int):
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=_PREFETCHED_BATCHES
  )
  return iter(batches.to_iter_dataset(options))


def train_batches(
  examples: Any, *, batch_size: int, seed: int, threads: int
) -> grain.DatasetIterator:
  """Returns endless shuffled batches; each pass takes every example once.

  Args:
    examples: from `open_split`.
    batch_size: examples per batch; a batch may span two passes.
    seed: of the order.
    threads: that decode.

  Returns:
    An iterator over {"image": uint8 [B, S, S, 3], "label": int32 [B]} whose
    `get_state` and `set_state` resume it exactly.
  """
  # Grain adds the number of the pass to its seed: neighbouring seeds of ours
  # would share their orders.
  order_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
  return _iterate(
    grain.MapDataset.source(examples)
    .shuffle(seed=order_seed)
    .repeat()
    .map(_decode)
    .batch(batch_size, drop_remainder=True),
    threads,
  )


def eval_batches(
  examples: Any, *, batch_size: int, threads: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields every example once, in order; the last batch is padded.

  Args:
    examples: from `open_split`.
    batch_size: examples per batch.
    threads: that decode.

  Yields:
    {"image": uint8 [B, S, S, 3], "label": int32 [B], "mask": float32 [B]}, the
    mask being 0 where a row is padding.
  """
  batches = (
    grain.MapDataset.source(examples)
    .map(_decode)
    .batch(batch_size, drop_remainder=False)
  )
  for batch in _iterate(batches, threads):
    count = len(batch["label"])
    mask = np.zeros(batch_size, np.float32)
    mask[:count] = 1
    tail = batch_size - count
    yield {
      name: np.pad(rows, [(0, tail)] + [(0, 0)] * (rows.ndim - 1))
      for name, rows in batch.items()
    } | {"mask": mask}
