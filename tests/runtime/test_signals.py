"""Runs that are told to stop or lose a process, as users and machines do it.

A run of 1, of 2 and of 4 processes is hit by one thing after another; each time
the same command goes on with it. The oracle is a run that nothing has hit.
"""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from commands import assert_refused
from process_runs import (
  LIVELY,
  finish,
  saved_steps,
  start_run,
  succeed,
  wait_for,
)
from tiny_runs import COUNTS, command, records, run

from alexnet_jax.data.prepare import shapes
from alexnet_jax.runs import checkpoint

pytestmark = pytest.mark.slow
# It is evaluated after every step, so a signal comes in the midst of that.
VALIDATION = 160
STEPS = {1: 12, 2: 36, 4: 16}
# Read from the disk, in which one test damages them.
FIELDS = {"device_cache_fraction": 0.0}
STOPS = [
  (1, "SIGTERM"),
  (2, "SIGINT"),
  (4, "SIGTERM to all"),
]
DEATHS = [
  (2, "SIGKILL of 1"),
  (2, "SIGKILL of 0"),
  (2, "SIGSTOP of 1"),
]
DAMAGE = 2, "damage"


def hit(what, running, folder):
  """Does something to processes that run."""
  first, *_, last = running if len(running) > 1 else running * 2
  held = len(running) > 1 and what in ("SIGTERM", "SIGTERM to all", "SIGINT")
  if held:  # So that few steps pass: jax looks once a second for a signal.
    first.send_signal(signal.SIGSTOP)
  match what.split():
    case ["SIGTERM"]:
      last.send_signal(signal.SIGTERM)
    case ["SIGTERM", "to", "all"]:
      for process in running:
        process.send_signal(signal.SIGTERM)
    case ["SIGINT"]:
      last.send_signal(signal.SIGINT)
    case [name, "of", number]:
      running[int(number)].send_signal(signal.Signals[name])
    case ["damage"]:
      for file in (folder / "damaged" / "data").glob("*train*array_record*"):
        file.write_bytes(bytes(file.stat().st_size))
  if held:
    time.sleep(2)
    first.send_signal(signal.SIGCONT)


def end(what, running):
  """Returns the results, and the seconds until the survivors had ended."""
  started = time.monotonic()
  if not what.startswith("SIGSTOP"):
    return finish(running), time.monotonic() - started
  stopped = int(what[-1])
  others = running[:stopped] + running[stopped + 1 :]
  results = finish(others)
  seconds = time.monotonic() - started
  running[stopped].send_signal(signal.SIGCONT)
  results[stopped:stopped] = finish([running[stopped]])
  return results, seconds


def follow(folder, count):
  """Returns what came of each hit on a run, and of the run at its end."""
  workdir = folder / f"{count}"
  steps = STEPS[count]

  def start_it(workdir, last="host"):
    cwds = [{"cwd": folder / "host"}] * (count - 1) + [{"cwd": folder / last}]
    return start_run(
      workdir, "data", count, each=cwds, **FIELDS, total_steps=steps
    )

  whole = succeed(start_it(folder / f"whole{count}"))
  found = {}
  for other, what in [*STOPS, *DEATHS, DAMAGE]:
    if other != count:
      continue
    running = start_it(workdir, "damaged" if what == "damage" else "host")
    before = len(records(workdir)) if workdir.exists() else 0

    def is_under_way(before=before):
      file = workdir / "metrics.jsonl"
      lines = file.read_text().splitlines() if file.exists() else []
      return len(lines) > before + 2 and saved_steps(workdir)

    wait_for(is_under_way, running)
    hit(what, running, folder)
    results, seconds = end(what, running)
    step, bad = checkpoint.newest_good(workdir)
    due = any(
      (r["step"], r["split"]) == (step, "validation") for r in records(workdir)
    )
    found[what] = results, seconds, step, bad, due
  found["end"] = succeed(start_it(workdir))
  found["whole"] = whole
  return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  for name in ("host", "damaged"):
    (folder / name).mkdir()
  data = folder / "host" / "data"
  counts = COUNTS | {"validation": VALIDATION}
  shapes.generate(data, size_px=32, workers=0, **counts)
  shutil.copytree(data, folder / "damaged" / "data")
  return folder


@pytest.fixture(scope="module")
def followed(folder):
  return functools.cache(functools.partial(follow, folder))


