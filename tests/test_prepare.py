"""Image folders and tars into shards, read back by TFDS and Pillow."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import oracles
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

from alexnet_jax import errors
from alexnet_jax.data import prepare, shards

SIZE_PX = 16
GREEN = (30, 200, 60)
ORIENTATION = 0x0112  # The EXIF tag.


def colour(*digits):
  """A colour that names an image, JPEG noise notwithstanding; digits < 12."""
  return tuple(10 + 20 * digit for digit in digits)


def digits(image):
  return tuple(int(value // 20) for value in image.mean((0, 1)))


def decode(jpeg):
  with Image.open(io.BytesIO(jpeg)) as image:
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return np.asarray(image)


def save(path, image, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path, **options)
  return path


def add(folder, name, *counts, split=0):
  """Adds images to each class: (split, class, index) is in their colour."""
  for label, (class_name, count) in enumerate(zip(name, counts, strict=True)):
    for index in range(count):
      image = Image.new("RGB", (24, 20), colour(split, label, index))
      save(folder / class_name / f"{index}.png", image)
  return folder


def noise(seed, *shape):
  values = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
  return Image.fromarray(values)


def build(source, output, **options):
  options = {"size_px": SIZE_PX, "workers": 0} | options
  return prepare.prepare(source, output, **options)


def stored(directory, split):
  """(JPEG, label) of each example, as TFDS reads them."""
  source = tfds.builder_from_directory(directory).as_data_source(
    split, decoders={"image": tfds.decode.SkipDecoding()}
  )
  return [(example["image"], int(example["label"])) for example in source]


def found(directory, split):
  """{(split, class, index)} of a split, after a look at the labels."""
  pairs = [(digits(decode(jpeg)), y) for jpeg, y in stored(directory, split)]
  assert all(name[1] == label for name, label in pairs)
  assert len(dict(pairs)) == len(pairs)
  return set(dict(pairs))


def class_names(directory):
  return tfds.builder_from_directory(directory).info.features["label"].names


def encoded(path, size_px=SIZE_PX):
  return decode(prepare.encode(path, size_px)).astype(int)


def hashes(directory):
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in directory.iterdir()
  }


# Layouts.


def test_class_folders_become_sorted_labels(tmp_path):
  add(tmp_path / "in", ["Mole", "ant", "zebra"], 3, 4, 5)
  counts = build(tmp_path / "in", tmp_path / "out", holdout=0)
  assert counts == {"train": 12}
  assert class_names(tmp_path / "out") == ["Mole", "ant", "zebra"]
  assert found(tmp_path / "out", "train") == {
    (0, label, index) for label in range(3) for index in range(3 + label)
  }


@pytest.mark.parametrize(
  "names",
  [
    ("train", "val", "test"),
    ("training", "valid", "testing"),
    ("Train", "Validation", "TEST"),
  ],
)
def test_split_folders_keep_their_images(tmp_path, names):
  for split, name in enumerate(names):
    add(tmp_path / "in" / name, ["a", "b"], 12, 1 + split, split=split)
  build(tmp_path / "in", tmp_path / "out")
  for split, name in enumerate(["train", "validation", "test"]):
    assert found(tmp_path / "out", name) == {
      *((split, 0, index) for index in range(12)),
      *((split, 1, index) for index in range(1 + split)),
    }


def test_a_split_may_lack_a_class(tmp_path):
  """Labels counted within a split would call class b of the test split 0."""
  add(tmp_path / "in" / "train", ["a", "b"], 2, 2)
  add(tmp_path / "in" / "test", ["a", "b"], 0, 2, split=2)
  build(tmp_path / "in", tmp_path / "out")
  assert found(tmp_path / "out", "test") == {(2, 1, 0), (2, 1, 1)}


def test_a_lone_train_folder_is_a_split_and_no_wrapper(tmp_path):
  """As a wrapper it would have a fifth of its images held out."""
  add(tmp_path / "in" / "train", ["a", "b"], 10, 10)
  assert build(tmp_path / "in", tmp_path / "out") == {"train": 20}


@pytest.mark.parametrize("wrapper", ["data", "data/inner", "train"])
def test_a_wrapper_around_splits_says_nothing(tmp_path, wrapper):
  folder = tmp_path / "in" / wrapper
  add(folder / "train", ["a", "b"], 2, 2)
  add(folder / "val", ["a", "b"], 1, 1, split=1)
  counts = build(tmp_path / "in", tmp_path / "out")
  assert counts == {"train": 4, "validation": 2}
  assert class_names(tmp_path / "out") == ["a", "b"]
  assert found(tmp_path / "out", "validation") == {(1, 0, 0), (1, 1, 0)}


@pytest.mark.parametrize("wrapper", ["data", "data/inner"])
def test_a_wrapper_around_classes_says_nothing(tmp_path, wrapper):
  add(tmp_path / "in" / wrapper, ["a", "b"], 10, 10)
  counts = build(tmp_path / "in", tmp_path / "out")
  assert counts == {"train": 16, "validation": 2, "test": 2}
  assert class_names(tmp_path / "out") == ["a", "b"]


@pytest.mark.parametrize("compression", ["", "gz", "xz", "bz2"])
def test_a_tar_equals_its_folder(tmp_path, compression):
  """Up to the description, where the source is named."""
  source = add(tmp_path / "in" / "pets", ["a", "b"], 12, 11)
  with tarfile.open(tmp_path / "in.tar", f"w:{compression}") as archive:
    archive.add(source, "pets")
  build(source.parent, tmp_path / "1" / "out")
  build(tmp_path / "in.tar", tmp_path / "2" / "out")
  folder, tar = hashes(tmp_path / "1" / "out"), hashes(tmp_path / "2" / "out")
  del folder["dataset_info.json"], tar["dataset_info.json"]
  assert folder == tar
  assert [path.name for path in (tmp_path / "2").iterdir()] == ["out"]


def test_other_files_are_left_alone(tmp_path):
  """A Mac leaves ._x.jpg files, which are no images, in tars."""
  folder = add(tmp_path / "in", ["a", "b"], 2, 2)
  for name in ["README.txt", "a/.DS_Store", "a/._0.jpg", ".cache/c/0.jpg"]:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"no image")
  (folder / "a" / "odd.jpg").mkdir()
  assert build(folder, tmp_path / "out") == {"train": 4}


def test_linked_classes_count(tmp_path):
  """Path.rglob does not enter links: a class would be missing in silence."""
  add(tmp_path / "far", ["c"], 2)
  folder = add(tmp_path / "in", ["a", "b"], 2, 2)
  (folder / "c").symlink_to(tmp_path / "far" / "c")
  assert build(folder, tmp_path / "out") == {"train": 6}


# Pixels.


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("short_px", [8, 16, 37, 64])
def test_what_lies_beside_the_central_square_vanishes(
  tmp_path, short_px, turned
):
  """A squeezed picture, or a cut that is not central, shows red or blue."""
  half = short_px // 2
  picture = np.zeros((short_px, short_px + 2 * half, 3), np.uint8)
  picture[:, :half] = (255, 0, 0)
  picture[:, half : half + short_px] = GREEN
  picture[:, half + short_px :] = (0, 0, 255)
  if turned:
    picture = picture.swapaxes(0, 1)
  image = encoded(save(tmp_path / "0.png", Image.fromarray(picture)))
  assert image.shape == (SIZE_PX, SIZE_PX, 3)
  # The scaling comes first and blends what is beside the cut into its edge.
  off = np.abs(image - GREEN)
  assert off.max() < 60
  assert off[4:-4, 4:-4].max() < 10


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 90), (100, 64)])
def test_the_central_square_is_scaled_as_a_whole(tmp_path, height, width):
  """A mirrored, turned or moved cut puts blocks in other places."""
  blocks = np.random.default_rng(0).integers(20, 236, (4, 4, 3), np.uint8)
  picture = np.zeros((height, width, 3), np.uint8)
  top, left = (height - 64) // 2, (width - 64) // 2
  for row in range(64):
    for col in range(64):
      picture[top + row, left + col] = blocks[row // 16, col // 16]
  image = encoded(save(tmp_path / "0.png", Image.fromarray(picture)))
  for row in range(4):
    for col in range(4):
      inner = image[4 * row + 1 : 4 * row + 3, 4 * col + 1 : 4 * col + 3]
      assert np.abs(inner.mean((0, 1)) - blocks[row, col]).max() < 16


@pytest.mark.parametrize("size", [(96, 48), (48, 96), (64, 64), (12, 8)])
def test_scaling_precedes_the_cut(tmp_path, size):
  """Pillow's own resize and crop, whose whole numbers of pixels agree."""
  smooth = noise(0, 7, 9).resize(size, Image.Resampling.BICUBIC)
  image = encoded(save(tmp_path / "0.png", smooth))
  width, height = (SIZE_PX * side // min(size) for side in size)
  left, top = (width - SIZE_PX) // 2, (height - SIZE_PX) // 2
  whole = smooth.resize((width, height), Image.Resampling.BICUBIC)
  cut = np.asarray(whole)[top : top + SIZE_PX, left : left + SIZE_PX]
  assert np.abs(image - cut).mean() < 6


def test_stored_colours_keep_their_resolution(tmp_path):
  """Chroma at half size would blend red and blue columns into purple."""
  picture = np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8)
  picture[:, 0::2, 0] = picture[:, 1::2, 2] = 255
  image = encoded(save(tmp_path / "0.png", Image.fromarray(picture)))
  assert np.abs(image - picture).mean() < 15


