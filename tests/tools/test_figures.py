"""Figures of a net: what is planted in it and its images is on the picture."""

import types
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from commands import assert_refused, run_in_process
from drawn_runs import small_config, write_run, write_run_on_shapes
from PIL import Image
from tfds_files import encoded, write

from alexnet_jax import networks
from alexnet_jax.configs import run131
from alexnet_jax.data import records
from alexnet_jax.runtime import errors
from alexnet_jax.tools import inference
from alexnet_jax.tools.figures import command as figures
from alexnet_jax.tools.figures import drawings

RNG = np.random.default_rng(0)


def test_a_planted_filter_is_where_its_number_says(tmp_path):
  """Number 50 of 96: in the second tower, the third of its first row."""
  kernel = RNG.normal(size=(11, 11, 3, 96)).astype(np.float32)
  planted = np.zeros((11, 11, 3), np.float32)
  planted[:, 5:] = [1, 0.5, 0]
  kernel[..., 50] = planted
  sheet = drawings.tile_filters(kernel, towers=2)
  # Three rows of 16 a tower, a pixel apart, five pixels between the towers.
  top = 3 * 12 - 1 + 5
  found = sheet[top : top + 11, 24 : 24 + 11]
  assert (found[:, :5, :3] == 0).all()
  assert (found[:, 5:, :3] == [255, 128, 0]).all()
  assert (sheet[top - 5 : top] == 0).all()
  assert sheet.shape == (2 * top - 5 + 0, 16 * 12 - 1, 4)
  (axes,) = drawings.filters(kernel, 2).axes
  np.testing.assert_array_equal(axes.images[0].get_array(), sheet)


def test_colour_is_what_grey_leaves():
  grey = RNG.normal(size=(5, 5, 1, 4)).repeat(3, axis=2)
  red_against_green = np.zeros((5, 5, 3, 4))
  red_against_green[:, :, 0], red_against_green[:, :, 1] = 1, -1
  kernel = np.concatenate([grey, red_against_green, grey * 0], axis=3)
  found = drawings.colourfulness(kernel)
  np.testing.assert_allclose(found, [0] * 4 + [1] * 4 + [0] * 4, atol=1e-12)
  noise = drawings.colourfulness(RNG.normal(size=(9, 9, 3, 400)))
  assert noise.mean() == pytest.approx(2 / 3, abs=0.02)
  plot = drawings.filters(np.concatenate([grey, red_against_green], axis=3), 2)
  words = [text.get_text().split() for text in plot.axes[0].texts]
  assert [line[4] for line in words] == ["0%", "100%"]


def test_scaling_is_of_each_alone():
  arrays = np.stack([np.full((2, 2, 1), 7.0), np.arange(4.0).reshape(2, 2, 1)])
  found = drawings.scaled(arrays)
  assert (found[0] == 0).all()
  assert found[1, :, :, 0].tolist() == [[0, 85], [170, 255]]


def test_maps_are_black_where_they_are_silent():
  maps = np.zeros((4, 4, 3), np.float32)
  maps[1, 2, 1] = 5
  maps[..., 2] = 2
  image = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
  top, below = drawings.activations(image, {"conv1": maps}).axes
  np.testing.assert_array_equal(top.images[0].get_array(), image)
  sheet = below.images[0].get_array()[..., 0]
  assert (sheet[:, :4] == 0).all()
  assert (sheet[1, 7], sheet[:, 5:9].sum()) == (255, 255)
  assert (sheet[:, 10:] == 255).all()
  assert below.get_title(loc="left") == "conv1"


def test_squares_hide_each_part_of_an_image():
  image = RNG.integers(1, 256, (20, 20, 3), dtype=np.uint8)
  copies = figures.hide(image, 6, 4, np.zeros(3))
  assert copies.shape == (5, 5, 20, 20, 3)
  copies = copies.reshape(25, 20, 20, 3)
  hidden = [(copy == 0).all(axis=2) for copy in copies]
  for number, mask in enumerate(hidden):
    row, column = divmod(number, 5)
    inside = np.zeros((20, 20), bool)
    for y in range(20):
      for x in range(20):
        low = 4 * row + 2 - 3, 4 * column + 2 - 3
        inside[y, x] = low[0] <= y < low[0] + 6 and low[1] <= x < low[1] + 6
    np.testing.assert_array_equal(mask, inside)
    np.testing.assert_array_equal(copies[number][~mask], image[~mask])
  assert np.any(hidden, axis=0).all()


