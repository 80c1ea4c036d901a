"""Writes a TFDS directory of ArrayRecord shards, completely or not at all."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import warnings
from collections import Counter
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
from alexnet_jax.runtime import cli, errors, machine

# Many shards let many workers share a small split; a killed run loses one each.
_SHARDS, _SMALLEST_SHARD, _LARGEST_SHARD = 16, 32, 1024

Item = Any
# A module-level function or a partial of one. Returns an item's pixels, uint8
# [S, S, 3], and the bytes to store; raises OSError with its name and a reason.
Encoder = Callable[[Item], tuple[np.ndarray, bytes]]
_Result = Mapping[str, np.ndarray]  # Of a shard; `_Shard.write` has its names.


def encode_jpeg(image: np.ndarray) -> bytes:
  """Encodes an RGB image, uint8 [H, W, 3]; colours are not subsampled."""
  return simplejpeg.encode_jpeg(image, 90, "RGB", "444")


@contextlib.contextmanager
def claim(output: Path) -> Iterator[Path]:
  """Yields the folder beside `output` in which `write` works.

  Finished shards stay there for the next try if the work is interrupted. Raises
  InputError if `output` exists or cannot be written.
  """
  # A worker imports the script that started it; there, it would begin anew.
  if getattr(multiprocessing.current_process(), "_inheriting", False):
    sys.exit(1)
  work = output.parent / f".{output.name}.unfinished"
  if os.path.lexists(output):
    raise errors.InputError(
      f"output={str(output)!r} exists; choose another or remove it first."
    )
  try:
    for folder in ("out", "done"):
      (work / folder).mkdir(parents=True, exist_ok=True)
    try:
      yield work
    finally:
      (work / "spool").unlink(missing_ok=True)
      if output.exists() or not any((work / "done").iterdir()):
        shutil.rmtree(work, ignore_errors=True)
  except BrokenProcessPool as e:
    raise errors.InputError(
      "a worker was killed, perhaps for lack of memory (run it again with fewer"
      " --workers: finished shards are kept), or it was started by a script"
      " without `if __name__ == '__main__':`, which workers import (add it)."
    ) from e
  except (OSError, RuntimeError) as e:  # ArrayRecord's, if a disk is full.
    raise errors.InputError(
      f"output={str(output)!r} cannot be written ({e}); make room or choose"
      " another place, and run it again: finished shards are kept."
    ) from e


def write(
  work: Path,
  output: Path,
  splits: Mapping[str, Sequence[tuple[Item, int]]],
  *,
  class_names: Sequence[str],
  size_px: int,
  encoder: Encoder,
  raw: bool = False,
  skip_bad: bool = False,
  workers: int | None = None,
) -> dict[str, Counter[int]]:
  """Writes a prepared directory, completely or not at all.

  Examples are shuffled first, so any slice of a split is a random sample. The
  bytes depend neither on `workers` nor on interruptions.

  `work` is from `claim`. `splits` has items and labels, always in the same
  order; if `train` is one, a mean image is written. `raw` says that the encoder
  returns pixels, not JPEGs. `workers` is by default one per core, 0 for none.

  Returns the number of examples of each split by label. Raises InputError if
  images cannot be read, unless `skip_bad`, or none of a split or a class of
  train can.
  """
  name = "alexnet_" + re.sub("[^A-Za-z0-9]", "_", output.name).lower()
  plan = [
    _Shard(work, split, file, items, encoder, size_px)
    for split, examples in splits.items()
    for file, items in _cut(f"{name}-{split}", examples)
  ]
  files = {shard.file for shard in plan}
  for path in [*work.glob("*.partial"), *work.glob("*/*")]:
    if path.name not in files:  # Of a killed process, or of other options.
      path.unlink()
  todo = [shard for shard in plan if shard.result() is None]
  total = sum(map(len, splits.values()))
  with cli.progress("images", total) as advance:
    advance(total - sum(len(shard.items) for shard in todo))
    for count in _run(todo, workers):
      advance(count)
  results: dict[str, list[Any]] = {split: [] for split in splits}
  for shard in plan:
    results[shard.split].append(result := shard.result())
    if not result:
      raise OSError("another process writes there")
  bad = [
    f"\n  {reason} ({split})"
    for split in splits
    for reason in sorted(r for x in results[split] for r in x["bad"].tolist())
  ]
  if bad and not skip_bad:
    raise errors.InputError(
      f"{len(bad)} images cannot be read; repair or remove them, or leave them"
      " out with --skip_bad; finished shards are kept in"
      f" {work}:{''.join(bad)}"
    )
  counts = {
    s: Counter(label for x in results[s] for label in x["labels"].tolist())
    for s in splits
  }
  train = results.get("train", [])
  wanted = {label for _, label in splits.get("train", [])}
  unread = wanted - counts.get("train", {}).keys()
  lost = [split for split in splits if not counts[split]]
  lost = lost or sorted(f"{class_names[label]} in train" for label in unread)
  if lost:
    raise errors.InputError(
      f"no image of {', '.join(lost)} can be read; repair it:{''.join(bad)}"
    )
  shape = (size_px, size_px, 3)
  image = tfds.features.Image(shape=shape, encoding_format="jpeg")
  if raw:
    image = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes")
  label = tfds.features.ClassLabel(names=list(class_names))
  features = tfds.features.FeaturesDict({"image": image, "label": label})
  _write_metadata(work / "out", name, features, results)
  if train:
    keys = [field.name for field in dataclasses.fields(statistics.Sums)]
    sums: Any = {key: sum(x[key] for x in train) for key in keys}
    statistics.write(work / "out", statistics.Sums(**sums).statistics())
  (work / "out").rename(output)
  return counts


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


def _write_metadata(
  directory: Path,
  name: str,
  features: tfds.features.FeaturesDict,
  results: Mapping[str, Sequence[_Result]],
) -> None:
  template = tfds.core.ShardedFileTemplate(
    data_dir=tfds.core.Path(directory),
    dataset_name=name,
    filetype_suffix="array_record",
  )
  tfds.folder_dataset.write_metadata(
    data_dir=directory,
    features=features,
    split_infos=[
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[int(x["count"]) for x in of_split],
        num_bytes=sum(int(x["num_bytes"]) for x in of_split),
        filename_template=template,
      )
      for split, of_split in results.items()
    ],
    filename_template=template,
    check_data=False,  # Its check reads with TensorFlow.
  )


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
    """Returns what `write` saved, or None if this shard is not finished."""
    try:
      size = (self.work / "out" / self.file).stat().st_size
      with np.load(self.work / "done" / self.file) as arrays:
        result = dict(arrays)
      same = result["key"] == self._key() and result["size"] == size
      return result if same else None
    except Exception:  # NumPy raises many kinds for a damaged file.
      return None

  def write(self) -> int:
    """Writes the file and its result, each in one move; returns its images."""
    partial = self.work / f"{self.file}.{os.getpid()}.partial"
    # JPEGs cannot be compressed again, and raw pixels should be fast to read.
    writer = array_record_module.ArrayRecordWriter(
      os.fspath(partial), "group_size:1,uncompressed"
    )
    sums = statistics.Sums.zero(self.size_px)
    num_bytes, labels, bad = 0, [], []
    for item, label in self.items:
      try:
        pixels, stored = self.encoder(item)
      except OSError as e:
        bad.append(str(e))
        continue
      sums.add_image(pixels)
      record = records.serialize(stored, label)
      writer.write(record)
      num_bytes += len(record)
      labels.append(label)
    writer.close()
    size = partial.stat().st_size
    done = self.work / "done" / self.file
    done.unlink(missing_ok=True)  # It may belong to other bytes.
    partial.rename(self.work / "out" / self.file)
    with partial.open("wb") as file:
      np.savez(
        file,
        key=self._key(),
        size=size,
        num_bytes=num_bytes,
        labels=labels,
        bad=np.array(bad, str),
        **dataclasses.asdict(sums),
      )
    partial.rename(done)
    return len(self.items)


def _prepare_worker() -> None:
  """Leaves Ctrl-C to the parent, and ends with it if it is killed."""
  # About images that are refused, or sound.
  warnings.filterwarnings("ignore", module="PIL")
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent: Any = multiprocessing.parent_process()

  def wait() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def _run(plan: Sequence[_Shard], workers: int | None) -> Iterator[int]:
  """Writes shards, in workers or in this process; yields numbers of images."""
  if workers == 0:
    yield from (shard.write() for shard in plan)
    return
  # Spawned, as a fork of a process that runs JAX's threads may hang.
  with concurrent.futures.ProcessPoolExecutor(
    workers or min(machine.cpu_count(), max(len(plan), 1)),
    multiprocessing.get_context("spawn"),
    _prepare_worker,
  ) as pool:
    try:
      running = [pool.submit(_Shard.write, shard) for shard in plan]
      for future in concurrent.futures.as_completed(running):
        yield future.result()
    except BaseException:
      for process in multiprocessing.active_children():
        process.terminate()
      raise
