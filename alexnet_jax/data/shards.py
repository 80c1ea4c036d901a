"""The format on disk: a TFDS directory of JPEG shards and its statistics.

A prepared directory holds ArrayRecord shards that `tfds.builder_from_directory`
opens, and, of the training split, `mean_image.npy` ([S, S, 3] float32) and
`colour_pca.json` (the principal axes of RGB and the standard deviations along
them), both on the 0..255 scale.
"""

import concurrent.futures
import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tensorflow_datasets as tfds
from array_record.python import (
  array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorflow_datasets.core import example_serializer

from alexnet_jax import errors

EXAMPLES_PER_SHARD = 4096
JPEG_QUALITY = 90

Item = Any
Encoder = Callable[[Item, int], bytes]
"""Makes the JPEG of an item at a size; raises OSError if it cannot be read."""


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What the net's input needs to know of the training split.

  Attributes:
    mean_image: [S, S, 3] float32, 0..255.
    colour_axes: [3, 3] float32, a principal axis of RGB in each column.
    colour_sds: [3] float32, standard deviation along each, ascending.
  """

  mean_image: np.ndarray
  colour_axes: np.ndarray
  colour_sds: np.ndarray


@dataclasses.dataclass
class _Sums:
  """Integer sums over pixels: exact, whatever the order of the shards."""

  count: int
  image: np.ndarray  # [S, S, 3] int64
  products: np.ndarray  # [3, 3] int64

  @classmethod
  def zero(cls, size: int) -> "_Sums":
    image = np.zeros((size, size, 3), np.int64)
    return cls(0, image, np.zeros((3, 3), np.int64))

  def add_image(self, image: np.ndarray) -> None:
    self.count += 1
    self.image += image
    # Float64 holds these integers exactly and multiplies them faster.
    pixels = image.reshape(-1, 3).astype(np.float64)
    self.products += (pixels.T @ pixels).astype(np.int64)

  def add(self, other: "_Sums") -> None:
    self.count += other.count
    self.image += other.image
    self.products += other.products

  def statistics(self) -> Statistics:
    pixels = self.count * self.image.shape[0] * self.image.shape[1]
    mean = self.image.sum((0, 1)) / pixels
    covariance = self.products / pixels - np.outer(mean, mean)
    variances, axes = np.linalg.eigh(covariance)
    return Statistics(
      mean_image=(self.image / self.count).astype(np.float32),
      colour_axes=axes.astype(np.float32),
      colour_sds=np.sqrt(np.maximum(variances, 0)).astype(np.float32),
    )


def encode_jpeg(image: np.ndarray) -> bytes:
  """Returns the JPEG of a [H, W, 3] uint8 RGB image, colours at full size."""
  return simplejpeg.encode_jpeg(
    np.ascontiguousarray(image),
    quality=JPEG_QUALITY,
    colorspace="RGB",
    colorsubsampling="444",
  )


def decode_jpeg(data: bytes) -> np.ndarray:
  """Returns the [H, W, 3] uint8 RGB image; ValueError on a damaged file."""
  return simplejpeg.decode_jpeg(data, colorspace="RGB")


def write(
  output: Path,
  splits: Mapping[str, Sequence[tuple[Item, int]]],
  *,
  class_names: Sequence[str],
  size_px: int,
  encoder: Encoder,
  description: str,
  workers: int | None = None,
  on_progress: Callable[[int], None] = lambda examples: None,
) -> None:
  """Writes a prepared directory, whole or not at all.

  Examples are shuffled by a fixed seed before they are cut into shards, so any
  slice of a split is a random sample. The bytes written do not depend on the
  number of workers.

  Args:
    output: the directory to make; must not exist.
    splits: items and labels of each split, in a reproducible order.
    class_names: name of each label.
    size_px: side of the stored images.
    encoder: a module-level function from an item and the size to a JPEG.
    description: what the data are, kept in the TFDS metadata.
    workers: processes; the number of cores by default, 0 for none.
    on_progress: is called with the number of examples as each shard ends.

  Raises:
    InputError: `output` exists, cannot be written, or items cannot be read (all
      of them are listed).
  """
  check_output(output)
  with _whole_or_nothing(output) as directory:
    name = _dataset_name(output)
    template = tfds.core.ShardedFileTemplate(
      data_dir=tfds.core.Path(directory),
      dataset_name=name,
      filetype_suffix="array_record",
      template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(
          shape=(size_px, size_px, 3), encoding_format="jpeg"
        ),
        "label": tfds.features.ClassLabel(names=list(class_names)),
      }
    )
    tasks = [
      _Shard(split, directory / file, items, encoder, size_px, features)
      for split, examples in splits.items()
      for file, items in _cut(f"{name}-{split}", examples)
    ]
    totals = {split: _Sums.zero(size_px) for split in splits}
    lengths: dict[str, list[int]] = {split: [] for split in splits}
    num_bytes = dict.fromkeys(splits, 0)
    unreadable: list[str] = []
    for task, result in zip(tasks, _run(tasks, workers), strict=True):
      totals[task.split].add(result.sums)
      lengths[task.split].append(result.sums.count)
      num_bytes[task.split] += result.num_bytes
      unreadable += result.unreadable
      on_progress(len(task.items))
    if unreadable:
      raise errors.InputError(
        f"{len(unreadable)} images cannot be read; mend or remove them:\n  "
        + "\n  ".join(sorted(unreadable))
      )
    tfds.folder_dataset.write_metadata(
      data_dir=directory,
      features=features,
      split_infos=[
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=lengths[split],
          num_bytes=num_bytes[split],
          filename_template=template,
        )
        for split in splits
      ],
      filename_template=template,
      check_data=False,  # Its check reads with TensorFlow.
      description=description,
    )
    _write_statistics(directory, totals["train"].statistics())


def check_output(output: Path) -> None:
  """Makes the folder that an output goes into.

  Raises:
    InputError: the output exists, or its folder cannot be made.
  """
  if output.exists():
    raise errors.InputError(
      f"output={str(output)!r} exists; choose another or remove it first."
    )
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise errors.InputError(
      f"output={str(output)!r} cannot be written ({e.strerror}); choose"
      " another place."
    ) from e


def read_statistics(directory: Path) -> Statistics:
  """Returns the statistics beside the shards.

  Raises:
    InputError: a file is missing or damaged.
  """
  try:
    pca = json.loads((directory / "colour_pca.json").read_text())
    return Statistics(
      mean_image=np.load(directory / "mean_image.npy", allow_pickle=False),
      colour_axes=np.array(pca["axes_in_columns"], np.float32),
      colour_sds=np.array(pca["standard_deviations"], np.float32),
    )
  except (OSError, EOFError, ValueError, KeyError, TypeError) as e:
    raise errors.InputError(
      f"data_dir={str(directory)!r} has no usable mean_image.npy and"
      f" colour_pca.json ({e}); make the directory with python -m"
      " alexnet_jax.data.prepare."
    ) from e


def _write_statistics(directory: Path, statistics: Statistics) -> None:
  np.save(directory / "mean_image.npy", statistics.mean_image)
  pca = {
    "axes_in_columns": statistics.colour_axes.tolist(),
    "standard_deviations": statistics.colour_sds.tolist(),
  }
  (directory / "colour_pca.json").write_text(json.dumps(pca, indent=2) + "\n")


@contextlib.contextmanager
def _whole_or_nothing(output: Path) -> Iterator[Path]:
  """Yields a directory that becomes `output` on success and goes otherwise."""
  directory = Path(
    tempfile.mkdtemp(prefix=f".{output.name}.unfinished-", dir=output.parent)
  )
  try:
    yield directory
    directory.chmod(0o755)
    directory.rename(output)
  except BaseException:
    shutil.rmtree(directory, ignore_errors=True)
    raise


def _dataset_name(output: Path) -> str:
  letters = (c if c.isascii() and c.isalnum() else "_" for c in output.name)
  return f"alexnet_{''.join(letters).lower()}"


def _cut(
  prefix: str, examples: Sequence[tuple[Item, int]]
) -> list[tuple[str, list[tuple[Item, int]]]]:
  """Shuffles a split and cuts it into named shards of almost equal size."""
  order = np.random.default_rng(0).permutation(len(examples))
  count = -(-len(examples) // EXAMPLES_PER_SHARD)
  return [
    (
      f"{prefix}.array_record-{shard:05}-of-{count:05}",
      [examples[index] for index in indices],
    )
    for shard, indices in enumerate(np.array_split(order, max(count, 1)))
  ]


@dataclasses.dataclass(frozen=True)
class _Shard:
  split: str
  file: Path
  items: list[tuple[Item, int]]
  encoder: Encoder
  size_px: int
  features: tfds.features.FeaturesDict


@dataclasses.dataclass(frozen=True)
class _Result:
  sums: _Sums
  num_bytes: int
  unreadable: list[str]


def _write_shard(shard: _Shard) -> _Result:
  info: Any = shard.features.get_serialized_info()
  serializer = example_serializer.ExampleSerializer(info)
  sums, num_bytes, unreadable = _Sums.zero(shard.size_px), 0, []
  writer = array_record_module.ArrayRecordWriter(
    os.fspath(shard.file), "group_size:1"
  )
  for item, label in shard.items:
    try:
      jpeg = shard.encoder(item, shard.size_px)
    except OSError as e:
      unreadable.append(str(e))
      continue
    # Counted as stored: the net never sees the image before its encoding.
    sums.add_image(decode_jpeg(jpeg))
    example = {"image": io.BytesIO(jpeg), "label": label}
    # Protobuf would order an example's fields anew in every process.
    record = serializer.get_tf_example(
      shard.features.encode_example(example)
    ).SerializeToString(deterministic=True)
    writer.write(record)
    num_bytes += len(record)
  writer.close()
  return _Result(sums, num_bytes, unreadable)


def _run(tasks: Sequence[_Shard], workers: int | None) -> Iterator[_Result]:
  if workers is None:
    workers = min(os.cpu_count() or 1, len(tasks))
  if workers == 0:
    yield from map(_write_shard, tasks)
    return
  # Spawned, since a fork of a process that runs JAX's threads may hang.
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
    yield from pool.map(_write_shard, tasks)
