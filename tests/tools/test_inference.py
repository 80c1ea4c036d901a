"""A trained net as a library, against numpy and what it was trained with."""

import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import jax.numpy as jnp
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
def run_folder(tmp_path_factory):
  return tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture(scope="module")
def run(run_folder):
  (params,), mean = write_run(run_folder, small_config(input_scale=SCALE))
  return alexnet_jax.load(run_folder), params, mean


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


def test_images_are_taken_from_any_iterable_batch_after_batch(run):
  model, _, _ = run
  many = RNG.integers(0, 256, (75, 72, 72, 3), dtype=np.uint8)
  expected = model.predict(many)
  alive = most = 0

  def gone():
    nonlocal alive
    alive -= 1

  def stream():
    nonlocal alive, most
    for image in many:
      image = image.copy()
      alive, most = alive + 1, max(most, alive)
      weakref.finalize(image, gone)
      yield image

  for images in (stream(), tuple(many), iter(list(many)), jnp.asarray(many)):
    np.testing.assert_array_equal(model.predict(images), expected)
  pictures = map(Image.fromarray, many)
  np.testing.assert_array_equal(model.predict(pictures), expected)
  features = model.features(stream(), "fc8")
  np.testing.assert_array_equal(features, model.features(many, "fc8"))
  assert most <= 65  # Of 64, one more may be drawn.


def test_one_image_has_no_axis_of_images(run):
  model, _, _ = run
  for ask in (model.predict, lambda x: model.features(x, "pool1")):
    (expected,) = ask(IMAGES[:1])
    for image in (
      IMAGES[0],
      jnp.asarray(IMAGES[0]),
      Image.fromarray(IMAGES[0]),
    ):
      np.testing.assert_array_equal(ask(image), expected)
      np.testing.assert_array_equal(ask([image]), expected[None])


def test_kinds_of_images_are_seen_as_rgb_on_white(run):
  model, _, _ = run
  rgb, other = IMAGES
  grey, bits = rgb[..., 0], other[..., 1] > 127
  alpha = np.where(bits, 255, 0).astype(np.uint8)
  holes = np.dstack([rgb, alpha])
  for image, seen in (
    (grey, np.stack([grey] * 3, axis=2)),
    (grey[..., None], np.stack([grey] * 3, axis=2)),
    (holes, np.where(bits[..., None], rgb, 255).astype(np.uint8)),
    (rgb / 255, rgb),
    ((rgb / 255).astype(np.float32), rgb),
    (jnp.asarray(grey / 255), np.stack([grey] * 3, axis=2)),
    (rgb / 255 + 0.4 / 255 * (rgb < 255), rgb),  # The nearest of 256 values.
    (Image.fromarray(bits), np.stack([bits * np.uint8(255)] * 3, axis=2)),
  ):
    (expected,) = model.predict(seen[None])
    np.testing.assert_array_equal(model.predict(image), expected)
  assert len({tuple(row) for row in model.predict([rgb, holes, grey])}) == 3


def test_files_and_pictures_are_upright(run, tmp_path):
  model, _, _ = run
  upright = IMAGES[0]
  turned = Image.fromarray(np.rot90(upright))  # A quarter to the left.
  exif = turned.getexif()
  exif[0x0112] = 6  # To be shown a quarter to the right.
  file = tmp_path / "x.png"
  turned.save(file, exif=exif)
  palette = Image.fromarray(np.where(upright > 127, 255, 0).astype(np.uint8))
  palette.quantize(8, dither=Image.Dither.NONE).save(tmp_path / "p.png")
  first, second = model.predict([upright, np.asarray(palette)])
  for image in (file, str(file), Image.open(file)):
    np.testing.assert_array_equal(model.predict(image), first)
  for image in (tmp_path / "p.png", Image.open(tmp_path / "p.png")):
    assert model.predict(image) == pytest.approx(second, abs=1e-6)
  paths = np.array([str(file), str(tmp_path / "p.png")])
  assert model.predict(paths) == pytest.approx(np.array([first, second]))


def test_repr_says_what_net_it_is(run):
  assert repr(run[0]) == (
    "Model(conv1 to fc8, nets=1, classes=6, image_size_px=72, step=0)"
  )


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
  one = model.features(IMAGES[1], "fc8")
  np.testing.assert_allclose(one, features[:, 1], rtol=1e-4, atol=1e-4)
  assert "nets=2," in repr(model)


