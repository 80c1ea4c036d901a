"""Tables of a report: errors, config differences, confusions, filters."""

import base64
import collections
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from alexnet_jax.runtime import errors
from alexnet_jax.tools.figures import tiles
from alexnet_jax.tools.report import curves, reader

_CONFIDENCE = 0.95
_CONFUSIONS = 20


class Cell(NamedTuple):
  """Mean, half of the interval's width (None for one value), and the values."""

  mean: float
  half: float | None
  seeds: list[float]


class Row(NamedTuple):
  """An arm or run; `failed` holds seed and outcome of each failed run."""

  name: str
  count: int
  failed: list[tuple[str, str]]
  cells: dict[str, Cell]


class Table(NamedTuple):
  """The figures of an experiment's arms, or of runs; errors are fractions."""

  experiment: str | None
  rows: list[Row]

  @property
  def columns(self) -> list[str]:
    """The figures that any row has."""
    return list(dict.fromkeys(name for row in self.rows for name in row.cells))

  def span(self, column: str) -> tuple[float, float]:
    """Returns the lowest and highest value or end of an interval."""
    cells = [row.cells[column] for row in self.rows if column in row.cells]
    ends = [x.mean + side * (x.half or 0) for x in cells for side in (-1, 1)]
    ends += [value for cell in cells for value in cell.seeds]
    return min(ends), max(ends)


def interval(values: Sequence[float]) -> tuple[float, float | None]:
  """Returns the mean and half of Student's 95 % interval, None of one value."""
  mean = float(np.mean(values))
  if len(values) < 2:
    return mean, None
  from scipy import stats  # It takes a second to import.

  quantile = stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)
  return mean, float(quantile * stats.sem(values))


def error_tables(
  found: reader.Found, groups: Sequence[curves.Group]
) -> list[Table]:
  """Returns a table for each experiment, and one for runs that are in none."""
  tables = [_table_of_arms(experiment) for experiment in found.experiments]
  runs = [group for group in groups if not group.seeds[0].run.experiment]
  return [*tables, _table_of_runs(runs)] if runs else tables


def _table_of_arms(experiment: reader.Experiment) -> Table:
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
  return Table(experiment.name, rows)


def _table_of_runs(groups: Sequence[curves.Group]) -> Table:
  """Returns the last figures of each split."""
  rows = []
  for group in groups:
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
    rows.append(Row(group.name, len(group.seeds), [], _cells(figures)))
  return Table(None, rows)


def _cells(figures: dict[str, list[float]]) -> dict[str, Cell]:
  cells = {}
  for name, values in figures.items():
    if known := [value for value in values if np.isfinite(value)]:
      cells[name] = Cell(*interval(known), known)
  return cells


def config_differences(
  found: reader.Found,
) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
  """Returns the arms and runs, and the config fields that differ between them.

  A row is a field, its most frequent value, and its value in each column; the
  values of seeds that differ are joined by commas. Fields that vary alike in
  all arms, or that some configs only lack, are left out.
  """
  columns = collections.defaultdict(list)
  for run in found.runs:
    if run.config:
      columns[found.column_of(run)].append(run.config)
  configs = [config for each in columns.values() for config in each]
  rows = []
  for field in sorted({field for config in configs for field in config}):
    cells = [
      ", ".join(dict.fromkeys(str(x.get(field, "absent")) for x in each))
      for each in columns.values()
    ]
    present = {str(x[field]) for x in configs if field in x}
    if len(set(cells)) > 1 and len(present) > 1:
      rows.append((field, max(cells, key=cells.count), cells))
  return list(columns), rows


def worst_confusions(found: reader.Found) -> list[dict[str, Any]]:
  """Returns the most frequent errors of each arm and run.

  Runs of an arm whose classes, split or views differ from its first are left
  out. `rows` holds label, predicted class, images, and their share of the
  label's images.
  """

  def kind(run: reader.Run) -> list[Any]:
    return [run.class_names, *map(run.confusions.get, ("split", "views"))]

  by_column = collections.defaultdict(list)
  for run in found.runs:
    if run.confusions and run.outcome == reader.FINISHED:
      by_column[found.column_of(run)].append(run)
  worst = []
  for column, runs in by_column.items():
    names, split, views = kind(runs[0])
    name_of = dict(enumerate(names)).get
    runs = [run for run in runs if kind(run) == kind(runs[0])]
    total: collections.Counter[tuple[int, int]] = collections.Counter()
    images: collections.Counter[int] = collections.Counter()
    for run in runs:
      for label, predicted, count in run.confusions["counts"]:
        total[label, predicted] += count
        images[label] += count
    wrong = sorted((-n, a, b) for (a, b), n in total.items() if a != b)
    worst.append({
      "name": column, "split": split, "views": views, "runs": len(runs),
      "images": images.total(), "wrong": -sum(minus for minus, *_ in wrong),
      "rows": [
        (name_of(a, a), name_of(b, b), -minus, -minus / images[a])
        for minus, a, b in wrong[:_CONFUSIONS]
      ],
    })  # fmt: skip
  return worst


def filters(found: reader.Found) -> list[tuple[str, int, str]]:
  """Returns caption, width and PNG in base64 of each net's conv1.

  `found.notes` gets a line for each checkpoint that cannot be read.
  """
  pictures = []
  for run in found.runs:
    if not any((run.folder / "checkpoints").glob("[0-9]*")):
      continue
    # These take seconds to import, and most reports have no checkpoint.
    import jax

    from alexnet_jax.parallel import placement
    from alexnet_jax.runs import trained

    # The accelerator may be busy with this very run.
    jax.config.update("jax_platforms", "cpu")
    try:
      net = trained.load_run(run.folder, placement.make_mesh())
    # Orbax raises many kinds of errors for what it cannot read.
    except Exception as e:
      found.notes.append(
        f"{str(run.folder)!r}: its checkpoint cannot be read"
        f" ({errors.reason(e)}); its filters are not shown."
      )
      continue
    for number, params in enumerate(net.members):
      kernel = np.asarray(params["features"]["conv1"]["kernel"], np.float32)
      pixels = tiles.filters(kernel, run.config["network.towers"])
      name = f", net {number}" if len(net.members) > 1 else ""
      png = io.BytesIO()
      Image.fromarray(pixels).save(png, "PNG", optimize=True)
      caption = f"{run.name}{name}, step {net.step:,}"
      text = base64.b64encode(png.getvalue()).decode()
      pictures.append((caption, pixels.shape[1], text))
  return pictures