@pytest.mark.parametrize(
  "options",
  [
    {"quality": 40, "subsampling": 2},
    {"quality": 95, "progressive": True},
    {"exif": {ORIENTATION: 1}},
  ],
)
def test_a_jpeg_of_the_right_size_is_kept_byte_for_byte(tmp_path, options):
  options = dict(options)
  if "exif" in options:
    exif = Image.Exif()
    exif.update(options["exif"])
    options["exif"] = exif
  for name in "ab":
    for index in range(2):
      image = noise(index, SIZE_PX, SIZE_PX)
      save(tmp_path / "in" / name / f"{index}.jpg", image, **options)
  build(tmp_path / "in", tmp_path / "out")
  given = [path.read_bytes() for path in (tmp_path / "in").rglob("*.jpg")]
  kept = [jpeg for jpeg, _ in stored(tmp_path / "out", "train")]
  assert sorted(kept) == sorted(given)


def as_shot(upright, orientation):
  """What a camera stores with each EXIF orientation (TIFF 6.0, page 36)."""
  return {
    1: upright,
    2: upright[:, ::-1],
    3: upright[::-1, ::-1],
    4: upright[::-1],
    5: upright.swapaxes(0, 1),
    6: np.rot90(upright, 1),
    7: upright[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(upright, -1),
  }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_stored_upright(tmp_path, orientation):
  """Even one of the right size, which is otherwise kept as it is."""
  upright = np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8)
  upright[:8, :8], upright[:8, 8:] = (220, 30, 30), (30, 220, 30)
  upright[8:, :8], upright[8:, 8:] = (30, 30, 220), (220, 220, 30)
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  picture = Image.fromarray(np.ascontiguousarray(as_shot(upright, orientation)))
  path = tmp_path / "0.jpg"
  save(path, picture, exif=exif, quality=95, subsampling=0)
  jpeg = prepare.encode(path, SIZE_PX)
  assert np.abs(decode(jpeg).astype(int) - upright).mean() < 6
  with Image.open(io.BytesIO(jpeg)) as image:
    assert image.getexif().get(ORIENTATION, 1) == 1


