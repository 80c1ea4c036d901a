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
DAMAGES = ("one bit", "16 bytes", "4 KiB of zeros", "truncated", "missing")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
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

  def begin(workdir, **fields):
    running.append(start_quick(workdir, data, **{**FIELDS, **fields}))
    return running[-1]

  yield begin
  for process in running:
    with process:
      process.kill()


def timeless(workdir):
  return [
    {**record, "images_per_second": 0, "input_wait": 0}
    for record in records(workdir)
  ]


def assert_same(workdir, alone):
  assert timeless(workdir) == timeless(alone)
  ours, theirs = newest_params(workdir), newest_params(alone)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert checkpoint.newest_good(workdir) == (FIELDS["total_steps"], {})


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


# Kills.


def kill_when(moment, process, workdir, rng):
  """Kills a run at a random moment; returns whether it had not ended."""
  before, _ = last_record(workdir)
  found = {
    "starting": lambda: True,
    "training": lambda: last_record(workdir)[0] > before,
    "saving": lambda: is_saving(workdir),
    "evaluating": lambda: is_evaluating(workdir, before),
  }[moment]
  alive = wait_for(found, process)
  if alive:
    most = {"starting": 5, "training": 0.3, "saving": 0.08, "evaluating": 0.15}
    time.sleep(rng.uniform(0, most[moment]))
    alive = process.poll() is None
  process.kill()
  process.communicate()
  return alive


@pytest.mark.parametrize("seed", [0, 1])
def test_run_killed_again_and_again_ends_in_the_same_bits(
  seed, alone, start, tmp_path
):
  rng, workdir, kills = random.Random(seed), tmp_path / "run", 0
  moments = ["saving", "evaluating", "training", "starting", "saving"]
  for moment in moments:
    kills += kill_when(moment, start(workdir), workdir, rng)
  assert kills == 5
  finish(start(workdir))
  assert_same(workdir, alone)


def test_no_step_is_saved_before_the_lines_that_lead_to_it(start, tmp_path):
  """Room is made and a step is saved long before the next line is due."""
  workdir = tmp_path / "run"
  process = start(
    workdir,
    total_steps=120,
    log_every_steps=40,
    checkpoint_every_steps=3,
    evaluate_every_epochs=99.0,
  )
  assert wait_for(lambda: last_record(workdir)[0] == 40, process)
  size = (workdir / "metrics.jsonl").stat().st_size
  with no_file_grows_beyond(size, process.pid):
    line = ""
    while not re.search(r"lines of .*metrics.jsonl could not be", line):
      line = process.stdout.readline()
      assert line
  before = checkpoint.steps_of(workdir)[-1]
  assert wait_for(lambda: checkpoint.steps_of(workdir)[-1] > before, process)
  process.kill()
  process.communicate()
  assert 80 <= checkpoint.steps_of(workdir)[-1] < 120
  assert [record["step"] for record in records(workdir)] == [40, 80]


# Damage.


def damage(file, how, rng):
  """Leaves another file than it was."""
  before = file.read_bytes()
  data = bytearray(before)
  while data == before:
    start = rng.randrange(len(data))
    if how == "missing":
      file.unlink()
      return
    if how == "truncated":
      del data[start:]
    elif how == "one bit":
      data[start] ^= 1 << rng.randrange(8)
    else:
      count = 16 if how == "16 bytes" else 4096
      count = min(count, len(data) - start)
      zeros = how == "4 KiB of zeros"
      data[start : start + count] = (
        bytes(count) if zeros else rng.randbytes(count)
      )
  file.write_bytes(data)


def files_by_kind(folder):
  """Names of files by what they are: without hashes, and of any array."""
  kinds = {}
  for file in sorted(path for path in folder.rglob("*") if path.is_file()):
    name = file.relative_to(folder).as_posix()
    kind = re.sub(r"[0-9a-f]{32}", "HASH", name)
    kind = re.sub(r"^(params|opt_state|plateau)/", "ARRAYS/", kind)
    kinds.setdefault(kind, []).append(name)
  return kinds


def test_any_damage_to_any_file_is_seen_and_named(alone, tmp_path):
  rng = random.Random(0)
  newest = str(FIELDS["total_steps"])
  kinds = files_by_kind(alone / "checkpoints" / newest)
  assert {"SHA256SUMS", "progress/metadata"} < set(kinds)
  assert len(kinds) >= 10
  for number, (kind, how) in enumerate(
    (kind, how) for kind in kinds for how in DAMAGES
  ):
    workdir = tmp_path / str(number)
    shutil.copytree(alone / "checkpoints", workdir / "checkpoints")
    name = rng.choice(kinds[kind])
    damage(workdir / "checkpoints" / newest / name, how, rng)
    step, bad = checkpoint.newest_good(workdir)
    assert (step, list(bad)) == (52, [int(newest)]), (name, how)
    # A damaged SHA256SUMS may say it of any file.
    assert name in bad[60] or name == "SHA256SUMS", (name, how)