@pytest.mark.parametrize(("count", "what"), STOPS)
def test_all_save_the_same_step_and_end_well(count, what, followed):
  """In the midst of an evaluation, which is then done first; within seconds."""
  results, seconds, step, bad, evaluated = followed(count)[what]
  for result in results:
    assert result.returncode == 0, result.stdout + result.stderr
    assert "error:" not in result.stderr
  said = re.findall(r"told to stop after step (\d+)", results[0].stdout)
  assert said == [str(step)]
  assert seconds < 20
  assert not bad
  assert not evaluated


@pytest.mark.parametrize(("count", "what"), DEATHS)
def test_survivors_end_soon_and_say_of_whom(count, what, followed):
  results, seconds, step, bad, _ = followed(count)[what]
  dead = int(what[-1])
  code = {"SIGKILL": -signal.SIGKILL, "SIGSTOP": 1}
  assert results[dead].returncode == code[what.split()[0]]
  how = "silent" if "STOP" in what else "lost"
  for me, result in enumerate(results):
    if me != dead or "STOP" in what:
      assert_refused(result, f"process {dead} of {count} was {how}")
  assert seconds < 30
  assert step
  assert not bad


def test_bad_input_of_one_process_ends_all_in_training(followed):
  (first, second), seconds, step, bad, _ = followed(2)["damage"]
  assert_refused(second, "example", "cannot be used")
  (line,) = (x for x in second.stderr.splitlines() if x.startswith("error:"))
  assert_refused(first, line.replace("error:", "error: process 1:"))
  assert seconds < 30
  assert step
  assert not bad


@pytest.mark.parametrize("count", STEPS)
def test_whatever_hits_a_run_it_ends_as_if_nothing_had(count, folder, followed):
  """Bit for bit, each record once, and without a word of error."""
  ours, theirs = folder / f"{count}", folder / f"whole{count}"
  for result in followed(count)["end"] + followed(count)["whole"]:
    assert "error" not in result.stderr
  digests = [
    run("checkpoint", "digest", f"--workdir={workdir}").stdout
    for workdir in (ours, theirs)
  ]
  assert digests[0] == digests[1]
  assert f"params of step {STEPS[count]}" in digests[0]
  verified = run("checkpoint", "verify", f"--workdir={ours}")
  assert verified.returncode == 0, verified.stderr
  speed = ("images_per_second", "input_wait")
  found = [
    [{k: v for k, v in r.items() if k not in speed} for r in records(workdir)]
    for workdir in (ours, theirs)
  ]
  assert found[0] == found[1]


def test_the_script_of_two_processes_hands_ctrl_c_on(folder, tmp_path):
  """As a terminal sends it: to all, what labels their lines included."""
  workdir = tmp_path / "run"
  fields = {"data_dir": folder / "host" / "data", **LIVELY}
  asked = command("train", f"--workdir={workdir}", **fields)
  flags = asked["args"][3:]
  asked["args"] = ["bash", "launch/two_process.sh", *flags]
  asked["env"] |= {"PYTHON": sys.executable}
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  script = subprocess.Popen(**asked, **pipes, process_group=0)
  try:
    wait_for((workdir / "metrics.jsonl").exists, [script])
    os.killpg(script.pid, signal.SIGINT)
    (result,) = succeed([script])
  finally:
    # What the script has left behind, if anything.
    with contextlib.suppress(ProcessLookupError):
      os.killpg(script.pid, signal.SIGKILL)
  (step,) = re.findall(r"told to stop after step (\d+)", result.stdout)
  assert checkpoint.newest_good(workdir) == (int(step) or None, {})


LOST = """
import gc, os, signal, time
from alexnet_jax import cli

def interrupt(phase, info):
  if phase == "stop":
    gc.callbacks.remove(interrupt)
    os.kill(os.getpid(), signal.{name})
    time.sleep(0)  # Python's own handler runs within this call.

def main(argv):
  gc.callbacks.append(interrupt)
  gc.collect()
  time.sleep(5)
  print("went on")

cli.run(main, lambda: None)
"""


@pytest.mark.parametrize(
  ("name", "ending"),
  [("SIGINT", (130, "", "interrupted\n")), ("SIGTERM", (143, "", ""))],
)
def test_a_signal_amid_garbage_collection_is_not_lost(name, ending):
  """Python ignores what is raised there, KeyboardInterrupt and SystemExit."""
  process = subprocess.run(
    [sys.executable, "-c", LOST.format(name=name)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert (process.returncode, process.stdout, process.stderr) == ending
