"""Checkpoints as files: hashlib, sha256sum and Orbax alone are the oracles."""

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import assert_refused, run_command
from limits import no_file_grows_beyond
from tiny_runs import (
  COUNTS,
  QUICK,
  command,
  newest_params,
  records,
  run,
  train_quick,
)

from alexnet_jax.data.prepare import shapes
from alexnet_jax.optimizer import Plateau
from alexnet_jax.parallel import placement
from alexnet_jax.runs import checkpoint, digests, logs, run_files
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.steps import TrainState
from configs import quickstart

SHAPES = {
  "features/conv1/kernel": (3, 3, 2, 8),
  "features/conv1/bias": (8,),
  "classifier/fc6/kernel": (16, 40),
  "classifier/fc6/bias": (40,),
}


def arrays(step, shapes=SHAPES):
  rng = np.random.default_rng(step)
  return {
    name: rng.standard_normal(shape, np.float32)
    for name, shape in shapes.items()
  }


def tree(flat):
  nested = {}
  for name, value in flat.items():
    stack, layer, kind = name.split("/")
    nested.setdefault(stack, {}).setdefault(layer, {})[kind] = value
  return nested


def state_of(step, shapes=SHAPES, devices=1):
  """A state of random arrays, those with 8 rows in parts on the devices."""
  mesh = placement.make_mesh(devices)
  (axis, *_) = mesh.axis_names

  def put(value):
    spec = [axis if size % 8 == 0 else None for size in value.shape[:1]]
    sharding = jax.sharding.NamedSharding(mesh, jax.P(*spec))
    return jax.device_put(value, sharding)

  def put_all(values):
    return tree({name: put(value) for name, value in values.items()})

  held = arrays(step, shapes)
  return TrainState(
    jnp.int32(step),
    put_all(held),
    {"velocity": put_all({name: -x for name, x in held.items()})},
    Plateau.start(),
  )


def saver(workdir, said=None, keep=3, best=None):
  say = (lambda _: None) if said is None else said.append
  return checkpoint.Saver(
    workdir, keep=keep, every_minutes=None, best_step=best, say=say
  )


def save(workdir, *steps, best=None, devices=1, keep=9):
  with saver(workdir, keep=keep, best=best) as saves:
    for step in steps:
      progress = checkpoint.Progress({}, {}, best_step=best)
      saves.save(state_of(step, devices=devices), progress)
      assert saves.wait()


def names(workdir):
  return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def contents(folder):
  files = (path for path in folder.rglob("*") if path.is_file())
  return {str(path): path.read_bytes() for path in files}


