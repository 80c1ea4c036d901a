"""Writes a TFDS directory of ArrayRecord shards, whole or not at all."""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tensorflow_datasets as tfds
from array_record.python import (
  array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
)

from alexnet_jax.data import records, statistics
from alexnet_jax.runtime import errors

JPEG_QUALITY = 90

# Many shards let many workers share a small split; a killed run loses one each.
_SHARDS, _SMALLEST_SHARD, _LARGEST_SHARD = 16, 32, 1024

Item = Any
# A module-level function or a partial of one, which returns an item's pixels,
# uint8 [S, S, 3], and the bytes to store. It raises OSError, with the item's
# name and the reason, if the item cannot be read.
Encoder = Callable[[Item], tuple[np.ndarray, bytes]]


def encode_jpeg(image: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
  """Encodes an RGB image, uint8 [H, W, 3]; colours are not subsampled."""
  return simplejpeg.encode_jpeg(
    np.ascontiguousarray(image),
    quality=quality,
    colorspace="RGB",
    colorsubsampling="444",
  )


@contextlib.contextmanager
def claim(output: Path) -> Iterator[Path]:
  """Yields the folder beside `output` in which `write` works.

  Finished shards stay there if the work is interrupted or killed, and the next
  try uses them. The folder goes when `output` is whole or no shard is finished.

  Raises:
    InputError: `output` exists, cannot be written, or is being made by another
      process; or a worker was killed.
  """
  work = output.parent / f".{output.name}.unfinished"
  if os.path.lexists(output):
    if not (work / "out").exists():  # Killed after it had finished.
      shutil.rmtree(work, ignore_errors=True)
    raise errors.InputError(
      f"output={str(output)!r} exists; choose another or remove it first."
    )
  with contextlib.ExitStack() as stack:
    try:
      for folder in ("out", "done"):
        (work / folder).mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context((work / "lock").open("w"))
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      busy = isinstance(e, BlockingIOError)
      raise errors.InputError(
        f"output={str(output)!r} cannot be written"
        f" ({'another process is making it' if busy else e.strerror}); choose"
        " another place."
      ) from e
    try:
      yield work
    except BrokenProcessPool as e:
      raise errors.InputError(
        "a worker was killed, perhaps for lack of memory; run it again with"
        " fewer --workers: finished shards are kept."
      ) from e
    # ArrayRecord raises a RuntimeError if a disk is full.
    except (OSError, RuntimeError) as e:
      raise errors.InputError(
        f"output={str(output)!r} cannot be written ({e}); make room and run it"
        " again: finished shards are kept."
      ) from e
    finally:
      (work / "spool").unlink(missing_ok=True)
      if output.exists() or not any((work / "done").iterdir()):
        shutil.rmtree(work, ignore_errors=True)


def write(
  work: Path,
  output: Path,
  splits: Mapping[str, Sequence[tuple[Item, int]]],
  *,
  class_names: Sequence[str],
  size_px: int,
  encoder: Encoder,
  description: str,
  raw: bool = False,
  skip_bad: bool = False,
  workers: int | None = None,
  on_progress: Callable[[int], None] = lambda images: None,
) -> list[tuple[str, str]]:
  """Writes a prepared directory, whole or not at all.

  Examples are shuffled with a fixed seed before they are cut into shards, so
  any slice of a split is a random sample. The bytes depend neither on the
  number of workers nor on interruptions.

  Args:
    work: from `claim`.
    output: the directory to make.
    splits: items and labels of each split, always in the same order; `train`
      among them.
    class_names: by label.
    size_px: side of the stored images.
    encoder: see `Encoder`.
    description: of the data, for the TFDS metadata.
    raw: whether the encoder's bytes are pixels, not JPEGs.
    skip_bad: leave out unreadable images, and list them in `skipped.json`.
    workers: processes; by default one per core, 0 for none.
    on_progress: is called with the number of images that were finished.

  Returns:
    Split and reason of each image that was left out.

  Raises:
    InputError: images cannot be read (all are listed), or none of a split or
      of a class of train can.
  """
  name = "alexnet_" + re.sub("[^A-Za-z0-9]", "_", output.name).lower()
  plan = [
    _Shard(work, split, file, items, encoder, size_px)
    for split, examples in splits.items()
    for file, items in _cut(f"{name}-{split}", examples)
  ]
  # What a killed process or a try with other options left.
  files = {shard.file for shard in plan}
  for path in [*work.glob("*.partial"), *work.glob("*/*")]:
    if path.name not in files:
      path.unlink()
  todo = [shard for shard in plan if shard.result() is None]
  on_progress(sum(map(len, splits.values())) - sum(len(s.items) for s in todo))
  _run(todo, workers, on_progress)
  results = {split: _Result(statistics.Sums.zero(size_px)) for split in splits}
  for shard in plan:
    result = shard.result()
    assert result, shard.file
    results[shard.split].add(result)
  bad = _check(splits, results, class_names, skip_bad, work)
  if bad:
    images = [{"split": split, "reason": reason} for split, reason in bad]
    text = json.dumps({"count": len(bad), "images": images}, indent=2)
    (work / "out" / "skipped.json").write_text(text + "\n")
  _write_metadata(
    work / "out", name, class_names, size_px, raw, description, results
  )
  statistics.write(work / "out", results["train"].sums.statistics())
  (work / "out").rename(output)
  return bad


def _cut(
  prefix: str, examples: Sequence[tuple[Item, int]]
) -> Iterator[tuple[str, list[tuple[Item, int]]]]:
  """Shuffles a split and cuts it into named shards of almost equal size."""
  order = np.random.default_rng(0).permutation(len(examples))
  size = min(max(len(order) // _SHARDS, _SMALLEST_SHARD), _LARGEST_SHARD)
  count = max(-(-len(order) // size), 1)
  for shard, indices in enumerate(np.array_split(order, count)):
    name = f"{prefix}.array_record-{shard:05}-of-{count:05}"
    yield name, [examples[index] for index in indices]


def _check(
  splits: Mapping[str, Sequence[tuple[Item, int]]],
  results: Mapping[str, "_Result"],
  class_names: Sequence[str],
  skip_bad: bool,
  work: Path,
) -> list[tuple[str, str]]:
  """Returns split and reason of the unreadable images, if they may be left."""
  bad = [(s, reason) for s in results for reason in sorted(results[s].bad)]
  lines = "".join(f"\n  {reason} ({split})" for split, reason in bad)
  if bad and not skip_bad:
    raise errors.InputError(
      f"{len(bad)} images cannot be read; repair or remove them, or leave them"
      f" out with --skip_bad; finished shards are kept in {work}:{lines}"
    )
  lost = [s for s, result in results.items() if bad and not result.labels]
  classes = {label for _, label in splits["train"]} - results["train"].labels
  lost = lost or sorted(f"{class_names[x]} in train" for x in classes)
  if lost:
    raise errors.InputError(
      f"no image of {', '.join(lost)} can be read; repair it:{lines}"
    )
  return bad


def _write_metadata(
  directory: Path,
  name: str,
  class_names: Sequence[str],
  size_px: int,
  raw: bool,
  description: str,
  results: Mapping[str, "_Result"],
) -> None:
  template = tfds.core.ShardedFileTemplate(
    data_dir=tfds.core.Path(directory),
    dataset_name=name,
    filetype_suffix="array_record",
    template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
  )
  shape = (size_px, size_px, 3)
  image = (
    tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes")
    if raw
    else tfds.features.Image(shape=shape, encoding_format="jpeg")
  )
  label = tfds.features.ClassLabel(names=list(class_names))
  tfds.folder_dataset.write_metadata(
    data_dir=directory,
    features=tfds.features.FeaturesDict({"image": image, "label": label}),
    split_infos=[
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=result.lengths,
        num_bytes=result.num_bytes,
        filename_template=template,
      )
      for split, result in results.items()
    ],
    filename_template=template,
    check_data=False,  # Its check reads with TensorFlow.
    description=description,
  )


@dataclasses.dataclass
class _Result:
  """What is known of a shard, or of all shards of a split."""

  sums: statistics.Sums
  num_bytes: int = 0
  lengths: list[int] = dataclasses.field(default_factory=list)
  labels: set[int] = dataclasses.field(default_factory=set)
  bad: list[str] = dataclasses.field(default_factory=list)

  def add(self, other: "_Result") -> None:
    self.sums.add(other.sums)
    self.num_bytes += other.num_bytes
    self.lengths += other.lengths
    self.labels |= other.labels
    self.bad += other.bad


@dataclasses.dataclass(frozen=True)
class _Shard:
  """The work for one file."""

  work: Path
  split: str
  file: str
  items: list[tuple[Item, int]]
  encoder: Encoder
  size_px: int

  def _key(self) -> str:
    """Returns a digest of all that the file's bytes depend on."""
    encoder: Any = functools.partial(self.encoder)  # Flattens a partial.
    options = sorted(encoder.keywords.items())
    text = repr((encoder.func.__qualname__, encoder.args, options, self.items))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

  def result(self) -> _Result | None:
    """Returns what `write` found, or None if this shard is not finished."""
    try:
      size = (self.work / "out" / self.file).stat().st_size
      with (self.work / "done" / self.file).open("rb") as file:
        with np.load(file) as arrays:
          about = json.loads(str(arrays["about"]))
          image, products = arrays["image"], arrays["products"]
      if (about["key"], about["size"]) != (self._key(), size):
        return None
      count, num_bytes = about["count"], about["num_bytes"]
    except Exception:  # NumPy raises many kinds for a damaged file.
      return None
    sums = statistics.Sums(count, image, products)
    return _Result(sums, num_bytes, [count], set(about["labels"]), about["bad"])

  def write(self) -> int:
    """Writes the file and its result, each in one move; returns its images."""
    partial = self.work / f"{self.file}.{os.getpid()}.partial"
    # JPEGs cannot be compressed again, and raw pixels should be fast to read.
    writer = array_record_module.ArrayRecordWriter(
      os.fspath(partial), "group_size:1,uncompressed"
    )
    result = _Result(statistics.Sums.zero(self.size_px))
    for item, label in self.items:
      try:
        pixels, stored = self.encoder(item)
      except OSError as e:
        result.bad.append(str(e))
        continue
      result.sums.add_image(pixels)
      record = records.serialize(stored, label)
      writer.write(record)
      result.num_bytes += len(record)
      result.labels.add(label)
    writer.close()
    about = {
      "key": self._key(),
      "size": partial.stat().st_size,
      "count": result.sums.count,
      "num_bytes": result.num_bytes,
      "labels": sorted(result.labels),
      "bad": result.bad,
    }
    done = self.work / "done" / self.file
    done.unlink(missing_ok=True)  # It may belong to other bytes.
    partial.rename(self.work / "out" / self.file)
    image, products = result.sums.image, result.sums.products
    with partial.open("wb") as file:
      np.savez(file, about=json.dumps(about), image=image, products=products)
    partial.rename(done)
    return len(self.items)


def _exit_with_parent() -> None:
  """Ends a worker whose parent was killed; it would wait for work for ever."""
  parent: Any = multiprocessing.parent_process()

  def wait() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def _run(
  plan: Sequence[_Shard],
  workers: int | None,
  on_progress: Callable[[int], None],
) -> None:
  """Writes shards, in workers or in this process."""
  if workers is None:
    workers = min(os.cpu_count() or 1, len(plan))
  if workers == 0:
    for shard in plan:
      on_progress(shard.write())
    return
  # Spawned, as a fork of a process that runs JAX's threads may hang.
  context = multiprocessing.get_context("spawn")
  pool = concurrent.futures.ProcessPoolExecutor(
    workers, context, _exit_with_parent
  )
  try:
    # Workers start here and inherit the mask: Ctrl-C is for this process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      running = [pool.submit(_Shard.write, shard) for shard in plan]
    finally:
      signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for future in concurrent.futures.as_completed(running):
      on_progress(future.result())
    pool.shutdown()
  except BaseException:
    pool.shutdown(wait=False, cancel_futures=True)
    for process in multiprocessing.active_children():
      process.terminate()
    raise
