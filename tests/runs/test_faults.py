"""Runs that are killed, damaged, told to stop or out of room, and go on.

The oracle is a run that was let alone: the same parameters bit for bit, read by
Orbax alone, and the same lines but for what depends on time.
"""

import random
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from commands import assert_refused
from limits import no_file_grows_beyond
from tiny_runs import finish as finish_process
from tiny_runs import newest_params, records, start_quick, train_quick

from alexnet_jax.data.prepare import shapes
from alexnet_jax.runs import checkpoint

pytestmark = pytest.mark.slow
EVALUATE_EVERY = 10
FIELDS = {
  "total_steps": 60,
  "check_learning_after_steps": 0,
  "log_every_steps": 5,
  "checkpoint_every_steps": 13,
  "evaluate_every_epochs": 1.0,
}
COUNTS = {"train": 16 * EVALUATE_EVERY, "validation": 240, "test": 240}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """More images than the tiny runs have: time to kill."""
  directory = tmp_path_factory.mktemp("data") / "shapes"
  shapes.generate(directory, size_px=32, workers=0, **COUNTS)
  return directory


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
  """The run that was let alone."""
  workdir = tmp_path_factory.mktemp("run") / "alone"
  result = train_quick(workdir, data, **FIELDS)
  assert result.returncode == 0, result.stderr
  return workdir


@pytest.fixture
def start(data, alone):
  """Starts the command; what a test leaves is killed."""
  running = []

  def begin(workdir):
    running.append(start_quick(workdir, data, **FIELDS))
    return running[-1]

  yield begin
  for process in running:
    with process:
      process.kill()


def assert_same(workdir, alone):
  ours, theirs = (
    [{**each, "images_per_second": 0, "input_wait": 0} for each in found]
    for found in (records(workdir), records(alone))
  )
  assert ours == theirs
  ours, theirs = newest_params(workdir), newest_params(alone)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert checkpoint.latest_valid(workdir) == FIELDS["total_steps"]


def finish(process):
  result = finish_process(process)
  assert result.returncode == 0, result.stderr
  return result


def wait_for(found, process):
  """Waits for something of a run; returns whether the run has not ended."""
  deadline = time.monotonic() + 240
  while not found():
    if process.poll() is not None:
      return False
    assert time.monotonic() < deadline
    time.sleep(0.001)
  return True


def last_record(workdir):
  """The newest whole line, as the run may be writing the next."""
  file = workdir / "metrics.jsonl"
  lines = file.read_text().split("\n")[:-1] if file.exists() else []
  found = re.findall(r'"step": (\d+).*"split": "(\w+)"', "\n".join(lines))
  return (int(found[-1][0]), found[-1][1]) if found else (0, "")


def is_saving(workdir):
  return any((workdir / "checkpoints").glob("*.unfinished*"))


def is_evaluating(workdir, after=0):
  """The line of training is written before, that of the evaluation after it."""
  step, split = last_record(workdir)
  return split == "train" and step > after and step % EVALUATE_EVERY == 0


def test_run_killed_again_and_again_ends_in_the_same_bits(
  alone, start, tmp_path
):
  """While it saves, evaluates, trains and starts."""
  rng, workdir, kills = random.Random(0), tmp_path / "run", 0
  for moment in ("saving", "evaluating", "training", "starting"):
    before, _ = last_record(workdir)
    found, most_s = {
      "starting": (lambda: True, 3),
      "training": (lambda last=before: last_record(workdir)[0] > last, 0.3),
      "saving": (lambda: is_saving(workdir), 0.08),
      "evaluating": (lambda last=before: is_evaluating(workdir, last), 0.15),
    }[moment]
    process = start(workdir)
    if wait_for(found, process):
      time.sleep(rng.uniform(0, most_s))
      kills += process.poll() is None
    process.kill()
    process.communicate()
  assert kills == 4
  result = finish(start(workdir))
  assert "WARNING" not in result.stdout + result.stderr
  assert "to the bit" not in result.stdout
  assert_same(workdir, alone)


def test_run_goes_on_from_the_step_before_a_damaged_one(alone, start, tmp_path):
  workdir = shutil.copytree(alone, tmp_path / "run")
  newest = workdir / "checkpoints" / "60"
  file = next(newest.glob("params/ocdbt.process_0/d/*"))
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)
  result = finish(start(workdir))
  (line,) = (x for x in result.stderr.splitlines() if "WARNING" in x)
  assert "step 60 is damaged" in line
  assert file.name in line
  assert (workdir / "checkpoints/60.damaged-1").is_dir()
  assert "resuming from step 52" in result.stdout
  assert_same(workdir, alone)


def test_run_goes_on_with_the_shards_that_it_had(data, alone, tmp_path):
  """One shard of other pictures: the mean image does not show it."""
  mixed = shutil.copytree(data, tmp_path / "mixed")
  other = tmp_path / "other" / data.name
  shapes.generate(other, size_px=32, seed=1, workers=0, **COUNTS)
  name = sorted(path.name for path in mixed.glob("*-validation.*"))[0]
  shutil.copy(other / name, mixed / name)
  workdir = shutil.copytree(alone, tmp_path / "run")
  assert_refused(
    train_quick(workdir, mixed, **FIELDS), name, "step 60", str(mixed)
  )
  assert_same(workdir, alone)


def test_run_on_a_full_disk_says_so_and_saves_when_there_is_room(
  alone, start, tmp_path
):
  """First it is told to stop meanwhile, and then it comes to its end."""
  workdir = tmp_path / "run"
  process = start(workdir)
  assert wait_for(lambda: checkpoint.steps_of(workdir), process)
  with no_file_grows_beyond(0, process.pid):
    process.send_signal(signal.SIGTERM)
    result = finish_process(process)
  newest = checkpoint.latest_valid(workdir)
  assert result.returncode == 1
  (line,) = (x for x in result.stderr.splitlines() if x.startswith("error:"))
  assert "could not be saved" in line
  assert f"that of step {newest}." in line

  process = start(workdir)
  assert wait_for(lambda: last_record(workdir)[0] > newest, process)
  # The line that comes next would fit in part.
  size = (workdir / "metrics.jsonl").stat().st_size + 50
  said = ""
  with no_file_grows_beyond(size, process.pid):
    while "step 60 could not be saved" not in said:
      line = process.stdout.readline()
      assert line
      said += line
    assert (workdir / "metrics.jsonl").read_bytes().endswith(b"\n")
  assert re.search(r"WARNING: \d+ lines of .*metrics.jsonl", said)
  finish(process)
  assert_same(workdir, alone)


def test_second_ctrl_c_ends_at_once(start, tmp_path):
  """Before the save that the first one asked for has come to its end."""
  workdir = tmp_path / "run"
  process = start(workdir)
  assert wait_for(lambda: checkpoint.steps_of(workdir), process)
  process.send_signal(signal.SIGINT)
  assert "Ctrl-C stops at once" in process.stderr.readline()
  process.send_signal(signal.SIGINT)
  result = finish_process(process)
  assert result.returncode == 130
  assert "interrupted" in result.stderr
  assert "Traceback" not in result.stderr
