"""Views against literal slices, their draws against their distributions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from alexnet_jax import augment, ops
from alexnet_jax.configs import alexnet
from alexnet_jax.data import statistics

SIZE, CROP = 40, 35


def images(count, size=SIZE):
  """Noise whose colours go together."""
  rng = np.random.default_rng(1)
  mix = np.array([[0.5, 0.3, 0.1], [0.2, 0.4, 0.2], [0.0, 0.2, 0.3]])
  pixels = 40 + rng.integers(0, 200, (count, size, size, 3)) @ mix
  return pixels.astype(np.uint8)


def keys(seed, count):
  return jax.random.split(jax.random.key(seed), count)


MEAN, SDS, AXES = oracles.mean_and_pca(images(20))
BATCH, VIEW_KEYS, COLOUR_KEYS = images(16), keys(0, 16), keys(1, 16)
STILL = {"random_crop": False, "mirror": False}
# The noise of the first five steps alone, and its division.
NOISY = {
  "colour_noise": 0.1,
  "colour_noise_steps": 5,
  "colour_noise_divisor": 1.1,
}


def augmentation(**changes):
  fields = {
    "crop_size_px": CROP,
    "random_crop": True,
    "mirror": True,
    "images_per_view": 1,
    "colour_noise": 0.0,
    "colour_noise_steps": 2**31 - 1,
    "colour_noise_divisor": 1.0,
    "mean_image": MEAN.astype(np.float32),
    "colour_axes": AXES.astype(np.float32),
    "colour_sds": SDS.astype(np.float32),
  }
  return augment.Augmentation(**(fields | changes))


@functools.cache
def compiled(**changes):
  a = augmentation(**changes)
  return jax.jit(lambda *args: augment.augment(*args, a))


def views(
  batch=BATCH, view_keys=VIEW_KEYS, colour_keys=COLOUR_KEYS, step=0, **changes
):
  run = compiled(**changes)
  return np.asarray(run(batch, view_keys, colour_keys, step))


def central(batch, a):
  (view,) = augment.views(1, batch.shape[1], a.crop_size_px)
  return np.asarray(augment.test_view(batch, view, a))


def places(views):
  """Searches the (row, column, mirrored) that noiseless views came from."""
  cuts = np.lib.stride_tricks.sliding_window_view(
    BATCH - MEAN, (CROP, CROP), (1, 2)
  )
  cuts = np.moveaxis(cuts, 3, -1)
  cuts = np.stack([cuts, cuts[..., ::-1, :]], 3)
  found = np.isclose(cuts, views[:, None, None, None], atol=1e-3)
  hits = np.argwhere(found.all((4, 5, 6)))
  np.testing.assert_array_equal(hits[:, 0], range(16))  # once each
  return {tuple(hit) for hit in hits[:, 1:].tolist()}


def test_views_are_crops_less_the_mean_image_at_the_same_place():
  assert len(places(views())) > 8


def test_run_145_subtracts_the_centre_of_the_mean_image_from_every_view():
  """A literal convdata.py, for three images, each place and both mirrors."""
  margin = (SIZE - CROP) // 2
  centre = MEAN[margin : margin + CROP, margin : margin + CROP]
  found = views(mean_crop="centre")
  for image, view in zip(BATCH[:3], found[:3], strict=True):
    hits = 0
    for row, col in np.ndindex(SIZE - CROP + 1, SIZE - CROP + 1):
      crop = np.float64(image[row : row + CROP, col : col + CROP])
      for seen in (crop, crop[:, ::-1]):
        hits += np.allclose(seen - centre, view, rtol=0, atol=1e-3)
    assert hits == 1
  a = augmentation(mean_crop="centre")
  for row, col, mirrored in augment.views(10, SIZE, CROP):
    view = np.asarray(
      augment.test_view(BATCH, np.array([row, col, mirrored]), a)
    )
    crops = np.float64(BATCH[:, row : row + CROP, col : col + CROP])
    crops = crops[:, :, ::-1] if mirrored else crops
    np.testing.assert_allclose(view, crops - centre, atol=1e-3)


def chi2(counts):
  expected = counts.sum() / counts.size
  return ((counts - expected) ** 2 / expected).sum()


def test_crops_and_mirrors_are_uniform():
  """Catches 32 places in a margin of 32 pixels, where there are 33."""
  a = augmentation(
    crop_size_px=224, mean_image=np.zeros((256, 256, 3), np.float32)
  )
  # A picture that holds its own coordinates tells where a crop came from.
  rows, cols = np.mgrid[:256, :256]
  image = jnp.array(np.stack([rows, cols, cols], -1), jnp.uint8)

  def ends(key):
    """The first row, and the columns of its first and last pixel."""
    crop = augment.augment(image[None], key[None], key[None], 0, a)[0]
    return jnp.stack([crop[0, 0, 0], crop[0, 0, 1], crop[0, -1, 1]])

  found = jax.jit(lambda keys: jax.lax.map(ends, keys))(keys(0, 21_780))
  row, left, right = np.asarray(found, int).T
  assert set(abs(left - right)) == {223}
  cells = np.zeros((33, 33, 2))
  np.add.at(cells, (row, np.minimum(left, right), (left > right) * 1), 1)
  # Of 2177, 32, 32 and 1 degrees of freedom; a false alarm is 1e-7 each.
  assert chi2(cells) < 2537.6
  assert chi2(cells.sum((1, 2))) < 92.1
  assert chi2(cells.sum((0, 2))) < 92.1
  assert chi2(cells.sum((0, 1))) < 28.4


def test_colour_noise_has_a_hundredth_of_the_covariance_of_the_data():
  """Catches axes in rows, and variances in the place of deviations."""
  count = 20_000
  a = augmentation(
    crop_size_px=1, colour_noise=0.1, mean_image=np.zeros((1, 1, 3), np.float32)
  )
  pixels = np.zeros((count, 1, 1, 3), np.uint8)
  run = jax.jit(lambda *args: augment.augment(*args, 0, a))
  shifts = np.asarray(run(pixels, keys(0, count), keys(1, count)))[:, 0, 0]
  covariance = np.cov(images(20).reshape(-1, 3).T) / 100
  draws = np.linalg.solve(np.linalg.cholesky(covariance), shifts.T)
  # Independent unit normals: 5.5 standard errors, false alarm 4e-8 each of 9.
  error = abs(draws @ draws.T / count - np.eye(3))
  assert np.all(error < 5.5 * np.sqrt((1 + np.eye(3)) / count))
  assert np.all(abs(draws.mean(1)) < 5.5 / np.sqrt(count))


@pytest.mark.parametrize("divisor", [1.0, 1.1])
def test_colour_noise_equals_the_formula_for_its_draws(divisor, monkeypatch):
  draws = np.array([0.5, -1.2, 2.0], np.float32)
  monkeypatch.setattr(jax.random, "normal", lambda *_: jnp.array(draws))
  a = augmentation(**STILL, colour_noise=0.1, colour_noise_divisor=divisor)
  found = augment.augment(BATCH, VIEW_KEYS, COLOUR_KEYS, 0, a)
  expected = oracles.colour_noise(
    central(BATCH, a), AXES, SDS, draws, 0.1, divisor
  )
  np.testing.assert_allclose(found, expected, atol=1e-3)


def test_after_its_steps_there_is_neither_noise_nor_division():
  quiet = views()
  np.testing.assert_array_equal(views(**NOISY, step=5), quiet)
  change = views(**NOISY, step=4) * 1.1 - quiet
  # One shift of all pixels, another for each image.
  assert np.ptp(change, axis=(1, 2)).max() < 1e-3
  assert np.ptp(change[:, 0, 0], axis=0).min() > 0.1


@pytest.mark.parametrize(
  ("epochs", "num_examples", "steps"),
  [
    (1.5, 100, 3),  # 150 images in batches of 64
    (67.0, 128, 134),
    (None, 100, 2**31 - 1),
    (1.5, None, 2**31 - 1),
  ],
)
def test_colour_noise_ends_with_the_step_that_ends_its_epochs(
  epochs, num_examples, steps
):
  config = alexnet.get_config()
  config.update(batch_size=64, colour_noise_epochs=epochs)
  held = statistics.Statistics(MEAN, AXES, SDS)
  a = augment.from_config(config, held, num_examples)
  assert a.colour_noise_steps == steps
  assert (a.crop_size_px, a.colour_noise, a.images_per_view) == (224, 0.1, 1)


def test_equal_view_keys_give_equal_views_in_other_colours():
  """Catches colours that hang on the view's key, or views on the colour's."""
  same = jnp.broadcast_to(VIEW_KEYS[:1], (16,))
  assert len(places(views(view_keys=same))) == 1
  quiet = views(view_keys=same, step=5, **NOISY)
  shifts = (views(view_keys=same, **NOISY) * 1.1 - quiet)[:, 0, 0]
  assert len(np.unique(shifts.round(3), axis=0)) == 16
  # And the other way round: one shift of many views.
  change = views(colour_keys=same, **NOISY) * 1.1 - views()
  assert np.ptp(change, axis=(0, 1, 2)).max() < 1e-3


@pytest.mark.parametrize(
  ("size", "crop"), [(256, 224), (32, 28), (9, 6), (9, 8), (8, 8)]
)
def test_test_views_are_the_corners_the_centre_and_their_mirrors(size, crop):
  batch = images(2, size)
  mean = np.random.default_rng(0).uniform(0, 255, (size, size, 3))
  a = augmentation(crop_size_px=crop, mean_image=mean.astype(np.float32))
  seen = [
    augment.test_view(batch, view, a) for view in augment.views(10, size, crop)
  ]
  ten = np.array([oracles.ten_views(image - mean, crop) for image in batch])
  # Without a margin they are two, each five times.
  distinct = ten if size > crop else ten[:, [4, 9]]
  np.testing.assert_allclose(np.swapaxes(seen, 0, 1), distinct, atol=1e-4)
  np.testing.assert_allclose(np.mean(seen, 0), ten.mean(1), atol=1e-3)
  assert any(np.array_equal(central(batch, a), view) for view in seen)


def test_view_depends_on_its_image_and_keys_alone():
  found = views(BATCH[::-1], VIEW_KEYS[::-1], COLOUR_KEYS[::-1], **NOISY)
  np.testing.assert_array_equal(found, views(**NOISY)[::-1])


def test_switches_turn_their_part_off():
  np.testing.assert_array_equal(views(**STILL), central(BATCH, augmentation()))


@pytest.mark.parametrize("rate", [0.5, 0.1])
def test_dropout_drops_each_unit_by_itself_at_its_rate(rate):
  """Catches one draw for many units or examples, and keeping for dropping."""
  count, units = 40_000, 64
  drop = jax.jit(lambda keys: ops.dropout(jnp.ones((count, units)), keys, rate))
  kept = np.asarray(drop(keys(0, count)))
  assert set(np.unique(kept)) == {0, 1}  # not rescaled
  draws = (kept - (1 - rate)) / np.sqrt(rate * (1 - rate))
  # In standard errors; by Bonferroni false alarms are under 1e-6 together.
  assert abs(draws.mean(0)).max() * np.sqrt(count) < 6
  pairs = (draws.T @ draws)[np.triu_indices(units, 1)] / count
  assert abs(pairs).max() * np.sqrt(count) < 6.8
  neighbours = (draws[1:] * draws[:-1]).mean(0)
  assert abs(neighbours).max() * np.sqrt(count) < 6.2
