"""Plots of a report for print: curves of arms, and their errors.

They fit a column of 85 mm, with fonts of 7 points that are embedded.
"""

import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import figure, ticker

from alexnet_jax.runtime import cli

_WIDTH_IN = 85 / 25.4
STYLE = {
  "pdf.fonttype": 42,
  "font.size": 7,
  "axes.titlesize": 7,
  "axes.labelsize": 7,
  "xtick.labelsize": 7,
  "ytick.labelsize": 7,
  "legend.fontsize": 7,
  "axes.linewidth": 0.6,
  "lines.linewidth": 1.0,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "legend.frameon": False,
}
# As in the page: told apart in colour-blindness; dashes tell when they repeat.
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
_SPLITS = ("validation", "train", "test")


def draw_all(data: dict[str, Any], folder: Path) -> list[str]:
  """Writes every plot as PNG and PDF; returns the names of the files.

  Args:
    data: of a report.
    folder: for the files.

  Raises:
    InputError: the folder is not there or cannot be written.
  """
  written = []
  rc: Any = STYLE
  with matplotlib.rc_context(rc):
    plots = {
      f"curves_{metric}": draw_curves(data, metric) for metric in _LABELS
    }
    for number, table in enumerate(data["tables"]):
      if table["what"] == "arm":
        for at, column in enumerate(table["columns"]):
          if column["percent"]:
            more = f"_{number + 1}" if number else ""
            name = re.sub(r"\W", "_", column["name"])
            plots[f"errors_{name}{more}"] = draw_errors(table, at)
    for name, plot in plots.items():
      for suffix in ("png", "pdf") if plot else ():
        assert plot
        save(plot, folder / f"{name}.{suffix}")
        written.append(f"{name}.{suffix}")
  return written


def save(plot: figure.Figure, file: Path) -> None:
  """Writes a plot as its file's name ends; the same plot is the same bytes.

  Raises:
    InputError: the file cannot be written.
  """
  rc: Any = STYLE
  with (
    matplotlib.rc_context(rc),
    warnings.catch_warnings(),
    cli.replacing(file) as new,
  ):
    # The font lacks some scripts, and shows their letters as boxes.
    warnings.filterwarnings("ignore", "Glyph")
    undated = {"CreationDate": None} if file.suffix == ".pdf" else None
    plot.savefig(new, dpi=300, metadata=undated)


def draw_curves(data: dict[str, Any], metric: str) -> figure.Figure | None:
  """Returns a metric over training: means of groups, smallest to largest.

  Args:
    data: of a report.
    metric: to draw, on the validation split if there is one.

  Returns:
    The plot, None if no run has the metric.
  """
  held = {split for run in data["runs"] for split in run["curves"]
          if metric in run["curves"][split]}  # fmt: skip
  split = next((split for split in _SPLITS if split in held), None)
  if split is None:
    return None
  groups = []
  for group in data["groups"]:
    each = [data["runs"][index] for index in group["runs"]]
    good = [run for run in each if run["outcome"] == "finished"]
    curves = [
      run["curves"][split][metric]
      for run in good
      if metric in run["curves"].get(split, {})
    ]
    if curves:
      groups.append((group["name"], curves))
  if not groups:
    return None
  across = "epoch"
  if any(None in c["epoch"] for _, curves in groups for c in curves):
    across = "step"
  rows = math.ceil(len(groups) / 2)
  height = 2.1 + 0.13 * rows
  plot = figure.Figure((_WIDTH_IN, height), layout="constrained")
  axes: Any = plot.subplots()
  by = 100 if "error" in metric else 1
  for number, (name, curves) in enumerate(groups):
    at, values = _on_one_grid(curves, across)
    colour = COLOURS[number % len(COLOURS)]
    dash = _DASHES[number // len(COLOURS) % len(_DASHES)]
    mean, low, high = (
      by * f(values, axis=0) for f in (np.mean, np.min, np.max)
    )
    marker = "o" if len(at) == 1 else None
    axes.plot(
      at, mean, dash, color=colour, label=plain(name), marker=marker,
      markersize=3,
    )  # fmt: skip
    if len(curves) > 1:
      axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
  axes.set_xlabel(across)
  axes.set_ylabel(f"{split} {_LABELS[metric]}")
  axes.grid(axis="y", linewidth=0.3, color="0.85")
  plot.legend(loc="outside lower center", ncols=2, handlelength=2.2)
  return plot


def _on_one_grid(
  curves: Sequence[dict[str, Any]], across: str
) -> tuple[np.ndarray, np.ndarray]:
  """Returns x, as far as all curves go, and [curves, x].

  Of curves of one point each, the middle of them.
  """
  points = [curve.get("mean", curve) for curve in curves]
  xs = [np.array(p[across], float) for p in points]
  if all(len(x) == 1 for x in xs):
    xs = [np.mean(xs, axis=0)] * len(xs)
  first, last = max(x[0] for x in xs), min(x[-1] for x in xs)
  at = np.unique(np.concatenate(xs))
  at = at[(first <= at) & (at <= last)]
  values = [np.array(p["value"], float) for p in points]
  return at, np.stack(
    [np.interp(at, *xy) for xy in zip(xs, values, strict=True)]
  )


def draw_errors(table: dict[str, Any], column: int) -> figure.Figure:
  """Returns a column of an experiment's table: mean, interval, seeds.

  Args:
    table: of a report.
    column: number of the column, of errors as fractions.
  """
  rows = table["rows"]
  height = 0.5 + 0.16 * len(rows)
  plot = figure.Figure((_WIDTH_IN, height), layout="constrained")
  axes: Any = plot.subplots()
  for place, row in enumerate(rows):
    cell = row["cells"][column]
    if cell:
      mean, half = 100 * cell["mean"], 100 * (cell["half"] or 0)
      seeds = [100 * value for value in cell["values"]]
      axes.errorbar(
        mean, place, xerr=half, fmt="o", color=COLOURS[0], markersize=3,
        linewidth=0.9, capsize=1.5,
      )  # fmt: skip
      if len(seeds) > 1:
        axes.plot(seeds, [place] * len(seeds), "|", color="0.45", markersize=4)
    if row["failed"]:
      whole = row["n"] + len(row["failed"])
      # Beside the axes, whatever their scale.
      axes.annotate(
        f"{len(row['failed'])} of {whole} failed", (1, place), (3, 0),
        xycoords=("axes fraction", "data"), textcoords="offset points",
        va="center",
      )  # fmt: skip
  axes.set_yticks(range(len(rows)), [plain(row["name"]) for row in rows])
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
  axes.set_xlabel(f"{plain(table['columns'][column]['label'])} (%)")
  axes.grid(axis="x", linewidth=0.3, color="0.85")
  return plot


def plain(name: str, most: int = 28) -> str:
  """Returns a name as matplotlib is to write it, cut to so many letters."""
  name = name.encode(errors="backslashreplace").decode()  # Of bytes, perhaps.
  short = name if len(name) <= most else f"{name[: most - 1]}…"
  # Else a $ would begin a formula, and what begins in _ has no legend.
  return " " * name.startswith("_") + short.replace("$", r"\$")
