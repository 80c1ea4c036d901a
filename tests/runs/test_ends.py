"""Runs that would train on rubbish, or for ever, and what they end with."""

import math
import os
import signal
import time
import types

import numpy as np
import pytest
from commands import assert_refused
from tfds_files import encoded, noise, write
from tiny_runs import (
  finish,
  records,
  run,
  start_quick,
  train,
  train_quick,
)

from alexnet_jax.data import batches
from alexnet_jax.runs import checkpoint, ends
from alexnet_jax.runtime import errors

pytestmark = pytest.mark.slow


# Each makes what it sees some ten million times larger, as far as fc8.
OVERFLOWING = {
  f"network.{name}.sigma": 1e6
  for name in ("conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
}


def test_loss_that_is_not_finite_names_the_arrays(data, tmp_path):
  result = train(tmp_path / "run", data, **OVERFLOWING)
  assert_refused(
    result,
    "loss is nan at step 1 (gradients that are not finite: fc8/bias, fc8/k",
    "and 11 more), with a learning rate of 0.01; lower --config.learning_rate",
    "There is no checkpoint yet",
  )


def test_member_that_has_ended_may_diverge():
  """The others go on; a member that still trains ends the run by its name."""
  plateau = types.SimpleNamespace(stopped=np.array([True, False]))
  config = types.SimpleNamespace(skip_nonfinite_steps=1)
  printed = []
  run = types.SimpleNamespace(
    plateau=plateau, config=config, progress=checkpoint.Progress({}, {}),
    log=types.SimpleNamespace(print=printed.append),
  )  # fmt: skip

  def is_finite(losses, nonfinite):
    sums = {"loss": np.array(losses), "examples": np.array([16.0, 16.0])}
    sums["nonfinite"] = np.array(nonfinite)
    return ends.is_finite(run, 5, sums)

  assert is_finite([np.nan, 3.0], [[1, 1], [0, 0]])
  assert not printed
  assert not is_finite([3.0, np.inf], [[0, 0], [0, 0]])
  assert "loss of member 1 is inf at step 5" in printed[0]
  assert run.progress.skipped == 1


def test_steps_that_are_not_finite_are_left_out_up_to_a_bound(data, tmp_path):
  workdir = tmp_path / "run"
  fields = {**OVERFLOWING, "skip_nonfinite_steps": 3}
  result = train(workdir, data, checkpoint_every_steps=1, **fields)
  assert_refused(result, "at step 4", "The newest checkpoint is that of step 3")
  lines = [x for x in result.stdout.splitlines() if x.startswith("WARNING")]
  assert [f"step {i}" in line for i, line in enumerate(lines, 1)] == [True] * 3
  # The count is kept: the same command has none left.
  again = train(workdir, data, checkpoint_every_steps=1, **fields)
  assert_refused(again, "at step 4")


def test_net_that_learns_nothing_is_told_of_with_the_usual_causes(
  data, tmp_path
):
  """Weights of nothing give every class the same chance, at any rate of 0."""
  workdir = tmp_path / "run"
  dead = {
    **{f"network.{name}.sigma": 1e-9 for name in ("fc6", "fc8")},
    "learning_rate": 1e-12,
    "check_learning_after_steps": 5,
  }
  result = train_quick(workdir, data, **dead)
  assert_refused(
    result,
    "learns nothing",
    "at step 6 of 12 its loss is 2.3026",
    "learning_rate=1e-12",
    "sigma",
    "labels",
  )
  assert [r["step"] for r in records(workdir) if r["split"] == "train"] == [
    2, 4, 6,
  ]  # fmt: skip
  assert records(workdir)[-1]["loss"] == pytest.approx(math.log(10), abs=1e-4)
  # It may go on where the user says so.
  result = train_quick(
    workdir, data, **dead | {"check_learning_after_steps": 0}
  )
  assert result.returncode == 0, result.stderr


def test_iterator_that_is_slow_is_waited_for_and_one_that_hangs_is_not():
  def numbers():
    yield 1
    time.sleep(0.2)
    yield 2
    time.sleep(3)
    yield 3

  in_time = batches.with_timeout(numbers(), 1.0)
  assert [next(in_time), next(in_time)] == [1, 2]
  with pytest.raises(errors.InputTimeoutError, match="input_timeout_s=1"):
    next(in_time)
  assert list(batches.with_timeout(iter("ab"), 1.0)) == ["a", "b"]


def test_timeout_of_the_iterator_itself_is_its_own():
  def failing():
    raise TimeoutError("of the disk")
    yield

  with pytest.raises(TimeoutError, match="of the disk"):
    next(batches.with_timeout(failing(), 1.0))


@pytest.mark.parametrize("is_stopped", [False, True])
def test_input_that_stalls_ends_the_run_which_goes_on_from_there(
  is_stopped, tmp_path
):
  """The file of the images becomes a pipe that nobody writes to."""
  images = [
    {"image": encoded(noise(i, 32, 32, 3)), "label": i % 3} for i in range(64)
  ]
  directory = write(tmp_path / "data", {"train": [images]}, kind="tfrecord")
  (file,) = directory.glob("*.tfrecord-*")
  workdir = tmp_path / "run"
  fields = {
    "num_classes": 3,
    "validation_split": "",
    "test_split": "",
    "device_cache_fraction": 0.0,
    "checkpoint_every_steps": 10**6,
    "input_timeout_s": 300.0 if is_stopped else 3.0,
    "total_steps": 300,
    "check_learning_after_steps": 0,  # There is nothing to learn.
  }
  often = {**fields, "checkpoint_every_steps": 2}
  process = start_quick(workdir, directory, **often)
  line = ""
  while "step 2/" not in line:
    line = process.stdout.readline()
    assert line, process.communicate()
  os.mkfifo(directory / "pipe")
  file.rename(directory / "aside")
  (directory / "pipe").rename(file)
  if is_stopped:
    time.sleep(2)  # Till what was read before is used up.
    process.send_signal(signal.SIGTERM)
  result = finish(process)
  if is_stopped:
    assert_refused(result, "no batch of images", "before the run was stopped")
  else:
    words = "no batch of images", "input_timeout_s=3", "data_dir"
    assert_refused(result, *words)
  newest = checkpoint.steps_of(workdir)[-1]
  (directory / "aside").rename(file)
  result = train_quick(workdir, directory, **fields)
  assert result.returncode == 0, result.stderr
  assert f"resuming from step {newest} of 300" in result.stdout
  assert [r["step"] for r in records(workdir)] == list(range(2, 301, 2))
  whole = train_quick(tmp_path / "whole", directory, **fields)
  assert whole.returncode == 0, whole.stderr
  same = [
    run("checkpoint", "digest", f"--workdir={folder}").stdout
    for folder in (workdir, tmp_path / "whole")
  ]
  assert "params of step 300" in same[0]
  assert same[0] == same[1]