def palette(transparency):
  image = Image.new("P", (40, 40), 1)
  image.putpalette([0, 0, 0, *GREEN])
  image.info["transparency"] = transparency
  return image


@pytest.mark.parametrize(
  ("suffix", "image", "expected"),
  [
    ("jpg", Image.new("L", (SIZE_PX, SIZE_PX), 90), (90, 90, 90)),
    (
      "jpg",
      Image.new("CMYK", (SIZE_PX, SIZE_PX), (0, 255, 255, 0)),
      (254, 0, 0),
    ),
    ("png", Image.new("L", (40, 40), 90), (90, 90, 90)),
    ("png", Image.new("1", (40, 40), 1), (255, 255, 255)),
    ("png", Image.new("LA", (40, 40), (90, 255)), (90, 90, 90)),
    ("png", Image.new("RGBA", (40, 40), (*GREEN, 255)), GREEN),
    ("png", Image.new("RGB", (40, 40), GREEN), GREEN),
    ("png", palette(0), GREEN),
    ("png", palette(b"\xff\xff"), GREEN),
    # Pillow's own conversion clips all 16-bit greys over 255 to white.
    ("png", Image.fromarray(np.full((40, 40), 90 * 257, np.uint16)), (90,) * 3),
    ("gif", Image.new("RGB", (40, 40), GREEN), GREEN),
    ("bmp", Image.new("RGB", (40, 40), GREEN), GREEN),
    ("webp", Image.new("RGB", (40, 40), GREEN), GREEN),
    ("tiff", Image.new("CMYK", (40, 40), (0, 255, 255, 0)), (254, 0, 0)),
    ("ppm", Image.new("RGB", (40, 40), GREEN), GREEN),
  ],
  ids=lambda value: getattr(value, "mode", None),
)
def test_every_kind_of_image_becomes_an_rgb_jpeg(
  tmp_path, suffix, image, expected
):
  path = save(tmp_path / f"0.{suffix}", image)
  assert np.abs(encoded(path) - expected).max() <= 4


