"""Measures time to the first step, whole time and peak memory, on this machine.

  python experiments/footprint/run.py

Each figure is of fresh processes, run one after another: the commands that a
user types. Results go to results.csv.
"""

import csv
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alexnet_jax.data.prepare import shapes

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TRIALS = 3


def run(command: str, *flags: str) -> dict[str, float]:
  """Runs `alexnet COMMAND`.

  Returns:
    `seconds` in all, `first_step_s` until it reports its first training record
    (0 if it reports none) and `peak_gb`, the largest resident set of it or of
    a process that it started.
  """
  start = time.perf_counter()
  process = subprocess.Popen(
    [sys.executable, "-m", "alexnet_jax", command, *flags],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout
  first = 0.0
  for line in process.stdout:
    print(" ", line, end="", flush=True)
    if line.startswith("step ") and not first:
      first = time.perf_counter() - start
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f"{command} {' '.join(flags)} ended with status {status}")
  return {
    "seconds": time.perf_counter() - start,
    "first_step_s": first,
    "peak_gb": usage.ru_maxrss * 1024 / 1e9,
  }


def main() -> None:
  """Measures and writes results.csv."""
  rows = []

  def record(what: str, figures: dict[str, float]) -> None:
    rounded = {name: round(value, 2) for name, value in figures.items()}
    rows.append({"what": what, **rounded})
    print(rows[-1], flush=True)

  for trial in range(TRIALS):
    with tempfile.TemporaryDirectory() as folder:
      data = f"--config.data_dir={folder}/shapes"
      workdir = f"--workdir={folder}/run"
      trained = run("train", workdir, data)
      tested = run("evaluate", workdir)
      trained["seconds"] += tested["seconds"]
      trained.pop("first_step_s")
      record(f"quickstart, all, trial {trial}", trained)
      short = run(
        "train",
        f"--workdir={folder}/short",
        data,
        "--config.total_steps=3",
        "--config.log_every_steps=1",
        "--config.validation_split=",
        "--config.test_split=",
      )
      record(f"quickstart, data drawn, 3 steps, trial {trial}", short)
  with tempfile.TemporaryDirectory() as folder:
    data = Path(folder, "shapes")
    shapes.generate(data, train=384, validation=10, test=10, size_px=256)
    full = run(
      "train",
      "--config=alexnet",
      f"--workdir={folder}/run",
      f"--config.data_dir={data}",
      "--config.num_classes=10",
      "--config.batch_size=128",
      "--config.schedule=epochs",
      "--config.total_steps=5",
      "--config.log_every_steps=1",
      "--config.validation_split=",
      "--config.test_split=",
    )
    record("full net, batch 128, 5 steps", full)
  for row in rows:
    row["machine"] = f"{os.cpu_count()} cores, {platform.machine()}"
  with (HERE / "results.csv").open("w", newline="") as file:
    writer = csv.DictWriter(
      file, list(dict.fromkeys(name for row in rows for name in row))
    )
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
  main()
