"""Fine-tuning: what is taken from the other run, what is drawn, what learns."""

import json
import shutil

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from drawn_runs import NAMES, small_config, write_run
from tfds_files import encoded, noise, write
from tiny_runs import newest_params, records, run

from alexnet_jax.configs import finetune
from alexnet_jax.data.prepare import shapes
from alexnet_jax.runs import checkpoint, trained
from alexnet_jax.runtime.errors import InputError

pytestmark = pytest.mark.slow  # It starts processes.
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


def write_images(folder, classes, **splits):
  """Writes splits of (drawn image, label)."""
  splits = {
    name: [[{"image": encoded(x), "label": label} for x, label in images]]
    for name, images in splits.items()
  }
  image = tfds.features.Image(encoding_format="png")
  label = tfds.features.ClassLabel(num_classes=classes)
  write(folder, splits, {"image": image, "label": label})


def tune(place, workdir):
  return run(
    "train", "--config=configs/finetune.py", f"--workdir={workdir}",
    init_from=place / "source", data_dir=place / "data", num_classes=3,
    total_steps=3, checkpoint_every_steps=1, log_every_steps=1,
    learning_rate_of_layers="((0.0, 'conv1', 0.0),)",
    **{"network.dropout_rate": 0.25}, **WHOLE,
  )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A run of six classes, and one that starts from it on images of three."""
  place = tmp_path_factory.mktemp("place")
  (params,), mean = write_run(place / "source", small_config(**LAYERS, **WHOLE))
  images = [(noise(i, 32, 32, 3), i % 3) for i in range(48)]
  write_images(place / "data", 3, train=images)
  result = tune(place, place / "tuned")
  assert result.returncode == 0, result.stderr
  return place, params, mean, result.stdout


def test_net_and_input_are_those_of_the_source(place):
  place, _, mean, printed = place
  assert f"conv1, conv3, fc6 from {place / 'source'}" in printed
  assert "fc8 drawn anew" in printed
  tuned, source = (
    json.loads((place / name / "config.json").read_text())
    for name in ("tuned", "source")
  )
  # Except for the override and the new classes.
  expected = source["network"] | {"dropout_rate": 0.25}
  expected["fc8"] = expected["fc8"] | {"units": 3}
  assert tuned["network"] == expected
  for field in ("image_size_px", "crop_size_px", "input_scale"):
    assert tuned[field] == source[field]
  assert tuned["reinit_layers"] == ["fc8"]
  assert tuned["learning_rate_of_reinit_layers"] == 10
  np.testing.assert_array_equal(np.load(place / "tuned/mean_image.npy"), mean)


def test_frozen_layers_stay_and_the_others_learn(place):
  place, params, _, _ = place
  found = newest_params(place / "tuned")
  for half, name, stays in (
    ("features", "conv1", True),
    ("features", "conv3", False),
    ("classifier", "fc6", False),
  ):
    for part in ("kernel", "bias"):
      same = found[half][name][part] == params[half][name][part]
      assert same.all() == stays, (name, part)
    ours, theirs = found[half][name]["kernel"], params[half][name]["kernel"]
    # They began there.
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.8
  assert found["classifier"]["fc8"]["kernel"].shape == (32, 3)


def test_a_finetuned_run_resumes_without_its_source(place, tmp_path):
  place, _, _, _ = place
  shutil.copytree(place / "tuned", tmp_path / "begun")
  shutil.rmtree(tmp_path / "begun" / "checkpoints" / "3")
  (place / "source").rename(place / "moved")
  try:
    result = tune(place, tmp_path / "begun")
  finally:
    (place / "moved").rename(place / "source")
  assert result.returncode == 0, result.stderr
  assert "resuming from step 2 of 3" in result.stdout
  ours, theirs = (
    newest_params(folder) for folder in (tmp_path / "begun", place / "tuned")
  )
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_as_many_classes_are_new_classes_too(place, tmp_path):
  place, params, _, _ = place
  config = finetune.get_config().unlock()
  config.init_from, config.num_classes = str(place / "source"), len(NAMES)
  config = trained.with_pretrained_net(config, {}, tmp_path)
  drawn = jax.tree.map(np.zeros_like, params)
  (found,), origin = trained.load_pretrained(config, [drawn])
  assert origin == f"conv1, conv3, fc6 from {place / 'source'}; fc8 drawn anew"
  assert not found["classifier"]["fc8"]["kernel"].any()


def test_finetuning_subtracts_the_part_of_the_mean_image_that_the_run_did(
  place, tmp_path
):
  place, *_ = place
  workdir = tmp_path / "centre"
  shutil.copytree(place / "source", workdir)
  saved = json.loads((workdir / "config.json").read_text())
  text = json.dumps(saved | {"mean_crop": "centre"})
  (workdir / "config.json").write_text(text)
  config = finetune.get_config().unlock()
  config.init_from = str(workdir)
  config = trained.with_pretrained_net(config, {}, tmp_path / "new")
  assert config.mean_crop == "centre"


def test_what_cannot_be_started_from_is_refused(place, tmp_path):
  place, params, _, _ = place
  config = finetune.get_config().unlock()
  config.init_from = ""
  with pytest.raises(InputError, match=r"init_from=''.*--config.init_from=DIR"):
    trained.with_pretrained_net(config, {}, tmp_path)
  config.init_from = str(place / "nowhere")
  with pytest.raises(InputError, match="nowhere' holds no run"):
    trained.load_pretrained(config, [params])
  with pytest.raises(InputError, match=r"cannot resume .*init_from="):
    checkpoint.restore(place / "source", 0, None)


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
  """For each of three seeds, after as many steps at the same rates."""
  for half in (0, 1):
    images = [
      (shapes.draw(5 * half + i % 5, (i,), 32), i % 5) for i in range(600)
    ]
    folder = tmp_path / f"half{half}"
    write_images(folder, 5, train=images[:480], test=images[480:])
  common = {
    **WHOLE,
    "test_split": "test",
    "test_views": 1,
    "num_classes": 5,
    "learning_rate": 0.01,
  }
  first = {"data_dir": tmp_path / "half0", "total_steps": 200}
  then = {"data_dir": tmp_path / "half1", "total_steps": 40, "ensemble": 3}
  tuned = {
    "init_from": tmp_path / "source",
    "learning_rate_of_reinit_layers": 1,
  }
  config = "--config=configs/finetune.py"
  for name, words, fields in (
    ("source", [], common | LEARNER | first),
    ("drawn", [], common | LEARNER | then),
    ("tuned", [config], common | then | tuned),
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
  assert set(errors["tuned"]) == set(range(3))
  for member, error in errors["tuned"].items():
    assert error < errors["drawn"][member] - 0.05
