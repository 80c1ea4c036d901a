"""Fine-tuning: what is taken from the other run, what is drawn, what learns."""

import json
import shutil

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from commands import assert_refused
from drawn_runs import NAMES, small_config, write_run
from tfds_files import encoded, noise, write
from tiny_runs import newest_params, records, run

from alexnet_jax.data.prepare import shapes
from alexnet_jax.runs import checkpoint
from alexnet_jax.runtime.errors import InputError

SCALE = (0.5, 0.25, 0.5)
LAYERS = {
  "network.layers": ("conv1", "conv3", "fc6", "fc8"),
  "network.conv1.kernel": 5,
  "network.conv1.stride": 2,
  "image_size_px": 32,
  "crop_size_px": 28,
  "input_scale": SCALE,
}
WHOLE = {
  "validation_split": "",
  "test_split": "",
  "batch_size": 16,
  "schedule": "epochs",
}


FROZEN = {
  "learning_rate_of_layers": "((0.0, 'conv1', 0.0),)",
  "network.dropout_rate": 0.25,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A run of six classes, and 48 images of three other ones and of six."""
  place = tmp_path_factory.mktemp("place")
  config = small_config(**LAYERS, **WHOLE)
  (params,), mean = write_run(place / "source", config)
  for classes in (3, 6):
    images = [
      {"image": encoded(noise(i, 32, 32, 3)), "label": i % classes}
      for i in range(48)
    ]
    label = tfds.features.ClassLabel(num_classes=classes)
    features = {"image": tfds.features.Image(encoding_format="png")}
    directory = place / f"data{classes}"
    write(directory, {"train": [images]}, features | {"label": label})
  return place, params, mean


def finetune(place, workdir, classes=3, **fields):
  fields = {
    "init_from": place / "source",
    "data_dir": place / f"data{classes}",
    "num_classes": classes,
    "total_steps": 2,
    "log_every_steps": 1,
    **WHOLE,
    **fields,
  }
  config = "--config=configs/finetune.py"
  return run("train", config, f"--workdir={workdir}", **fields)


@pytest.fixture(scope="module")
def finetuned(place):
  place, _, _ = place
  result = finetune(place, place / "tuned", **FROZEN)
  assert result.returncode == 0, result.stderr
  return result


def test_net_and_input_are_those_of_the_source(place, finetuned):
  place, _, mean = place
  assert f"conv1, conv3, fc6 from {place / 'source'}" in finetuned.stdout
  assert "fc8 drawn anew" in finetuned.stdout
  held, source = (
    json.loads((place / name / "config.json").read_text())
    for name in ("tuned", "source")
  )
  # But for what was asked for, and the new classes.
  expected = source["network"] | {"dropout_rate": 0.25}
  expected["fc8"] = expected["fc8"] | {"units": 3}
  assert held["network"] == expected
  for field in ("image_size_px", "crop_size_px", "input_scale"):
    assert held[field] == source[field]
  assert held["reinit_layers"] == ["fc8"]
  assert held["learning_rate_of_reinit_layers"] == 10
  np.testing.assert_array_equal(np.load(place / "tuned/mean_image.npy"), mean)


def test_frozen_layers_stay_and_the_others_learn(place, finetuned):
  place, params, _ = place
  found = newest_params(place / "tuned")
  for stack, name, stays in (
    ("features", "conv1", True),
    ("features", "conv3", False),
    ("classifier", "fc6", False),
  ):
    for part in ("kernel", "bias"):
      same = found[stack][name][part] == params[stack][name][part]
      assert same.all() == stays, (name, part)
    ours = found[stack][name]["kernel"]
    theirs = params[stack][name]["kernel"]
    # They began there.
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.8
  assert found["classifier"]["fc8"]["kernel"].shape == (32, 3)


def test_a_finetuned_run_goes_on_without_its_source(place, tmp_path):
  """It has all that the source gave it."""
  place, _, _ = place
  source = tmp_path / "source"
  shutil.copytree(place / "source", source)
  fields = {"init_from": source, "checkpoint_every_steps": 1, **FROZEN}
  whole = finetune(place, tmp_path / "whole", total_steps=3, **fields)
  assert whole.returncode == 0, whole.stderr
  begun = tmp_path / "begun"
  shutil.copytree(tmp_path / "whole", begun)
  shutil.rmtree(begun / "checkpoints" / "3")
  shutil.rmtree(source)
  result = finetune(place, begun, total_steps=3, **fields)
  assert result.returncode == 0, result.stderr
  assert "going on from step 2 of 3" in result.stdout
  for ours, theirs in zip(
    jax.tree.leaves(newest_params(begun)),
    jax.tree.leaves(newest_params(tmp_path / "whole")),
    strict=True,
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_as_many_classes_are_new_classes_all_the_same(place):
  place, params, _ = place
  result = finetune(place, place / "six", classes=6, total_steps=1)
  assert result.returncode == 0, result.stderr
  ours = newest_params(place / "six")["classifier"]["fc8"]["kernel"]
  theirs = params["classifier"]["fc8"]["kernel"]
  assert ours.shape == theirs.shape == (32, len(NAMES))
  assert abs(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]) < 0.5


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    ({"init_from": ""}, ["init_from=''", "--config.init_from=DIR"]),
    ({"init_from": "nowhere"}, ["'nowhere'", "no run"]),
    ({"reinit_layers": "('fc9',)"}, ["reinit_layers='fc9'", "fc8"]),
    ({"num_classes": 4}, ["num_classes=4", "has 3"]),
  ],
)
def test_what_cannot_be_started_from_is_refused(fields, said, place, tmp_path):
  place, _, _ = place
  result = finetune(place, tmp_path / "run", **fields)
  assert_refused(result, *said)
  assert not (tmp_path / "run").exists()


# Four layers that learn five shapes in a few hundred steps.
LEARNER = {
  **LAYERS,
  **{f"network.{name}.bias": 0.0 for name in ("conv1", "conv3", "fc6")},
  "network.conv1.filters": 16,
  "network.conv1.sigma": 0.15,
  "network.conv3.filters": 32,
  "network.conv3.sigma": 0.1,
  "network.fc6.units": 64,
  "network.fc6.sigma": 0.04,
  "network.dropout_rate": 0.0,
  "input_scale": (0.016,) * 3,
}


def test_a_net_of_other_classes_is_a_better_start_than_drawn_weights(tmp_path):
  """For each of five seeds, after as many steps at the same rates."""
  for half in (0, 1):
    drawings = (shapes.draw(5 * half + i % 5, (i,), 32) for i in range(1250))
    images = [
      {"image": encoded(drawing), "label": i % 5}
      for i, drawing in enumerate(drawings)
    ]
    label = tfds.features.ClassLabel(num_classes=5)
    features = {"image": tfds.features.Image(encoding_format="png")}
    write(
      tmp_path / f"half{half}",
      {"train": [images[:1000]], "test": [images[1000:]]},
      features | {"label": label},
    )
  own = {
    **WHOLE,
    "test_split": "test",
    "test_views": 1,
    "num_classes": 5,
    "learning_rate": 0.01,
  }
  whole = own | LEARNER
  first = {"data_dir": tmp_path / "half0", "total_steps": 500}
  then = {"data_dir": tmp_path / "half1", "total_steps": 60, "ensemble": 5}
  tuned = {
    "init_from": tmp_path / "source",
    "learning_rate_of_reinit_layers": 1,
  }
  config = "--config=configs/finetune.py"
  for name, words, fields in (
    ("source", [], whole | first),
    ("drawn", [], whole | then),
    ("tuned", [config], own | then | tuned),
  ):
    result = run("train", *words, f"--workdir={tmp_path / name}", **fields)
    assert result.returncode == 0, result.stderr
  errors = {
    name: {
      record["member"]: record["top1_error"]
      for record in records(tmp_path / name)
      if record["split"] == "test" and "member" in record
    }
    for name in ("drawn", "tuned")
  }
  assert set(errors["tuned"]) == set(range(5))
  for member, error in errors["tuned"].items():
    assert error < errors["drawn"][member] - 0.05


def test_weights_alone_cannot_go_on(place):
  place, _, _ = place
  with pytest.raises(InputError, match=r"no state to go on.*init_from="):
    checkpoint.restore(place / "source", 0, None)
