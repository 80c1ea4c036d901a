"""The whole path as its users run it: real files, real processes."""

import io
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import oracles
import pytest
import tensorflow_datasets as tfds
from commands import assert_refused
from PIL import Image
from tiny_runs import (
  COUNTS,
  QUICK,
  TINY,
  command,
  newest_params,
  records,
  run,
  train,
  train_quick,
)

from alexnet_jax.configs import quickstart
from alexnet_jax.data.prepare import shapes
from alexnet_jax.runs import trained
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.tools.evaluate import evaluate_runs
from alexnet_jax.train import train_and_evaluate

pytestmark = pytest.mark.slow  # It starts processes.


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run") / "tiny"
  result = train(workdir, data)
  assert result.returncode == 0, result.stderr
  return workdir, result


def test_run_writes_what_it_promises(finished):
  workdir, result = finished
  config = json.loads((workdir / "config.json").read_text())
  assert config["batch_size"] == 16
  assert config["network"]["conv1"]["filters"] == 8
  assert config["network"]["conv1"]["then"] == [
    "activation",
    "lrn",
    "max_pool",
  ]
  fields = {
    "step",
    "epoch",
    "split",
    "loss",
    "top1_error",
    "top5_error",
    "images_per_second",
    "learning_rate",
  }
  found = records(workdir)
  for record in found:
    training = {"input_wait"} if record["split"] == "train" else set()
    assert set(record) == fields | training
    assert 0 <= record.get("input_wait", 0) < 1
  assert [r["step"] for r in found if r["split"] == "train"] == [
    2, 4, 6, 8, 10, 12,
  ]  # fmt: skip
  # 160 images in batches of 16: half an epoch is 5 steps, and the end.
  assert [r["step"] for r in found if r["split"] == "validation"] == [5, 10, 12]
  assert [r["step"] for r in found if r["split"] == "test"] == [12]
  assert [r["epoch"] for r in found if r["split"] == "test"] == [1.2]
  for record in found:
    assert 0 <= record["top5_error"] <= record["top1_error"] <= 1
    assert record["learning_rate"] == pytest.approx(0.01)
    assert record["images_per_second"] > 0
  assert list((workdir / "tensorboard").glob("events.out.tfevents*"))
  assert str(workdir) in result.stdout
  assert "step 12/12" in result.stdout


def test_tensorboard_holds_the_losses(finished):
  workdir, _ = finished
  from tensorboardX.proto import event_pb2

  (file,) = (workdir / "tensorboard").iterdir()
  data, found = file.read_bytes(), {}
  while data:  # length, its CRC, event, its CRC
    length = int.from_bytes(data[:8], "little")
    event = event_pb2.Event.FromString(data[12 : 12 + length])
    data = data[16 + length :]
    for value in event.summary.value:
      found[value.tag, event.step] = value.simple_value
  for record in records(workdir):
    key = f"{record['split']}/loss", record["step"]
    assert found[key] == pytest.approx(record["loss"], rel=1e-6)


def test_training_leaves_torch_alone():
  """It takes longer to import than all the rest, and may be there or not."""
  pytest.importorskip("torch")
  code = "import sys, alexnet_jax.train; print('torch' in sys.modules)"
  command = [sys.executable, "-c", f"{code}; import torch"]
  result = subprocess.run(command, capture_output=True, text=True)
  assert (result.returncode, result.stdout) == (0, "False\n"), result.stderr


def test_evaluate_counts_the_whole_test_split(finished, data):
  """The oracle: numpy's net on the stored images, with Orbax's arrays."""
  workdir, _ = finished
  result = run("evaluate", f"--workdir={workdir}")
  assert result.returncode == 0, result.stderr
  examples = tfds.builder_from_directory(data).as_data_source(
    "test", decoders={"image": tfds.decode.SkipDecoding()}
  )
  labels = np.array([example["label"] for example in examples])
  images = np.stack(
    [np.asarray(Image.open(io.BytesIO(e["image"]))) for e in examples]
  )
  images = images - np.load(data / "mean_image.npy")
  # The tiny net has another conv1 than the oracle's: 5x5 with stride 1.
  params = newest_params(workdir)
  logits = tiny_logits(params, images[:, 2:30, 2:30])
  error = oracles.top_k_errors(logits, labels, 1).mean()
  loss = oracles.cross_entropy(logits, labels).mean()
  assert f"top-1 error {error:.2%}" in result.stdout
  assert f"loss {loss:.4f}" in result.stdout
  assert "50 images" in result.stdout
  (record,) = (r for r in records(workdir) if r["split"] == "test")
  assert record["top1_error"] == pytest.approx(error)
  assert record["loss"] == pytest.approx(loss, rel=1e-4)


