"""Averages the answers of every choice of 1, 3, 5 and 7 nets.

  python -m experiments.ensemble.verdict

Reads the answers of each net in runs/, writes averages.csv, the table of the
README and the plot.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from scipy import stats

from alexnet_jax.runtime import cli, errors
from experiments.harness import intervals, plan, results, run, tables

HERE = Path(__file__).parent
NAME = HERE.name
SIZES = (1, 3, 5, 7)
METRICS = tuple(run.VIEWS)
COLUMNS = ["nets", "seeds", *METRICS]


def main(_: Any = None) -> None:
  """Writes averages.csv, the table and the plot."""
  labels, answers = _answers()
  rows, wrong = [], {}
  for size in SIZES:
    for chosen in itertools.combinations(answers, size):
      row = {"nets": size, "seeds": "+".join(map(str, chosen))}
      for metric in METRICS:
        each = np.stack([answers[seed][metric] for seed in chosen])
        missed = np.exp(each).sum(axis=0).argmax(axis=1) != labels
        row[metric] = f"{missed.mean():.4f}"
        wrong.setdefault((size, metric), []).append(missed)
      rows.append(row)
  tables.write_csv(HERE / "averages.csv", COLUMNS, rows)
  found = {key: np.array(missed) for key, missed in wrong.items()}
  tables.fill(HERE / "README.md", "averages", _table(found))
  _plot(found)


def _answers() -> tuple[np.ndarray, dict[int, dict[str, np.ndarray]]]:
  """Returns the labels, and the log probabilities of each net by metric."""
  rows = results.whole(NAME)
  (arm,) = plan.load(NAME).arms
  if failed := results.failures(rows, arm.name):
    raise errors.InputError(
      f"some nets of {arm.name!r} failed ({failed}) and have no answers to"
      " average; choose a config whose nets all finish."
    )
  answers: dict[int, dict[str, np.ndarray]] = {}
  labels = np.empty(0)
  for seed in range(max(SIZES)):
    file = results.folder_of(NAME, arm.name, seed) / "answers.npz"
    if not file.exists():
      raise errors.InputError(
        f"{file} is missing; remove the row of seed {seed} from"
        f" {results.file_of(NAME)} and run"
        f" python -m experiments.harness.run {NAME}."
      )
    with np.load(file) as held:
      labels = held["labels"]
      answers[seed] = {x: held[x].astype(np.float32) for x in METRICS}
  return labels, answers


def _effect(
  missed: np.ndarray, single: np.ndarray
) -> tuple[float, float, float]:
  """Returns the difference from single nets in points, low and high."""
  each = 100 * (missed.mean(axis=0) - single.mean(axis=0))
  mean, error = each.mean(), stats.sem(each, ddof=0)
  low, high = stats.norm.interval(intervals.LEVEL, loc=mean, scale=error)
  return mean, low, high


def _table(found: dict[tuple[int, str], np.ndarray]) -> list[str]:
  lines = [
    "| nets | choices | error, ten views | least to most | effect, points"
    " | error, one view |",
    "|---|---|---|---|---|---|",
  ]
  for size in SIZES:
    missed = found[size, "ten_view_error"]
    rates = missed.mean(axis=1)
    effect = ""
    if size > 1:
      mean, low, high = _effect(missed, found[1, "ten_view_error"])
      effect = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
    cells = (
      str(size), str(len(missed)), f"{rates.mean():.2%}",
      f"{rates.min():.2%} to {rates.max():.2%}", effect,
      f"{found[size, 'one_view_error'].mean():.2%}",
    )  # fmt: skip
    lines.append(f"| {' | '.join(cells)} |")
  (arm,) = plan.load(NAME).arms
  _, low, high = _effect(found[5, "ten_view_error"], found[1, "ten_view_error"])
  said = intervals.verdict(low, high, arm.sign, arm.points)
  return [*lines, "", f"The original, {arm.original}: {said}."]


def _plot(found: dict[tuple[int, str], np.ndarray]) -> None:
  figure, axes = plt.subplots(figsize=(3.6, 2.8), layout="constrained")
  labels = ("one view", "ten views")
  for number, (metric, label) in enumerate(zip(METRICS, labels, strict=True)):
    means = []
    for size in SIZES:
      rates = 100 * found[size, metric].mean(axis=1)
      means.append(rates.mean())
      axes.plot([size] * len(rates), rates, ".", color=f"C{number}", alpha=0.3)
    axes.plot(SIZES, means, "o-", color=f"C{number}", label=label)
  axes.set(xlabel="nets", ylabel="test error, %", xticks=SIZES)
  axes.legend(frameon=False, fontsize=8)
  tables.save_plot(figure, HERE / "ensemble")


if __name__ == "__main__":
  cli.run(main, lambda: None)
