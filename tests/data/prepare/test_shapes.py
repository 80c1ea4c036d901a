"""The generated pictures: all distinct and balanced."""

import hashlib
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from alexnet_jax.data.prepare import shapes

SIZE_PX = 16
COUNTS = {"train": 60, "validation": 20, "test": 30}
LABELS = range(len(shapes.CLASSES))


def generate(output, **options):
  sizes = {"size_px": SIZE_PX, "workers": 0}
  shapes.generate(output, **(COUNTS | sizes | options))


def stored(directory, split):
  """(JPEG, label) of each example, as TFDS reads them."""
  examples = tfds.builder_from_directory(directory).as_data_source(
    split, decoders={"image": tfds.decode.SkipDecoding()}
  )
  return [(example["image"], int(example["label"])) for example in examples]


def pixels(jpeg):
  with Image.open(io.BytesIO(jpeg)) as image:
    assert image.mode == "RGB"
    return np.asarray(image)


def hashes(directory):
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in directory.iterdir()
  }


@pytest.fixture(name="directory", scope="module")
def fixture_directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp("shapes") / "data"
  generate(directory)
  return directory


# A picture.


@pytest.mark.parametrize("label", LABELS)
def test_another_size_shows_the_same_scene(label):
  """Noise and edges differ; shapes, colours and textures may not."""
  for seed in range(3):
    small = shapes.draw(label, (0, seed), 32).astype(float)
    large = shapes.draw(label, (0, seed), 128).astype(float)
    other = shapes.draw(label, (1, seed), 32).astype(float)
    averaged = large.reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(averaged - small).mean() < 20
    assert np.abs(averaged - small).mean() < np.abs(other - small).mean() / 2


# The data set.


def test_splits_have_the_classes_in_equal_shares(directory):
  info = tfds.builder_from_directory(directory).info
  assert info.features is not None
  assert tuple(info.features["label"].names) == shapes.CLASSES
  assert set(info.splits) == set(COUNTS)
  for split, count in COUNTS.items():
    labels = [label for _, label in stored(directory, split)]
    shares = np.bincount(labels, minlength=len(LABELS))
    assert shares.tolist() == [count // len(LABELS)] * len(LABELS)


def test_all_pictures_of_all_splits_are_distinct(directory):
  """Splits drawn from one seed would have the training images as the test."""
  drawn = {
    pixels(jpeg).tobytes()
    for split in COUNTS
    for jpeg, _ in stored(directory, split)
  }
  assert len(drawn) == sum(COUNTS.values())


def test_a_stored_label_is_the_class_that_was_drawn(directory):
  """The label and the picture take their class from two places."""
  for number, (split, count) in enumerate(COUNTS.items()):
    candidates = np.stack(
      [
        shapes.draw(label, (0, number, index), SIZE_PX).astype(int)
        for index in range(count)
        for label in LABELS
      ]
    )
    for jpeg, label in stored(directory, split):
      off = np.abs(candidates - pixels(jpeg)).mean((1, 2, 3))
      assert np.argmin(off) % len(LABELS) == label
      assert off.min() < 10


def test_generation_is_deterministic(directory, tmp_path):
  generate(tmp_path / "data")
  assert hashes(tmp_path / "data") == hashes(directory)
