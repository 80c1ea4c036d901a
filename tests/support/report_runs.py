"""Folders of runs and experiments, as training leaves them."""

import csv
import json


def write_run(folder, records=(), config=None):
  folder.mkdir(parents=True)
  config = {"test_split": ""} | (config or {})
  (folder / "config.json").write_text(json.dumps(config))
  if records is not None:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
  return folder


def record(step, split="train", **fields):
  return {"step": step, "epoch": step / 10, "split": split, **fields}


def write_experiment(folder, rows, columns=("test_error",), runs=()):
  """Writes results.csv, of (arm, seed, outcome, figure...), and runs."""
  folder.mkdir(parents=True)
  (folder / "runs").mkdir()
  with (folder / "results.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["arm", "seed", "commit", "outcome", *columns])
    for arm, seed, outcome, *figures in rows:
      writer.writerow([arm, seed, "abc", outcome, *figures])
  for name, records, config in runs:
    write_run(folder / "runs" / name, records, config)
  return folder