def tiny_logits(params, x):
  def conv(x, name, stride, padding, towers):
    layer = params["features"][name]
    y = oracles.conv(x, layer["kernel"], layer["bias"], stride, padding, towers)
    return np.maximum(y, 0)

  x = conv(x, "conv1", 1, 0, 1)
  x = oracles.max_pool(oracles.local_response_norm(x, 2), 3, 2)
  x = conv(x, "conv2", 1, 2, 2)
  x = oracles.max_pool(oracles.local_response_norm(x, 2), 3, 2)
  x = conv(conv(x, "conv3", 1, 1, 1), "conv4", 1, 1, 2)
  x = oracles.max_pool(conv(x, "conv5", 1, 1, 2), 3, 2).reshape(len(x), -1)
  fc = params["classifier"]
  for name in ("fc6", "fc7"):
    x = 0.5 * np.maximum(x @ fc[name]["kernel"] + fc[name]["bias"], 0)
  return x @ fc["fc8"]["kernel"] + fc["fc8"]["bias"]


def test_finished_run_says_so_and_changes_nothing(finished, data):
  workdir, _ = finished
  before = (workdir / "metrics.jsonl").read_bytes()
  result = train(workdir, data)
  assert result.returncode == 0, result.stderr
  assert "finished" in result.stdout
  assert (workdir / "metrics.jsonl").read_bytes() == before


