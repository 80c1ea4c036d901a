"""Checks the chosen rates, and writes the tables and the plot of Fig. 1.

python -m experiments.figure1.verdict
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from alexnet_jax.runs import logs
from alexnet_jax.runtime import cli, errors
from experiments.figure1 import experiment
from experiments.harness import intervals, results, tables

HERE = Path(__file__).parent
NAME = HERE.name
LABELS = {
  "relu": "ReLU",
  "tanh": "tanh",
  "scaled_tanh": "1.7159 tanh(2x/3)",
  "sigmoid": "sigmoid",
}


def main(_: Any = None) -> None:
  """Checks the rates, and writes the tables and the plot."""
  rows = results.whole(NAME)
  grid = {
    (units, rate): _error(rows, f"{units}-{rate:g}")
    for units in experiment.UNITS
    for rate in experiment.RATES
  }
  _check_rates(grid)
  tables.fill(HERE / "README.md", "rates", _rates(grid))
  tables.fill(HERE / "README.md", "ratios", _ratios(rows))
  _plot(rows)


def _error(rows: list[dict[str, str]], arm: str) -> float | str:
  """Returns the mean training error of an arm, or how its nets failed."""
  bad = {row["outcome"] for row in rows if row["arm"] == arm}
  if bad := bad - {results.FINISHED}:
    return " or ".join(sorted(bad))
  found = results.numbers(rows, arm, "train_error")
  return float(np.mean(list(found.values())))


def _check_rates(grid: dict[tuple[str, float], float | str]) -> None:
  """Raises InputError where the rate of an arm is not the best of its row."""
  for units, chosen in experiment.CHOSEN.items():
    own = {rate: grid[units, rate] for rate in experiment.RATES}
    good = {r: error for r, error in own.items() if isinstance(error, float)}
    best = min(good, key=lambda rate: good[rate], default=chosen)
    if best != chosen:
      raise errors.InputError(
        f"CHOSEN[{units!r}]={chosen} must be the best rate, {best}: {own}."
      )
    if best in (experiment.RATES[0], experiment.RATES[-1]):
      raise errors.InputError(
        f"the best rate of {units}, {best}, is at the end of RATES; a better"
        " one may lie beyond. Add rates there."
      )


def _rates(grid: dict[tuple[str, float], float | str]) -> list[str]:
  head = " | ".join(f"{rate:g}" for rate in experiment.RATES)
  lines = [f"| | {head} |", "|---" * (len(experiment.RATES) + 1) + "|"]
  for units in experiment.UNITS:
    cells = []
    for rate in experiment.RATES:
      error = grid[units, rate]
      cell = f"{error:.1%}" if isinstance(error, float) else error
      bold = rate == experiment.CHOSEN[units]
      cells.append(f"**{cell}**" if bold else cell)
    lines.append(f"| {LABELS[units]} | {' | '.join(cells)} |")
  return lines


def _epochs(rows: list[dict[str, str]], units: str) -> np.ndarray:
  found = results.numbers(rows, units, "epochs_to_target")
  return np.array([found[seed] for seed in sorted(found)])


def _ratios(rows: list[dict[str, str]]) -> list[str]:
  lines = [
    "| | nets | passes to 25 % training error | times ReLU's | original"
    " | verdict |",
    "|---|---|---|---|---|---|",
  ]
  relu = _epochs(rows, "relu")
  for units, original in experiment.UNITS.items():
    count = sum(row["arm"] == units for row in rows)
    reached = _epochs(rows, units)
    cells = [LABELS[units], str(count), "", "", original, ""]
    if len(reached) == count:
      mean, low, high = intervals.of_mean(reached)
      cells[2] = f"{mean:.2f} ({low:.2f} to {high:.2f})"
      if units != "relu" and len(relu) == count:
        ratio, low, high = intervals.of_ratio(reached, relu)
        cells[3] = f"{ratio:.2f} ({low:.2f} to {high:.2f})"
        # In the original ReLU gets there sooner, so the ratio is above 1.
        times = experiment.TIMES.get(units)
        excess = times and times - 1
        cells[5] = intervals.verdict(low - 1, high - 1, bool(times), excess)
    else:
      cells[2] = (
        f"{len(reached)} of {count} within {experiment.EPOCHS[units]:g}"
      )
      if failed := results.failures(rows, units):
        cells[2] += f"; {failed}"
      elif not len(reached) and len(relu):
        cells[3] = f"above {experiment.EPOCHS[units] / relu.mean():.1f}"
    lines.append(f"| {' | '.join(cells)} |")
  return lines


def _plot(rows: list[dict[str, str]]) -> None:
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
  tables.save_plot(figure, HERE / "figure1")


if __name__ == "__main__":
  cli.run(main, lambda: None)
