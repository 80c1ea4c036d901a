"""A TFDS directory of images and labels, at random, without TensorFlow.

Ours or another's: ArrayRecord or TFRecord files, images of any size and
encoding. Only what TFDS itself serializes is read; no pixel is decoded here.
"""

import bisect
import contextlib
import dataclasses
import itertools
import json
import os
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.runtime import errors

# To name so many classes takes a second.
MAX_CLASSES = 1_000_000
_ExampleProto: Any = getattr(tf_example_pb2, "Example")  # noqa: B009


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A TFDS directory, opened.

  Attributes:
    directory: where it is.
    builder: the TFDS builder that reads it.
    image: name of the feature that is the image.
    label: name of the feature that is the class.
    class_names: name of each label.
    shape: height, width and channels of the images; None where they vary.
    raw: whether images are stored as pixels, not as files.
  """

  directory: Path
  builder: Any
  image: str
  label: str
  class_names: tuple[str, ...]
  shape: tuple[int | None, ...]
  raw: bool

  @property
  def splits(self) -> list[str]:
    """The names of its splits."""
    return sorted(self.builder.info.splits)

  def image_file(self, image: bytes) -> bytes:
    """Returns a stored image as a file, lossless, whatever it is stored as."""
    if not self.raw:
      return image
    height, width, channels = self.shape
    kind = {1: 5, 3: 6}[channels or 0]
    return b"P%d %d %d 255\n" % (kind, width, height) + image


class Example(NamedTuple):
  """One image as it is stored, and its class."""

  image: bytes
  label: int


def serialize(image: bytes, label: int) -> bytes:
  """Returns an example as TFDS serializes it, its fields in one order.

  Protobuf would order them anew in every process.
  """
  example = _ExampleProto()
  example.features.feature["image"].bytes_list.value.append(image)
  example.features.feature["label"].int64_list.value.append(label)
  return example.SerializeToString(deterministic=True)


class Examples:
  """The examples of a split or of a slice of one, in the order of its files."""

  def __init__(self, dataset: Dataset, split: str, serialized: Any):
    """Wraps the serialized examples of `dataset`."""
    self.dataset = dataset
    self.split = split
    self._serialized = serialized

  @property
  def files(self) -> list[Path]:
    """The files that hold them."""
    info = self.dataset.builder.info.splits[self.split]
    return [Path(i.filename) for i in info.file_instructions]

  def __len__(self) -> int:
    """Their number."""
    return len(self._serialized)

  def __getitem__(self, index: int) -> Example:
    """Reads one; raises InputError if it is damaged."""
    try:
      example = _ExampleProto.FromString(self._serialized[index])
      features = example.features.feature
      return Example(
        features[self.dataset.image].bytes_list.value[0],
        features[self.dataset.label].int64_list.value[0],
      )
    # ArrayRecord and Protobuf have errors of their own for damaged files.
    except Exception as e:
      raise self.unusable(index, e) from e

  def unusable(self, index: int, reason: object) -> errors.InputError:
    """Returns the error of an example that cannot be used."""
    return errors.InputError(
      f"example {index} of {self.split!r} in {str(self.dataset.directory)!r}"
      f" cannot be used ({' '.join(str(reason).split())}); make the data set"
      " again."
    )


def open_directory(directory: Path) -> Dataset:
  """Opens a directory that `prepare` or TFDS made.

  Raises:
    InputError: no such directory, none of TFDS, one without images and labels,
      or one that would have other code run or other files read than its own.
  """
  if not os.path.isdir(directory):
    there = "is no directory" if os.path.exists(directory) else "does not exist"
    raise errors.InputError(
      f"data_dir={str(directory)!r} {there}; make one with"
      f" alexnet prepare --source=IMAGES --output={str(directory)!r}."
    )
  try:
    _check_files(directory, directory.iterdir())
    _check_metadata(directory)
    # It would print that TensorFlow is missing, for a type that it lacks.
    with contextlib.redirect_stdout(None):
      # Absolute, as TFDS would take one called ~ for the user's own.
      builder = tfds.builder_from_directory(directory.absolute())
    for split in builder.info.splits.values():
      _check_files(directory, map(Path, split.filepaths))
  except errors.InputError:
    raise
  # TFDS raises errors of many kinds for metadata that is missing or damaged.
  except Exception as e:
    raise errors.InputError(
      f"data_dir={str(directory)!r} cannot be opened"
      f" ({_first_line(e)}); make it with alexnet prepare."
    ) from e
  return _opened(directory, builder)


def _check_files(directory: Path, files: Iterable[Path]) -> None:
  """Raises InputError if what a path leads to is not one of a directory."""
  root = os.path.realpath(directory)
  for file in files:
    real = os.path.realpath(file)
    if os.path.commonpath([root, real]) != root:
      raise errors.InputError(
        f"{str(file)!r} leads outside of data_dir={str(directory)!r}, to"
        f" {real!r}; put the file itself there."
      )
    # To open a pipe would be to wait for ever.
    if os.path.exists(real) and not (
      os.path.isfile(real) or os.path.isdir(real)
    ):
      raise errors.InputError(
        f"{str(file)!r} is no regular file; remove it from data_dir."
      )


def _check_metadata(directory: Path) -> None:
  """Raises InputError if TFDS would do more than read a directory's metadata.

  It imports the module of a class that it does not know, reads the file that
  an old class label names, and lets names of shards be any format string.
  """
  features = directory / "features.json"
  if features.exists():
    _check_features(features, json.loads(features.read_text("utf-8")))
  file = directory / "dataset_info.json"
  for split in json.loads(file.read_text("utf-8")).get("splits", ()):
    for key in ("filepathTemplate", "filepath_template"):
      template = split.get(key, "")
      if re.search("[{}]", re.sub(r"{[A-Z_]+}", "", template)):
        raise errors.InputError(
          f"{str(file)!r} names shards by {template!r}, where only names may"
          " stand in braces, like {SPLIT}; mend it."
        )


def _check_features(file: Path, held: Any) -> None:
  """Looks at every value of `features.json`, and at JSON in its texts."""
  known = tfds.features.FeatureConnector._registered_features
  if isinstance(held, str):
    try:
      inner = json.loads(held)
    except ValueError:
      return
    if isinstance(inner, dict | list):
      _check_features(file, inner)
  elif isinstance(held, list):
    for value in held:
      _check_features(file, value)
  elif isinstance(held, dict):
    for key, value in held.items():
      named = isinstance(value, str)
      kind = key in ("type", "pythonClassName", "python_class_name")
      if named and kind and value not in known:
        raise errors.InputError(
          f"{str(file)!r} has a feature of class {value!r}, which TFDS would"
          " import; only classes of tfds.features are read: remove it."
        )
      if named and key in ("names_file", "labels"):
        raise errors.InputError(
          f"{str(file)!r} takes names of classes from {value!r}; put them into"
          " FEATURE.labels.txt beside it."
        )
      _check_features(file, value)


def open_catalogue(name: str) -> Dataset:
  """Opens a data set of TFDS's catalogue, downloading it where it is missing.

  Args:
    name: in TFDS's words: NAME, NAME/CONFIG, NAME:VERSION.

  Raises:
    InputError: no such data set, it cannot be had, or TensorFlow, which TFDS
      needs to download, is missing.
  """
  try:
    builder = tfds.builder(name)
    if not builder.info.splits:
      builder = tfds.builder(name, file_format="array_record")
      builder.download_and_prepare()
  except ImportError as e:
    raise errors.InputError(
      f"source='tfds:{name}' is not on this machine, and to download it"
      f" {e.name} is missing; pip install -e '.[catalogue]'."
    ) from e
  # Whatever the code of a data set may raise.
  except Exception as e:
    raise errors.InputError(
      f"source='tfds:{name}' cannot be had ({_first_line(e)}); see"
      " tensorflow.org/datasets/catalog."
    ) from e
  return _opened(Path(builder.data_dir), builder)


def open_split(dataset: Dataset, split: str, field: str) -> Examples:
  """Returns the examples of a split.

  Args:
    dataset: from `open_directory`.
    split: a split or a slice of one in TFDS's words: `train[:90%]`.
    field: the config field or flag that names the split, for the error.

  Raises:
    InputError: no such split, an empty one, or files of an unknown format.
  """
  try:
    info = dataset.builder.info.splits[split]
    # A slice that ends before it starts counts less than nothing.
    count = min([info.num_examples] + [i.take for i in info.file_instructions])
  except (ValueError, KeyError) as e:
    raise errors.InputError(
      f"{field}={split!r} is no split of {str(dataset.directory)!r}, which has"
      f" {' '.join(', '.join(dataset.splits).split())}, nor a slice of"
      " one; name another (validation and test may be empty)."
    ) from e
  if count <= 0:
    raise errors.InputError(f"{field}={split!r} holds no examples; widen it.")
  kind = dataset.builder.info.file_format.value
  try:
    for part in info.file_instructions:
      # What holds of any file, so that no order of so many is drawn.
      if part.examples_in_shard > os.path.getsize(part.filename):
        raise ValueError(
          f"{part.filename} has fewer bytes than the {part.examples_in_shard}"
          " examples that dataset_info.json counts"
        )
    if kind == "tfrecord":
      serialized = _TFRecords(info.file_instructions)
    else:
      serialized = dataset.builder.as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
      )
  except (NotImplementedError, OSError, ValueError) as e:
    raise errors.InputError(
      f"{field}={split!r} of {str(dataset.directory)!r}, kept as {kind}, cannot"
      f" be read ({' '.join(str(e).split())}); it must be whole files of"
      " array_record or tfrecord."
    ) from e
  return Examples(dataset, split, serialized)


def _first_line(e: Exception) -> str:
  return f"{type(e).__name__}: {e}".splitlines()[0]


def _opened(directory: Path, builder: Any) -> Dataset:
  features = builder.info.features
  image = _one_of(directory, features, "image", tfds.features.Image)
  label = _one_of(directory, features, "label", tfds.features.ClassLabel)
  held = features[image]
  classes = features[label].num_classes
  if not 0 < (classes or 0) <= MAX_CLASSES:
    raise errors.InputError(
      f"data_dir={str(directory)!r} has {classes} classes, not 1 to"
      f" {MAX_CLASSES:,}; mend its features.json."
    )
  return Dataset(
    directory,
    builder,
    image,
    label,
    tuple(features[label].names),
    tuple(held.shape),
    not isinstance(held, tfds.features.Image),
  )


def _one_of(directory: Path, features: Any, name: str, kind: type) -> str:
  """Returns the feature of a kind: the one so called, or the only one."""
  found = [key for key in sorted(features) if type(features[key]) is kind]
  if kind is tfds.features.Image:  # Ours of `prepare --raw`.
    found += [
      key
      for key in features
      if type(features[key]) is tfds.features.Tensor
      and features[key].np_dtype == np.uint8
      and len(features[key].shape) == 3
      and None not in features[key].shape
      and features[key].shape[2] in (1, 3)
      and features[key]._encoding == tfds.features.Encoding.BYTES
    ]
  if name in found:
    return name
  if len(found) != 1:
    raise errors.InputError(
      f"data_dir={str(directory)!r} has {len(found)} features that could be"
      f" the {name} ({', '.join(found) or 'none'}) and none called {name!r}; it"
      " needs one image and one class label."
    )
  return found[0]


class _TFRecords:
  """Random access to TFRecord files, by one pass over their lengths.

  A record is its length (uint64, little endian), a checksum of 4 bytes, the
  data and a checksum of 4 bytes (tensorflow.org/tutorials/load_data/tfrecord).
  The checksums are not looked at: it is the images that tell of damage.
  """

  def __init__(self, instructions: Any):
    self._files = [os.fspath(i.filename) for i in instructions]
    self._offsets = [_offsets(i) for i in instructions]
    self._ends = list(itertools.accumulate(map(len, self._offsets)))

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> bytes:
    file = bisect.bisect_right(self._ends, index)
    first = self._ends[file - 1] if file else 0
    with open(self._files[file], "rb") as stream:
      stream.seek(self._offsets[file][index - first])
      (size,) = struct.unpack("<Q4x", stream.read(12))
      return stream.read(size)


def _offsets(instruction: Any) -> np.ndarray:
  offsets = np.empty(instruction.skip + instruction.take, np.int64)
  with open(instruction.filename, "rb") as stream:
    end = os.fstat(stream.fileno()).st_size
    start = 0
    for index in range(len(offsets)):
      offsets[index] = start
      stream.seek(start)
      head = stream.read(12)
      if len(head) == 12:
        start += 16 + struct.unpack("<Q4x", head)[0]
      if len(head) < 12 or start > end:
        raise ValueError(f"{instruction.filename} ends in example {index}")
  return offsets[instruction.skip :]