@pytest.mark.parametrize(
  ("ask", "words"),
  [
    (lambda m: m.predict([IMAGES]), r"uint8 \[2, 72, 72, 3.*H, W"),
    (lambda m: m.predict(IMAGES[..., 0]), r"uint8 \[2, 72, 72\].*1, 3 or 4"),
    (lambda m: m.predict(IMAGES.swapaxes(1, 3)), r"uint8 \[3, 72, 72\]"),
    (lambda m: m.predict([IMAGES[0][:0]]), "uint8 .0, 72, 3"),
    (lambda m: m.predict(IMAGES[0].astype(int)), "int64 .72, 72, 3.*uint8"),
    (lambda m: m.predict(IMAGES[0] > 9), "bool .72, 72, 3.*uint8"),
    (lambda m: m.predict(IMAGES * 1.0), "float64 .72, 72, 3.*of 0..1 without"),
    (lambda m: m.features(IMAGES[0] / -1e9, "fc8"), "floats of 0..1"),
    (lambda m: m.predict(IMAGES[0] * np.nan), "without NaN"),
    (lambda m: m.predict([None]), r"object \[\]"),
    (lambda m: m.predict("no.png"), "'no.png' cannot be used .No such file"),
    (
      lambda m: m.predict([Path(__file__)]),
      "test_inference.py' cannot be used",
    ),
    (
      lambda m: m.predict(os.path.dirname(__file__)),
      "cannot be used .Is a dir",
    ),
    (lambda m: m.predict(Image.new("I;16", (9, 9))), "more than 8 bits"),
    (lambda m: m.predict(IMAGES, views=5), "views=5 must be 1 or 10"),
    (lambda m: m.features(IMAGES, "fc9"), "layer=.fc9.*fc8"),
    (lambda _: alexnet_jax.load("nowhere"), "holds no run"),
  ],
)
def test_what_cannot_be_answered_is_refused(ask, words, run):
  with pytest.raises(errors.InputError, match=words):
    ask(run[0])


DAMAGED = {
  "image_size_px": -5,
  "crop_size_px": 73,
  "num_classes": 10**12,
  "ensemble": 0,
  "input_scale": "abc",
  "compute_dtype": "x",
  "matmul_precision": "bad",
  "network": [1],
  "network.conv1": None,
  "network.layers": [],
  "network.towers": 0,
  "network.lrn.window": 10**9,
}


@pytest.mark.parametrize("field", DAMAGED)
def test_a_damaged_config_is_an_error_of_one_line(
  field, run, run_folder, tmp_path
):
  config = part = json.loads((run_folder / "config.json").read_text())
  *parts, last = field.split(".")
  for name in parts:
    part = part[name]
  part[last] = DAMAGED[field]
  shutil.copytree(run_folder, tmp_path / "run")
  (tmp_path / "run" / "config.json").write_text(json.dumps(config))
  with pytest.raises(errors.InputError, match=r"config\.json") as error:
    alexnet_jax.load(tmp_path / "run")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "text",
  ["[1, 2, 3, 4, 5, 6]", '["a"]', '{"a": 1}', "[null]", "[" * 10**5, "7"],
)
@pytest.mark.parametrize("name", ["class_names.json", "config.json"])
def test_damaged_json_is_an_error_of_one_line(
  name, text, run, run_folder, tmp_path
):
  shutil.copytree(run_folder, tmp_path / "run")
  (tmp_path / "run" / name).write_text(text)
  with pytest.raises(errors.InputError, match=name) as error:
    alexnet_jax.load(tmp_path / "run")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["class_names.json", "config.json"])
def test_a_pipe_in_a_run_is_not_waited_for(name, run, run_folder, tmp_path):
  shutil.copytree(run_folder, tmp_path / "run")
  (tmp_path / "run" / name).unlink()
  os.mkfifo(tmp_path / "run" / name)
  with pytest.raises(errors.InputError, match=f"{name}.* no regular file"):
    alexnet_jax.load(tmp_path / "run")


@pytest.mark.slow
def test_a_program_around_it_finds_all_as_it_was_and_the_same_numbers(tmp_path):
  """In a thread's event loop, with 64-bit numbers and another device."""
  root = Path(__file__).parents[2]
  paths = f"{root}:{root / 'tests' / 'support'}"
  result = subprocess.run(
    [sys.executable, root / "tests/support/guest.py", tmp_path],
    env=os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  lines = result.stdout.splitlines()
  assert lines[0].startswith("net ")
  assert lines[-1] == "done"
  assert result.stderr == ""
