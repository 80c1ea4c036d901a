"""Reads what runs and experiments leave in their folders.

A damaged run stops nothing: it is left out, and a note says so.
"""

import collections
import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax.runs import config_files, logs, run_files
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
  group: str  # the arm of its experiment, or its own name
  in_experiment: bool
  outcome: str  # `finished`, or what results.csv says
  config: dict[str, Any]  # flattened
  # By net of an ensemble (None for the whole run) and split.
  lines: dict[tuple[int | None, str], Lines]


class Found(NamedTuple):
  """Everything that was read; `notes` says what is missing or damaged."""

  experiments: list[Experiment]
  runs: list[Run]
  notes: list[str]


def read(folders: Sequence[Path]) -> Found:
  """Reads runs, experiments and folders of runs, each run once.

  Where several folders are named, a name is the path from their common parent.
  """
  found = Found([], [], [])
  named = list(dict.fromkeys(folder.resolve() for folder in folders))
  parent = os.path.commonpath([folder.parent for folder in named])
  experiments: dict[Path, Experiment | None] = {}  # by run
  # A run that belongs to a named experiment is read as part of it.
  for folder in sorted(named, key=lambda x: not _is_experiment(x)):
    experiment = None
    if _is_experiment(folder):
      name = str(folder.relative_to(parent))
      experiment = _read_experiment(folder, name)
      found.experiments.append(experiment)
    for run in _runs_of(folder, experiment):
      experiments.setdefault(run, experiment)
  for run, experiment in experiments.items():
    name = str(run.relative_to(parent))
    if experiment:
      name = f"{experiment.name}/{run.name}" if len(named) > 1 else run.name
    try:
      found.runs.append(_read_run(run, name, experiment, found.notes))
    except errors.InputError as e:
      found.notes.append(f"{name} is left out: {e}")
  return found


def _is_experiment(folder: Path) -> bool:
  return (folder / "results.csv").is_file() and (folder / "runs").is_dir()


def _runs_of(folder: Path, experiment: Experiment | None) -> list[Path]:
  """Returns the folders of the runs that a named folder is or holds."""
  places = [folder, *sorted(folder.glob("*"))]
  if experiment:
    runs = folder / "runs"
    listed = [runs / name for name in experiment.rows]
    places = [*listed, *sorted(runs.glob("*"))]
  found = [x for x in places if (x / "config.json").is_file()]
  if not found and not experiment:
    raise errors.InputError(
      f"{str(folder)!r} is not a run (with config.json), an"
      " experiment (results.csv, runs/) or a folder of runs; name one, such as"
      " runs/quickstart."
    )
  return found


def _read_run(
  folder: Path, name: str, experiment: Experiment | None, notes: list[str]
) -> Run:
  config = config_files.flatten(run_files.read_config(folder).to_dict())
  fields = ["step", "epoch", *METRICS]
  rows = collections.defaultdict(list)
  for record in logs.read_metrics(folder):
    row = [to_number(record.get(field)) for field in fields]
    rows[record.get("member"), record["split"]].append(row)
  lines = {
    key: dict(zip(fields, np.array(table).T, strict=True))
    for key, table in rows.items()
  }
  if not lines:
    notes.append(f"{name} has no metrics; there are no curves.")
  if experiment:
    row = {"arm": folder.name, "outcome": "not in results.csv"}
    row = experiment.rows.get(folder.name, row)
    group = name.removesuffix(folder.name) + row["arm"]
    return Run(name, group, True, row["outcome"] or "no outcome", config, lines)
  if (None, "validation") in lines and not config["test_split"]:
    notes.append(
      f"{name} has no test split; its validation errors may be too low."
    )
  return Run(name, name, False, FINISHED, config, lines)


def to_number(value: Any) -> float:
  """Returns a finite number, or a text of one, as a float; else NaN."""
  try:
    number = float(value)
  except (TypeError, ValueError):
    return math.nan
  return number if math.isfinite(number) else math.nan


def _read_experiment(folder: Path, name: str) -> Experiment:
  file = folder / "results.csv"
  text = file.read_text(encoding="utf-8-sig", errors="replace")
  table = csv.DictReader(text.splitlines())
  header = table.fieldnames or ()
  if missing := [column for column in _NEEDED if column not in header]:
    raise errors.InputError(
      f"{str(file)!r} has no column {', '.join(missing)}; its first line must"
      f" name {', '.join(_NEEDED)} and figures."
    )
  rows = {}
  for row in table:
    if None in row or None in row.values():  # More cells, or fewer.
      raise errors.InputError(
        f"{str(file)!r} is damaged in line {table.line_num}: it must have"
        f" {len(header)} cells, as its first line; mend it."
      )
    rows[f"{row['arm']}-{row['seed']}"] = row
  return Experiment(name, [x for x in header if x not in _ABOUT], rows)
