"""Shards into batches: TFDS opens them, Grain feeds them."""

import concurrent.futures
import functools
import time
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
import simplejpeg

from alexnet_jax.data import decode, records
from alexnet_jax.runtime import errors, signals

# Batches that Grain keeps ready; each of 128 256 px images is 25 MB.
_PREFETCHED_BATCHES = 4
_ENDLESS = 2**62  # Examples, in all passes.
_END = object()
_LOOK_S = 1.0  # Seconds between looks at the clock.

Batch = dict[str, np.ndarray]


def load(
  examples: records.Examples, indices: np.ndarray, size_px: int
) -> Batch:
  """Reads and decodes examples.

  Args:
    examples: from `records.open_split`.
    indices: int [B], which.
    size_px: side of the images; stored ones of another size or shape are
      scaled and their central square cut out.

  Returns:
    {"image": uint8 [B, S, S, 3], "label": int32 [B]}.

  Raises:
    InputError: an example is damaged, or has no label.
  """
  pixels = np.empty((len(indices), size_px, size_px, 3), np.uint8)
  labels = np.empty(len(indices), np.int32)
  classes = len(examples.dataset.class_names)
  for slot, index in enumerate(indices):
    stored, label = examples[int(index)]
    if not 0 <= label < classes:
      raise examples.unusable(index, f"label {label} of {classes} classes")
    labels[slot] = label
    try:
      _decode(examples.dataset, stored, pixels[slot])
    except ValueError as e:
      raise examples.unusable(index, e) from e
  return {"image": pixels, "label": labels}


def _decode(dataset: records.Dataset, stored: bytes, out: np.ndarray) -> None:
  """Decodes a stored image into `out`, uint8 [S, S, 3]."""
  if dataset.shape == out.shape and dataset.raw:
    out[:] = np.frombuffer(stored, np.uint8).reshape(out.shape)
  elif dataset.shape == out.shape and decode.is_jpeg(stored):
    decoded = simplejpeg.decode_jpeg(stored, "RGB", buffer=out)
    if decoded.shape != out.shape:
      raise ValueError(f"{decoded.shape} pixels, not {out.shape}")
  else:
    image = decode.decode(dataset.image_file(stored))
    out[:] = decode.square(image, out.shape[0])


class ShuffledBatches:
  """Batch n of an endless, shuffled stream of numbers, for any n.

  Each pass takes every number once. Grain's own shuffle finds its numbers one
  by one, which takes 60 microseconds of each, and ten times that where passes
  are shorter than batches: as long as it takes to decode the image.
  """

  def __init__(
    self, num_examples: int, batch_size: int, seed: int, rows: np.ndarray | None
  ):
    self._num_examples = num_examples
    self._batch_size = batch_size
    self._seed = seed
    self._rows = np.arange(batch_size) if rows is None else rows
    self._shuffled = functools.lru_cache(maxsize=2)(self._shuffle)

  def _shuffle(self, number: int) -> np.ndarray:
    """Returns the order of a pass."""
    rng = np.random.default_rng((self._seed, number))
    return rng.permutation(self._num_examples)

  def __len__(self) -> int:
    return _ENDLESS // self._batch_size

  def __getitem__(self, batch: int) -> np.ndarray:
    first = batch * self._batch_size
    passes, places = np.divmod(first + self._rows, self._num_examples)
    indices = np.empty(len(places), np.int64)
    for number in np.unique(passes):
      held = passes == number
      indices[held] = self._shuffled(int(number))[places[held]]
    return indices


def _iterate(batches: grain.MapDataset, threads: int) -> grain.DatasetIterator:
  options = grain.ReadOptions(
    num_threads=threads,
    prefetch_buffer_size=max(_PREFETCHED_BATCHES, threads),
  )
  return iter(batches.to_iter_dataset(options))


def examples_of(
  num_examples: int, *, batch_size: int, seed: int, batch: int
) -> np.ndarray:
  """Returns int [B], which examples batch number `batch`, from 0, is made of.

  The arguments are those of `train_batches`.
  """
  return ShuffledBatches(num_examples, batch_size, seed, None)[batch]


