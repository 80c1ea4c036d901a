"""How a run is stopped: real signals to this process, or to a command."""

import os
import pty
import shutil
import signal
import subprocess

import pytest
from tiny_runs import QUICK, command, records

from alexnet_jax.runtime import signals

STOPPING = signal.SIGTERM, signal.SIGHUP, signal.SIGINT


@pytest.fixture
def ignored():
  """As nohup leaves it."""
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  yield
  signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", STOPPING)
def test_signal_asks_for_a_stop_and_leaves_no_handler(number, capfd):
  before = [signal.getsignal(each) for each in STOPPING]
  with signals.handle_signals() as should_stop:
    assert not should_stop()
    os.kill(os.getpid(), number)
    assert should_stop()
    assert signals.stop_requested()
  assert [signal.getsignal(each) for each in STOPPING] == before
  assert capfd.readouterr().err.startswith("stopping after this step")


def test_hangup_that_is_ignored_stays_ignored(ignored):
  with signals.handle_signals() as should_stop:
    assert not should_stop()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not should_stop()
  assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("gone", [(1,), (2,), (1, 2)])
def test_output_to_a_terminal_that_is_gone_is_dropped(gone, tmp_path):
  """And no other: what goes to a file is told there."""
  before = {output: os.dup(output) for output in (1, 2)}
  ours, theirs = pty.openpty()
  os.close(ours)
  with (tmp_path / "file").open("wb") as file, signals.handle_signals() as stop:
    assert not stop()
    for output in before:
      os.dup2(theirs if output in gone else file.fileno(), output)
    try:
      os.kill(os.getpid(), signal.SIGHUP)
      for output in before:  # It would fail.
        os.write(output, b"%d\n" % output)
    finally:
      for output, saved in before.items():
        os.dup2(saved, output)
        os.close(saved)
  os.close(theirs)
  told = (tmp_path / "file").read_text()
  assert ("stopping after this step" in told) == (2 not in gone)
  for output in before:
    assert (f"{output}\n" in told) == (output not in gone)


@pytest.mark.slow
def test_run_whose_terminal_is_closed_saves(data, tmp_path):
  """What it prints from then on would fail; its stderr is a file."""
  workdir = tmp_path / "run"
  fields = {**QUICK, "data_dir": data, "total_steps": 10**5}
  fields |= {"check_learning_after_steps": 0, "log_every_steps": 1}
  fields |= {"evaluate_every_epochs": 1e6, "checkpoint_every_steps": 10**6}
  options = command("train", f"--workdir={workdir}", **fields)
  # It leads a session, to which the terminal belongs.
  options["args"] = [shutil.which("setsid"), "--ctty", *options["args"]]
  ours, theirs = pty.openpty()
  errors = tmp_path / "errors"
  with errors.open("wb") as file:
    process = subprocess.Popen(
      **options, stdin=theirs, stdout=theirs, stderr=file
    )
  os.close(theirs)
  said = b""
  try:
    while b"step 3/" not in said:
      said += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(120) == 0, errors.read_text()
  finally:
    process.kill()
    process.wait()
  newest = max(int(x.name) for x in (workdir / "checkpoints").iterdir())
  assert newest == max(record["step"] for record in records(workdir))
