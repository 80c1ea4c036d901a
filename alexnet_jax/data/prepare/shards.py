"""The format on disk: a TFDS directory of shards, written whole or not at all.

A prepared directory holds ArrayRecord shards that `tfds.builder_from_directory`
opens, the statistics of the training split, and, where images were left out,
`skipped.json`, which lists them.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import zipfile
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
Encoder = Callable[[Item], tuple[np.ndarray, bytes]]
"""Makes of an item its pixels, uint8 [S, S, 3], and what is stored of them.

A module-level function or a partial of one. It raises OSError, with the item's
name and the reason, if the item cannot be read.
"""


def encode_jpeg(image: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
  """Returns the JPEG of a [H, W, 3] uint8 RGB image, colours at full size."""
  return simplejpeg.encode_jpeg(
    np.ascontiguousarray(image),
    quality=quality,
    colorspace="RGB",
    colorsubsampling="444",
  )


def check_size(size_px: int) -> None:
  """Raises InputError if images cannot be stored at a size."""
  if not 8 <= size_px <= 4096:
    raise errors.InputError(f"size={size_px} is not from 8 to 4096 pixels.")


@contextlib.contextmanager
def claim(output: Path) -> Iterator[Path]:
  """Yields the folder beside `output` in which it is made.

  What `write` finishes there is kept if it is interrupted, even killed, and
  used by the next try. The folder goes when `output` is whole, or when nothing
  in it is finished.

  Raises:
    InputError: `output` exists, cannot be written, or is being made by another
      process; a worker was killed.
  """
  work = output.parent / f".{output.name}.unfinished"
  if not str(output).isprintable():
    raise errors.InputError(
      f"output={str(output)!r} is not all text; choose another name."
    )
  if os.path.lexists(output):
    if not (work / "out").exists():  # A killed process had finished.
      shutil.rmtree(work, ignore_errors=True)
    raise errors.InputError(
      f"output={str(output)!r} exists; choose another or remove it first."
    )
  try:
    for folder in ("out", "done"):
      (work / folder).mkdir(parents=True, exist_ok=True)
    lock = (work / "lock").open("w")
  except OSError as e:
    raise errors.InputError(
      f"output={str(output)!r} cannot be written ({e.strerror}); choose"
      " another place."
    ) from e
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise errors.InputError(
        f"output={str(output)!r} is being made by another process; wait for it"
        " or choose another."
      ) from e

    def kept() -> str:
      done = any((work / "done").iterdir())
      return f": what is finished is kept in {work}." if done else "."

    try:
      yield work
    except BrokenProcessPool as e:
      raise errors.InputError(
        "a worker was killed, perhaps for want of memory; run it with fewer"
        f" --workers{kept()}"
      ) from e
    # ArrayRecord reports a full disk by a RuntimeError.
    except (OSError, RuntimeError) as e:
      raise errors.InputError(
        f"output={str(output)!r} cannot be written ({e}); make room and run it"
        f" again{kept()}"
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

  Examples are shuffled by a fixed seed before they are cut into shards, so any
  slice of a split is a random sample. The bytes written depend neither on the
  number of workers nor on how often the work was interrupted.

  Args:
    work: from `claim`.
    output: the directory to make.
    splits: items and labels of each split, in a reproducible order; `train`
      among them.
    class_names: name of each label.
    size_px: side of the stored images.
    encoder: see `Encoder`.
    description: what the data are, kept in the TFDS metadata.
    raw: whether the encoder's bytes are pixels; otherwise JPEGs.
    skip_bad: leave images out that cannot be read, and list them in
      `skipped.json`.
    workers: processes; the number of cores by default, 0 for none.
    on_progress: is called with how many more images are done.

  Returns:
    Split and reason of each image that was left out.

  Raises:
    InputError: images cannot be read (all of them are listed), or a split has
      none left.
  """
  name = _dataset_name(output)
  plan = [
    _Shard(work, split, file, items, encoder, size_px)
    for split, examples in splits.items()
    for file, items in _cut(f"{name}-{split}", examples)
  ]
  _remove_strays(work, {shard.file for shard in plan})
  todo = [shard for shard in plan if not shard.is_done()]
  on_progress(sum(map(len, splits.values())) - _count(todo))
  _run(todo, workers, on_progress)
  bad = _finish(
    work / "out", name, plan, class_names, size_px, raw, description, skip_bad
  )
  (work / "out").rename(output)
  return bad


