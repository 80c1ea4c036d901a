"""TFDS directories of any origin, from the bytes on disk to pixels."""

import io
import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds
from directories import training_batches
from PIL import Image, ImageOps
from tensorflow_datasets.proto import tf_example_pb2
from tfds_files import CLASSES, IMAGE, LABEL, encoded, noise, serialize, write

from alexnet_jax.data import batches, records
from alexnet_jax.runtime import errors

SIZE_PX = 16
KINDS = ["array_record", "tfrecord"]


def number_image(number):
  """A PNG of one colour, its number."""
  return encoded(np.full((SIZE_PX, SIZE_PX, 3), number, np.uint8))


def numbered(*lengths):
  """Shards of images 0, 1, 2, ..., their labels going round."""
  counter = itertools.count()
  return [
    [
      {"image": number_image(number), "label": number % len(CLASSES)}
      for number in itertools.islice(counter, length)
    ]
    for length in lengths
  ]


def open_split(directory, split="train"):
  return records.open_split(
    records.open_directory(directory), split, "train_split"
  )


def load(examples, size_px=SIZE_PX):
  return batches.load(examples, np.arange(len(examples)), size_px)


def numbers(examples):
  """Numbers of the images; their labels must be theirs."""
  batch = load(examples)
  found = batch["image"][:, 0, 0, 0].tolist()
  assert batch["label"].tolist() == [n % len(CLASSES) for n in found]
  return found


def one_line(error):
  """The text of a caught InputError, which must be one line."""
  assert "\n" not in str(error.value)
  return str(error.value)


# What opens.


@pytest.mark.parametrize("kind", KINDS)
def test_small_pngs_come_out_as_they_went_in(tmp_path, kind):
  """As CIFAR-10 of TFDS's catalogue."""
  pixels = noise(0, 6, 32, 32, 3)
  examples = [
    {"image": encoded(image), "label": number % 3}
    for number, image in enumerate(pixels)
  ]
  features = {
    "id": tfds.features.Text(),
    "image": tfds.features.Image(shape=(32, 32, 3)),
    "label": LABEL,
  }
  examples = [example | {"id": b"train_16399"} for example in examples]
  write(tmp_path / "data", {"train": [examples]}, features, kind)
  dataset = records.open_directory(tmp_path / "data")
  assert dataset.class_names == tuple(CLASSES)
  assert dataset.shape == (32, 32, 3)
  assert not dataset.raw
  batch = load(open_split(tmp_path / "data"), 32)
  np.testing.assert_array_equal(batch["image"], pixels)
  assert batch["label"].tolist() == [0, 1, 2, 0, 1, 2]
  assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_raw_pixels_open_as_images_do(tmp_path, shape):
  """Of the size asked for, and of others, that Pillow has to scale."""
  pixels = noise(2, *shape, 3)
  features = {
    "image": tfds.features.Tensor(
      shape=pixels.shape, dtype=np.uint8, encoding="bytes"
    ),
    "label": LABEL,
  }
  examples = [{"image": pixels.tobytes(), "label": 1}]
  write(tmp_path / "data", {"train": [examples]}, features)
  dataset = records.open_directory(tmp_path / "data")
  assert dataset.raw
  assert dataset.shape == pixels.shape
  expected = ImageOps.fit(
    Image.fromarray(pixels),
    (SIZE_PX, SIZE_PX),
    Image.Resampling.BICUBIC,
  )
  batch = load(open_split(tmp_path / "data"))
  np.testing.assert_array_equal(batch["image"][0], np.asarray(expected))
  with Image.open(io.BytesIO(dataset.image_file(pixels.tobytes()))) as file:
    np.testing.assert_array_equal(np.asarray(file), pixels)


def test_our_examples_are_those_of_tfds():
  """Fields in one order, so that the same image gives the same bytes."""
  stored = records.serialize(b"\x00\xffpixels", 2)
  expected = {"image": b"\x00\xffpixels", "label": 2}
  example = tf_example_pb2.Example.FromString(stored)
  assert example == tf_example_pb2.Example.FromString(serialize(expected))
  assert stored.index(b"image") < stored.index(b"label")


# Splits and slices.