def test_confusion_matrix_has_shares_of_the_labels():
  """And writes no zeros; half a per cent is rounded to 0."""
  counts = np.array([[3, 1, 0], [0, 0, 0], [0, 2, 2]])
  axes, _ = drawings.confusion(counts, ["a", "b", "c"]).axes
  found = axes.images[0].get_array()
  assert found.tolist() == [[75, 25, 0], [0, 0, 0], [0, 50, 50]]
  assert [x.get_text() for x in axes.get_yticklabels()] == ["a", "b", "c"]
  written = {tuple(x.get_position()): x.get_text() for x in axes.texts}
  assert written == {(0, 0): "75", (1, 0): "25", (1, 2): "50", (2, 2): "50"}
  axes, _ = drawings.confusion(np.array([[199, 1], [3, 197]]), ["a", "b"]).axes
  assert [x.get_text() for x in axes.texts] == ["100", "2", "98"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A run that sees how red the left half and how green the right half is."""
  place = tmp_path_factory.mktemp("place")
  return write_run_on_shapes(place, 32, train=20, validation=10, test=60)


def test_command_writes_png_and_pdf(place, capsys):
  output = place / "figures"
  result = run_in_process(
    capsys,
    "figures",
    f"--workdir={place / 'run'}",
    f"--output={output}",
    "--only=filters,occlusion",
  )
  assert result.returncode == 0, result.stderr
  names = {f"{x}.{k}" for x in ("filters", "occlusion") for k in ("png", "pdf")}
  assert {file.name for file in output.iterdir()} == names
  with Image.open(output / "occlusion.png") as picture:
    assert np.asarray(picture.convert("L")).std() > 5


@pytest.fixture(scope="module")
def look(place, tmp_path_factory):
  """The run, and 24 images of three classes; the 19th is the 2nd, nearly."""
  folder = tmp_path_factory.mktemp("planted") / "data"
  images = [RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8) for _ in range(24)]
  images = [x.repeat(8, axis=0).repeat(8, axis=1) for x in images]
  images[18] = images[1].copy()
  images[18][0, 0] ^= 3
  items = [
    {"image": encoded(image), "label": number % 3}
    for number, image in enumerate(images)
  ]
  names = records.open_directory(place / "data").class_names
  schema = {
    "image": tfds.features.Image(encoding_format="png"),
    "label": tfds.features.ClassLabel(names=names),
  }
  write(folder, {"test": [items]}, schema)
  asked = types.SimpleNamespace(
    data_dir=str(folder), split="test", image="", classes=[names[1], names[0]]
  )
  model = inference.load(place / "run")
  return (
    figures.FigureContext(model, asked),
    np.stack(images),
    np.arange(24) % 3,
    names,
  )


def _drawn(plot, across):
  """Returns title, images and words of each row of a figure."""
  rows = [plot.axes[i : i + across] for i in range(0, len(plot.axes), across)]
  return [
    (
      row[0].get_title(loc="left"),
      [axes.images[0].get_array() for axes in row if axes.images],
      [axes.texts[0].get_text() for axes in row if axes.texts],
    )
    for row in rows
  ]


def test_a_known_neighbour_is_the_nearest(look):
  """The 2nd image is the first of its class; the 19th is of another class."""
  seen, images, labels, names = look
  first, second = _drawn(figures.FIGURES["neighbours"](seen), 7)
  assert (first[0], second[0]) == (names[1], names[0])
  np.testing.assert_array_equal(first[1][0], images[1])
  np.testing.assert_array_equal(first[1][1], images[18])
  assert first[2][:2] == ["query", names[labels[18]]]
  np.testing.assert_array_equal(second[1][0], images[0])
  hidden = seen.model.features(images, seen.model.layers[-2])
  hidden = hidden.reshape(24, -1)
  order = np.argsort(np.linalg.norm(hidden - hidden[0], axis=1))[1:7]
  assert [x.tolist() for x in second[1][1:]] == images[order].tolist()


def test_best_and_worst_of_a_class_are_in_their_order(look):
  seen, images, labels, names = look
  shares = seen.model.predict(images)
  drawn = _drawn(figures.FIGURES["classes"](seen), 6)
  asked = [(k, what) for k in (1, 0) for what in ("surest", "worst")]
  for (label, what), (title, shown, words) in zip(asked, drawn, strict=True):
    assert title == f"{names[label]}, {what}"
    own = np.sort(shares[labels == label, label])
    expected = own[::-1][:6] if what == "surest" else own[:6]
    held = [i for x in shown for i in range(24) if (images[i] == x).all()]
    assert len(set(held)) == 6
    assert set(labels[held]) == {label}
    np.testing.assert_array_equal(shares[held, label], expected)
    for word, image in zip(words, held, strict=True):
      best = shares[image].argmax()
      assert word == f"{shares[image, best]:.0%} {names[best]}"


def test_confusions_are_of_labels_by_answers(look):
  seen, images, labels, names = look
  (axes, _) = figures.FIGURES["confusion"](seen).axes
  best = seen.model.predict(images).argmax(axis=1)
  assert len(set(best)) > 1
  found = axes.images[0].get_array()
  for label in range(len(names)):
    for answer in range(len(names)):
      own = labels == label
      share = 100 * (best[own] == answer).mean() if own.any() else 0
      assert found[label, answer] == pytest.approx(share)


def test_occlusion_map_is_of_the_best_class_with_each_part_hidden(
  look, tmp_path
):
  seen, images, _, names = look
  shares = seen.model.predict(images)
  unsure = shares.max(axis=1).argmin()
  whole, best = shares[unsure], shares[unsure].argmax()
  Image.fromarray(images[unsure]).save(tmp_path / "image.png")
  asked = types.SimpleNamespace(image=tmp_path / "image.png")
  seen = figures.FigureContext(seen.model, asked)
  left, right, _ = figures.FIGURES["occlusion"](seen).axes
  assert left.get_title(loc="left") == f"{names[best]}: {whole[best]:.1%}"
  found = right.images[0].get_array()
  assert found.shape == (16, 16)
  grey = seen.model.augmentation.mean_image.mean(axis=(0, 1)).astype(np.uint8)
  for row, column in ((0, 0), (3, 12), (15, 15)):  # Six pixels at every other.
    hidden = images[unsure].copy()
    for y in range(2 * row - 2, 2 * row + 4):
      for x in range(2 * column - 2, 2 * column + 4):
        if 0 <= y < 32 and 0 <= x < 32:
          hidden[y, x] = grey
    (share,) = seen.model.predict([hidden])[:, best]
    assert found[row, column] == pytest.approx(share, rel=1e-5)
  assert np.ptp(found) > 0.01


def test_maps_and_filters_are_of_the_layers_by_their_names(look):
  seen, images, _, _ = look
  model = seen.model
  kinds = {n: shape for n, shape in model.shapes.items() if len(shape) == 3}
  first, *rest = figures.FIGURES["activations"](seen).axes
  np.testing.assert_array_equal(first.images[0].get_array(), images[0])
  for axes, (name, (height, width, count)) in zip(
    rest, kinds.items(), strict=True
  ):
    assert axes.get_title(loc="left").split(",")[0] == name
    sheet = axes.images[0].get_array()[..., 0]
    maps = model.features(images[:1], name)[0]
    across = min(16, count, 32)
    for k in range(min(count, 32)):
      top, left = k // across * (height + 1), k % across * (width + 1)
      held = sheet[top : top + height, left : left + width]
      low, high = min(0, maps[..., k].min()), maps[..., k].max()
      expected = 255 * (maps[..., k] - low) / max(high - low, 1e-12)
      np.testing.assert_allclose(held, expected, atol=0.51)
  kernel = np.asarray(model.members[0]["features"]["conv1"]["kernel"])
  (axes,) = figures.FIGURES["filters"](seen).axes
  sheet = drawings.tile_filters(kernel, model.config.network.towers)
  np.testing.assert_array_equal(axes.images[0].get_array(), sheet)


def test_bad_command_is_refused(look, place, tmp_path, capsys):
  output = tmp_path / "o"
  flags = f"--workdir={place / 'run'}", f"--output={output}", "--only=x"
  result = run_in_process(capsys, "figures", *flags)
  assert_refused(result, "--only='x' is not known")
  assert not output.exists()
  model = look[0].model
  bad = types.SimpleNamespace(image="no.png")
  with pytest.raises(errors.InputError, match=r"'no.png' cannot be .*No such"):
    figures.FigureContext(model, bad).image  # noqa: B018
  bad = types.SimpleNamespace(image="", data_dir="", split="none")
  with pytest.raises(errors.InputError, match=r"--split.*none"):
    figures.FigureContext(model, bad).image  # noqa: B018
  write_run(tmp_path / "run", small_config(ensemble=2), seeds=(0, 1))
  with pytest.raises(errors.InputError, match="ensemble of 2 nets"):
    inference.load_single(tmp_path / "run")


def test_filters_of_a_net_with_branches_are_those_of_conv1():
  network = networks.from_config(run131.get_config())
  layers = {name: {} for name in networks.layer_names(network)}
  layers["conv1"]["kernel"] = np.zeros((11, 11, 3, 64), np.float32)
  net = types.SimpleNamespace(network=network)
  model = types.SimpleNamespace(net=net, members=[{"features": layers}])
  context: Any = types.SimpleNamespace(model=model)
  (axes,) = figures.FIGURES["filters"](context).axes
  assert axes.texts[0].get_text().startswith("tower 1: 32 filters")
