"""Prints digests of short runs: equal digests, equal numbers to the bit.

  python tests/support/guard.py [--only=NAME,...] > before.txt

Each run takes 20 steps of configs/quickstart.py in the current folder's code,
in one of the layouts. A line gives the SHA-256 of its last parameters and of
what it logged, times left out. Digests hold for one machine and one version of
jax; run it before and after a change that is to keep every number.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

FLAGS = [
  "--config.total_steps=20",
  "--config.log_every_steps=5",
  "--config.checkpoint_every_steps=10",
  "--config.data_dir=data/shapes",
]
NO_EVALUATION = ["--config.validation_split=", "--config.test_split="]
# Name: devices and flags.
RUNS = {
  "data_1": (1, []),
  "resumed": (1, NO_EVALUATION),
  "data_8": (8, NO_EVALUATION),
  "towers_2": (2, ["--config.layout=towers"]),
  "towers_4x2": (8, ["--config.layout=towers", *NO_EVALUATION]),
  "fsdp_8": (8, ["--config.layout=fsdp", *NO_EVALUATION]),
  "owt_a": (2, ["--config.layout=owt_a", *NO_EVALUATION]),
  "owt_b": (2, ["--config.layout=owt_b", *NO_EVALUATION]),
  "owt_c": (2, ["--config.layout=owt_c", *NO_EVALUATION]),
  "microbatches_4": (1, ["--config.microbatches=4", *NO_EVALUATION]),
  "ensemble_3": (3, ["--config.ensemble=3"]),
  "fc_batch_size": (1, ["--config.fc_batch_size=16", *NO_EVALUATION]),
  "fc_batch_size_owt_c": (
    2,
    ["--config.layout=owt_c", "--config.fc_batch_size=16", *NO_EVALUATION],
  ),
  "fc_batch_size_owt_b": (
    2,
    ["--config.layout=owt_b", "--config.fc_batch_size=32", *NO_EVALUATION],
  ),
  "run145": (
    2,
    [
      "--config=configs/run145.py",
      "--config.data_dir=data/shapes",
      "--config.num_classes=10",
      "--config.network.fc8.units=10",
      "--config.image_size_px=64",
      "--config.crop_size_px=56",
      "--config.network.conv1.kernel=7",
      "--config.network.conv1.stride=2",
      "--config.network.fc6.units=64",
      "--config.network.fc7.units=64",
      "--config.batch_size=32",
      "--config.layout=towers",
      "--config.learning_rate_of_layers="
      "((0.03, 'conv1', 1e-5), (0.05, 'conv1', 0.0))",
      *NO_EVALUATION,
    ],
  ),
  "lars": (
    2,
    [
      "--config.optimizer=lars",
      "--config.lars_trust=0.01",
      "--config.warmup_epochs=0.05",
      "--config.layout=fsdp",
      *NO_EVALUATION,
    ],
  ),
}
TIMES = ("images_per_second", "input_wait")


def digest(params) -> str:
  """Returns the SHA-256 of a tree of arrays, by path, dtype, shape, bytes."""
  total = hashlib.sha256()

  def add(tree, path):
    if isinstance(tree, dict):
      for name in sorted(tree):
        add(tree[name], (*path, name))
      return
    values = np.ascontiguousarray(tree)
    total.update(f"{'/'.join(path)} {values.dtype} {values.shape}\n".encode())
    total.update(values.data)

  add(params, ())
  return total.hexdigest()


def train(workdir: Path, devices: int, flags: list[str]) -> None:
  """Runs the training command in the current folder."""
  environment = os.environ | {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "PYTHONPATH": os.getcwd(),
  }
  # A config file must be named before its fields.
  flags = sorted(FLAGS + flags, key=lambda flag: "config=" not in flag)
  command = [sys.executable, "-m", "alexnet_jax.main", f"--workdir={workdir}"]
  found = subprocess.run(
    [*command, *flags],
    env=environment,
    capture_output=True,
    text=True,
  )
  if found.returncode:
    raise RuntimeError(found.stderr[-2000:])


def measure(name: str, folder: Path) -> str:
  """Returns the line of a run."""
  devices, flags = RUNS[name]
  workdir = folder / name
  train(workdir, devices, flags)
  last = workdir / "checkpoints" / "20"
  if name == "resumed":
    shutil.rmtree(last)
    train(workdir, devices, flags)
  handler = ocp.PyTreeCheckpointHandler()
  tree = handler.metadata(last / "params").tree
  like = ocp.RestoreArgs(restore_type=np.ndarray)
  args = ocp.checkpoint_utils.construct_restore_args(tree)
  args = {
    half: {
      layer: dict.fromkeys(arrays, like) for layer, arrays in layers.items()
    }
    for half, layers in args.items()
  }
  params = handler.restore(
    last / "params", args=ocp.args.PyTreeRestore(restore_args=args)
  )
  lines = [json.loads(x) for x in (workdir / "metrics.jsonl").open()]
  logged = [{k: v for k, v in x.items() if k not in TIMES} for x in lines]
  text = json.dumps(logged, sort_keys=True)
  log = hashlib.sha256(text.encode()).hexdigest()
  return f"{name:20} params {digest(params)[:16]}  log {log[:16]}"


def main() -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--only", default=",".join(RUNS))
  names = parser.parse_args().only.split(",")
  with tempfile.TemporaryDirectory() as folder:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      for line in pool.map(lambda name: measure(name, Path(folder)), names):
        print(line, flush=True)


if __name__ == "__main__":
  main()
