"""Answers Fig. 1's question from results.csv: table, plot, checks.

python -m experiments.figure1.verdict
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

from alexnet_jax import logs
from experiments import intervals, results, tables
from experiments.figure1 import experiment

HERE = Path(__file__).parent
NAME = HERE.name
LABELS = {
  "relu": "ReLU",
  "tanh": "tanh",
  "scaled_tanh": "1.7159 tanh(2x/3)",
  "sigmoid": "sigmoid",
}


def main() -> None:
  """Checks the rates, and writes the tables and the plot."""
  rows = results.read(NAME)
  _check_rates(rows)
  tables.fill(HERE / "README.md", "rates", _rates(rows))
  tables.fill(HERE / "README.md", "ratios", _ratios(rows))
  _plot(rows)


def _grid(rows: list[dict[str, str]]) -> dict[tuple[str, float], str]:
  """Returns the training error of each kind of unit and rate, as text."""
  found = {row["arm"]: row for row in rows}
  return {
    (units, rate): found[f"{units}-{rate:g}"]["train_error"]
    for units in experiment.UNITS
    for rate in experiment.RATES
  }


def _check_rates(rows: list[dict[str, str]]) -> None:
  grid = _grid(rows)
  for units, chosen in experiment.CHOSEN.items():
    errors = {rate: grid[units, rate] for rate in experiment.RATES}
    best = min(errors, key=lambda rate: float(errors[rate] or "inf"))
    if best != chosen:
      raise SystemExit(
        f"the best rate of {units} is {best}, not CHOSEN's {chosen}: {errors}"
      )


def _rates(rows: list[dict[str, str]]) -> list[str]:
  grid = _grid(rows)
  head = " | ".join(f"{rate:g}" for rate in experiment.RATES)
  lines = [f"| | {head} |", "|---" * (len(experiment.RATES) + 1) + "|"]
  for units in experiment.UNITS:
    cells = []
    for rate in experiment.RATES:
      error = grid[units, rate]
      cell = f"{float(error):.1%}" if error else "diverged"
      bold = rate == experiment.CHOSEN[units]
      cells.append(f"**{cell}**" if bold else cell)
    lines.append(f"| {LABELS[units]} | {' | '.join(cells)} |")
  return lines


def _epochs(rows: list[dict[str, str]], units: str) -> np.ndarray:
  found = results.numbers(rows, units, "epochs_to_target")
  return np.array([found[seed] for seed in sorted(found)])


def _ratios(rows: list[dict[str, str]]) -> list[str]:
  lines = [
    "| | nets | passes to 25 % training error | times ReLU's | original |",
    "|---|---|---|---|---|",
  ]
  relu = _epochs(rows, "relu")
  for units, original in experiment.UNITS.items():
    nets = [row for row in rows if row["arm"] == units]
    reached = _epochs(rows, units)
    cells = [LABELS[units], str(len(nets))]
    if len(reached) < len(nets) or not nets:
      ends = [f"{float(row['train_error'] or 'nan'):.0%}" for row in nets]
      cells.append(
        f"{len(reached)} of {len(nets)} came there within"
        f" {experiment.EPOCHS:g}; at the end {', '.join(ends)}"
      )
      cells.append("")
    else:
      mean, low, high = intervals.of_mean(reached)
      cells.append(f"{mean:.2f} ({low:.2f} to {high:.2f})")
      ratio, low, high = intervals.of_ratio(reached, relu)
      own = units == "relu"
      cells.append("1" if own else f"{ratio:.2f} ({low:.2f} to {high:.2f})")
    lines.append(f"| {' | '.join([*cells, original])} |")
  return lines


def _plot(rows: list[dict[str, str]]) -> None:
  matplotlib.rcParams["pdf.fonttype"] = 42
  figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
  for number, units in enumerate(experiment.UNITS):
    for row in rows:
      if row["arm"] != units:
        continue
      folder = results.folder_of(NAME, units, int(row["seed"]))
      lines = [x for x in logs.read_metrics(folder) if x["split"] == "train"]
      ends = np.array([0.0] + [x["epoch"] for x in lines])
      axes.plot(
        (ends[1:] + ends[:-1]) / 2,
        [100 * x["top1_error"] for x in lines],
        color=f"C{number}",
        linewidth=1,
        label=LABELS[units] if row["seed"] == "0" else None,
      )
  axes.axhline(100 * experiment.TARGET, color="0.5", linewidth=0.8, ls=":")
  relu = _epochs(rows, "relu").mean()
  axes.plot(
    [relu, 6 * relu],
    [100 * experiment.TARGET] * 2,
    "k|-",
    linewidth=0.8,
    label="the paper's factor of six",
  )
  axes.set(
    xlabel="passes over the training images",
    ylabel="training error, %",
    ylim=(0, 92),
    xlim=(0, None),
  )
  axes.legend(frameon=False, fontsize=8)
  for ending in ("png", "pdf"):
    figure.savefig(HERE / f"figure1.{ending}", dpi=200)


if __name__ == "__main__":
  main()