def _finish(
  directory: Path,
  name: str,
  plan: "Sequence[_Shard]",
  class_names: Sequence[str],
  size_px: int,
  raw: bool,
  description: str,
  skip_bad: bool,
) -> list[tuple[str, str]]:
  """Writes what lies beside the shards; returns split and reason of the bad."""
  results = {shard.split: _Result.zero(size_px) for shard in plan}
  lengths: dict[str, list[int]] = {split: [] for split in results}
  for shard in plan:
    result = shard.result()
    results[shard.split].add(result)
    lengths[shard.split].append(result.sums.count)
  bad = [(s, r) for s in results for r in sorted(results[s].unreadable)]
  _check_readable(bad, lengths, skip_bad, directory.parent)
  _check_classes(plan, results["train"], class_names)
  if bad:
    images = [{"split": split, "reason": reason} for split, reason in bad]
    listed = {"count": len(bad), "images": images}
    (directory / "skipped.json").write_text(json.dumps(listed, indent=2) + "\n")
  num_bytes = {split: result.num_bytes for split, result in results.items()}
  _write_metadata(
    directory, name, class_names, size_px, raw, description, lengths, num_bytes
  )
  statistics.write(directory, results["train"].sums.statistics())
  return bad


def _check_readable(
  bad: list[tuple[str, str]],
  lengths: Mapping[str, list[int]],
  skip_bad: bool,
  work: Path,
) -> None:
  listed = "".join(f"\n  {reason} ({split})" for split, reason in bad)
  if bad and not skip_bad:
    raise errors.InputError(
      f"{len(bad)} images cannot be read; mend or remove them, or leave them"
      f" out by --skip_bad; finished shards wait in {work}:{listed}"
    )
  for split, counts in lengths.items():
    if bad and not sum(counts):
      raise errors.InputError(f"no image of {split} can be read:{listed}")


def _check_classes(
  plan: "Sequence[_Shard]", train: "_Result", class_names: Sequence[str]
) -> None:
  """Raises InputError if no image of a class of train could be read."""
  asked = {y for s in plan if s.split == "train" for _, y in s.items}
  if lost := [class_names[label] for label in sorted(asked - train.labels)]:
    raise errors.InputError(
      f"no image of {', '.join(lost)} in train can be read; mend or remove it."
    )


def _write_metadata(
  directory: Path,
  name: str,
  class_names: Sequence[str],
  size_px: int,
  raw: bool,
  description: str,
  lengths: Mapping[str, list[int]],
  num_bytes: Mapping[str, int],
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
        shard_lengths=counts,
        num_bytes=num_bytes[split],
        filename_template=template,
      )
      for split, counts in lengths.items()
    ],
    filename_template=template,
    check_data=False,  # Its check reads with TensorFlow.
    description=description,
  )


def _dataset_name(output: Path) -> str:
  letters = (c if c.isascii() and c.isalnum() else "_" for c in output.name)
  return f"alexnet_{''.join(letters).lower()}"


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


def _remove_strays(work: Path, files: set[str]) -> None:
  """Removes what a killed process or a try with other options left."""
  for partial in work.glob("*.partial*"):
    partial.unlink()
  for path in [*(work / "out").iterdir(), *(work / "done").iterdir()]:
    if path.name not in files:
      path.unlink()