@pytest.mark.parametrize(
  ("kind", "how"),
  [
    ("ARRAYS/ocdbt.process_0/d/HASH", "one bit"),
    ("progress/metadata", "truncated"),
    ("ARRAYS/manifest.ocdbt", "missing"),
  ],
)
def test_run_goes_on_from_the_step_before_a_damaged_one(
  kind, how, alone, start, tmp_path
):
  rng = random.Random(kind)
  workdir = shutil.copytree(alone, tmp_path / "run")
  newest = workdir / "checkpoints" / "60"
  name = rng.choice(files_by_kind(newest)[kind])
  damage(newest / name, how, rng)
  result = finish(start(workdir))
  (line,) = (x for x in result.stdout.splitlines() if "WARNING" in x)
  assert "step 60 is damaged" in line
  assert name in line
  assert "checkpoints/60.damaged-1" in line
  assert "going on from step 52" in result.stdout
  assert (workdir / "checkpoints" / "60.damaged-1").is_dir()
  assert_same(workdir, alone)


# Full disks.


def test_run_goes_on_when_the_disk_is_full_and_saves_when_it_is_not(
  alone, start, tmp_path
):
  workdir = tmp_path / "run"
  process = start(workdir)
  assert wait_for(lambda: checkpoint.steps_of(workdir), process)
  # The line that comes next would fit in part.
  size = (workdir / "metrics.jsonl").stat().st_size + 50
  said = ""
  with no_file_grows_beyond(size, process.pid):
    while "step 60 could not be saved" not in said:
      line = process.stdout.readline()
      assert line
      said += line
    whole = (workdir / "metrics.jsonl").read_bytes()
    assert whole.endswith(b"\n")
    for _ in range(10):  # Nor does it come back.
      assert not is_saving(workdir)
      time.sleep(0.1)
  assert re.search(r"WARNING: \d+ lines of .*metrics.jsonl", said)
  finish(process)
  assert_same(workdir, alone)


def test_run_that_cannot_save_and_is_told_to_stop_says_so(
  alone, start, tmp_path
):
  workdir = tmp_path / "run"
  process = start(workdir)
  assert wait_for(lambda: checkpoint.steps_of(workdir), process)
  with no_file_grows_beyond(0, process.pid):
    process.send_signal(signal.SIGTERM)
    result = finish_process(process)
  newest = checkpoint.newest_good(workdir)[0]
  assert result.returncode == 1
  (line,) = (x for x in result.stderr.splitlines() if x.startswith("error:"))
  assert "could not be saved" in line
  assert f"that of step {newest}." in line
  finish(start(workdir))
  assert_same(workdir, alone)


# Told to stop.


@pytest.mark.parametrize(
  ("moment", "number"),
  [("training", signal.SIGINT), ("evaluating", signal.SIGTERM)],
)
def test_run_told_to_stop_saves_and_goes_on(
  moment, number, alone, start, tmp_path
):
  workdir = tmp_path / "run"
  process = start(workdir)
  found = {
    "training": lambda: last_record(workdir)[0] == 15,
    "evaluating": lambda: is_evaluating(workdir),
  }[moment]
  assert wait_for(found, process)
  process.send_signal(number)
  result = finish(process)
  step = int(re.search(r"told to stop after step (\d+)", result.stdout)[1])
  assert checkpoint.newest_good(workdir) == (step, {})
  if moment == "evaluating":
    assert step == EVALUATE_EVERY
    assert last_record(workdir) == (step, "train")
  finish(start(workdir))
  assert_same(workdir, alone)


def test_second_ctrl_c_ends_at_once(start, tmp_path):
  """Before the save that the first one asked for has come to its end."""
  workdir = tmp_path / "run"
  process = start(workdir)
  assert wait_for(lambda: checkpoint.steps_of(workdir), process)
  process.send_signal(signal.SIGINT)
  assert "Ctrl-C stops at once" in process.stderr.readline()
  process.send_signal(signal.SIGINT)
  begun = time.monotonic()
  result = finish_process(process)
  assert result.returncode == 130
  assert "interrupted" in result.stderr
  assert "Traceback" not in result.stderr
  assert time.monotonic() - begun < 2
