"""Random access to TFDS directories of ArrayRecord or TFRecord files."""

import contextlib
import dataclasses
import json
import os
import shlex
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.runtime import errors, files

_MAX_CLASSES = 1_000_000  # To name this many takes a second.
_MAX_TEXT = 2**26  # Bytes; TFDS reads its metadata whole.
# How to train without a split.
_WITHOUT = {
  "--config.validation_split": ", or start a run without this split by"
  " --config.validation_split='' --config.schedule=linear",
  "--config.test_split": ", or go without this split by --config.test_split=''",
}
_ExampleProto: Any = getattr(tf_example_pb2, "Example")  # noqa: B009


@dataclasses.dataclass(frozen=True)
class Dataset:
  """An open TFDS directory."""

  directory: Path
  builder: Any  # TFDS's, which reads it.
  image: str  # Name of the feature that is the image.
  label: str  # Name of the feature that is the class.
  class_names: tuple[str, ...]  # By label.
  shape: tuple[int | None, ...]  # Height, width, channels; None if they vary.
  raw: bool  # Whether images are stored as pixels, not as files.

  @property
  def splits(self) -> list[str]:
    """The names of its splits."""
    return sorted(self.builder.info.splits)

  def image_file(self, image: bytes) -> bytes:
    """Returns a stored image as an image file, without loss."""
    if not self.raw:
      return image
    height, width, _ = self.shape
    return b"P6 %d %d 255\n" % (width, height) + image


class Example(NamedTuple):
  """One image as it is stored, and its class."""

  image: bytes
  label: int


def serialize(image: bytes, label: int) -> bytes:
  """Serializes an example as TFDS does, with its fields in a fixed order."""
  example = _ExampleProto()
  example.features.feature["image"].bytes_list.value.append(image)
  example.features.feature["label"].int64_list.value.append(label)
  # Otherwise protobuf would choose another order in every process.
  return example.SerializeToString(deterministic=True)


@dataclasses.dataclass(frozen=True)
class Examples:
  """The examples of a split or a slice of one, in the order of its files."""

  dataset: Dataset
  split: str
  field: str  # The flag that names the split, such as --config.test_split.
  serialized: Any  # A sequence of bytes.

  @property
  def parts(self) -> list[Any]:
    """TFDS's filename, skip and take of each range of them in a file."""
    return self.dataset.builder.info.splits[self.split].file_instructions

  @property
  def files(self) -> list[Path]:
    """The files that hold them."""
    return [Path(part.filename) for part in self.parts]

  def __len__(self) -> int:
    return len(self.serialized)

  def __getitem__(self, index: int) -> Example:
    try:
      example = _ExampleProto.FromString(self.serialized[index])
      features = example.features.feature
      return Example(
        features[self.dataset.image].bytes_list.value[0],
        features[self.dataset.label].int64_list.value[0],
      )
    except Exception as e:  # ArrayRecord and protobuf raise their own.
      raise self.unusable(index, e) from e

  def unusable(self, index: int, reason: object) -> errors.DataError:
    """Returns the error for an example that cannot be used."""
    reason = " ".join(str(reason).split())
    return self.error(f"cannot be used ({reason})", f"example {index} of ")

  def error(self, text: str, part: str = "") -> errors.DataError:
    """Returns an error about this split or a part of it."""
    return errors.DataError(
      f"{part}{self.field}={self.split!r} in {str(self.dataset.directory)!r}"
      f" {text}; make the data set again{_WITHOUT.get(self.field, '')}."
    )


def open_directory(directory: Path) -> Dataset:
  """Opens a directory that `prepare` or TFDS made.

  Raises InputError if it cannot be read, has not one image and one label per
  example, or would make TFDS run code.
  """
  try:
    for file in directory.iterdir():
      if file.exists() and not (file.is_file() or file.is_dir()):
        raise errors.InputError(
          f"{str(file)!r} is no regular file, and a read of it could wait for"
          f" ever; remove it from data_dir={str(directory)!r}."
        )
      is_text = file.suffix in (".json", ".txt") and file.is_file()
      if is_text and file.stat().st_size > _MAX_TEXT:
        raise ValueError(f"{file.name} is larger than {_MAX_TEXT:,} bytes")
    _check_features(directory / "features.json")
    # TFDS expands a leading ~.
    builder = tfds.builder_from_directory(directory.absolute())
    return _dataset(directory, builder)
  except errors.InputError:
    raise
  except Exception as e:  # TFDS raises many kinds for damaged metadata.
    raise errors.InputError(
      f"data_dir={str(directory)!r} cannot be opened ({errors.reason(e)}); make"
      " it with alexnet prepare --source=IMAGES"
      f" --output={shlex.quote(str(directory))}."
    ) from e


def open_catalogue(name: str) -> Dataset:
  """Opens NAME, NAME/CONFIG or NAME:VERSION of TFDS's catalogue.

  Downloads it if it is missing. Raises InputError if that fails.
  """
  try:
    builder = tfds.builder(name)
    if not builder.info.splits:
      builder = tfds.builder(name, file_format="array_record")
      builder.download_and_prepare()
    return _dataset(Path(builder.data_dir), builder)
  except Exception as e:  # The code of a data set may raise anything.
    raise errors.InputError(
      f"source='tfds:{name}' cannot be opened ({errors.reason(e)}); names are"
      " on tensorflow.org/datasets/catalog, and downloads need"
      " pip install -e '.[catalogue]'."
    ) from e


