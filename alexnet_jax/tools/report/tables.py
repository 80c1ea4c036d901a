"""Tables of a report: errors, and how configs differ."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from alexnet_jax.tools.report import curves, reader


class Cell(NamedTuple):
  """Mean, half of the interval's width (None for one value), and n."""

  mean: float
  half: float | None
  count: int


class Row(NamedTuple):
  """An arm or run; `failed` holds seed and outcome of each failed run."""

  name: str
  count: int
  failed: list[tuple[str, str]]
  cells: dict[str, Cell]


class Table(NamedTuple):
  """The figures of an experiment's arms, or of runs; errors are fractions."""

  title: str
  rows: list[Row]

  @property
  def columns(self) -> list[str]:
    """The figures that any row has."""
    return list(dict.fromkeys(name for row in self.rows for name in row.cells))


def cell(values: Sequence[float]) -> Cell:
  """Returns the mean and half of Student's 95 % interval."""
  count, half = len(values), None
  if count > 1:
    from scipy import stats  # It takes a second to import.

    quantile = stats.t.ppf(0.975, count - 1)
    half = float(quantile * stats.sem(values))
  return Cell(float(np.mean(values)), half, count)


def error_tables(
  found: reader.Found, groups: Sequence[curves.Group]
) -> list[Table]:
  """Returns a table for each experiment, and one for runs that are in none."""
  tables = [Table(each.name, _rows_of_arms(each)) for each in found.experiments]
  others = [x for x in groups if not x.seeds[0].run.in_experiment]
  runs = [_row_of_run(group) for group in others]
  return [*tables, Table("runs", runs)] if runs else tables


def _rows_of_arms(experiment: reader.Experiment) -> list[Row]:
  arms = collections.defaultdict(list)
  for row in experiment.rows.values():
    arms[row["arm"]].append(row)
  rows = []
  for arm, seeds in arms.items():
    good = [row for row in seeds if row["outcome"] == reader.FINISHED]
    failed = [
      (row["seed"], row["outcome"] or "no outcome")
      for row in seeds
      if row["outcome"] != reader.FINISHED
    ]
    figures = {
      name: [reader.to_number(row[name]) for row in good]
      for name in experiment.columns
    }
    rows.append(Row(arm, len(good), failed, _cells(figures)))
  return rows


def _row_of_run(group: curves.Group) -> Row:
  """Returns the last figures of each split."""
  figures = {
    f"{split} {metric}": [
      float(values[np.isfinite(values)][-1])
      for seed in group.seeds
      if split in seed.curves
      for values in seed.curves[split].values.get(metric, ())[:1]
    ]
    for split in ("train", "validation", "test")
    for metric in ("loss", "top1_error", "top5_error")
  }
  return Row(group.name, len(group.seeds), [], _cells(figures))


def _cells(figures: dict[str, list[float]]) -> dict[str, Cell]:
  cells = {}
  for name, values in figures.items():
    if known := [value for value in values if np.isfinite(value)]:
      cells[name] = cell(known)
  return cells


def config_differences(
  runs: Sequence[reader.Run],
) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
  """Returns the arms and runs, and the config fields that differ between them.

  A row is a field, its most frequent value, and its value in each column; the
  values of seeds that differ are joined by commas. Fields that some configs
  only lack, as layers, are left out.
  """
  columns = collections.defaultdict(list)
  for run in runs:
    columns[run.group].append(run.config)
  rows = []
  for field in sorted({field for run in runs for field in run.config}):
    cells = [
      ", ".join(dict.fromkeys(str(x.get(field, "absent")) for x in configs))
      for configs in columns.values()
    ]
    present = {str(run.config[field]) for run in runs if field in run.config}
    if len(set(cells)) > 1 and len(present) > 1:
      rows.append((field, max(cells, key=cells.count), cells))
  return list(columns), rows
