"""TFDS directories, written without the code under test."""

import io
import struct

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

CLASSES = ["ant", "bee", "cat"]
IMAGE = tfds.features.Image(encoding_format="png")
LABEL = tfds.features.ClassLabel(names=CLASSES)


def crc32c(data):
  """CRC-32C (Castagnoli), bit after bit."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  return crc ^ 0xFFFFFFFF


def masked_crc(data):
  crc = crc32c(data)
  return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def tfrecord(data):
  """A record as tensorflow.org/tutorials/load_data/tfrecord lays it out."""
  length = struct.pack("<Q", len(data))
  return length + masked_crc(length) + data + masked_crc(data)


def serialize(fields):
  """A tf.train.Example of bytes and integers."""
  example = tf_example_pb2.Example()
  for name, value in fields.items():
    feature = example.features.feature[name]
    if isinstance(value, bytes):
      feature.bytes_list.value.append(value)
    else:
      feature.int64_list.value.extend(np.atleast_1d(value).tolist())
  return example.SerializeToString()


def write_shard(path, examples, kind):
  written = map(serialize, examples)
  if kind == "tfrecord":
    path.write_bytes(b"".join(map(tfrecord, written)))
    return
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for record in written:
    writer.write(record)
  writer.close()


def write(directory, splits, features=None, kind="array_record"):
  """Writes a TFDS directory, without the code under test.

  Args:
    directory: to make.
    splits: for each split, for each shard, the fields of its examples.
    features: by default a PNG called image and a class called label.
    kind: of the files.
  """
  directory.mkdir(parents=True)
  template = tfds.core.ShardedFileTemplate(
    data_dir=tfds.core.Path(directory),
    dataset_name="foreign",
    filetype_suffix=kind,
    template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
  )
  for split, parts in splits.items():
    for number, examples in enumerate(parts):
      name = f"foreign-{split}.{kind}-{number:05}-of-{len(parts):05}"
      write_shard(directory / name, examples, kind)
  tfds.folder_dataset.write_metadata(
    data_dir=directory,
    features=tfds.features.FeaturesDict(
      features or {"image": IMAGE, "label": LABEL}
    ),
    split_infos=[
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(part) for part in parts],
        num_bytes=1,
        filename_template=template,
      )
      for split, parts in splits.items()
    ],
    filename_template=template,
    check_data=False,
  )
  return directory


def encoded(pixels, kind="PNG", **options):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind, **options)
  return file.getvalue()


def noise(seed, *shape):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
