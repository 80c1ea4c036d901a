"""Kills `prepare` at random moments and compares what a rerun writes.

  python experiments/killed_prepare/run.py --source=IMAGES

Each trial kills the command (SIGKILL) once, at a moment drawn evenly from the
time that a whole run takes, and runs it again to its end. Results go to
results.csv.
"""

import argparse
import csv
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
TRIALS = 20


def start(source: str, output: Path) -> subprocess.Popen:
  """Starts the command of a user."""
  flags = [f"--source={source}", f"--output={output}", "--size=128"]
  return subprocess.Popen(
    [sys.executable, "-m", "alexnet_jax", "prepare", *flags],
    cwd=HERE.parents[1],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )


def digest(output: Path) -> str:
  """Returns a digest of all names and bytes in a directory."""
  total = hashlib.sha256()
  for path in sorted(output.iterdir()):
    total.update(path.name.encode() + b"\0" + path.read_bytes())
  return total.hexdigest()[:16]


def main() -> None:
  """Measures and writes results.csv."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--source", required=True)
  source = parser.parse_args().source
  rng = random.Random(0)
  rows = []
  with tempfile.TemporaryDirectory() as name:
    begun = time.perf_counter()
    whole = Path(name, "whole", "out")
    if start(source, whole).wait():
      raise SystemExit(f"{source} cannot be prepared")
    seconds = time.perf_counter() - begun
    expected = digest(whole)
    for trial in range(TRIALS):
      output = Path(name, str(trial), "out")
      moment = rng.uniform(0, seconds)
      process = start(source, output)
      try:
        process.wait(moment)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
      done = output.parent / ".out.unfinished" / "done"
      kept = len(list(done.iterdir())) if done.exists() else 0
      there = output.exists()
      if there:
        code = "whole"
      else:
        code = start(source, output).wait()
      same = digest(output) == expected
      rows.append(
        {
          "trial": trial,
          "killed_after_s": round(moment, 2),
          "of_s": round(seconds, 2),
          "finished_shards": kept,
          "output_was_there": there,
          "rerun": code,
          "same_bytes": same,
        }
      )
      print(rows[-1], flush=True)
  with (HERE / "results.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  if not all(row["same_bytes"] for row in rows):
    raise SystemExit("some reruns wrote other bytes")


if __name__ == "__main__":
  main()
