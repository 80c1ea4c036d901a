"""Checkpoints as files: hashlib, sha256sum and numpy are the oracles."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import random
import re
import shutil
import subprocess
import threading
import time

import jax
import numpy as np
import pytest
from commands import assert_refused, run_command
from small_states import SHAPES, arrays, save, saver, state_of, tree

from alexnet_jax.runs import checkpoint
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.tools import checkpoint as command


def names(workdir):
  return sorted(path.name for path in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Steps 1 to 3 of which 2 is the best; tests copy it."""
  workdir = tmp_path_factory.mktemp("run")
  save(workdir, 1, 2, 3, best=2)
  return workdir


@pytest.fixture
def workdir(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / "run")


# What is restored.


@pytest.mark.parametrize("devices", [1, 8])
def test_state_comes_back_as_it_was_saved(devices, tmp_path):
  save(tmp_path, 5, devices=devices, best=4)
  state, progress = checkpoint.restore(tmp_path, 5, state_of(1, devices=8))
  assert int(state.step) == 5
  expected = tree(arrays(5))
  jax.tree.map(np.testing.assert_array_equal, state.params, expected)
  velocity = jax.tree.map(lambda x: -x, expected)
  jax.tree.map(
    np.testing.assert_array_equal, state.opt_state["velocity"], velocity
  )
  kernel = state.params["classifier"]["fc6"]["kernel"]
  assert len(kernel.sharding.device_set) == 8
  assert progress == checkpoint.Progress({}, {}, best_step=4)


def test_step_that_is_asked_for_is_there_and_good_or_refused(workdir):
  shapes = tree(arrays(0))

  def found(which):
    step = checkpoint.find_step(workdir, which)
    return step, checkpoint.read_params(workdir, step, shapes)

  for which, step in (("newest", 3), ("best", 2), ("1", 1)):
    assert found(which)[0] == step
    jax.tree.map(
      np.testing.assert_array_equal, found(which)[1], tree(arrays(step))
    )
  for absent in ("4", "-1", "01", "2.unfinished"):
    with pytest.raises(InputError, match=r"one of 1, 2, 3, or newest"):
      found(absent)
  (workdir / "checkpoints/2/params/_METADATA").unlink()
  with pytest.raises(InputError, match=r"step 2 .*params/_METADATA"):
    found("best")
  (workdir / "checkpoints/3/params/_METADATA").unlink()
  assert found("newest")[0] == 1
  shutil.rmtree(workdir / "checkpoints")
  with pytest.raises(InputError, match="no checkpoint yet"):
    found("newest")


def test_params_alone_can_be_used_but_not_resumed(tmp_path):
  checkpoint.write_params(tmp_path, tree(arrays(7)))
  assert checkpoint.latest_valid(tmp_path) == 0
  found = checkpoint.read_params(tmp_path, 0)
  jax.tree.map(np.testing.assert_array_equal, found, tree(arrays(7)))
  with pytest.raises(InputError, match="init_from"):
    checkpoint.restore(tmp_path, 0, state_of(1))
  with pytest.raises(InputError, match="never validated; choose newest"):
    checkpoint.find_step(tmp_path, "best")


def test_checkpoint_of_another_net_is_refused_by_both_shapes(workdir):
  other = SHAPES | {"features/conv1/bias": (9,), "classifier/fc7/bias": (3,)}
  del other["classifier/fc6/bias"]
  for refused in (
    lambda: checkpoint.restore(workdir, 1, state_of(1, other)),
    lambda: checkpoint.read_params(workdir, 1, tree(arrays(1, other))),
  ):
    with pytest.raises(InputError) as refusal:
      refused()
    for words in (
      "/features/conv1/bias ((8,) there, (9,) here)",
      "/classifier/fc6/bias ((40,) there, absent here)",
      "/classifier/fc7/bias (absent there, (3,) here)",
    ):
      assert words in str(refusal.value)


def test_checkpoint_of_another_version_is_refused_in_a_line(
  tmp_path, monkeypatch
):
  """Its progress has a field that is no longer there, or lacks one."""

  @dataclasses.dataclass
  class Other:
    batches: dict
    best_step: int | None = None
    mood: str = "good"

  monkeypatch.setattr(checkpoint, "Progress", Other)
  with saver(tmp_path) as saves:
    saves.save(state_of(1), Other({}))
  monkeypatch.undo()
  with pytest.raises(InputError, match=r"or version wrote .*mood.*init_from"):
    checkpoint.restore(tmp_path, 1, state_of(1))


# Digests.