def open_split(dataset: Dataset, split: str, field: str) -> Examples:
  """Returns the examples of a split or a slice of one, like `train[:90%]`.

  Raises InputError, which names the flag in `field`, if there are none.
  """
  kind = dataset.builder.info.file_format.value
  try:
    info = dataset.builder.info.splits[split]
    # A slice that ends before it starts has a negative number of examples.
    count = min([info.num_examples] + [i.take for i in info.file_instructions])
    if count <= 0:
      raise ValueError("it holds no examples")
    for part in info.file_instructions:
      # Metadata can claim any number, and its shuffle could fill all memory.
      if part.examples_in_shard > os.path.getsize(part.filename):
        raise ValueError(f"{part.filename} has fewer bytes than examples")
    if kind == "tfrecord":
      serialized = _TFRecords(info.file_instructions)
    else:
      serialized = dataset.builder.as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
      )
  except (KeyError, NotImplementedError, OSError, ValueError) as e:
    splits = " ".join(", ".join(dataset.splits).split())
    raise errors.InputError(
      f"{field}={split!r} cannot be read from {str(dataset.directory)!r}, whose"
      f" files are of {kind} ({errors.reason(e)}); its splits are {splits}, and"
      " slices of them (validation and test may be empty)."
    ) from e
  return Examples(dataset, split, field, serialized)


def _check_features(file: Path) -> None:
  """Raises InputError if TFDS would import a module that the file names."""
  known = tfds.features.FeatureConnector._registered_features

  def check(fields: dict[str, Any]) -> dict[str, Any]:
    for key, value in fields.items():
      if not isinstance(value, str):
        continue
      is_class = key in ("type", "pythonClassName", "python_class_name")
      if is_class and value not in known:
        raise errors.InputError(
          f"{str(file)!r} has a feature of class {value!r}, which TFDS would"
          " import; only classes of tfds.features are read: remove it."
        )
      with contextlib.suppress(json.JSONDecodeError):  # JSON inside of a text.
        json.loads(value, object_hook=check)
    return fields

  if file.exists():
    json.loads(file.read_text("utf-8"), object_hook=check)


def _dataset(directory: Path, builder: Any) -> Dataset:
  features = builder.info.features
  labels = [
    k for k, x in features.items() if type(x) is tfds.features.ClassLabel
  ]
  images = [k for k, x in features.items() if _is_image(x)]
  image = _choose(directory, "image", images)
  label = _choose(directory, "label", labels)
  classes = features[label].num_classes
  if not 0 < (classes or 0) <= _MAX_CLASSES:
    raise ValueError(f"{classes} classes, not 1 to {_MAX_CLASSES:,}")
  raw = not isinstance(features[image], tfds.features.Image)
  names, shape = tuple(features[label].names), tuple(features[image].shape)
  return Dataset(directory, builder, image, label, names, shape, raw)


def _is_image(feature: Any) -> bool:
  """Whether a feature holds image files, or pixels as `prepare --raw` does."""
  shape: Any = feature.shape
  return type(feature) is tfds.features.Image or (
    type(feature) is tfds.features.Tensor
    and feature._encoding == tfds.features.Encoding.BYTES
    and feature.np_dtype == np.uint8
    and shape[2:] == (3,)
    and None not in shape
  )


def _choose(directory: Path, name: str, features: list[str]) -> str:
  """Returns the feature of this name, or the only one."""
  if name not in features and len(features) != 1:
    raise errors.InputError(
      f"data_dir={str(directory)!r} has {len(features)} features that could be"
      f" the {name} ({', '.join(features) or 'none'}) and none called {name!r};"
      " it needs one image and one class label."
    )
  return name if name in features else features[0]


class _TFRecords:
  """Random access to TFRecord files, after one pass over their lengths.

  A record is its length (uint64), a checksum of 4 bytes, the data and another
  checksum (tensorflow.org/tutorials/load_data/tfrecord).
  """

  def __init__(self, instructions: Any):
    self._places = [
      (part.filename, start) for part in instructions for start in _starts(part)
    ]

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> bytes:
    file, start = self._places[index]
    with open(file, "rb") as stream:
      stream.seek(start)
      (size,) = struct.unpack("<Q4x", stream.read(12))
      return stream.read(size)


def _starts(part: Any) -> list[int]:
  """Returns where each record of a part of a file begins."""
  starts, start = [], 0
  end = os.path.getsize(part.filename)
  with open(part.filename, "rb") as stream:
    for index in range(part.skip + part.take):
      starts.append(start)
      stream.seek(start)
      head = stream.read(12)
      size = struct.unpack("<Q4x", head)[0] if len(head) == 12 else end
      if size > files.MAX_BYTES:
        raise ValueError(f"{part.filename} has an example of {size:,} bytes")
      start += 16 + size
      if start > end:
        raise ValueError(f"{part.filename} ends in example {index}")
  return starts[part.skip :]