def test_killed_run_goes_on_bit_for_bit(finished, data, tmp_path):
  workdir, _ = finished
  killed = tmp_path / "killed"
  arguments = command("train", f"--workdir={killed}", data_dir=data, **TINY)
  process = subprocess.Popen(**arguments, stdout=subprocess.DEVNULL)
  deadline = time.monotonic() + 120
  while not list(killed.glob("checkpoints/[0-9]*")):
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  result = train(killed, data)
  assert result.returncode == 0, result.stderr
  timeless = [
    [{**r, "images_per_second": 0, "input_wait": 0} for r in records(w)]
    for w in (workdir, killed)
  ]
  # A record may average over fewer steps after a kill; none is lost.
  assert [(r["step"], r["split"]) for r in timeless[0]] == [
    (r["step"], r["split"]) for r in timeless[1]
  ]
  assert timeless[0][-1] == timeless[1][-1]
  for ours, theirs in zip(
    jax.tree.leaves(newest_params(workdir)),
    jax.tree.leaves(newest_params(killed)),
    strict=True,
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_data_may_live_on_the_device_or_be_streamed(finished, data, tmp_path):
  """Catches another order of the examples, or other pixels or labels."""
  workdir, _ = finished
  config = json.loads((workdir / "config.json").read_text())
  assert config["device_cache_fraction"] > 0
  result = train(tmp_path / "run", data, device_cache_fraction=0.0)
  assert result.returncode == 0, result.stderr
  for ours, theirs in zip(
    jax.tree.leaves(newest_params(tmp_path / "run")),
    jax.tree.leaves(newest_params(workdir)),
    strict=True,
  ):
    np.testing.assert_array_equal(ours, theirs)


# The command as it is where convolutions in loops are quick.
LOOPING = """
from alexnet_jax import main
from alexnet_jax.parallel import train_loop
from alexnet_jax.runtime import cli, platforms
platforms.UNROLLING = ()
make = train_loop.make_train_loop

def make_and_print(*args):
  loop = make(*args)
  def run(state, pool, index, count):
    print("together:", count)
    return loop(state, pool, index, count)
  return run

train_loop.make_train_loop = make_and_print
cli.run(main.main, main.define_flags)
"""


@pytest.mark.parametrize("count", [1, 2])
def test_steps_in_one_program_are_those_taken_one_by_one(count, data, tmp_path):
  """Catches lost or repeated batches, of one net or of two on two devices."""
  one, looped = tmp_path / "one", tmp_path / "looped"
  fields = QUICK | {
    "data_dir": data,
    "ensemble": count,
    "total_steps": 8,
    "steps_per_call": 5,
    "log_every_steps": 7,
    "checkpoint_every_steps": 12,
    # Three steps, after which a net may end, also without a validation.
    "evaluate_every_epochs": 0.3,
    "validation_split": "",
  }
  options = command("train", f"--workdir={looped}", devices=count, **fields)
  options["args"][1:4] = ["-c", LOOPING]
  options["env"]["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
  for result in (
    run("train", f"--workdir={one}", devices=count, **fields),
    subprocess.run(**options, capture_output=True),
  ):
    assert result.returncode == 0, result.stderr
  assert re.findall(r"together: (\d+)", result.stdout) == ["3", "3", "1", "1"]
  timeless = [
    [{**r, "images_per_second": 0, "input_wait": 0} for r in records(w)]
    for w in (one, looped)
  ]
  for ours, theirs in zip(*timeless, strict=True):
    assert ours.pop("split") == theirs.pop("split")
    assert ours == pytest.approx(theirs, rel=1e-4)
  for ours, theirs in zip(
    jax.tree.leaves(newest_params(looped)),
    jax.tree.leaves(newest_params(one)),
    strict=True,
  ):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * scale)


def refused(workdir, *words, **fields):
  """Asserts that training ends with a line that holds the words."""
  config = quickstart.get_config()
  config.update_from_flattened_dict({**TINY, **fields})
  with pytest.raises(InputError) as refusal:
    train_and_evaluate(config, workdir)
  assert all(word in str(refusal.value) for word in words), refusal.value


def test_workdir_that_cannot_be_written_is_refused(data, tmp_path):
  (tmp_path / "file").write_text("")
  words = "run' cannot be written (Not a directory)", "choose another"
  refused(tmp_path / "file" / "run", *words, data_dir=str(data))


def test_run_goes_on_with_its_own_data_alone(finished, data, tmp_path):
  """Other pictures, prepared anew in the same place."""
  workdir, other = tmp_path / "run", tmp_path / "data"
  shutil.copytree(finished[0], workdir)
  shapes.generate(other, size_px=32, seed=1, workers=0, **COUNTS)
  config = json.loads((workdir / "config.json").read_text())
  config["data_dir"] = str(other)
  (workdir / "config.json").write_text(json.dumps(config))
  refused(workdir, str(other), "Put the data back", data_dir=str(other))


def test_names_of_the_classes_travel_with_the_run(finished, data):
  workdir, _ = finished
  (labels,) = data.glob("*labels.txt")
  names = json.loads((workdir / "class_names.json").read_text())
  assert names == labels.read_text().split()


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"network.activation": "rleu"}, ["network.activation='rleu'", "'relu'"]),
    ({"batch_size": 168}, ["batch_size=168", "--config.batch_size=160"]),
    ({"num_classes": 12}, ["num_classes=12", "--config.num_classes=10"]),
    ({"image_size_px": 64}, ["image_size_px=64", "--config.image_size_px=32"]),
    ({"test_split": "tset"}, ["test_split='tset'", "test, train, validation"]),
    ({"init_from": "/nowhere"}, ["'/nowhere'", "holds no"]),
    ({"data_dir": "/nowhere"}, ["data_dir='/nowhere'", "prepare"]),
    (
      {"data_dir": "/tmp/shaeps", "generate_shapes": True},
      ["data_dir='/tmp/shaeps'", "prepare"],
    ),
    ({"batch_size": 12}, ["batch_size=12", "8 devices", "try 8 or 16"]),
  ],
)
def test_bad_config_is_refused_before_anything_is_written(
  fields, words, data, tmp_path
):
  workdir = tmp_path / "run"
  fields = {"generate_shapes": False, "data_dir": str(data), **fields}
  refused(workdir, *words, **fields)
  assert not workdir.exists()


def test_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(data, tmp_path):
  workdir = tmp_path / "run"
  result = train(
    workdir,
    data,
    learning_rate=0.0001,
    learning_rate_drop_epochs="(0.45,)",
    learning_rate_drop_factor=2e9,
    evaluate_every_epochs=9.0,
    checkpoint_every_steps=1,
  )
  assert_refused(result, "loss is nan at step", "lower --config", "checkpoint")
  kept = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
  assert max(kept) in (5, 6, 7)
  for leaf in jax.tree.leaves(newest_params(workdir)):
    assert np.isfinite(leaf).all()
  assert all(math.isfinite(record["loss"]) for record in records(workdir))