def digest_of(flat):
  total = hashlib.sha256()
  for name in sorted(flat):
    value = np.asarray(flat[name])
    total.update(f"{name} {value.dtype} {value.shape}\n".encode())
    total.update(value.astype("<f4").tobytes())
  return total.hexdigest()


def test_digest_is_that_of_the_arrays_on_any_number_of_devices(tmp_path):
  save(tmp_path, 4, devices=8)
  assert checkpoint.digest(state_of(4).params) == digest_of(arrays(4))
  result = run_command("checkpoint", "digest", f"--workdir={tmp_path}")
  expected = f"{digest_of(arrays(4))}  params of step 4\n"
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


def test_sha256sum_agrees_with_every_file(saved):
  folder = saved / "checkpoints" / "1"
  subprocess.run(
    ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"],
    cwd=folder,
    check=True,
  )
  lines = (folder / "SHA256SUMS").read_text().splitlines()
  listed = {line.split("  ", 1)[1] for line in lines}
  files = {path for path in folder.rglob("*") if path.is_file()}
  there = {str(path.relative_to(folder)) for path in files}
  assert listed == there - {"SHA256SUMS"}


# Damage.


def damaged(before, how, rng):
  """Other bytes than before; None for a file that is missing."""
  data = bytearray(before)
  start = rng.randrange(len(data))
  match how:
    case "missing":
      return None
    case "truncated":
      return data[:start]
    case "one bit":
      data[start] ^= 1 << rng.randrange(8)
    case "random bytes":
      data[start : start + 16] = rng.randbytes(len(data[start : start + 16]))
    case "zeros":
      data[start : start + 4096] = bytes(len(data[start : start + 4096]))
  return data if data != before else damaged(before, how, rng)


def test_any_damage_to_any_file_is_seen_and_named(workdir, capsys):
  """Orbax restores most of it without an error."""
  rng = random.Random(0)
  folder = workdir / "checkpoints" / "3"
  kinds = {}  # Files that differ in a hash alone are of one kind.
  for file in sorted(path for path in folder.rglob("*") if path.is_file()):
    name = file.relative_to(folder).as_posix()
    kinds.setdefault(re.sub(r"[0-9a-f]{32}", "HASH", name), name)
  assert {"SHA256SUMS", "progress/metadata"} < set(kinds)
  assert len(kinds) >= 10
  for name in kinds.values():
    before = (folder / name).read_bytes()
    for how in ("one bit", "random bytes", "zeros", "truncated", "missing"):
      data = damaged(before, how, rng)
      (folder / name).unlink()
      if data is not None:
        (folder / name).write_bytes(data)
      assert checkpoint.latest_valid(workdir) == 2, (name, how)
      # A damaged SHA256SUMS may say it of any file.
      known = name in capsys.readouterr().err
      assert known or name == "SHA256SUMS", (name, how)
      (folder / name).write_bytes(before)
  assert checkpoint.latest_valid(workdir) == 3


def test_added_files_and_links_out_of_a_checkpoint_are_seen(workdir):
  """A folder beside it, and a list of digests that knows nothing of it."""
  folder = workdir / "checkpoints/1"
  (folder / "params" / "more").write_text("")
  assert "params/more" in checkpoint.problem(workdir, 1)
  (folder / "params").rename(workdir / "elsewhere")
  (folder / "params").symlink_to(workdir / "elsewhere")
  sums = folder / "SHA256SUMS"
  lines = sums.read_text().splitlines(keepends=True)
  sums.write_text("".join(line for line in lines if "  params/" not in line))
  assert "params" in checkpoint.problem(workdir, 1)


def test_damaged_steps_are_put_aside_and_the_step_before_is_used(
  workdir, capsys
):
  for number in (1, 2):
    (workdir / "checkpoints" / "3" / "SHA256SUMS").unlink()
    assert checkpoint.quarantine_damaged(workdir) == 2
    line = capsys.readouterr().err
    assert line.startswith("WARNING: the checkpoint of step 3 is damaged")
    assert "SHA256SUMS" in line
    assert names(workdir)[-1] == f"3.damaged-{number}"
    save(workdir, 3)
  assert names(workdir) == ["1", "2", "3", "3.damaged-1", "3.damaged-2"]


@pytest.mark.parametrize("which", ["1000", "newest"])
def test_copy_under_another_number_is_no_checkpoint(which, workdir, capsys):
  """Not even if it is asked for."""
  shutil.copytree(workdir / "checkpoints/2", workdir / "checkpoints/1000")
  if which == "newest":
    assert checkpoint.find_step(workdir, which) == 3
    said = capsys.readouterr().err
  else:
    with pytest.raises(InputError) as refusal:
      checkpoint.find_step(workdir, which)
    said = str(refusal.value)
  assert "its progress is that of step 2" in said