@pytest.mark.parametrize(
  ("split", "expected"),
  [
    ("train", range(12)),
    ("train[:5]", range(5)),
    ("train[5:]", range(5, 12)),
    ("train[:-4]", range(8)),
    ("train[25%:75%]", range(3, 9)),
    ("train[10:]+train[:2]", [10, 11, 0, 1]),
    ("validation+train[11:]", [0, 1, 11]),
  ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_slices_over_several_shards_take_what_tfds_says(
  tmp_path, kind, split, expected
):
  """Shards of 5, 1, 0 and 6: skips and takes inside, across and at edges."""
  splits = {"train": numbered(5, 1, 0, 6), "validation": numbered(2)}
  write(tmp_path / "data", splits, kind=kind)
  examples = open_split(tmp_path / "data", split)
  assert len(examples) == len(expected)
  assert numbers(examples) == list(expected)


@pytest.mark.parametrize("split", ["dev", "train[:x]", "train[20:]", "train["])
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_split_names_those_there_are(tmp_path, kind, split):
  splits = {"train": numbered(9), "test": numbered(1)}
  data = write(tmp_path / "data", splits, kind=kind)
  dataset = records.open_directory(data)
  with pytest.raises(errors.InputError) as error:
    records.open_split(dataset, split, "valid_split")
  assert f"valid_split={split!r}" in one_line(error)
  assert str(data) in str(error.value)
  assert "test, train" in str(error.value)


@pytest.mark.parametrize("split", ["train[:1%]", "empty", "train[8:2]"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_split_is_an_error(tmp_path, kind, split):
  """Of a slice whose bounds are swapped TFDS says that it has -6 examples."""
  splits = {"train": numbered(9), "empty": [[]]}
  dataset = records.open_directory(write(tmp_path / "data", splits, kind=kind))
  with pytest.raises(errors.InputError, match="no examples") as error:
    records.open_split(dataset, split, "test_split")
  assert f"test_split={split!r}" in one_line(error)


# What is refused.


@pytest.mark.parametrize(
  ("features", "words"),
  [
    ({"image": IMAGE, "label": tfds.features.Scalar(np.int64)}, ["label"]),
    ({"text": tfds.features.Text(), "label": LABEL}, ["image"]),
    ({"image": IMAGE, "fine": LABEL, "coarse": LABEL}, ["coarse", "fine"]),
  ],
)
def test_data_without_one_image_and_one_class_are_refused(
  tmp_path, features, words
):
  write(tmp_path / "data", {"train": [[]]}, features)
  with pytest.raises(errors.InputError) as error:
    records.open_directory(tmp_path / "data")
  for word in [str(tmp_path / "data"), *words]:
    assert word in one_line(error)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_of_no_class_is_refused(tmp_path, label):
  """TFDS's test splits without labels hold -1: no class, nor the last."""
  parts = numbered(4)
  parts[0][2]["label"] = label
  write(tmp_path / "data", {"train": parts})
  examples = open_split(tmp_path / "data")
  with pytest.raises(errors.InputError) as error:
    load(examples)
  for word in (f"label {label} ", "example 2 ", str(tmp_path / "data")):
    assert word in one_line(error)
  assert len(batches.load(examples, np.array([0, 1, 3]), SIZE_PX)["label"]) == 3


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_no_dataset_is_an_error_with_the_remedy(tmp_path, kind):
  path = tmp_path / "data"
  if kind == "file":
    path.write_text("no directory")
  elif kind == "empty":
    path.mkdir()
  with pytest.raises(errors.InputError) as error:
    records.open_directory(path)
  assert "alexnet prepare" in one_line(error)
  assert str(path) in str(error.value)


@pytest.mark.parametrize("data", [None, b"{", b"[]"])
@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_a_directory_without_its_metadata_is_an_error(tmp_path, name, data):
  """As a copy that was broken off leaves it."""
  directory = write(tmp_path / "data", {"train": numbered(2)})
  (directory / name).unlink()
  if data is not None:
    (directory / name).write_bytes(data)
  with pytest.raises(errors.InputError) as error:
    open_split(directory)
  assert str(directory) in one_line(error)


def test_files_of_a_directory_may_be_links(tmp_path):
  """To a larger disk, say."""
  directory = write(tmp_path / "data", {"train": numbered(6)})
  (tmp_path / "far").mkdir()
  for file in directory.iterdir():
    far = file.rename(tmp_path / "far" / f"{file.name}.moved")
    file.symlink_to(far)
  assert sorted(numbers(open_split(directory))) == list(range(6))


# Damage.


def stream(examples, threads):
  return training_batches(
    examples, size_px=SIZE_PX, batch_size=4, seed=0, threads=threads
  )


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("missing", [10, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_shard_is_one_line(tmp_path, kind, missing, threads):
  """A copy that was broken off, through the threads that decode, too."""
  parts = numbered(8, 8)
  for example in parts[1]:
    example["image"] = encoded(noise(0, SIZE_PX, SIZE_PX, 3))
  directory = write(tmp_path / "data", {"train": parts}, kind=kind)
  file = directory / f"foreign-train.{kind}-00001-of-00002"
  file.write_bytes(file.read_bytes()[:-missing])
  with pytest.raises(errors.InputError) as error:
    for _ in itertools.islice(stream(open_split(directory), threads), 4):
      pass
  for word in ("'train'", str(directory)):
    assert word in one_line(error)


def test_a_changed_byte_of_an_array_record_is_found(tmp_path):
  """Its checksums are all that guards raw pixels and labels."""
  pixels = [noise(n, SIZE_PX, SIZE_PX, 3) for n in range(3)]
  features = {
    "image": tfds.features.Tensor(
      shape=pixels[0].shape, dtype=np.uint8, encoding="bytes"
    ),
    "label": LABEL,
  }
  examples = [{"image": p.tobytes(), "label": 0} for p in pixels]
  directory = write(tmp_path / "data", {"train": [examples]}, features)
  (file,) = directory.glob("*.array_record-*")
  data = bytearray(file.read_bytes())
  data[data.index(pixels[1].tobytes()) + 100] ^= 1
  file.write_bytes(data)
  with pytest.raises(errors.InputError, match="example 1 ") as error:
    load(open_split(directory))
  one_line(error)


@pytest.mark.parametrize(
  ("shape", "encoding"),
  [((8, 8, 3), "zlib"), ((8, 8, 3), "none"), ((8, 8, 1), "bytes")],
)
def test_pixels_that_are_kept_in_other_ways_are_no_image(shape, encoding):
  """Compressed bytes that are read as pixels are noise, in silence."""
  tensor = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding=encoding)
  assert not records._is_image(tensor)
