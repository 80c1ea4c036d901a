"""Runs of several processes, by the command as users run it."""

import socket
import subprocess
import time

from tiny_runs import QUICK, ROOT, command, in_pipes

LIVELY = {  # It is evaluated after every step.
  **QUICK,
  # With seeds 0 and 1 activities in a pool nearly tie, and rounding decides.
  "seed": 2,
  "total_steps": 16,
  "checkpoint_every_steps": 4,
  "checkpoints_to_keep": 16,
  "evaluate_every_epochs": 0.1,
}


def free_address():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return f"localhost:{free.getsockname()[1]}"


def flags_of(address, count, me):
  """Returns the flags of one process of a run."""
  return [
    f"--coordinator={address}",
    f"--num_processes={count}",
    f"--process_id={me}",
  ]


def start_run(workdir, data, processes=1, devices=1, cwds=(), **fields):
  """Starts the processes of a run.

  Args:
    workdir: of the run.
    data: data_dir.
    processes: how many.
    devices: of each process.
    cwds: the folder in which each process runs, if not in the repository.
    fields: of the config, but for those of LIVELY.
  """
  address = free_address()
  running = []
  for me in range(processes):
    flags = [f"--workdir={workdir}"]
    if processes > 1:
      flags += flags_of(address, processes, me)
    options = {"data_dir": data, **LIVELY, **fields}
    options = command("train", *flags, devices=devices, **options)
    options["cwd"] = cwds[me] if cwds else ROOT
    options["env"] |= {  # Whole steps compile for longer than they run.
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "PYTHONPATH": str(ROOT),
    }
    running.append(in_pipes(options))
  return running


def finish(running):
  """Waits for processes, and returns their results."""
  results = []
  try:
    for process in running:
      said = process.communicate(timeout=240)
      results.append(
        subprocess.CompletedProcess(process.args, process.returncode, *said)
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


def wait_for(found, running):
  """Waits until something of a run is there."""
  deadline = time.monotonic() + 240
  while not found():
    assert all(process.poll() is None for process in running)
    assert time.monotonic() < deadline
    time.sleep(0.02)