def test_suffixes_may_be_capitals(tmp_path):
  """ImageNet's files end in .JPEG."""
  for name in "ab":
    save(tmp_path / "in" / name / "0.JPEG", Image.new("RGB", (20, 20)))
  assert build(tmp_path / "in", tmp_path / "out") == {"train": 2}


# What is written.


@pytest.fixture(name="small_shards")
def fixture_small_shards(monkeypatch):
  monkeypatch.setattr(shards, "EXAMPLES_PER_SHARD", 5)


@pytest.mark.usefixtures("small_shards")
def test_statistics_are_those_of_the_stored_training_images(tmp_path):
  """Not of the sources, which JPEG changes, nor of the other splits."""
  rng = np.random.default_rng(0)
  for split, count in [("train", 6), ("val", 3), ("test", 3)]:
    for name in "ab":
      for index in range(count):
        low = rng.integers(0, 90 if split == "train" else 256, (5, 7, 3))
        image = Image.fromarray(low.astype(np.uint8)).resize((42, 30))
        save(tmp_path / "in" / split / name / f"{index}.png", image)
  build(tmp_path / "in", tmp_path / "out")
  mean, sds, axes = oracles.mean_and_pca(
    [decode(jpeg) for jpeg, _ in stored(tmp_path / "out", "train")]
  )
  stored_mean = np.load(tmp_path / "out" / "mean_image.npy")
  assert stored_mean.dtype == np.float32
  np.testing.assert_allclose(stored_mean, mean, rtol=0, atol=1e-4)
  pca = json.loads((tmp_path / "out" / "colour_pca.json").read_text())
  np.testing.assert_allclose(pca["standard_deviations"], sds, rtol=1e-5)
  # The sign of an axis is arbitrary.
  dots = np.array(pca["axes_in_columns"]).T @ axes
  np.testing.assert_allclose(np.abs(dots), np.eye(3), rtol=0, atol=1e-4)
  read = shards.read_statistics(tmp_path / "out")
  np.testing.assert_array_equal(read.mean_image, stored_mean)
  np.testing.assert_allclose(read.colour_sds, sds, rtol=1e-5)
  np.testing.assert_allclose(
    read.colour_axes, np.array(pca["axes_in_columns"]), rtol=1e-6
  )


