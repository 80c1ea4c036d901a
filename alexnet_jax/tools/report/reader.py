"""Reads what runs and experiments leave in their folders.

A missing or damaged file of a run stops nothing: it is left out, and a note
says so.
"""

import collections
import csv
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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


# The lines of one split in metrics.jsonl: `step`, `epoch` and each metric,
# float64 [N], in the order of their steps; NaN where a line has none.
Lines = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Run:
  """The folder of one run.

  Attributes:
    name: unique in a report.
    folder: its folder.
    experiment: the experiment it is part of, or None.
    arm: its arm in that experiment, or None.
    outcome: `finished`, unless results.csv says something else.
    config: flattened.
    lines: by net of an ensemble (None for all of them, or for a single net)
      and split.
    class_names: in the order of the labels, or empty.
    confusions: content of confusions.json, or empty.
  """

  name: str
  folder: Path
  experiment: str | None
  arm: str | None
  outcome: str
  config: dict[str, Any]
  lines: dict[tuple[int | None, str], Lines]
  class_names: list[str]
  confusions: dict[str, Any]

  @property
  def members(self) -> list[int]:
    """The numbers of an ensemble's nets; empty for a single net."""
    return sorted({member for member, _ in self.lines if member is not None})


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The table of an experiment.

  Attributes:
    name: unique in a report.
    columns: names of the figures in results.csv.
    rows: cells of results.csv by column, for each `ARM-SEED`.
  """

  name: str
  columns: list[str]
  rows: dict[str, dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Found:
  """Everything that was read; `notes` says what is missing or damaged."""

  experiments: list[Experiment]
  runs: list[Run]
  notes: list[str]


def read(folders: Sequence[Path]) -> Found:
  """Reads runs, experiments and folders of runs, each run once.

  Raises:
    InputError: a folder does not exist or is none of these.
  """
  found = Found([], [], [])
  seen: set[Path] = set()
  names: set[str] = set()

  def unique_name(folder: Path) -> str:
    parts = folder.resolve().parts
    count = 1
    while (name := "/".join(parts[-count:])) in names:
      count += 1
    names.add(name)
    return name

  # A run that belongs to a named experiment is read as part of it.
  for folder in sorted(folders, key=lambda x: not _is_experiment(x)):
    runs = [run for run in _runs_of(folder) if run.resolve() not in seen]
    seen.update(run.resolve() for run in runs)
    experiment = None
    if _is_experiment(folder) and folder.resolve() not in seen:
      seen.add(folder.resolve())
      experiment = _read_experiment(folder, unique_name(folder), found.notes)
      found.experiments.append(experiment)
      order = list(experiment.rows)
      runs.sort(key=lambda x: order.index(x.name) if x.name in order else 1e9)
    for run in runs:
      found.runs.append(
        _read_run(run, unique_name(run), experiment, found.notes)
      )
  return found


def _is_experiment(folder: Path) -> bool:
  return (folder / "results.csv").is_file() and (folder / "runs").is_dir()


def _is_run(folder: Path) -> bool:
  files = ("config.json", "metrics.jsonl")
  return any((folder / name).is_file() for name in files)


def _runs_of(folder: Path) -> list[Path]:
  """Returns the folders of the runs that a named folder is or holds."""
  if _is_run(folder):
    return [folder]
  inside = folder / "runs" if _is_experiment(folder) else folder
  runs = sorted(filter(_is_run, inside.iterdir())) if inside.is_dir() else []
  if not runs and inside == folder:
    raise errors.InputError(
      f"{str(folder)!r} is not a run (config.json, metrics.jsonl), an"
      " experiment (results.csv, runs/) or a folder of runs; name one, such as"
      " runs/quickstart."
    )
  return runs


def _read_run(
  folder: Path, name: str, experiment: Experiment | None, notes: list[str]
) -> Run:
  config = config_files.flatten(_read_json(folder / "config.json", {}, notes))
  if not config:
    notes.append(f"{str(folder)!r} has no config.json that can be read.")
  confusions = _read_json(folder / "confusions.json", {}, notes)
  lines = _read_lines(folder / "metrics.jsonl", notes)
  arm, outcome = None, FINISHED
  if experiment:
    row = experiment.rows.get(folder.name, {})
    arm = row.get("arm", folder.name)
    outcome = row.get("outcome", "not in results.csv") or "no outcome"
  elif lines and config.get("test_split"):
    if not any(split == "test" for _, split in lines):
      step = max(each["step"][-1] for each in lines.values())
      notes.append(
        f"{str(folder)!r} is not finished: it is at step {step:,.0f}, without"
        " a test."
      )
  return Run(
    name=name,
    folder=folder,
    experiment=experiment.name if experiment else None,
    arm=arm,
    outcome=outcome,
    config=config,
    lines=lines,
    class_names=_read_json(folder / "class_names.json", [], notes),
    confusions=confusions,
  )


def _read_json(file: Path, empty: Any, notes: list[str]) -> Any:
  """Returns the content of a file; `empty` if it is missing or damaged."""
  try:
    content = json.loads(file.read_bytes())
    if not isinstance(content, type(empty)):
      raise ValueError(f"it holds no {type(empty).__name__}")
  except FileNotFoundError:
    return empty
  except (OSError, ValueError) as e:
    notes.append(f"{str(file)!r} is damaged ({e}); left out.")
    return empty
  return content


def _read_lines(
  file: Path, notes: list[str]
) -> dict[tuple[int | None, str], Lines]:
  """Returns the lines of metrics.jsonl by net and split."""
  fields = ("step", "epoch", *METRICS)
  rows = collections.defaultdict(list)
  damaged: list[str] = []
  not_finite = 0
  content = file.read_bytes() if file.exists() else b""
  for number, line in enumerate(content.split(b"\n"), start=1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
      key = record.get("member"), str(record["split"])
      if type(record["step"]) is not int:
        raise ValueError("no step")
    except (ValueError, KeyError, AttributeError):
      damaged.append(str(number))
      continue
    figures = [to_number(record.get(name)) for name in fields]
    given = sum(record.get(name) is not None for name in fields)
    not_finite += given - int(np.isfinite(figures).sum())
    rows[key].append(figures)
  if damaged:
    notes.append(
      f"{str(file)!r} is damaged in line {errors.first_few(damaged)}; all"
      " other lines are shown."
    )
  if not_finite:
    notes.append(
      f"{str(file)!r} has {not_finite} figures that are not finite numbers;"
      " they are left out."
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
    number = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    return math.nan
  return number if math.isfinite(number) else math.nan


def _read_experiment(folder: Path, name: str, notes: list[str]) -> Experiment:
  """Reads results.csv.

  Raises:
    InputError: results.csv has no columns of arm, seed and outcome.
  """
  file = folder / "results.csv"
  text = file.read_text(encoding="utf-8-sig", errors="replace")
  lines = csv_rows(text)
  _, header = next(lines, (0, []))
  if missing := [column for column in _NEEDED if column not in header]:
    raise errors.InputError(
      f"{str(file)!r} has no column {', '.join(missing)}; its first line must"
      f" name {', '.join(_NEEDED)} and figures."
    )
  columns = [column for column in header if column not in _ABOUT]
  rows: dict[str, dict[str, str]] = {}
  for number, cells in lines:
    if len(cells) != len(header):
      notes.append(
        f"{str(file)!r} has {len(cells)} of {len(header)} cells in line"
        f" {number}; the row is left out."
      )
      continue
    row = dict(zip(header, cells, strict=True))
    name_of_run = f"{row['arm']}-{row['seed']}"
    if any(row[x].strip() and math.isnan(to_number(row[x])) for x in columns):
      notes.append(
        f"{str(file)!r} has a figure that is no number in line {number}; it is"
        " left out."
      )
    if name_of_run in rows:
      notes.append(
        f"{str(file)!r} has {name_of_run!r} again in line {number}; that row is"
        " shown."
      )
    rows[name_of_run] = row
  if not text.endswith("\n"):
    notes.append(f"{str(file)!r} may be cut: its last line has no end.")
  return Experiment(name, columns, rows)


def csv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
  """Yields the number and the cells of each line that is not empty.

  Every line is a row, so that a lost quote damages only its own row, which then
  has no cells.
  """
  for number, line in enumerate(text.split("\n"), start=1):
    line = line.removesuffix("\r")
    if not line:
      continue
    try:
      cells = next(csv.reader([line], strict=True))
    except csv.Error:
      cells = []
    yield number, cells