def digest_of(flat):
  total = hashlib.sha256()
  for name in sorted(flat):
    value = np.asarray(flat[name])
    total.update(f"{name} {value.dtype} {value.shape}\n".encode())
    total.update(value.astype("<f4").tobytes())
  return total.hexdigest()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  directory = tmp_path_factory.mktemp("data") / "shapes"
  shapes.generate(directory, size_px=32, workers=0, **COUNTS)
  return directory


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run") / "tiny"
  result = train_quick(workdir, data)
  assert result.returncode == 0, result.stderr
  return workdir


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy of a finished run."""
  return shutil.copytree(finished, tmp_path / "run")


# What is saved.


@pytest.mark.parametrize("devices", [1, 8])
def test_state_comes_back_as_it_was_saved(devices, tmp_path):
  save(tmp_path, 5, devices=devices)
  state, _ = checkpoint.restore(tmp_path, 5, state_of(1, devices=8))
  assert int(state.step) == 5
  expected = tree(arrays(5))
  jax.tree.map(np.testing.assert_array_equal, state.params, expected)
  velocity = jax.tree.map(lambda x: -x, expected)
  jax.tree.map(
    np.testing.assert_array_equal, state.opt_state["velocity"], velocity
  )


def test_digest_is_that_of_the_arrays_on_any_number_of_devices(tmp_path):
  save(tmp_path, 3, best=3)
  save(tmp_path, 4, devices=8, best=3)
  for which, step in (("newest", 4), ("best", 3)):
    result = run_command(
      "checkpoint", "digest", f"--workdir={tmp_path}", f"--step={which}"
    )
    expected = f"{digest_of(arrays(step))}  params of step {step}\n"
    assert result.stdout == expected, result.stderr


def test_digest_is_another_for_any_other_bit_name_or_shape():
  flat = {"a/b/c": np.zeros((2, 3), np.float32)}
  other_bit = {"a/b/c": np.array([[0, 0, 0], [0, 0, -0.0]], np.float32)}
  trees = [
    tree(flat),
    tree(other_bit),
    tree({"a/b/d": flat["a/b/c"]}),
    tree({"a/b/c": flat["a/b/c"].T}),
    tree({"a/b/c": flat["a/b/c"].astype(np.int32)}),
  ]
  assert len({checkpoint.digest(each) for each in trees}) == len(trees)


def test_sha256sum_agrees_with_every_file(tmp_path):
  save(tmp_path, 1)
  folder = tmp_path / "checkpoints" / "1"
  subprocess.run(
    ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"],
    cwd=folder,
    check=True,
  )
  lines = (folder / "SHA256SUMS").read_text().splitlines()
  listed = {line.split("  ", 1)[1] for line in lines}
  held = {str(path.relative_to(folder)) for path in folder.rglob("*")
          if path.is_file()}  # fmt: skip
  assert listed == held - {"SHA256SUMS"}


def test_damaged_names_and_added_files_are_seen(tmp_path):
  save(tmp_path, 1)
  folder = tmp_path / "checkpoints" / "1"
  assert digests.problem(folder) == ""
  (folder / "params" / "more").write_text("")
  assert "params/more" in digests.problem(folder)
  (folder / "params" / "more").unlink()
  (folder / "params" / "_METADATA").rename(folder / "params" / "_metadata")
  assert "params/_METADATA" in digests.problem(folder)


def test_newest_and_best_are_kept(tmp_path):
  save(tmp_path, 1, 2, 3, 4, 5, 6, best=2, keep=2)
  assert names(tmp_path) == ["2", "5", "6"]
  save(tmp_path, 7, best=6, keep=2)
  assert names(tmp_path) == ["6", "7"]
  save(tmp_path, 8, 9, best=7, keep=1)
  assert names(tmp_path) == ["7", "9"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_best_is_kept_until_a_better_one_is_on_disk(tmp_path):
  """Step 2 is the best, and so is step 3, which is not saved, and not 4."""
  with saver(tmp_path, keep=1) as saves:
    for step, best, room in ((2, 2, 2**20), (3, 3, 100), (4, 3, 2**20)):
      with no_file_grows_beyond(room):
        progress = checkpoint.Progress({}, {}, best_step=best)
        saves.save(state_of(step), progress)
        assert saves.wait() == (step != 3)
  assert names(tmp_path) == ["2", "4"]


def test_links_out_of_a_checkpoint_are_seen(tmp_path):
  """A folder beside it, and a list of digests that knows nothing of it."""
  save(tmp_path, 1)
  folder = tmp_path / "checkpoints/1"
  (folder / "params").rename(tmp_path / "elsewhere")
  (folder / "params").symlink_to(tmp_path / "elsewhere")
  sums = folder / "SHA256SUMS"
  lines = sums.read_text().splitlines(keepends=True)
  sums.write_text("".join(line for line in lines if "  params/" not in line))
  assert "params" in digests.problem(folder)


def test_checkpoint_that_lacks_a_part_is_refused(tmp_path):
  save(tmp_path, 1)
  folder = tmp_path / "checkpoints/1"
  shutil.rmtree(folder / "plateau")
  (folder / "SHA256SUMS").unlink()
  digests.write(folder)
  with pytest.raises(InputError, match=r"plateau/best_error \(absent there"):
    checkpoint.restore(tmp_path, 1, state_of(1))


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
  state = state_of(2)
  state.params["features"]["conv1"]["bias"] = jnp.full(8, jnp.nan)
  with saver(tmp_path) as saves:
    saves.save(state_of(1), checkpoint.Progress({}, {}))
    with pytest.raises(InputError, match=r"not finite .* step 1"):
      saves.save(state, checkpoint.Progress({}, {}))
  assert names(tmp_path) == ["1"]


# What a kill leaves.


def test_what_is_half_written_is_removed_by_the_next_run(tmp_path):
  save(tmp_path, 1)
  folder = tmp_path / "checkpoints"
  for stale in (
    "2.unfinished",
    "3.unfinished.orbax-checkpoint-tmp",
    "1.replaced.unfinished",
  ):
    shutil.copytree(folder / "1", folder / stale)
  shutil.copytree(folder / "1", folder / "4.damaged-1")
  assert checkpoint.steps_of(tmp_path) == [1]
  checkpoint.clean(tmp_path)
  assert names(tmp_path) == ["1", "4.damaged-1"]


def test_run_killed_while_it_replaced_a_step_goes_on_from_that_step(
  workdir, data
):
  """Going on from the step before would cut off lines that are needed."""
  before = (workdir / "metrics.jsonl").read_bytes()
  held, folder = names(workdir), workdir / "checkpoints"
  (folder / "12").rename(folder / "12.replaced.unfinished")
  shutil.copytree(folder / "12.replaced.unfinished", folder / "12.unfinished")
  result = train_quick(workdir, data)
  assert result.returncode == 0, result.stderr
  assert "going on from step 12 " in result.stdout
  assert "finished" in result.stdout
  assert (workdir / "metrics.jsonl").read_bytes() == before
  assert names(workdir) == held


# What is damaged, or of another run.


def test_damaged_steps_are_put_aside_and_the_step_before_is_taken(tmp_path):
  save(tmp_path, 8, 9, 10)
  for number in (1, 2):
    (tmp_path / "checkpoints" / "10" / "SHA256SUMS").unlink()
    step, bad = checkpoint.newest_good(tmp_path)
    assert (step, list(bad)) == (9, [10])
    (line,) = checkpoint.quarantine(tmp_path, bad)
    assert line.startswith("WARNING: the checkpoint of step 10 is damaged")
    assert "SHA256SUMS" in line
    assert f"checkpoints/10.damaged-{number}" in line
    save(tmp_path, 10)
  assert names(tmp_path) == ["10", "10.damaged-1", "10.damaged-2", "8", "9"]


def test_verify_names_what_is_damaged(tmp_path):
  save(tmp_path, 1, 2)
  result = run_command("checkpoint", "verify", f"--workdir={tmp_path}")
  assert result.returncode == 0, result.stderr
  lines = result.stdout.splitlines()
  assert [line.split(",")[0] for line in lines] == [
    "step 1: good",
    "step 2: good",
  ]
  with (tmp_path / "checkpoints/1/progress/metadata").open("ab") as file:
    file.write(b" ")
  result = run_command("checkpoint", "verify", f"--workdir={tmp_path}")
  assert_refused(result, "step 1: progress/metadata", str(tmp_path))
  assert [line[:12] for line in result.stdout.splitlines()] == ["step 2: good"]


def test_step_that_is_asked_for_is_there_and_good_or_refused(tmp_path):
  shapes = tree(arrays(0))
  mesh = placement.make_mesh(1)

  def found(which):
    return checkpoint.restore_params(tmp_path, shapes, mesh, which)

  with pytest.raises(InputError, match="no checkpoint yet"):
    found("newest")
  save(tmp_path, 1, 2, 3, best=2)
  for which, step in (("newest", 3), ("best", 2), ("1", 1)):
    assert found(which)[0] == step
    jax.tree.map(
      np.testing.assert_array_equal, found(which)[1], tree(arrays(step))
    )
  for absent in ("4", "-1", "01", "2.unfinished"):
    with pytest.raises(InputError, match=r"name one of 1, 2, 3, or newest"):
      found(absent)
  (tmp_path / "checkpoints/2/params/_METADATA").unlink()
  with pytest.raises(InputError, match=r"step 2 .*'params/_METADATA'"):
    found("best")
  (tmp_path / "checkpoints/3/params/_METADATA").unlink()
  assert found("newest")[0] == 1


def test_evaluate_takes_the_best_step(workdir):
  """The oracle: the lowest of the validation errors in metrics.jsonl."""
  validations = [r for r in records(workdir) if r["split"] == "validation"]
  best = min(validations, key=lambda record: record["top1_error"])["step"]
  result = run("evaluate", f"--workdir={workdir}", "--step=best")
  assert result.returncode == 0, result.stderr
  assert f"step {best}:" in result.stdout


def test_run_without_a_good_step_is_refused_and_left_as_it_is(workdir, data):
  for step in checkpoint.steps_of(workdir):
    (workdir / "checkpoints" / str(step) / "progress" / "metadata").unlink()
  before = contents(workdir)
  result = train_quick(workdir, data)
  assert_refused(result, "no checkpoint", "is good", "step 12", "copy")
  assert contents(workdir) == before


def test_checkpoint_of_another_net_is_refused_by_both_shapes(tmp_path):
  save(tmp_path, 1)
  other = SHAPES | {"features/conv1/bias": (9,), "classifier/fc7/bias": (3,)}
  del other["classifier/fc6/bias"]
  for refused in (
    lambda: checkpoint.restore(tmp_path, 1, state_of(1, other)),
    lambda: checkpoint.restore_params(
      tmp_path, tree(arrays(1, other)), placement.make_mesh(1)
    ),
  ):
    with pytest.raises(InputError) as refusal:
      refused()
    for words in (
      "params/features/conv1/bias ((8,) there, (9,) here)",
      "params/classifier/fc6/bias ((40,) there, absent here)",
      "params/classifier/fc7/bias (absent there, (3,) here)",
    ):
      assert words in str(refusal.value)


@pytest.mark.parametrize(("split", "number"), [("train", 3), ("validation", 0)])
def test_run_goes_on_with_the_shards_that_it_had(
  split, number, workdir, data, tmp_path
):
  """One shard of other pictures: the mean image does not show it."""
  own = shutil.copytree(data, tmp_path / "own")
  other = tmp_path / "other" / data.name
  shapes.generate(other, size_px=32, seed=1, workers=0, **COUNTS)
  name = sorted(path.name for path in own.glob(f"*-{split}.*"))[number]
  shutil.copy(other / name, own / name)
  before = contents(workdir / "checkpoints")
  metrics = (workdir / "metrics.jsonl").read_bytes()
  assert_refused(train_quick(workdir, own), name, "step 12", str(own))
  assert contents(workdir / "checkpoints") == before
  assert (workdir / "metrics.jsonl").read_bytes() == metrics


# Who may write.


def claim(workdir):
  with run_files.claim_workdir(workdir, quickstart.get_config()):
    pass


def test_lock_is_held_by_a_living_program_alone(tmp_path):
  claim(tmp_path)
  code = "import fcntl, sys, time\nlock = open(sys.argv[1], 'w')\n"
  code += "fcntl.flock(lock, fcntl.LOCK_EX)\nprint(flush=True)\ntime.sleep(99)"
  other = subprocess.Popen(
    [sys.executable, "-c", code, tmp_path / ".lock"], stdout=subprocess.PIPE
  )
  with other:
    other.stdout.readline()
    with pytest.raises(InputError, match="in use by another program"):
      claim(tmp_path)
    other.kill()
  claim(tmp_path)


def test_second_program_is_refused_in_one_line(workdir, data):
  before = contents(workdir)
  with (workdir / ".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    result = train_quick(workdir, data)
  assert_refused(result, str(workdir), "in use by another program")
  assert contents(workdir) == before


def read_only(workdir, *arguments, **fields):
  """Runs a command to which the workdir is on a read-only disk."""
  words = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
  shell = ["unshare", "--map-root-user", "--mount", "sh", "-c", words, workdir]
  if subprocess.run([*shell, "true"], capture_output=True).returncode:
    pytest.skip("disks cannot be mounted here, even in a namespace")
  asked = command(*arguments, **fields)
  asked["args"] = [*shell, *asked["args"]]
  return subprocess.run(**asked, capture_output=True)


def test_read_only_run_is_not_gone_on_with_in_one_line(workdir, data):
  before = contents(workdir)
  assert_refused(
    read_only(workdir, "main", f"--workdir={workdir}", data_dir=data, **QUICK),
    f"workdir={str(workdir)!r} cannot be written (Read-only file system)",
  )
  assert contents(workdir) == before


def test_read_only_run_can_be_verified(workdir):
  result = read_only(workdir, "checkpoint", "digest", f"--workdir={workdir}")
  params = newest_params(workdir)
  flat = {
    f"{stack}/{layer}/{name}": value
    for stack, layers in params.items()
    for layer, kinds in layers.items()
    for name, value in kinds.items()
  }
  expected = f"{digest_of(flat)}  params of step 12\n"
  assert result.stdout == expected, result.stderr


# What a full disk does.


# Threads of Orbax end with the error that is told.
@pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_failed_save_is_told_and_tried_again(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, "_RETRY_S", 0.5)
  said = []
  with saver(tmp_path, said) as saves:
    saves.save(state_of(1), checkpoint.Progress({}, {}))
    assert saves.wait()
    with no_file_grows_beyond(100):
      saves.save(state_of(2), checkpoint.Progress({}, {}))
      assert not saves.wait()
    assert not saves.is_due()
    assert names(tmp_path) == ["1"]
    (line,) = said
    assert line.startswith("WARNING: step 2 could not be saved")
    assert str(tmp_path / "checkpoints") in line
    assert "The newest checkpoint is that of step 1." in line
    time.sleep(0.5)
    assert saves.is_due()
    saves.save(state_of(3), checkpoint.Progress({}, {}))
    assert saves.wait()
    assert not saves.is_due()
  assert checkpoint.newest_good(tmp_path) == (3, {})


def record(step):
  figures = ("epoch", "loss", "top1_error", "top5_error", "learning_rate")
  speed = {"images_per_second": 1.0, "input_wait": 0.0}
  return {
    "step": step,
    "split": "train",
    **dict.fromkeys(figures, 0.5),
    **speed,
  }


# TensorBoard's file is dropped with what it could not write.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("room", [0, 1, 100])
def test_lines_wait_for_room_and_none_is_cut(room, tmp_path, capsys):
  file = tmp_path / "metrics.jsonl"
  with logs.Logger(tmp_path, 0, True, 9) as log:
    log.record(record(1))
    before = file.read_bytes()
    with no_file_grows_beyond(len(before) + room):
      for step in (2, 3):
        log.record(record(step))
        assert file.read_bytes() == before
      assert not log.flush()
    assert "WARNING: 2 lines of" in capsys.readouterr().out
    log.record(record(4))
    assert log.flush()
  lines = file.read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    record(n) for n in range(1, 5)
  ]