@pytest.mark.usefixtures("small_shards")
def test_tfds_knows_what_the_directory_holds(tmp_path):
  add(tmp_path / "in" / "train", ["a", "b"], 9, 3)
  add(tmp_path / "in" / "val", ["a", "b"], 1, 1, split=1)
  build(tmp_path / "in", tmp_path / "out")
  info = tfds.builder_from_directory(tmp_path / "out").info
  assert info.features is not None
  assert info.features["image"].shape == (SIZE_PX, SIZE_PX, 3)
  assert info.features["image"].encoding_format == "jpeg"
  assert {name: split.num_examples for name, split in info.splits.items()} == {
    "train": 12,
    "validation": 2,
  }
  assert info.splits["train"].shard_lengths == [4, 4, 4]


@pytest.mark.parametrize("name", ["Bilder ä-1", "elsewhere"])
def test_a_directory_may_have_any_name_and_be_renamed(tmp_path, name):
  add(tmp_path / "in", ["a", "b"], 2, 2)
  build(tmp_path / "in", tmp_path / name)
  assert len(found(tmp_path / name, "train")) == 4
  (tmp_path / name).rename(tmp_path / "new")
  assert len(found(tmp_path / "new", "train")) == 4


def test_the_held_out_splits_are_a_stratified_partition(tmp_path):
  counts = {"a": 12, "b": 10, "c": 5, "d": 3}
  add(tmp_path / "in", list(counts), *counts.values())
  build(tmp_path / "in", tmp_path / "out", holdout=0.2)
  splits = {
    split: found(tmp_path / "out", split)
    for split in ["train", "validation", "test"]
  }
  everything = {
    (0, label, index)
    for label, count in enumerate(counts.values())
    for index in range(count)
  }
  assert sum(map(len, splits.values())) == len(everything)
  assert set.union(*splits.values()) == everything
  shares = {
    split: [sum(name[1] == label for name in names) for label in range(4)]
    for split, names in splits.items()
  }
  assert shares == {
    "train": [8, 6, 3, 3],
    "validation": [2, 2, 1, 0],
    "test": [2, 2, 1, 0],
  }


def test_a_new_class_moves_no_other_image_between_splits(tmp_path):
  """A draw over all files would put yesterday's test images into train."""
  add(tmp_path / "in", ["a", "b"], 12, 12)
  build(tmp_path / "in", tmp_path / "1", holdout=0.25)
  add(tmp_path / "in", ["a", "b", "c"], 12, 12, 12)
  build(tmp_path / "in", tmp_path / "2", holdout=0.25)
  for split in ["train", "validation", "test"]:
    old, new = found(tmp_path / "1", split), found(tmp_path / "2", split)
    assert old == {name for name in new if name[1] < 2}


@pytest.mark.usefixtures("small_shards")
def test_bytes_depend_neither_on_workers_nor_on_the_run(tmp_path):
  """Protobuf orders the keys of a map by chance, anew in each process."""
  add(tmp_path / "in", ["a", "b"], 12, 12)
  for index in range(12):
    save(tmp_path / "in" / "a" / f"{index}.png", noise(index, 20, 30))
  runs = [(0, "first"), (0, "second"), (2, "third")]
  for workers, run in runs:
    build(tmp_path / "in", tmp_path / run / "out", workers=workers)
  first, second, third = (hashes(tmp_path / run / "out") for _, run in runs)
  assert len([name for name in first if "-train." in name]) == 4
  assert first == second
  assert first == third
  # Two processes may agree by chance; sorted keys are no chance.
  (file,) = (tmp_path / "first" / "out").glob("*-test.array_record-*")
  for record in array_record_module.ArrayRecordReader(str(file)).read_all():
    assert record.index(b"\x05image") < record.index(b"\x05label")


