"""Reads what runs and experiments leave in their folders.

A missing or damaged file of a run stops nothing: it is left out, and a note
says so.
"""

import collections
import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax.runs import config_files
from alexnet_jax.runtime import errors

METRICS = ("top1_error", "top5_error", "loss", "learning_rate")
SPLITS = ("validation", "train", "test")
FINISHED = "finished"
_NEEDED = ("arm", "seed", "outcome")
# Columns of results.csv that are not figures.
_ABOUT = (*_NEEDED, "digest", "commit", "device", "versions", "nets_in_program",
          "steps", "wall_s")  # fmt: skip

# The lines of one split in metrics.jsonl: float64 [N] by `step`, `epoch` and
# metric, in the order of their steps; NaN where a line has none.
Lines = dict[str, np.ndarray]


class Experiment(NamedTuple):
  """The table of an experiment."""

  name: str  # unique in a report
  columns: list[str]  # that hold figures
  rows: dict[str, dict[str, str]]  # cells by column, for each `ARM-SEED`


class Run(NamedTuple):
  """What the folder of a run holds."""

  name: str  # unique in a report
  folder: Path
  experiment: Experiment | None
  outcome: str  # `finished`, or what results.csv says
  config: dict[str, Any]  # flattened
  # By net of an ensemble (None for the whole run) and split.
  lines: dict[tuple[int | None, str], Lines]
  class_names: list[str]  # in the order of the labels
  confusions: dict[str, Any]  # confusions.json


class Found(NamedTuple):
  """Everything that was read; `notes` says what is missing or damaged."""

  experiments: list[Experiment]
  runs: list[Run]
  notes: list[str]

  def column_of(self, run: Run) -> str:
    """Returns the name of a run's arm, or of the run if it has none."""
    if not run.experiment:
      return run.name
    row = run.experiment.rows.get(run.folder.name, {})
    arm = row.get("arm", run.folder.name)
    alone = all(x.experiment is run.experiment for x in self.runs)
    return arm if alone else f"{run.experiment.name}/{arm}"


def read(folders: Sequence[Path]) -> Found:
  """Reads runs, experiments and folders of runs, each run once.

  Raises:
    InputError: a folder does not exist or is none of these.
  """
  found = Found([], [], [])
  names: set[str] = set()

  def unique_name(folder: Path) -> str:
    count = 1
    while (name := "/".join(folder.parts[-count:])) in names:
      count += 1
    names.add(name)
    return name

  experiments: dict[Path, Experiment | None] = {}
  unique = dict.fromkeys(folder.resolve() for folder in folders)
  # A run that belongs to a named experiment is read as part of it.
  for folder in sorted(unique, key=lambda x: not _is_experiment(x)):
    experiment = None
    if _is_experiment(folder):
      experiment = _read_experiment(folder, unique_name(folder), found.notes)
      found.experiments.append(experiment)
    for run in _runs_of(folder, experiment):
      experiments.setdefault(run, experiment)
  for run, experiment in experiments.items():
    name = unique_name(run)
    found.runs.append(_read_run(run, name, experiment, found.notes))
  return found


def _is_experiment(folder: Path) -> bool:
  return (folder / "results.csv").is_file() and (folder / "runs").is_dir()


def _is_run(folder: Path) -> bool:
  return (folder / "config.json").is_file()


def _runs_of(folder: Path, experiment: Experiment | None) -> list[Path]:
  """Returns the folders of the runs that a named folder is or holds."""
  if experiment:
    order = {name: number for number, name in enumerate(experiment.rows)}
    runs = filter(_is_run, (folder / "runs").iterdir())
    return sorted(runs, key=lambda x: (order.get(x.name, len(order)), x.name))
  if _is_run(folder):
    return [folder]
  runs = sorted(filter(_is_run, folder.iterdir())) if folder.is_dir() else []
  if not runs:
    raise errors.InputError(
      f"{str(folder)!r} is not a run (with config.json), an"
      " experiment (results.csv, runs/) or a folder of runs; name one, such as"
      " runs/quickstart."
    )
  return runs


