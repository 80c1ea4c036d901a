"""Sends signals to processes of a run at random moments, until it ends.

  python experiments/faults/processes.py

One fault after another hits a run of 2 processes, then one of 4. Each time the
same command resumes the run, and when it has ended the next run begins. Moments
are drawn evenly from the time of a whole run, with its start. The checkpoint
after each fault is compared, bit for bit, with the same step of a run without
faults. Results go to processes.csv.
"""

import argparse
import csv
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from alexnet_jax.data.prepare import shapes

HERE = Path(__file__).parent
STEPS = 40
TIMEOUT_S = 25
SOON_S = 30
HUNG_S = 120
FIELDS = {
  "image_size_px": 32,
  "batch_size": 16,
  "network.conv1.filters": 8,
  "network.conv2.filters": 16,
  "network.conv3.filters": 16,
  "network.conv4.filters": 16,
  "network.conv5.filters": 16,
  "network.fc6.units": 32,
  "network.fc7.units": 32,
  "network.conv1.kernel": 5,
  "network.conv1.stride": 1,
  "total_steps": STEPS,
  "log_every_steps": 5,
  "checkpoint_every_steps": 10,
  "evaluate_every_epochs": 2.0,
}


class Fault(NamedTuple):
  """Signals to one process or all, each a while after the one before."""

  signals: tuple[signal.Signals, ...]
  victim: int | None  # None: all of them.
  saves: bool  # Whether all are to save and end well.


FAULTS = {
  "SIGTERM to a worker": Fault((signal.SIGTERM,), 1, True),
  "SIGTERM to process 0": Fault((signal.SIGTERM,), 0, True),
  "SIGTERM to all": Fault((signal.SIGTERM,), None, True),
  "Ctrl-C to a worker": Fault((signal.SIGINT,), 1, True),
  "Ctrl-C to all": Fault((signal.SIGINT,), None, True),
  "Ctrl-C twice to a worker": Fault((signal.SIGINT,) * 2, 1, False),
  "kill -9 of a worker": Fault((signal.SIGKILL,), 1, False),
  "kill -9 of process 0": Fault((signal.SIGKILL,), 0, False),
  "SIGSTOP of a worker": Fault((signal.SIGSTOP,), 1, False),
}