@pytest.mark.usefixtures("small_shards")
def test_shards_mix_the_classes(tmp_path):
  """In order of class, train[:50%] would hold one class alone."""
  add(tmp_path / "in", ["a", "b"], 12, 12)
  build(tmp_path / "in", tmp_path / "out", holdout=0)
  for half in ["train[:50%]", "train[50%:]"]:
    labels = [label for _, label in stored(tmp_path / "out", half)]
    assert 2 <= sum(labels) <= 10


# Bad input.


def no_source(folder):
  return folder / "in"


def empty_folder(folder):
  (folder / "in").mkdir()
  return folder / "in"


def no_images(folder):
  (folder / "in" / "a").mkdir(parents=True)
  (folder / "in" / "a" / "notes.txt").write_text("no image")
  return folder / "in"


def one_class(folder):
  return add(folder / "in", ["lonely"], 3)


def one_training_class(folder):
  add(folder / "in" / "train", ["lonely"], 3)
  add(folder / "in" / "val", ["lonely", "b"], 3, 3)
  return folder / "in"


def no_training_split(folder):
  add(folder / "in" / "val", ["a", "b"], 3, 3)
  add(folder / "in" / "test", ["a", "b"], 3, 3)
  return folder / "in"


def images_in_the_root(folder):
  save(folder / "in" / "stray.jpg", Image.new("RGB", (20, 20)))
  return folder / "in"


def images_in_the_root_and_classes(folder):
  add(folder / "in", ["a", "b"], 2, 2)
  return images_in_the_root(folder)


def mixed_depths(folder):
  add(folder / "in", ["a", "b"], 2, 2)
  save(folder / "in" / "c" / "deep" / "stray.jpg", Image.new("RGB", (20, 20)))
  return folder / "in"


def unknown_split(folder):
  add(folder / "in" / "train", ["a", "b"], 2, 2)
  add(folder / "in" / "holdback", ["a", "b"], 2, 2)
  return folder / "in"


def class_only_in_test(folder):
  add(folder / "in" / "train", ["a", "b"], 2, 2)
  add(folder / "in" / "test", ["a", "b", "newcomer"], 2, 2, 2)
  return folder / "in"


def no_tar(folder):
  (folder / "in").write_text("neither folder nor tar\n" * 100)
  return folder / "in"


def empty_file(folder):
  (folder / "in").touch()
  return folder / "in"


def tar_of(folder, mode="w"):
  add(folder / "raw", ["a", "b"], 2, 2)
  # Noise, so that the members are larger than the tar's own records.
  save(folder / "raw" / "b" / "0.png", noise(0, 64, 64))
  with tarfile.open(folder / "in", mode) as archive:
    archive.add(folder / "raw", "raw")
  return folder / "in"


def tar_that_escapes(folder):
  tar_of(folder)
  with tarfile.open(folder / "in", "a") as archive:
    archive.add(folder / "raw" / "a" / "0.png", "../escaped.png")
  return folder / "in"


def tar_with_an_outward_link(folder):
  tar_of(folder)
  with tarfile.open(folder / "in", "a") as archive:
    link = tarfile.TarInfo("raw/c")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    archive.addfile(link)
  return folder / "in"