def _read_run(
  folder: Path, name: str, experiment: Experiment | None, notes: list[str]
) -> Run:
  config = config_files.flatten(_read_json(folder / "config.json", {}, notes))
  lines = _read_lines(folder / "metrics.jsonl", notes)
  outcome = FINISHED
  if experiment:
    row = experiment.rows.get(folder.name, {"outcome": "not in results.csv"})
    outcome = row["outcome"] or "no outcome"
  elif lines and config.get("test_split"):
    if "test" not in {split for _, split in lines}:
      step = max(each["step"][-1] for each in lines.values())
      notes.append(
        f"{str(folder)!r} is not finished: it is at step {step:,.0f}, without"
        " a test."
      )
  class_names = _read_json(folder / "class_names.json", [], notes)
  confusions = _read_json(folder / "confusions.json", {}, notes)
  return Run(
    name, folder, experiment, outcome, config, lines, class_names, confusions
  )


def _read_json(file: Path, empty: Any, notes: list[str]) -> Any:
  """Returns the content of a file; `empty` if it is missing or damaged."""
  try:
    return json.loads(file.read_bytes()) if file.exists() else empty
  except (OSError, ValueError) as e:
    notes.append(f"{str(file)!r} is damaged ({e}); left out.")
    return empty


def _read_lines(
  file: Path, notes: list[str]
) -> dict[tuple[int | None, str], Lines]:
  """Returns the lines of metrics.jsonl by net and split."""
  fields = ("step", "epoch", *METRICS)
  rows = collections.defaultdict(list)
  damaged: list[str] = []
  content = file.read_bytes() if file.exists() else b""
  for number, line in enumerate(content.splitlines(), start=1):
    try:
      record = json.loads(line)
      key = record.get("member"), record["split"]
      rows[key].append([to_number(record.get(name)) for name in fields])
    except (ValueError, KeyError, AttributeError):
      damaged.append(str(number))
  if damaged:
    notes.append(
      f"{str(file)!r} is damaged in line {errors.first_few(damaged)}; all"
      " other lines are shown."
    )
  if not rows:
    notes.append(f"{str(file)!r} has no metrics; there are no curves.")
  return {
    key: dict(zip(fields, np.array(sorted(table)).T, strict=True))
    for key, table in rows.items()
  }


def to_number(value: Any) -> float:
  """Returns a finite number, or a text of one, as a float; else NaN."""
  try:
    number = float(value)
  except (TypeError, ValueError):
    return math.nan
  return number if math.isfinite(number) else math.nan


def _read_experiment(folder: Path, name: str, notes: list[str]) -> Experiment:
  """Reads results.csv; every line is a row, so damage costs one row."""
  file = folder / "results.csv"
  text = file.read_text(encoding="utf-8-sig", errors="replace")
  header, *lines = [
    next(csv.reader([x]), []) for x in text.splitlines() or [""]
  ]
  if missing := [column for column in _NEEDED if column not in header]:
    raise errors.InputError(
      f"{str(file)!r} has no column {', '.join(missing)}; its first line must"
      f" name {', '.join(_NEEDED)} and figures."
    )
  rows: dict[str, dict[str, str]] = {}
  for number, cells in enumerate(lines, start=2):
    if len(cells) != len(header):
      notes.append(
        f"{str(file)!r} has {len(cells)} of {len(header)} cells in line"
        f" {number}; the row is left out."
      )
      continue
    row = dict(zip(header, cells, strict=True))
    rows[f"{row['arm']}-{row['seed']}"] = row
  if not text.endswith("\n"):
    notes.append(f"{str(file)!r} may be cut: its last line has no end.")
  columns = [column for column in header if column not in _ABOUT]
  return Experiment(name, columns, rows)