class Run(NamedTuple):
  """Where a run of several processes is, and how many they are."""

  workdir: Path
  data: Path
  processes: int

  def start(self, **fields: object) -> list[subprocess.Popen]:
    """Starts its processes, one after another."""
    with socket.create_server(("", 0)) as free:
      port = free.getsockname()[1]
    asked = FIELDS | {"data_dir": self.data} | fields
    command = [sys.executable, "-m", "alexnet_jax", "train"]
    command += [f"--config.{name}={value}" for name, value in asked.items()]
    command += [f"--workdir={self.workdir}", f"--timeout_s={TIMEOUT_S}"]
    command += [f"--coordinator=localhost:{port}"]
    command += [f"--num_processes={self.processes}"]
    environ = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    environ["JAX_COMPILATION_CACHE_DIR"] = str(self.data.parent / "compiled")
    environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return [
      subprocess.Popen(
        [*command, f"--process_id={me}"],
        cwd=HERE.parents[1],
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for me in range(self.processes)
    ]

  def finish(self, **fields: object) -> float:
    """Returns the seconds that it takes to its end when nothing happens."""
    started = time.monotonic()
    running = self.start(**fields)
    for process in running:
      _, stderr = process.communicate()
      if process.returncode:
        raise SystemExit(f"an undisturbed run failed: {stderr}")
    return time.monotonic() - started

  def newest(self) -> int:
    """Returns the newest saved step, 0 if there is none."""
    names = [path.name for path in (self.workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdecimal()), default=0)

  def digest(self, step: int) -> subprocess.Popen:
    """Starts the command that prints the digest of a step, if it is good."""
    command = [sys.executable, "-m", "alexnet_jax", "checkpoint", "digest"]
    return subprocess.Popen(
      [*command, f"--workdir={self.workdir}", f"--step={step}"],
      cwd=HERE.parents[1],
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )


def is_survived(row: dict[str, Any]) -> bool:
  """Whether all others ended in time, and no checkpoint is wrong."""
  if not (row["ended"] and row["same"]) or row["tracebacks"]:
    return False
  if row["seconds"] > SOON_S:
    return False
  codes = row["codes"].split()
  if FAULTS[row["fault"]].saves and row["met"]:
    return set(codes) == {"0"}
  return "0" not in codes


def summary(rows: list[dict[str, Any]]) -> str:
  """Returns the line of a fault, for the table."""
  seconds = sorted(row["seconds"] for row in rows)
  survived = sum(map(is_survived, rows))
  return f"| {survived} of {len(rows)} | {seconds[0]} to {seconds[-1]} s"


def is_same(run: Run, whole: Run) -> bool:
  """Whether the newest step is good and, bit for bit, that of `whole`."""
  step = run.newest()
  if not step:
    return True
  asked = [each.digest(step) for each in (run, whole)]
  ours, theirs = (process.communicate()[0] for process in asked)
  return ours == theirs != ""


def end(running: list[subprocess.Popen], seconds: float) -> bool:
  """Waits until all have ended; returns False if that takes too long."""
  deadline = time.monotonic() + seconds
  while any(process.poll() is None for process in running):
    if time.monotonic() > deadline:
      return False
    time.sleep(0.02)
  return True


def hit(run: Run, name: str, moment: float) -> dict[str, object] | None:
  """Returns what a fault did, None if the run was over before."""
  fault = FAULTS[name]
  running = run.start()
  # What they say is less than a pipe holds.
  over = end(running, moment)
  victims = running if fault.victim is None else [running[fault.victim]]
  others = [p for p in running if p not in victims] or running
  started = time.monotonic()
  if not over:
    for number, each in enumerate(fault.signals):
      time.sleep(0.2 * number)
      for process in victims:
        process.send_signal(each)
  ended = over or end(others, HUNG_S)
  seconds = time.monotonic() - started
  if fault.signals[0] == signal.SIGSTOP:
    victims[0].send_signal(signal.SIGCONT)
  ended = end(running, HUNG_S) and ended
  for process in running:
    process.kill()
  said = [process.communicate() for process in running]
  if over:
    return None
  ours = [said[running.index(process)] for process in others]
  lines = [
    [line for line in stderr.splitlines() if line.startswith("error: ")]
    for _, stderr in ours
  ]
  return {
    "processes": run.processes,
    "fault": name,
    "moment_s": round(moment, 2),
    "ended": ended,
    "seconds": round(seconds, 2),
    "codes_hit": " ".join(str(p.returncode) for p in victims),
    "codes": " ".join(str(p.returncode) for p in others),
    "error_lines": " ".join(str(len(each)) for each in lines),
    "tracebacks": sum("Traceback" in out + err for out, err in said),
    "errors": " | ".join(sorted({x for each in lines for x in each})),
    "met": "Gloo" in said[0][0],
    "stopped": " ".join(re.findall(r"stopped after.*", said[0][0])),
    "saved_step": run.newest(),
  }


def main() -> None:
  """Hits and writes processes.csv."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--trials", type=int, default=2)
  parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
  parser.add_argument("--seed", type=int, default=0)
  asked = parser.parse_args()
  rng = random.Random(asked.seed)
  rows: list[dict[str, Any]] = []
  ends: list[bool] = []
  with tempfile.TemporaryDirectory() as name:
    data = Path(name, "data")
    shapes.generate(
      data, size_px=32, workers=0, train=160, validation=48, test=16
    )
    for count in asked.processes:
      whole = Run(Path(name, str(count)), data, count)
      seconds = whole.finish(
        checkpoints_to_keep=STEPS, checkpoint_every_steps=1
      )
      run = Run(Path(name, f"{count}-timed"), data, count)
      seconds = run.finish()  # Nothing is compiled any more.
      print(f"{count} processes: {seconds:.1f} s undisturbed", flush=True)
      faults = [*FAULTS] * asked.trials
      rng.shuffle(faults)
      while faults:
        if run.newest() == STEPS:
          run = Run(Path(name, f"{count}-{len(faults)}"), data, count)
        moment = rng.uniform(0, seconds)
        row = hit(run, faults[-1], moment)
        same = is_same(run, whole)
        if row is None:
          print(f"a run has come to its end, {same=}", flush=True)
          ends.append(same)
          seconds = min(seconds, moment)
          continue
        faults.pop()
        rows.append(row | {"same": same})
        print(rows[-1], flush=True)
        with (HERE / "processes.csv").open("w", newline="") as file:
          writer = csv.DictWriter(file, list(rows[0]))
          writer.writeheader()
          writer.writerows(rows)
      run.finish()
      ends.append(is_same(run, whole))
  for fault in FAULTS:
    print(fault, summary([row for row in rows if row["fault"] == fault]))
  print(f"runs hit to their end: {len(ends)}, of these {sum(ends)} the same")
  survived = sum(is_survived(row) for row in rows)
  print(f"trials: {len(rows)}, survived: {survived}")


if __name__ == "__main__":
  main()