def train_indices(
  num_examples: int,
  *,
  batch_size: int,
  seed: int,
  rows: np.ndarray | None = None,
) -> grain.DatasetIterator:
  """Returns the examples of the batches of `train_batches`, by number.

  Args:
    num_examples: of the split.
    batch_size: as there.
    seed: as there.
    rows: as there.

  Returns:
    An iterator over int [B]; its states and those of `train_batches` are alike.
  """
  order: Any = ShuffledBatches(num_examples, batch_size, seed, rows)
  return _iterate(grain.MapDataset.source(order), threads=1)


def train_batches(
  examples: records.Examples,
  *,
  size_px: int,
  batch_size: int,
  seed: int,
  threads: int,
  rows: np.ndarray | None = None,
) -> grain.DatasetIterator:
  """Returns endless shuffled batches; each pass takes every example once.

  A batch is decoded by one thread, into its place: to hand over single images
  would cost a quarter of the speed.

  Args:
    examples: from `records.open_split`.
    size_px: side of the images.
    batch_size: examples per batch of all hosts; a batch may span two passes.
    seed: of the order, which all hosts share.
    threads: that decode, each a batch.
    rows: int [R], the rows of each batch that this host needs; all by default.

  Returns:
    An iterator over `load`ed batches of R rows, whose `get_state` and
    `set_state` resume it exactly.
  """
  order: Any = ShuffledBatches(len(examples), batch_size, seed, rows)
  batches = grain.MapDataset.source(order).map(
    lambda indices: load(examples, indices, size_px)
  )
  return _iterate(batches, threads)


def eval_batches(
  examples: records.Examples,
  *,
  size_px: int,
  batch_size: int,
  threads: int,
  rows: np.ndarray | None = None,
) -> Iterator[Batch]:
  """Yields every example once, in order; the last batch is padded.

  Args:
    examples: from `records.open_split`.
    size_px: side of the images.
    batch_size: examples per batch of all hosts.
    threads: that decode, each a batch.
    rows: int [R], the rows of each batch that this host needs; all by default.

  Yields:
    {"image": uint8 [R, S, S, 3], "label": int32 [R], "mask": float32 [R]}, the
    mask being 0 where a row is padding.
  """
  count = len(examples)
  mine = np.arange(batch_size) if rows is None else rows

  def padded(batch: int) -> Batch:
    indices = batch * batch_size + mine
    held = indices < count
    found = load(examples, indices[held], size_px)
    whole = {
      name: np.zeros((len(mine), *values.shape[1:]), values.dtype)
      for name, values in found.items()
    }
    for name, values in found.items():
      whole[name][held] = values
    return whole | {"mask": held.astype(np.float32)}

  numbers = grain.MapDataset.source(range(-(-count // batch_size)))
  yield from _iterate(numbers.map(padded), threads)


class WithTimeout(Iterator[Any]):
  """Takes from an iterator, but does not wait for ever."""

  def __init__(self, iterator: Iterator[Any], timeout_s: float):
    """Wraps an iterator.

    Args:
      iterator: of batches.
      timeout_s: seconds to wait for one.
    """
    self._iterator = iterator
    self._timeout_s = timeout_s
    self._thread = concurrent.futures.ThreadPoolExecutor(1)

  def __next__(self) -> Any:
    """Returns the next; raises errors.InputTimeoutError if it does not come."""
    # A future cannot hold a StopIteration.
    taken = self._thread.submit(next, self._iterator, _END)
    deadline = time.monotonic() + self._timeout_s
    while True:
      try:
        found = taken.result(min(_LOOK_S, self._timeout_s))
        break
      except TimeoutError as e:
        if taken.done():
          found = taken.result()  # It may have failed of that itself.
          break
        if time.monotonic() > deadline or signals.stop_requested():
          raise errors.InputTimeoutError(
            f"no batch of images came for input_timeout_s={self._timeout_s:g},"
            " or till the run was told to stop; see whether the disk or network"
            " that holds data_dir answers, and start the same command again."
          ) from e
    if found is _END:
      self._thread.shutdown()
      raise StopIteration
    return found
