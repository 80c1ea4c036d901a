"""Runs of the tiny net by the commands, and what they leave."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parents[2]
TINY = {  # the quickstart, smaller still: 32 px pictures and 12 steps
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
  "total_steps": 12,
  "log_every_steps": 2,
  "checkpoint_every_steps": 3,
  "evaluate_every_epochs": 0.5,
}
# Four layers alone, for runs that are started again and again.
# These weights let it see what is in a picture from the first step on.
_SIGMAS = {"conv1": 0.005, "conv3": 0.15, "fc6": 0.06, "fc8": 0.05}
QUICK = {
  **TINY,
  **{f"network.{name}.sigma": sigma for name, sigma in _SIGMAS.items()},
  "network.layers": tuple(_SIGMAS),
  "network.conv1.stride": 2,
  "network.fc6.bias": 0.0,
  "learning_rate": 0.003,
}
# What one process has compiled, the next need not.
CACHE = tempfile.TemporaryDirectory()
COUNTS = {"train": 160, "validation": 40, "test": 50}


def command(name, *flags, devices=1, **fields):
  # One device, unless a test asks for more: users' processes see one.
  environment = os.environ | {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": CACHE.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
  }
  options = [f"--config.{name}={value}" for name, value in fields.items()]
  return {
    "args": [sys.executable, "-m", "alexnet_jax", name, *flags, *options],
    "cwd": ROOT,
    "env": environment,
    "text": True,
  }


def run(name, *flags, devices=1, **fields):
  return subprocess.run(
    **command(name, *flags, devices=devices, **fields), capture_output=True
  )


def train(workdir, data, *flags, devices=1, **fields):
  fields = {"data_dir": data, **TINY, **fields}
  return run("train", f"--workdir={workdir}", *flags, devices=devices, **fields)


def start_quick(workdir, data, **fields):
  """Starts the net of QUICK; its output comes in pipes."""
  fields = {"data_dir": data, **QUICK, **fields}
  options = command("train", f"--workdir={workdir}", **fields)
  # It compiles for longer than it runs.
  options["env"]["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
  options["env"]["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  return in_pipes(options)


def in_pipes(options):
  """Starts a command; what a test does not read of it must not hold it up."""
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  return subprocess.Popen(**options, **pipes, pipesize=2**20)


def finish(process):
  """Waits for a process, and returns its result."""
  try:
    stdout, stderr = process.communicate(timeout=240)
  finally:
    process.kill()
  return subprocess.CompletedProcess(
    process.args, process.returncode, stdout, stderr
  )


def train_quick(workdir, data, **fields):
  return finish(start_quick(workdir, data, **fields))


def records(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def newest_params(workdir):
  """Reads a checkpoint with Orbax alone, on whatever devices it was written."""
  with ocp.CheckpointManager(workdir / "checkpoints") as manager:
    saved = manager.directory / str(manager.latest_step()) / "params"
  with ocp.PyTreeCheckpointer() as checkpointer:
    whole = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
      checkpointer.metadata(saved).item_metadata.tree,
    )
    return checkpointer.restore(saved, restore_args=whole)
