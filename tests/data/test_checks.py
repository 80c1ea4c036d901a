"""The checks before the first step: other data are refused, sound data pass."""

import json

import numpy as np
import pytest
from directories import write_pictures
from ml_collections import ConfigDict

from alexnet_jax.data import batches, checks, records, statistics
from alexnet_jax.runtime import errors

SIZE_PX = 16
CLASSES = ["ant", "bee", "cat"]


def pictures(seed, count, low=0, high=256):
  shape = (count, SIZE_PX, SIZE_PX, 3)
  return np.random.default_rng(seed).integers(low, high, shape, np.uint8)


def write(directory, **splits):
  return write_pictures(directory, CLASSES, **splits)


@pytest.fixture
def data(tmp_path):
  return write(tmp_path / "data", train=pictures(0, 20))


def open_split(directory, split="train"):
  return records.open_split(
    records.open_directory(directory), split, "train_split"
  )


def config(**changes):
  known = {
    "num_classes": len(CLASSES),
    "image_size_px": SIZE_PX,
    "reader_threads": 2,
    "input_timeout_s": 60,
    "init_inherits": False,
  }
  return ConfigDict(known | changes)


def refused(directory, split="train", **changes):
  """The one line by which a check refuses."""
  with pytest.raises(errors.InputError) as error:
    checks.check({"train": open_split(directory, split)}, config(**changes))
  assert "\n" not in str(error.value)
  assert str(directory) in str(error.value)
  return str(error.value)


def test_a_check_returns_the_statistics_beside_the_shards(data):
  stats = checks.check({"train": open_split(data)}, config())
  mean = np.load(data / "mean_image.npy")
  np.testing.assert_array_equal(stats.mean_image, mean)
  pca = json.loads((data / "colour_pca.json").read_text())
  np.testing.assert_allclose(stats.colour_axes, pca["axes_in_columns"])
  np.testing.assert_allclose(stats.colour_sds, pca["standard_deviations"])


@pytest.mark.parametrize(
  ("field", "value", "right"),
  [("num_classes", 4, 3), ("image_size_px", 32, 16)],
)
def test_another_config_is_refused(data, field, value, right):
  line = refused(data, **{field: value})
  assert f"{field}={value} " in line
  assert f"--config.{field}={right}." in line


@pytest.mark.parametrize("name", statistics.FILES)
@pytest.mark.parametrize("content", [None, b"{}", b"\x93NUMPY\x01\x00 cut"])
def test_half_of_the_statistics_is_refused(data, name, content):
  """As a copy that was broken off leaves them; not measured anew."""
  (data / name).unlink()
  if content is not None:
    (data / name).write_bytes(content)
  assert "remove both" in refused(data)


MEANS = {
  "0 to 1": lambda mean: mean / 255,
  "centred": lambda mean: mean - mean,
  "blue first": lambda mean: mean[..., ::-1],
  "darker green": lambda mean: mean - np.array([0, 24, 0], np.float32),
}


@pytest.mark.parametrize("change", MEANS.values(), ids=MEANS.keys())
def test_a_mean_of_other_images_is_refused(tmp_path, change):
  """The net would learn from images that lie elsewhere."""
  colours = np.array([90, 120, 160], np.uint8)
  images = pictures(0, 64, 0, 60) + colours
  data = write(tmp_path / "data", train=images)
  mean = np.load(data / "mean_image.npy")
  np.save(data / "mean_image.npy", change(mean))
  line = refused(data)
  assert "mean_image.npy" in line
  assert str(images.mean((0, 1, 2)).round(1).tolist()) in line


def skewed(rng, count):
  """Images by turns of even, of long-tailed and of mostly dark brightness."""
  share = rng.choice([0.03, 0.1, 0.3])
  levels = (
    rng.normal(120, 40, count),
    rng.lognormal(2, 1.2, count),
    np.where(rng.random(count) < share, 255, 0),
    np.where(rng.random(count) < share, rng.uniform(150, 255, count), 10),
  )[rng.integers(4)]
  shape = (count, 8, 8, 3)
  images = levels[:, None, None, None] + rng.normal(0, 2, shape)
  return images.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_no_sound_data_are_refused(tmp_path, seed):
  """Whole splits and small slices of sets whose images are unlike each other.

  The mean is that of the training split, whatever slice is trained on.
  """
  rng = np.random.default_rng(seed)
  for number in range(3):
    count = int(rng.integers(40, 320))
    images = skewed(rng, count + 40)
    data = write(
      tmp_path / str(number), train=images[:count], validation=images[count:]
    )
    for split in ("train", "train[50%:]", "train[:16]", "train[-20:]"):
      checks.check({"train": open_split(data, split)}, config(image_size_px=8))
    validation = open_split(data, "validation")
    checks.check({"train": validation}, config(image_size_px=8))


def test_statistics_that_are_missing_are_measured(tmp_path):
  """Over a count that is no multiple of a batch: no padding is counted."""
  images = pictures(0, 75) // np.array([1, 2, 4], np.uint8)
  images[..., 1] = images[..., 0] // 2 + images[..., 1] // 3
  data = write(tmp_path / "data", train=images)
  for name in statistics.FILES:
    (data / name).unlink()
  assert checks.check({"train": open_split(data)}, config()) is None
  stats = checks.measure(open_split(data), config())
  mean = images.mean(0, dtype=np.float64).astype(np.float32)
  np.testing.assert_array_equal(stats.mean_image, mean)
  assert stats.mean_image.dtype == np.float32
  covariance = np.cov(images.reshape(-1, 3).T.astype(np.float64), bias=True)
  axes, sds = stats.colour_axes, stats.colour_sds
  np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
  np.testing.assert_allclose(
    axes * np.square(sds) @ axes.T, covariance, rtol=1e-4, atol=1e-2
  )
  assert sorted(sds) == list(sds)
  # Of a slice they know nothing of the rest.
  examples = open_split(data, "train[:30]")
  part = batches.load(examples, np.arange(30), SIZE_PX)["image"]
  stats = checks.measure(examples, config())
  np.testing.assert_allclose(stats.mean_image, part.mean(0), rtol=1e-6)
  assert not any((data / name).exists() for name in statistics.FILES)


def test_a_fingerprint_knows_files_by_their_bytes(data):
  before = checks.fingerprint(open_split(data))
  assert before == checks.fingerprint(open_split(data))
  (file,) = data.glob("*.array_record-*")
  assert before.keys() == {file.name}
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)
  assert checks.fingerprint(open_split(data)) != before