@pytest.mark.parametrize("text", ["{", "[]", '{"step": "3"}'])
def test_progress_that_nobody_saved_is_damage(text, workdir, capsys):
  """Though its digest agrees."""
  folder = workdir / "checkpoints/3"
  (folder / "progress/metadata").write_text(text)
  command = "sha256sum $(cut -c67- SHA256SUMS) > new; mv new SHA256SUMS"
  subprocess.run(command, shell=True, cwd=folder, check=True)
  assert checkpoint.latest_valid(workdir) == 2
  assert "step 3 is damaged (its progress" in capsys.readouterr().err


def test_imported_params_under_another_number_are_refused(tmp_path):
  checkpoint.write_params(tmp_path, tree(arrays(7)))
  (tmp_path / "checkpoints/0").rename(tmp_path / "checkpoints/7")
  with pytest.raises(InputError, match="no checkpoint"):
    checkpoint.find_step(tmp_path, "newest")


@pytest.mark.parametrize("name", ["03", "٣", "4 ", "4.old", "x"])
def test_folder_whose_name_is_no_step_is_none(name, workdir):
  shutil.copytree(workdir / "checkpoints/3", workdir / "checkpoints" / name)
  assert checkpoint.steps_of(workdir) == [1, 2, 3]


def test_link_to_nothing_is_a_damaged_checkpoint(workdir, capsys):
  (workdir / "checkpoints/9").symlink_to("nowhere")
  assert checkpoint.latest_valid(workdir) == 3
  assert "step 9 is damaged" in capsys.readouterr().err


def test_run_without_a_good_step_is_refused(workdir):
  for step in checkpoint.steps_of(workdir):
    (workdir / "checkpoints" / str(step) / "progress" / "metadata").unlink()
  with pytest.raises(InputError, match=r"no checkpoint .*copy"):
    checkpoint.latest_valid(workdir)
  assert names(workdir) == ["1", "2", "3"]


def test_verify_names_what_is_damaged(workdir):
  with (workdir / "checkpoints/1/progress/metadata").open("ab") as file:
    file.write(b" ")
  result = run_command("checkpoint", "verify", f"--workdir={workdir}")
  assert_refused(result, "step 1: progress/metadata", str(workdir))
  assert result.stdout == "step 2: good\nstep 3: good\n"


# A run that saves and removes while others read.


def test_readers_of_a_run_that_saves_see_no_damage(tmp_path, capsys):
  """One checkpoint is kept, and each step is saved twice."""
  folder = tmp_path / "checkpoints"
  save(tmp_path, 1)
  source = shutil.copytree(folder / "1", tmp_path / "source")
  ends, looks = threading.Event(), collections.Counter()

  def write():
    for step in itertools.count(2):
      for _ in range(2):
        new = checkpoint.unfinished_folder(tmp_path, step)
        shutil.copytree(source, new)
        (new / "progress/metadata").write_text(f'{{"step": {step}}}')
        checkpoint.commit(tmp_path, step)
        if ends.is_set():
          return
      for old in checkpoint.steps_of(tmp_path)[:-1]:
        checkpoint.remove(tmp_path, old)

  def load(which):
    step, params = checkpoint.load_params(tmp_path, which)
    jax.tree.map(np.testing.assert_array_equal, params, tree(arrays(1)))
    return step

  deadline = time.monotonic() + 60
  with concurrent.futures.ThreadPoolExecutor() as pool:
    try:
      writing = pool.submit(write)
      while len(looks) < 6:
        assert time.monotonic() < deadline
        looks[load("newest")] += 1
        command._verify(tmp_path)
    finally:
      ends.set()
    writing.result()
  said = capsys.readouterr()
  assert said.err == ""
  assert re.fullmatch(r"(step \d+: good\n)+", said.out)


# What a kill leaves.


def test_half_written_folders_are_removed(workdir):
  folder = workdir / "checkpoints"
  for stale in (
    "3.unfinished",
    "4.unfinished.orbax-checkpoint-tmp",
    "2.old.unfinished",
  ):
    shutil.copytree(folder / "1", folder / stale)
  shutil.copytree(folder / "1", folder / "4.damaged-1")
  checkpoint.clean(workdir)
  assert names(workdir) == ["1", "2", "3", "4.damaged-1"]
  assert checkpoint.latest_valid(workdir) == 3
  found = checkpoint.read_params(workdir, 2)
  jax.tree.map(np.testing.assert_array_equal, found, tree(arrays(2)))
