"""Shards into batches: TFDS opens them, Grain feeds them."""

import concurrent.futures
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
import simplejpeg

from alexnet_jax.data import decode, records, statistics
from alexnet_jax.runtime import cli, errors, signals

# Batches that Grain keeps ready; each of 128 256 px images is 25 MB.
_PREFETCHED_BATCHES = 4
_ENDLESS = 2**62  # Examples, in all passes.
# Images that the check at the start looks at, and the least for a verdict.
_SAMPLE, _SMALLEST_SAMPLE = 256, 16

# Bytes of a data set, and at a time, that a fingerprint reads.
_FINGERPRINTED, _BLOCK = 2**28, 2**16
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
  samples = (load(examples, indices, size) for indices in [sample])
  batch = next(WithTimeout(samples, config.input_timeout_s))
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
  batches = eval_batches(
    examples, size_px=size, batch_size=64, threads=config.reader_threads
  )
  with cli.progress("images measured", len(examples)) as advance:
    for batch in WithTimeout(batches, config.input_timeout_s):
      held = batch["image"][batch["mask"] > 0]
      for image in held:
        sums.add_image(image)
      advance(len(held))
  return sums.statistics()


def write_run_metadata(
  workdir: Path, class_names: tuple[str, ...], held: statistics.Statistics
) -> None:
  """Writes what `kept` reads."""
  statistics.write(workdir, held)
  names = json.dumps(class_names, indent=2, ensure_ascii=False)
  # Where it is, all of them are whole.
  new = workdir / "class_names.new"
  new.write_text(names + "\n", encoding="utf-8")
  new.replace(workdir / "class_names.json")


def check_run_metadata(
  workdir: Path, dataset: records.Dataset, held: statistics.Statistics
) -> None:
  """Puts class names and statistics into a run's workdir, or compares them.

  Raises:
    InputError: the run was trained on other data.
  """
  if not (workdir / "class_names.json").exists():
    write_run_metadata(workdir, dataset.class_names, held)
    return
  class_names, known = read_run_metadata(workdir)
  for what, same in (
    ("classes", class_names == dataset.class_names),
    ("a mean image", np.array_equal(known.mean_image, held.mean_image)),
  ):
    if not same:
      raise errors.InputError(
        f"data_dir={str(dataset.directory)!r} has {what} other than the run in"
        f" {str(workdir)!r} was trained with; restore the data, or choose"
        " another --workdir."
      )


def read_run_metadata(
  workdir: Path,
) -> tuple[tuple[str, ...], statistics.Statistics]:
  """Returns the class names and statistics that a run was trained with.

  Raises:
    InputError: they are missing or damaged.
  """
  file = workdir / "class_names.json"
  try:
    class_names = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(class_names, list) or not all(
      isinstance(name, str) for name in class_names
    ):
      raise ValueError("it is no list of names")
  except (OSError, ValueError, RecursionError) as e:
    raise errors.InputError(
      f"workdir={str(workdir)!r} has no usable {file.name} ({e}); it is no run"
      " of this version: train it anew."
    ) from e
  return tuple(class_names), statistics.read(workdir)
