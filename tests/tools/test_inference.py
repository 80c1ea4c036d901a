"""A trained net as a library, against numpy and what it was trained with."""

import numpy as np
import oracles
import pytest
from drawn_runs import NAMES, small_config, write_run
from PIL import Image

import alexnet_jax
from alexnet_jax.data import decode as image_files
from alexnet_jax.runtime import errors

RNG = np.random.default_rng(0)
# Patches of one colour, which the net can tell apart.
IMAGES = RNG.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
IMAGES = IMAGES.repeat(18, axis=1).repeat(18, axis=2)
SCALE = (0.5, 2.0, 0.25)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "run"
  (params,), mean = write_run(folder, small_config(input_scale=SCALE))
  return alexnet_jax.load(folder), params, mean


def inputs(images, mean, views):
  """Returns what the net sees of each image: [view][B, 67, 67, 3]."""
  each = [oracles.ten_views(image - mean, 67) for image in images]
  each = [views_of[4:5] if views == 1 else views_of for views_of in each]
  return np.swapaxes(each, 0, 1) * SCALE


@pytest.mark.parametrize("views", [1, 10])
def test_probabilities_are_the_mean_of_the_views_softmaxes(views, run):
  model, params, mean = run
  logits = [
    oracles.alexnet_logits(params, view) for view in inputs(IMAGES, mean, views)
  ]
  expected = oracles.average_softmax(logits, [1] * views)
  found = model.predict(IMAGES, views=views)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  # Else a net that sees nothing would do.
  assert np.abs(found[0] - found[1]).max() > 0.003
  assert model.class_names == NAMES


def test_features_are_those_of_the_layers_that_they_are_named_by(run):
  model, params, mean = run
  (view,) = inputs(IMAGES, mean, 1)
  convs, dense = params["features"], params["classifier"]
  conv1 = np.maximum(
    oracles.conv(view, **convs["conv1"], stride=4, padding=0, towers=1), 0
  )
  norm1 = oracles.local_response_norm(conv1, towers=2)
  pool1 = oracles.max_pool(norm1, window=3, stride=2)
  expected = {"conv1": conv1, "norm1": norm1, "pool1": pool1}
  expected["fc8"] = oracles.alexnet_logits(params, view)
  # From the maps before it; conv2 to conv5 have tests of their own.
  flat = model.features(IMAGES, "pool5").reshape(2, -1)
  fc6 = np.maximum(flat @ dense["fc6"]["kernel"] + dense["fc6"]["bias"], 0)
  expected["fc6"] = fc6
  hidden = 0.5 * fc6 @ dense["fc7"]["kernel"] + dense["fc7"]["bias"]
  expected["fc7"] = np.maximum(hidden, 0)
  assert set(expected) < set(model.layers)
  for layer, values in expected.items():
    found = model.features(IMAGES, layer)
    assert found.dtype == np.float32
    assert found.shape[1:] == model.shapes[layer]
    np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-4)


def test_any_number_of_images_is_answered_as_each_alone(run):
  model, _, _ = run
  many = RNG.integers(0, 256, (75, 72, 72, 3), dtype=np.uint8)
  alone = [model.predict(many[i : i + 1])[0] for i in range(0, 75, 5)]
  np.testing.assert_allclose(model.predict(many)[::5], alone, rtol=1e-5)
  assert model.predict(many[:0]).shape == (0, len(NAMES))
  assert model.features([], "pool1").shape == (0, *model.shapes["pool1"])


def test_images_of_other_sizes_become_squares_as_in_the_data_set(run):
  model, _, _ = run
  wide = RNG.integers(0, 256, (90, 130, 3), dtype=np.uint8)
  square = image_files.square(Image.fromarray(wide), 72)
  found = model.predict([wide, IMAGES[0]])
  expected = model.predict(np.stack([square, IMAGES[0]]))
  np.testing.assert_array_equal(found, expected)


def test_nets_of_an_ensemble_are_averaged(tmp_path):
  config = small_config(ensemble=2, input_scale=SCALE)
  params, mean = write_run(tmp_path / "both", config, seeds=(0, 1))
  model = alexnet_jax.load(tmp_path / "both")
  (view,) = inputs(IMAGES, mean, 1)
  logits = [oracles.alexnet_logits(own, view) for own in params]
  expected = oracles.average_softmax(logits, [1, 1])
  np.testing.assert_allclose(model.predict(IMAGES), expected, rtol=1e-4)
  features = model.features(IMAGES, "fc8")
  np.testing.assert_allclose(features, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ("ask", "words"),
  [
    (lambda m: m.predict(IMAGES / 255), "float64 .72, 72, 3.*uint8"),
    (lambda m: m.predict(IMAGES[0]), "uint8 .72, 3.*must be uint8"),
    (lambda m: m.predict([IMAGES[0][:0]]), "uint8 .0, 72, 3"),
    (lambda m: m.predict(IMAGES, views=5), "views=5 must be 1 or 10"),
    (lambda m: m.features(IMAGES, "fc9"), "layer=.fc9.*fc8"),
    (lambda _: alexnet_jax.load("nowhere"), "holds no run"),
  ],
)
def test_what_cannot_be_answered_is_refused(ask, words, run):
  with pytest.raises(errors.InputError, match=words):
    ask(run[0])
