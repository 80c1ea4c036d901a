"""Shuffled training batches and ordered evaluation batches, through Grain."""

import concurrent.futures
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
import simplejpeg

from alexnet_jax.data import decode, records
from alexnet_jax.runtime import cli, errors, signals

# Batches that Grain keeps ready; each of 128 256 px images is 25 MB.
_PREFETCHED_BATCHES = 4
_ENDLESS = 2**62  # Examples, in all passes.
_END = object()
_POLL_S = 1.0  # Seconds between looks at the clock.

Batch = dict[str, np.ndarray]


def load(
  examples: records.Examples, indices: np.ndarray, size_px: int
) -> Batch:
  """Reads and decodes the examples of int [B] `indices`, as squares.

  Returns {"image": uint8 [B, S, S, 3], "label": int32 [B]}. Raises InputError
  if an example is damaged, or its label has no class.
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
  """Item n is int [R], the examples of training batch n, without an end.

  Each pass takes all examples once, and a batch may span two passes. `rows`,
  int [R], are the rows of each batch that this host needs, by default all.
  The order of pass e is that of the numbers of Philox with the key (seed, e),
  which NumPy promises never to change; it promises less of `permutation`.
  (Grain's index_shuffle is no permutation of 65,537 examples.)
  """

  def __init__(
    self,
    num_examples: int,
    batch_size: int,
    seed: int,
    rows: np.ndarray | None = None,
  ):
    self._num_examples, self._batch_size = num_examples, batch_size
    self._seed = seed
    self._rows = np.arange(batch_size) if rows is None else rows
    self._permutation = functools.lru_cache(maxsize=2)(self._permute)

  def _permute(self, epoch: int) -> np.ndarray:
    philox = np.random.Philox(key=[self._seed, epoch])
    return philox.random_raw(self._num_examples).argsort(kind="stable")

  def __len__(self) -> int:
    return _ENDLESS // self._batch_size

  def __getitem__(self, batch: int) -> np.ndarray:
    first = batch * self._batch_size
    epochs, places = np.divmod(first + self._rows, self._num_examples)
    indices = np.empty(len(places), np.int64)
    for epoch in np.unique(epochs):
      in_epoch = epochs == epoch
      indices[in_epoch] = self._permutation(int(epoch))[places[in_epoch]]
    return indices


def iterate(
  source: Any, function: Callable[..., Any] | None = None, *, threads: int = 1
) -> grain.DatasetIterator:
  """Iterates over `source[0]`, `source[1]`, ..., each through `function`.

  `get_state` and `set_state` of the iterator resume it exactly. An item should
  be a complete batch: to pass on single images costs a quarter of the speed.
  """
  dataset = grain.MapDataset.source(source)
  dataset = dataset.map(function) if function else dataset
  ahead = max(_PREFETCHED_BATCHES, threads)
  return iter(dataset.to_iter_dataset(grain.ReadOptions(threads, ahead)))


def eval_batches(
  examples: records.Examples,
  *,
  size_px: int,
  batch_size: int,
  threads: int,
  rows: np.ndarray | None = None,
) -> Iterator[Batch]:
  """Yields every example once, in order; the last batch is padded.

  Batches also have a "mask", float32 [R], which is 0 where a row is padding.
  `rows` are as in `ShuffledBatches`.
  """
  count = len(examples)
  rows = np.arange(batch_size) if rows is None else rows

  def padded(batch: int) -> Batch:
    indices = batch * batch_size + rows
    is_real = indices < count
    result = {"mask": is_real.astype(np.float32)}
    for name, values in load(examples, indices[is_real], size_px).items():
      result[name] = np.zeros((len(rows), *values.shape[1:]), values.dtype)
      result[name][is_real] = values
    return result

  yield from iterate(range(-(-count // batch_size)), padded, threads=threads)


def all_once(
  examples: records.Examples, config: Any, what: str
) -> Iterator[Batch]:
  """Yields `load`ed batches of all examples, in order, with a progress bar."""
  everything = np.arange(len(examples))
  stream = iterate(
    np.array_split(everything, -(-len(examples) // 64)),
    lambda indices: load(examples, indices, config.image_size_px),
    threads=config.reader_threads,
  )
  with cli.progress(what, len(examples)) as advance:
    for batch in with_timeout(stream, config.input_timeout_s):
      yield batch
      advance(len(batch["label"]))


def with_timeout(iterator: Iterator[Any], timeout_s: float) -> Iterator[Any]:
  """Yields from an iterator; raises InputTimeoutError after too long a wait."""
  thread = concurrent.futures.ThreadPoolExecutor(1)
  while True:
    # A future cannot raise StopIteration, so the end is an object.
    future = thread.submit(next, iterator, _END)
    deadline = time.monotonic() + timeout_s
    while not future.done():
      concurrent.futures.wait([future], min(_POLL_S, timeout_s))
      late = time.monotonic() > deadline or signals.stop_requested()
      if late and not future.done():
        raise errors.InputTimeoutError(
          "no batch of images came within"
          f" --config.input_timeout_s={timeout_s:g} or before the run was"
          " stopped; check that the disk or network of data_dir answers, then"
          " start the same command again."
        )
    if future.result() is _END:
      thread.shutdown()
      return
    yield future.result()
