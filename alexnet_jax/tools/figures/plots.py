"""Plots of a report for print, and the style of all figures.

They fit a column of 85 mm; fonts have 7 points and are embedded.
"""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import figure

from alexnet_jax.runtime import cli
from alexnet_jax.tools.report import curves, reader, tables

_WIDTH_IN = 85 / 25.4
STYLE: Any = {
  "pdf.fonttype": 42,
  "font.size": 7,
  "axes.titlesize": 7,
  "axes.linewidth": 0.6,
  "lines.linewidth": 1.0,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "legend.frameon": False,
}
# The colours of the page, which colour-blind people can tell apart.
COLOURS = (
  "#0072b2", "#d55e00", "#007d5a", "#b5458f", "#8c6900", "#4b3fb0", "#6b6b6b",
  "#a02020",
)  # fmt: skip
_DASHES = ("-", "--", ":", "-.")
_LABELS = {
  "loss": "loss (nats per image)",
  "top1_error": "top-1 error (%)",
  "top5_error": "top-5 error (%)",
}


def draw_all(
  groups: Sequence[curves.Group],
  of_errors: Sequence[tables.Table],
  folder: Path,
) -> Iterator[str]:
  """Writes every plot of a report as PNG and PDF; yields the files' names.

  Raises:
    InputError: the folder cannot be written.
  """
  plots = {f"curves_{x}": draw_curves(groups, x) for x in _LABELS}
  for number, table in enumerate(of_errors, start=1):
    for column in table.columns:
      if table.experiment and "error" in column:
        more = f"_{number}" if number > 1 else ""
        name = re.sub(r"\W", "_", column)
        plots[f"errors_{name}{more}"] = draw_errors(table, column)
  for name, plot in plots.items():
    if plot:
      for suffix in ("png", "pdf"):
        save(plot, folder / f"{name}.{suffix}")
        yield f"{name}.{suffix}"


def save(plot: figure.Figure, file: Path) -> None:
  """Writes a plot as PNG or PDF; the same plot gives the same bytes.

  Raises:
    InputError: the file cannot be written.
  """
  with (
    matplotlib.rc_context(STYLE),
    warnings.catch_warnings(),
    cli.replacing(file) as new,
  ):
    # The font lacks some scripts, whose letters become boxes.
    warnings.filterwarnings("ignore", "Glyph")
    undated = {"CreationDate": None} if file.suffix == ".pdf" else None
    plot.savefig(new, dpi=300, metadata=undated)


@matplotlib.rc_context(STYLE)
def draw_curves(
  groups: Sequence[curves.Group], metric: str
) -> figure.Figure | None:
  """Returns a metric over epochs: means of groups, smallest to largest.

  It is of the validation split, or else of training or the test. None if no
  finished run has the metric.
  """

  def lines_of(split: str) -> dict[str, curves.Curve]:
    return {
      group.name: curve
      for group in groups
      if (curve := group.means().get(split)) and metric in curve.values
    }

  split = next((x for x in reader.SPLITS if lines_of(x)), None)
  if split is None:
    return None
  lines = lines_of(split)
  height = 2.1 + 0.13 * math.ceil(len(lines) / 2)
  plot = figure.Figure((_WIDTH_IN, height), layout="constrained")
  axes: Any = plot.subplots()
  for number, (name, curve) in enumerate(lines.items()):
    mean, low, high = curve.values[metric] * (100 if "error" in metric else 1)
    epochs = curve.x["epoch"]
    colour = COLOURS[number % len(COLOURS)]
    dash = _DASHES[number // len(COLOURS) % len(_DASHES)]
    marker = "o" if len(epochs) == 1 else None
    axes.plot(
      epochs, mean, dash, color=colour, label=plain(name), markersize=3,
      marker=marker,
    )  # fmt: skip
    axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
  axes.set(xlabel="epoch", ylabel=f"{split} {_LABELS[metric]}")
  axes.grid(axis="y", linewidth=0.3, color="0.85")
  plot.legend(loc="outside lower center", ncols=2, handlelength=2.2)
  return plot


@matplotlib.rc_context(STYLE)
def draw_errors(table: tables.Table, column: str) -> figure.Figure:
  """Returns one column of a table of errors: mean, interval, seeds."""
  rows = table.rows
  height = 0.5 + 0.16 * len(rows)
  plot = figure.Figure((_WIDTH_IN, height), layout="constrained")
  axes: Any = plot.subplots()
  for place, row in enumerate(rows):
    if cell := row.cells.get(column):
      axes.errorbar(
        100 * cell.mean, place, xerr=100 * (cell.half or 0), fmt="o",
        color=COLOURS[0], markersize=3, linewidth=0.9, capsize=1.5,
      )  # fmt: skip
      if len(cell.seeds) > 1:
        seeds = 100 * np.array(cell.seeds)
        axes.plot(seeds, [place] * len(seeds), "|", color="0.45", markersize=4)
    if row.failed:
      axes.annotate(
        f"{len(row.failed)} of {row.count + len(row.failed)} failed",
        (1, place), (3, 0), xycoords=("axes fraction", "data"),
        textcoords="offset points", va="center",
      )  # fmt: skip
  axes.set_yticks(range(len(rows)), [plain(row.name) for row in rows])
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.locator_params(axis="x", nbins=6)
  axes.set_xlabel(f"{plain(tables.label(column))}")
  axes.grid(axis="x", linewidth=0.3, color="0.85")
  return plot


def plain(name: str, most: int = 28) -> str:
  """Returns a name as matplotlib should write it, cut to so many letters."""
  name = name.encode(errors="backslashreplace").decode()  # Of bytes, perhaps.
  short = name if len(name) <= most else f"{name[: most - 1]}…"
  # A $ would begin a formula, and a label that begins in _ has no legend.
  return " " * name.startswith("_") + short.replace("$", r"\$")
