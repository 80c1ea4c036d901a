"""The picture of a data set: what it shows is what there is."""

import numpy as np
import pytest
from commands import assert_refused, run_command
from PIL import Image

from alexnet_jax import augment
from alexnet_jax.data import records
from alexnet_jax.data.prepare import shapes
from alexnet_jax.tools import show

SIZE_PX = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  directory = tmp_path_factory.mktemp("data") / "shapes"
  shapes.generate(
    directory, train=37, validation=2, test=2, size_px=SIZE_PX, workers=0
  )
  return directory


def test_views_are_crops_of_the_image_less_those_of_the_mean():
  """Every view of an image is looked for among all that there can be."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, SIZE_PX, SIZE_PX, 3), np.uint8)
  mean = rng.uniform(0, 255, (SIZE_PX, SIZE_PX, 3)).astype(np.float32)
  crop = SIZE_PX - 2
  a = augment.Augmentation(
    crop, True, True, 1, 0.0, 0, 1.0, mean, np.eye(3), np.ones(3)
  )
  seen = show.net_input(images, 5, a, seed=0)
  assert seen.shape == (3, 5, crop, crop, 3)
  for image, views in zip(images - mean, seen, strict=True):
    crops = [
      image[row : row + crop, col : col + crop]
      for row in range(3)
      for col in range(3)
    ]
    crops += [view[:, ::-1] for view in crops]
    found = [
      [np.allclose(view, known, atol=1e-3) for known in crops].index(True)
      for view in views
    ]
    assert len(set(found)) > 1


def test_labels_are_counted(data):
  """Generated pictures take their classes in turn: 37 of ten."""
  dataset = records.open_directory(data)
  examples = records.open_split(dataset, "train", "split")
  assert show.count_labels(examples).tolist() == [4] * 7 + [3] * 3


def test_command_draws_a_picture(data, tmp_path):
  """With its pictures in it, and with the axes' own scale for the classes."""
  output = tmp_path / "new" / "look.png"
  done = run_command("show", f"--data={data}", f"--output={output}")
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""
  with Image.open(output) as image:
    colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
  assert len(np.unique(colours, axis=0)) > 1000


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--output=look.jpg"], ["output='look.jpg'", ".png"]),
    (["--output=look.png", "--config.crop_size_px=17"], ["crop_size_px=17"]),
  ],
)
def test_bad_flags_are_refused(data, flags, words):
  done = run_command("show", f"--data={data}", *flags)
  assert_refused(done, *words)
