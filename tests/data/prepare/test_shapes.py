"""The generated pictures: all distinct, balanced, and no linear problem."""

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


@pytest.mark.parametrize("size_px", [33, 64])
def test_a_picture_is_a_square_of_rgb_bytes(size_px):
  picture = shapes.draw(3, (0, 1), size_px)
  assert isinstance(picture, np.ndarray)
  assert picture.shape == (size_px, size_px, 3)
  assert picture.dtype == np.uint8
  assert picture.flags.c_contiguous


@pytest.mark.parametrize("label", LABELS)
def test_a_picture_depends_on_its_arguments_alone(label):
  first = shapes.draw(label, (3, 1, 4), SIZE_PX)
  np.random.default_rng(0).random()
  shapes.draw((label + 1) % len(LABELS), (3, 1, 5), SIZE_PX)
  np.testing.assert_array_equal(first, shapes.draw(label, (3, 1, 4), SIZE_PX))


def test_every_seed_and_class_draws_another_picture():
  """Also (1, 0) and (0, 1), which a sum of the numbers would not tell apart."""
  seeds = [(a, b, c) for a in range(2) for b in range(2) for c in range(5)]
  drawn = {
    shapes.draw(label, seed, SIZE_PX).tobytes()
    for label in LABELS
    for seed in seeds
  }
  assert len(drawn) == len(LABELS) * len(seeds)


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


def test_another_seed_draws_other_pictures(directory, tmp_path):
  """Not even a shifted index may bring one back."""
  generate(tmp_path / "data", seed=1)
  drawn = [
    {
      pixels(jpeg).tobytes()
      for split in COUNTS
      for jpeg, _ in stored(root, split)
    }
    for root in (directory, tmp_path / "data")
  ]
  assert drawn[0].isdisjoint(drawn[1])
  assert len(drawn[1]) == sum(COUNTS.values())


# What can be learned.


@pytest.fixture(name="problem", scope="module")
def fixture_problem():
  """Pictures and labels to fit, and others to test on."""
  problem = []
  for split, count in enumerate([800, 400]):
    labels = np.arange(count) % len(LABELS)
    pictures = [
      shapes.draw(int(label), (split, index), 32)
      for index, label in enumerate(labels)
    ]
    problem += [np.stack(pictures).astype(np.float64) / 255, labels]
  return problem


def least_ridge_error(train_x, train_y, test_x, test_y):
  """The lowest test error of ridge regression over a wide range of penalties.

  In the dual form, as there are more pixels than pictures.
  """
  centre = train_x.mean(0)
  train_x, test_x = train_x - centre, test_x - centre
  targets = np.eye(len(LABELS))[train_y]
  targets -= targets.mean(0)
  variances, axes = np.linalg.eigh(train_x @ train_x.T)
  train_in_axes, targets_in_axes = train_x.T @ axes, axes.T @ targets
  errors_of_penalties = []
  for penalty in 10.0 ** np.arange(-2, 6):
    weights = train_in_axes / (variances + penalty) @ targets_in_axes
    guesses = (test_x @ weights).argmax(1)
    errors_of_penalties.append(np.mean(guesses != test_y))
  return min(errors_of_penalties)


def test_a_linear_model_errs_on_most_pictures(problem):
  """Chance is 90 %; colour, position or brightness must not tell the class."""
  train_x, train_y, test_x, test_y = problem
  error = least_ridge_error(
    train_x.reshape(800, -1), train_y, test_x.reshape(400, -1), test_y
  )
  assert 0.6 < error <= 0.95


def test_the_mean_colour_hardly_tells_the_class(problem):
  """It would, had one class the brighter objects."""
  train_x, train_y, test_x, test_y = problem
  error = least_ridge_error(
    train_x.mean((1, 2)), train_y, test_x.mean((1, 2)), test_y
  )
  assert error > 0.8
