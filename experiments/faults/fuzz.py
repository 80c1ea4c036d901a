"""Tries the properties of tests/test_fuzz.py for minutes, with new seeds.

  python experiments/faults/fuzz.py --minutes=10

Targets alternate after TURN examples, so that each gets an equal share of the
time. A failing example is printed in its simplest form with the seed. fuzz.csv
gets a row for each target. The exit code is 1 if any example failed.
"""

import argparse
import csv
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / x) for x in (".", "tests", "tests/support")]

import conftest  # noqa: E402, F401  # pyright: ignore[reportMissingImports]
import hypothesis  # noqa: E402
import test_fuzz  # noqa: E402  # pyright: ignore[reportMissingImports]

TURN = 200


def main() -> None:
  """Runs for the asked minutes and writes fuzz.csv."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--minutes", type=float, default=10)
  parser.add_argument("--target", choices=sorted(test_fuzz.TARGETS))
  options = parser.parse_args()
  warnings.simplefilter("error")
  names = [options.target] if options.target else list(test_fuzz.TARGETS)
  examples, failures = Counter(), Counter()
  seconds = dict.fromkeys(names, 0.0)
  settings = hypothesis.settings(max_examples=TURN, **test_fuzz.SETTINGS)
  end = time.monotonic() + 60 * options.minutes
  while time.monotonic() < end:
    for name in names:
      seed = random.SystemRandom().getrandbits(32)
      begun = time.monotonic()
      try:
        test_fuzz.attempt(
          name,
          lambda test, seed=seed: hypothesis.seed(seed)(settings(test)),
          on_example=lambda name=name: examples.update([name]),
        )
      # Any exception of the code under test is a finding.
      except Exception:
        failures[name] += 1
        print(f"{name}, seed {seed}:", flush=True)
        traceback.print_exc()
      seconds[name] += time.monotonic() - begun
  rows = [
    (name, examples[name], failures[name], round(seconds[name]))
    for name in names
  ]
  with (HERE / "fuzz.csv").open("w", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["target", "examples", "failures", "seconds"])
    writer.writerows(rows)
  for row in rows:
    print("{:20} {:8} examples {:4} failures {:6} s".format(*row))
  sys.exit(bool(sum(failures.values())))


if __name__ == "__main__":
  main()