def cut_tar(mode):
  def make(folder):
    data = tar_of(folder, mode).read_bytes()
    (folder / "in").write_bytes(data[: len(data) // 2])
    return folder / "in"

  return make


def tar_cut_between_members(after):
  """Cut before the last member's header, or in the midst of it.

  The tarfile module takes such an end for the end of the archive.
  """

  def make(folder):
    with tarfile.open(tar_of(folder)) as archive:
      header = archive.getmembers()[-1].offset
    data = (folder / "in").read_bytes()
    (folder / "in").write_bytes(data[: header + after])
    return folder / "in"

  return make


def damaged_tar(mode):
  def make(folder):
    data = bytearray(tar_of(folder, mode).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (folder / "in").write_bytes(data)
    return folder / "in"

  return make


BAD_SOURCES = [  # source, words of the value and of the remedy
  (no_source, ["source=", "does not exist", "give"]),
  (empty_folder, ["source=", "no images", "CLASS/IMAGE"]),
  (no_images, ["source=", "no images", ".png"]),
  (one_class, ["source=", "lonely", "at least 2"]),
  (one_training_class, ["source=", "lonely", "at least 2"]),
  (no_training_split, ["source=", "none", "train/"]),
  (images_in_the_root, ["source=", "stray.jpg", "CLASS/IMAGE"]),
  (images_in_the_root_and_classes, ["source=", "stray.jpg", "CLASS/IMAGE"]),
  (mixed_depths, ["source=", "stray.jpg", "CLASS/IMAGE"]),
  (unknown_split, ["source=", "holdback", "validation"]),
  (class_only_in_test, ["newcomer", "test", "remove it"]),
  (no_tar, ["source=", "tar", "give"]),
  (empty_file, ["source=", "tar", "give"]),
  (tar_that_escapes, ["source=", "../escaped.png"]),
  (tar_with_an_outward_link, ["source=", "raw/c"]),
  (cut_tar("w"), ["source=", "whole tar", "give"]),
  (cut_tar("w:gz"), ["source=", "whole tar", "give"]),
  (cut_tar("w:xz"), ["source=", "whole tar", "give"]),
  (tar_cut_between_members(0), ["source=", "whole tar", "give"]),
  (tar_cut_between_members(100), ["source=", "whole tar", "give"]),
  (damaged_tar("w:xz"), ["source=", "whole tar", "give"]),
]


@pytest.mark.parametrize(
  ("make", "words"),
  BAD_SOURCES,
  ids=[make.__qualname__.split(".")[0] for make, _ in BAD_SOURCES],
)
def test_a_bad_source_is_named_and_leaves_nothing_behind(tmp_path, make, words):
  source = make(tmp_path)
  (tmp_path / "parent").mkdir()
  with pytest.raises(errors.InputError) as error:
    build(source, tmp_path / "parent" / "out")
  for word in words:
    assert word in str(error.value)
  assert not list((tmp_path / "parent").iterdir())
  assert not list(tmp_path.rglob("escaped.png"))


def test_all_unreadable_images_are_named_at_once(tmp_path):
  """One at a time, mending ImageNet would take a day for each."""
  source = tmp_path / "in"
  add(source / "train", ["a", "b"], 12, 12)
  add(source / "test", ["a", "b"], 2, 2)
  whole = save(tmp_path / "0.jpg", noise(0, 40, 40)).read_bytes()
  right_size = save(tmp_path / "1.jpg", noise(1, SIZE_PX, SIZE_PX)).read_bytes()
  damaged = {
    source / "train" / "a" / "truncated.jpg": whole[: len(whole) // 2],
    source / "train" / "b" / "kept_as_it_is.jpg": right_size[:-40],
    source / "train" / "b" / "zero.png": b"",
    source / "test" / "a" / "text.jpg": b"This is no image.",
  }
  for path, data in damaged.items():
    path.write_bytes(data)
  (tmp_path / "parent").mkdir()
  with pytest.raises(errors.InputError) as error:
    build(source, tmp_path / "parent" / "out")
  message = str(error.value)
  assert "4 images" in message
  assert "remove" in message
  assert all(str(path) in message for path in damaged)
  assert str(source / "train" / "a" / "0.png") not in message
  assert not list((tmp_path / "parent").iterdir())


@pytest.mark.parametrize("kind", ["full", "empty", "file"])
def test_an_existing_output_is_not_touched(tmp_path, kind):
  source = add(tmp_path / "in", ["a", "b"], 2, 2)
  output = tmp_path / "parent" / "out"
  output.parent.mkdir()
  if kind == "file":
    output.write_text("precious")
  else:
    output.mkdir()
  if kind == "full":
    (output / "precious").write_text("precious")
  with pytest.raises(errors.InputError, match=r"output=.* exists; choose"):
    build(source, output)
  left = sorted(path.name for path in output.parent.rglob("*"))
  assert left == (["out", "precious"] if kind == "full" else ["out"])


@pytest.mark.parametrize("below", ["out", "deeper/out"])
@pytest.mark.parametrize("tar", [False, True])
def test_an_output_below_a_file_is_an_error(tmp_path, tar, below):
  """As root, who may write everywhere, this is what cannot be written."""
  source = tar_of(tmp_path)
  if not tar:
    source = tmp_path / "raw"
  (tmp_path / "parent").write_text("a file")
  before = sorted(tmp_path.iterdir())
  with pytest.raises(errors.InputError, match=r"output=.* cannot be written"):
    build(source, tmp_path / "parent" / below)
  assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"holdout": -0.1}, "holdout=-0.1"),
    ({"holdout": 0.5}, "holdout=0.5"),
    ({"holdout": float("nan")}, "holdout=nan"),
    ({"size_px": 0}, "size=0"),
    ({"size_px": 100_000}, "size=100000"),
    ({"workers": -1}, "workers=-1"),
  ],
)
def test_a_number_out_of_range_is_an_error(tmp_path, options, words):
  source = add(tmp_path / "in", ["a", "b"], 2, 2)
  (tmp_path / "parent").mkdir()
  with pytest.raises(errors.InputError, match=words):
    build(source, tmp_path / "parent" / "out", **options)
  assert not list((tmp_path / "parent").iterdir())