@dataclasses.dataclass
class _Result:
  """What is known of a shard, or of all shards of a split."""

  sums: statistics.Sums
  num_bytes: int
  labels: set[int]
  unreadable: list[str]

  @classmethod
  def zero(cls, size_px: int) -> "_Result":
    return cls(statistics.Sums.zero(size_px), 0, set(), [])

  def add(self, other: "_Result") -> None:
    self.sums.add(other.sums)
    self.num_bytes += other.num_bytes
    self.labels |= other.labels
    self.unreadable += other.unreadable


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
    encoder: Any = self.encoder
    if not isinstance(encoder, functools.partial):
      encoder = functools.partial(encoder)
    by = (encoder.func.__qualname__, encoder.args)
    text = repr((by, sorted(encoder.keywords.items()), self.items))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

  def _done(self) -> Path:
    return self.work / "done" / self.file

  def is_done(self) -> bool:
    """Whether an earlier try finished this very shard."""
    try:
      size = (self.work / "out" / self.file).stat().st_size
      with self._done().open("rb") as file, np.load(file) as held:
        return held["key"] == self._key() and held["file_size"] == size
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
      return False

  def result(self) -> _Result:
    """Reads what `write` found."""
    with self._done().open("rb") as file, np.load(file) as held:
      sums = statistics.Sums(
        int(held["count"]), held["image"], held["products"]
      )
      unreadable = json.loads(str(held["unreadable"]))
      labels = set(held["labels"].tolist())
      return _Result(sums, int(held["num_bytes"]), labels, unreadable)

  def write(self, on_image: Callable[[], None]) -> None:
    """Writes the file and what there is to know of it, each in one move."""
    partial = self.work / f"{self.file}.{os.getpid()}.partial"
    # JPEGs cannot be compressed again; raw pixels are to be read fast.
    writer = array_record_module.ArrayRecordWriter(
      os.fspath(partial), "group_size:1,uncompressed"
    )
    result = _Result.zero(self.size_px)
    for item, label in self.items:
      try:
        pixels, stored = self.encoder(item)
      except OSError as e:
        result.unreadable.append(str(e))
      else:
        result.sums.add_image(pixels)
        record = records.serialize(stored, label)
        writer.write(record)
        result.num_bytes += len(record)
        result.labels.add(label)
      on_image()
    writer.close()
    size = partial.stat().st_size
    self._done().unlink(missing_ok=True)  # It may be of other bytes.
    partial.rename(self.work / "out" / self.file)
    with partial.open("wb") as file:
      np.savez(
        file,
        key=self._key(),
        file_size=size,
        count=result.sums.count,
        image=result.sums.image,
        products=result.sums.products,
        num_bytes=result.num_bytes,
        labels=np.array(sorted(result.labels), np.int64),
        unreadable=json.dumps(result.unreadable),
      )
    partial.rename(self._done())


def _count(plan: Sequence[_Shard]) -> int:
  return sum(len(shard.items) for shard in plan)


_counted: Any = None  # In a worker: the images that all workers have done.


def _start_worker(counted: Any) -> None:
  global _counted
  _counted = counted
  # A worker whose parent was killed would wait for ever.
  parent: Any = multiprocessing.parent_process()

  def follow() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


def _count_image() -> None:
  with _counted.get_lock():
    _counted.value += 1


def _write_shard(shard: _Shard) -> None:
  shard.write(_count_image)


def _run(
  plan: Sequence[_Shard],
  workers: int | None,
  on_progress: Callable[[int], None],
) -> None:
  if workers is None:
    workers = min(os.cpu_count() or 1, len(plan))
  if workers == 0:
    for shard in plan:
      shard.write(lambda: on_progress(1))
    return
  # Spawned, since a fork of a process that runs JAX's threads may hang.
  context = multiprocessing.get_context("spawn")
  counted = context.Value("q", 0)
  pool = concurrent.futures.ProcessPoolExecutor(
    workers, context, _start_worker, (counted,)
  )
  try:
    # Workers start here, and inherit that an interrupt is not theirs.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
      running = {pool.submit(_write_shard, shard) for shard in plan}
    finally:
      signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    shown = 0
    while running:
      ended, running = concurrent.futures.wait(
        running, timeout=0.2, return_when=concurrent.futures.FIRST_COMPLETED
      )
      for future in ended:
        future.result()
      on_progress(counted.value - shown)
      shown = counted.value
    pool.shutdown()
  except BaseException:
    pool.shutdown(wait=False, cancel_futures=True)
    for process in multiprocessing.active_children():
      process.terminate()
    raise
