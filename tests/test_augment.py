"""Views against literal slices, their draws against their distributions."""

import jax
import numpy as np
import oracles
import pytest

from alexnet_jax import augment

SIZE, CROP = 40, 35


def augmentation(**changes):
  rng = np.random.default_rng(0)
  axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
  fields = {
    "crop_size_px": CROP,
    "random_crop": True,
    "mirror": True,
    "colour_noise": 0.0,
    "mean_image": rng.uniform(0, 255, (SIZE, SIZE, 3)).astype(np.float32),
    "colour_axes": axes.astype(np.float32),
    "colour_sds": np.array([10, 30, 90], np.float32),
  }
  return augment.Augmentation(**{**fields, **changes})


def images(count):
  rng = np.random.default_rng(1)
  return rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def views(batch, a, seed=0):
  keys = jax.random.split(jax.random.key(seed), len(batch))
  run = jax.jit(lambda batch, keys: augment.augment(batch, keys, a))
  return np.asarray(run(batch, keys))


def found_view(view, image, a):
  """Searches the (row, column, mirrored) that a noiseless view came from."""
  whole = image.astype(np.float32) - a.mean_image
  hits = []
  for row in range(SIZE - CROP + 1):
    for col in range(SIZE - CROP + 1):
      crop = whole[row : row + CROP, col : col + CROP]
      for mirrored, candidate in ((0, crop), (1, crop[:, ::-1])):
        if np.allclose(view, candidate, atol=1e-3):
          hits.append((row, col, mirrored))
  assert len(hits) == 1
  return hits[0]


def test_views_are_crops_less_the_mean_image_at_the_same_place():
  a = augmentation()
  batch = images(40)
  hits = [
    found_view(v, i, a) for v, i in zip(views(batch, a), batch, strict=True)
  ]
  assert len(set(hits)) > 20


def test_crops_and_mirrors_are_uniform():
  a = augmentation(mean_image=np.zeros((SIZE, SIZE, 3), np.float32))
  count = 14_400
  # A picture that holds its own coordinates tells where a crop came from.
  rows, cols = np.mgrid[:SIZE, :SIZE]
  image = np.stack([rows, cols, 0 * rows], -1).astype(np.uint8)
  corners = views(np.broadcast_to(image, (count, SIZE, SIZE, 3)), a)
  row = corners[:, 0, 0, 0].astype(int)
  mirrored = corners[:, 0, 0, 1] > corners[:, 0, -1, 1]
  col = np.minimum(corners[:, 0, 0, 1], corners[:, 0, -1, 1]).astype(int)
  side = SIZE - CROP + 1
  cells = np.bincount((row * side + col) * 2 + mirrored, minlength=72)
  assert cells.shape == (72,)
  chi2 = ((cells - count / 72) ** 2 / (count / 72)).sum()
  # 71 degrees of freedom: above 146 once in a million.
  assert chi2 < 146


def test_colour_noise_has_the_covariance_of_the_data():
  count = 20_000
  batch = np.zeros((count, SIZE, SIZE, 3), np.uint8)
  a = augmentation(
    crop_size_px=1,
    random_crop=False,
    mirror=False,
    colour_noise=0.1,
    mean_image=np.zeros((SIZE, SIZE, 3), np.float32),
  )
  shifts = views(batch, a)[:, 0, 0]
  along = shifts @ a.colour_axes / (0.1 * a.colour_sds)
  # Independent unit normals: 5.5 standard errors, false alarm under 4e-8 each.
  covariance = along.T @ along / count
  assert np.all(abs(covariance - np.eye(3)) < 5.5 * np.sqrt(2 / count))
  assert np.all(abs(along.mean(0)) < 5.5 / np.sqrt(count))


def test_colour_noise_is_one_shift_of_a_whole_image():
  quiet = augmentation()
  noisy = augmentation(colour_noise=0.1)
  batch = images(8)
  change = views(batch, noisy) - views(batch, quiet)
  assert np.ptp(change, axis=(1, 2)).max() < 1e-3
  assert np.ptp(change[:, 0, 0], axis=0).min() > 0.1


def test_colour_noise_equals_the_formula_for_its_draws():
  a = augmentation(colour_noise=0.1, random_crop=False, mirror=False)
  batch = images(1)
  view = views(batch, a)[0]
  plain = augment.centre(batch, a)[0]
  draws = (view - plain)[0, 0] @ a.colour_axes / (0.1 * a.colour_sds)
  expected = oracles.colour_noise(
    np.asarray(plain), a.colour_axes, a.colour_sds, draws, 0.1
  )
  np.testing.assert_allclose(view, expected, atol=1e-3)


@pytest.mark.parametrize(("size", "crop"), [(256, 224), (32, 28), (9, 6)])
def test_central_view_is_the_central_crop(size, crop):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
  mean = rng.uniform(0, 255, (size, size, 3)).astype(np.float32)
  a = augmentation(crop_size_px=crop, mean_image=mean)
  margin = (size - crop) // 2
  expected = image.astype(np.float64) - mean
  expected = expected[:, margin : margin + crop, margin : margin + crop]
  np.testing.assert_allclose(augment.centre(image, a), expected, atol=1e-4)


def test_view_depends_on_its_key_alone():
  a = augmentation(colour_noise=0.1)
  batch = images(8)
  keys = jax.random.split(jax.random.key(0), 8)
  whole = augment.augment(batch, keys, a)
  np.testing.assert_allclose(
    augment.augment(batch[5:], keys[5:], a), whole[5:], atol=1e-4
  )


def test_switches_turn_their_part_off():
  a = augmentation(random_crop=False, mirror=False)
  batch = images(16)
  np.testing.assert_array_equal(views(batch, a), augment.centre(batch, a))