def interrupted_encoder(path, size_px):
  del path, size_px
  raise KeyboardInterrupt


def test_an_interrupt_leaves_nothing_behind(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    shards.write(
      tmp_path / "out",
      {"train": [(0, 0), (1, 1)]},
      class_names=["a", "b"],
      size_px=SIZE_PX,
      encoder=interrupted_encoder,
      description="",
      workers=0,
    )
  assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_shards")
def test_progress_counts_every_example(tmp_path):
  advances = []
  shards.write(
    tmp_path / "out",
    {"train": [(save(tmp_path / "0.png", noise(0, 20, 20)), 0)] * 12},
    class_names=["a", "b"],
    size_px=SIZE_PX,
    encoder=prepare.encode,
    description="",
    workers=0,
    on_progress=advances.append,
  )
  assert advances == [4, 4, 4]


@pytest.mark.parametrize(
  ("name", "data"),
  [
    ("mean_image.npy", None),
    ("mean_image.npy", b""),
    ("mean_image.npy", b"\x93NUMPY\x01\x00 cut"),
    ("colour_pca.json", None),
    ("colour_pca.json", b"{"),
    ("colour_pca.json", b"{}"),
    ("colour_pca.json", b"[]"),
  ],
)
def test_missing_or_damaged_statistics_are_an_error(tmp_path, name, data):
  add(tmp_path / "in", ["a", "b"], 2, 2)
  build(tmp_path / "in", tmp_path / "out")
  (tmp_path / "out" / name).unlink()
  if data is not None:
    (tmp_path / "out" / name).write_bytes(data)
  with pytest.raises(errors.InputError, match=r"data_dir=.*data\.prepare"):
    shards.read_statistics(tmp_path / "out")


# The command.


def command(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "alexnet_jax.data.prepare", *arguments],
    cwd=Path(__file__).parents[1],
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_command_prepares_a_folder(tmp_path):
  """With its own number of processes, whose encoder is one of __main__."""
  add(tmp_path / "in", ["a", "b"], 10, 10)
  output = tmp_path / "out"
  done = command(
    f"--source={tmp_path / 'in'}", f"--output={output}", f"--size={SIZE_PX}"
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert "train: 16 images" in done.stdout
  assert len(found(output, "train")) == 16
  assert len(found(output, "validation")) == 2


def test_the_command_reports_a_bad_source_in_one_line(tmp_path):
  done = command(f"--source={tmp_path / 'in'}", f"--output={tmp_path / 'out'}")
  assert done.returncode == 1
  assert len(done.stderr.splitlines()) == 1
  assert done.stderr.startswith("error:")
  assert str(tmp_path / "in") in done.stderr
  assert "Traceback" not in done.stdout + done.stderr
  assert not list(tmp_path.iterdir())