def test_run_lowers_its_rate_on_a_plateau_and_ends_there(data, tmp_path):
  """At this rate nothing improves: best, then a drop, then the end."""
  workdir = tmp_path / "run"
  fields = {
    "network.fc8.sigma": 0.5,  # The loss is not that of chance.
    "schedule": "plateau",
    "plateau_patience": 1,
    "plateau_drops": 1,
    "learning_rate": 1e-30,
    "evaluate_every_epochs": 0.1,
    "checkpoint_every_steps": 2,
  }
  result = train(workdir, data, **fields)
  assert result.returncode == 0, result.stderr
  found = records(workdir)
  assert [r["step"] for r in found if r["split"] == "validation"] == [1, 2, 3]
  assert [r["step"] for r in found if r["split"] == "train"] == [2, 3]
  (test,) = (r for r in found if r["split"] == "test")
  assert test["step"] == 3
  assert test["learning_rate"] == pytest.approx(1e-31, rel=1e-6, abs=0)
  assert "the rate drops" in result.stdout
  assert "the end" in result.stdout
  # Only the restored counters can tell the same command that this is the end.
  again = train(workdir, data, **fields)
  assert "finished" in again.stdout
  assert records(workdir) == found


def test_each_net_stops_where_its_training_error_is_low_enough(data, tmp_path):
  fields = {"total_steps": 40, "evaluate_every_epochs": 0.2}
  pair = {**fields, "ensemble": 2}
  result = train_quick(tmp_path / "free", data, **pair, log_every_steps=1)
  assert result.returncode == 0, result.stderr
  # Of each period of two steps.
  errors = [
    np.reshape(
      [
        r["top1_error"]
        for r in records(tmp_path / "free")
        if r["split"] == "train" and r.get("member") == member
      ],
      (20, 2),
    ).mean(axis=1)
    for member in (0, 1)
  ]

  def ends_at(target):
    return [
      min((2 * i for i, e in enumerate(found, 1) if e < target), default=40)
      for found in errors
    ]

  # Of which the nets end apart.
  target = next(
    e + 1e-6 for e in np.ravel(errors) if len({*ends_at(e + 1e-6)}) == 2
  )
  ends = ends_at(target)
  target_field = {"stop_at_train_error": target, "log_every_steps": 7}
  together = train_quick(tmp_path / "together", data, **pair, **target_field)
  assert together.returncode == 0, together.stderr
  found = records(tmp_path / "together")
  assert found[-1]["split"] == "test"
  assert found[-1]["step"] == max(ends)
  again = train_quick(tmp_path / "together", data, **pair, **target_field)
  assert "finished" in again.stdout
  assert records(tmp_path / "together") == found
  first = int(np.argmin(ends))
  result = train_quick(
    tmp_path / "one", data, **fields, **target_field, seed=first
  )
  assert result.returncode == 0, result.stderr
  assert records(tmp_path / "one")[-1]["step"] == ends[first]
  for ours, theirs in zip(
    jax.tree.leaves(newest_params(tmp_path / "together")),
    jax.tree.leaves(newest_params(tmp_path / "one")),
    strict=True,
  ):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours[first], theirs, rtol=0, atol=1e-4 * scale)


NARROWER = {"network.fc6.units": 16, "network.fc7.units": 16}


def test_run_starts_from_the_layers_of_another(finished, data, tmp_path):
  source, _ = finished
  fields = {"init_from": source, "learning_rate": 1e-30, "total_steps": 1}
  result = train(tmp_path / "run", data, **fields, **NARROWER)
  assert result.returncode == 0, result.stderr
  assert "fc6, fc7, fc8 drawn anew" in result.stdout
  theirs, ours = newest_params(source), newest_params(tmp_path / "run")
  for a, b in zip(
    jax.tree.leaves(theirs["features"]),
    jax.tree.leaves(ours["features"]),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  assert np.std(ours["classifier"]["fc7"]["kernel"]) == pytest.approx(
    0.05, rel=0.2
  )
  wider = {"conv1": {"kernel": np.zeros((5, 5, 3, 32)), "bias": np.zeros(32)}}
  drawn = {"features": wider, "classifier": {}}
  config = quickstart.get_config()
  config.init_from = str(source)
  with pytest.raises(InputError, match="no layer"):
    trained.load_pretrained(config, [drawn])


def test_evaluate_refuses_a_run_of_another_version(finished, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  config = json.loads((workdir / "config.json").read_text())
  del config["network"]["layers"]
  (workdir / "config.json").write_text(json.dumps(config))
  with pytest.raises(InputError, match=r"layers.*anew"):
    evaluate_runs([workdir])


@pytest.mark.parametrize("made", [False, True])
def test_evaluate_without_a_trained_run_is_refused(made, tmp_path, finished):
  if made:
    text = (finished[0] / "config.json").read_text()
    (tmp_path / "config.json").write_text(text)
  with pytest.raises(InputError, match=f"{tmp_path}.*train"):
    evaluate_runs([tmp_path])
  assert not (tmp_path / "checkpoints").exists()
