"""Runs of several processes, by the command as users run it."""

import socket
import subprocess
import time

from tiny_runs import QUICK, ROOT, command, in_pipes

LIVELY = {  # It is evaluated after every step.
  **QUICK,
  "total_steps": 16,
  "checkpoint_every_steps": 4,
  "checkpoints_to_keep": 16,
  "evaluate_every_epochs": 0.1,
}


def start(name, *flags, devices=1, cwd=ROOT, **fields):
  """Starts a command; whole steps compile for longer than they run."""
  asked = command(name, *flags, devices=devices, **fields) | {"cwd": cwd}
  asked["env"] |= {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONPATH": str(ROOT),
  }
  return in_pipes(asked)


def start_run(workdir, data, processes=1, devices=1, each=(), **fields):
  """Starts the processes of a run.

  Args:
    workdir: of the run.
    data: data_dir.
    processes: how many.
    devices: of each process.
    each: what is of its own in each process: cwd, or a field.
    fields: of the config, but for those of LIVELY.
  """
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  running = []
  for me in range(processes):
    flags = [f"--workdir={workdir}"]
    if processes > 1:
      flags += [f"--coordinator={address}", f"--num_processes={processes}"]
      flags += [f"--process_id={me}"]
    own = each[me] if each else {}
    asked = {"data_dir": data, **LIVELY, **fields, **own}
    running.append(start("main", *flags, devices=devices, **asked))
  return running


def finish(running):
  """Waits for processes, and returns their results."""
  results = []
  try:
    for process in running:
      stdout, stderr = process.communicate(timeout=240)
      results.append(
        subprocess.CompletedProcess(
          process.args, process.returncode, stdout, stderr
        )
      )
  finally:
    for process in running:
      process.kill()
  return results


def succeed(running):
  results = finish(running)
  for result in results:
    assert result.returncode == 0, result.stdout + result.stderr
  return results


def saved_steps(workdir):
  """The steps of a run's checkpoints; what is half-written is none."""
  names = [path.name for path in (workdir / "checkpoints").iterdir()]
  return sorted(int(name) for name in names if name.isdecimal())


def wait_for(found, running):
  """Waits until something of a run is there."""
  deadline = time.monotonic() + 240
  while not found():
    assert all(process.poll() is None for process in running)
    assert time.monotonic() < deadline
    time.sleep(0.02)
