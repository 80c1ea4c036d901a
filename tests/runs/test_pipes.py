"""Pipes among the files of a run, which would be waited for without an end."""

import os
import signal

import pytest
from small_states import save

from alexnet_jax.configs import quickstart
from alexnet_jax.runs import checkpoint, logs, run_files
from alexnet_jax.runtime.errors import InputError


@pytest.fixture
def make_pipe():
  """Makes a pipe; whoever waits for it is let go after seconds, and fails."""
  made = []

  def make(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    made.append(path)

  def let_go(*_):
    for path in made:
      os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    raise AssertionError(f"it waited for {made}")

  before = signal.signal(signal.SIGALRM, let_go)
  signal.alarm(5)
  yield make
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  save(workdir, 7)
  return workdir


@pytest.mark.parametrize("name", ["x", "params/x", "SHA256SUMS"])
def test_pipe_in_a_checkpoint_is_damage(name, saved, make_pipe):
  file = saved / "checkpoints/7" / name
  before = file.read_bytes() if file.exists() else None
  make_pipe(file)
  try:
    found = checkpoint.problem(saved, 7)
  finally:
    file.unlink()
    if before is not None:
      file.write_bytes(before)
  assert (name if before is None else "no regular file") in found
  assert checkpoint.problem(saved, 7) == ""


def test_pipe_as_a_lock_is_not_waited_for(tmp_path, make_pipe):
  """Locks work on it as well."""
  config = quickstart.get_config()
  make_pipe(tmp_path / ".lock")
  with run_files.claim_workdir(tmp_path, config, 9) as (_, is_held):
    assert is_held()
    with (
      pytest.raises(InputError, match="in use by another program"),
      run_files.claim_workdir(tmp_path, config, 9),
    ):
      pass


@pytest.mark.parametrize(
  ("name", "read"),
  [
    ("config.json", run_files.read_config),
    (
      "config.json",
      lambda workdir: run_files.claim_workdir(
        workdir, quickstart.get_config(), 9
      ).__enter__(),
    ),
    ("class_names.json", lambda w: run_files.read_run_metadata(w, 32)),
  ],
)
def test_pipe_in_a_run_is_refused(name, read, tmp_path, make_pipe):
  make_pipe(tmp_path / name)
  with pytest.raises(InputError, match=rf"{name}.* no regular file"):
    read(tmp_path)


def test_pipe_instead_of_a_log_is_not_waited_for(tmp_path, make_pipe):
  make_pipe(tmp_path / "metrics.jsonl")
  assert logs.read_metrics(tmp_path) == []
  with pytest.raises(InputError, match=r"metrics\.jsonl.* no ordinary file"):
    logs.Logger(tmp_path, 0, True, 9)
