"""What each arm of an experiment is worth beside its base.

  python -m experiments.harness.effects NAME

Reads results.csv and the answers of each net; writes effects.csv, the table of
the README and the plot.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from alexnet_jax.runtime import cli, errors
from experiments.harness import intervals, plan, results, run, tables
from experiments.harness.plan import Arm

COLUMNS = [
  "arm",
  "effect",
  "low",
  "high",
  "one_view_effect",
  "pairs",
  "verdict",
  "original",
  "change",
]


def main(words: Sequence[str]) -> None:
  """Runs the command."""
  if len(words) != 2:
    raise errors.InputError(
      f"{' '.join(words[1:])!r} must be the name of one experiment; write"
      " python -m experiments.harness.effects NAME."
    )
  title = words[1]
  experiment, folder = plan.load(title), plan.HERE / title
  arms = experiment.arms[1:]
  if not arms or experiment.metric not in run.VIEWS:
    raise errors.InputError(
      f"{title!r} has no arms that differ from a base in their test error; name"
      " another experiment."
    )
  rows = results.whole(title)
  found = [_effect(title, experiment, rows, arm) for arm in arms]
  tables.fill(folder / "README.md", "effects", _table(experiment, rows, found))
  tables.write_csv(folder / "effects.csv", COLUMNS, found)
  tables.save_plot(_plot(found), folder / title)
  print(f"wrote README.md, effects.csv and the plot of {folder}")


def _effect(
  title: str, experiment: plan.Experiment, rows: list[dict[str, str]], arm: Arm
) -> dict[str, Any]:
  """Returns a row of effects.csv, in points of error; seeds are paired."""
  base = experiment.arms[0]
  name, metric = arm.nets_of or arm.name, arm.metric or experiment.metric
  ours = results.numbers(rows, name, metric)
  theirs = results.numbers(rows, base.name, experiment.metric)
  seeds = sorted(ours.keys() & theirs.keys())
  about = {
    "arm": arm.name,
    "change": arm.change,
    "pairs": len(seeds),
    "original": arm.original,
  }
  if len(seeds) < 2:
    reason = f"{len(seeds)} of 2 pairs that it takes"
    if failed := results.failures(rows, name):
      reason = failed
    elif failed := results.failures(rows, base.name):
      reason = f"of the base {failed}"
    return about | {"verdict": reason}

  def compare(metric: str, metric_of_base: str) -> tuple[float, ...]:
    return intervals.of_paired_difference(
      *(
        np.array([results.wrong(title, whose, seed, what) for seed in seeds])
        for whose, what in ((name, metric), (base.name, metric_of_base))
      )
    )

  effect, low, high = compare(metric, experiment.metric)
  points = {"effect": effect, "low": low, "high": high}
  if not arm.metric:
    view = "one_view_error"
    points["one_view_effect"] = compare(view, view)[0]
  verdict = intervals.verdict(low, high, arm.sign)
  if failed := results.failures(rows, name):
    verdict += f" ({failed})"
  rounded = {name: round(100 * value, 2) for name, value in points.items()}
  return about | rounded | {"verdict": verdict}


def _table(
  experiment: plan.Experiment,
  rows: list[dict[str, str]],
  found: list[dict[str, Any]],
) -> list[str]:
  base = experiment.arms[0]
  lines = []
  for metric, views in (("ten_view_error", "ten"), ("one_view_error", "one")):
    rates = results.numbers(rows, base.name, metric)
    if not rates:
      continue
    mean, low, high = intervals.of_mean(np.array(list(rates.values())))
    lines.append(
      f"Base, {views} view{'s' * (views == 'ten')}: {mean:.2%} ({low:.2%} to"
      f" {high:.2%}), {len(rates)} nets."
    )
  if failed := results.failures(rows, base.name):
    lines.append(f"Of the base: {failed}.")
  lines += [
    "",
    "| arm | change | pairs | effect | one view | original | verdict |",
    "|---|---|---|---|---|---|---|",
  ]
  for row in found:
    effect = one = ""
    if "effect" in row:
      low, high = row["low"], row["high"]
      effect = f"{row['effect']:+.2f} ({low:+.2f} to {high:+.2f})"
    if "one_view_effect" in row:
      one = f"{row['one_view_effect']:+.2f}"
    cells = (
      f"`{row['arm']}`", row["change"], str(row["pairs"]), effect, one,
      row["original"], row["verdict"],
    )  # fmt: skip
    lines.append(f"| {' | '.join(cells)} |")
  return lines


def _plot(found: list[dict[str, Any]]) -> Figure:
  ordered = sorted(found, key=lambda row: row.get("effect", np.inf))
  figure, axes = plt.subplots(
    figsize=(5.2, 1.2 + 0.18 * len(ordered)), layout="constrained"
  )
  colours = {"agrees": "C0", "disagrees": "C3", "undecided": "0.5"}
  for height, row in enumerate(ordered):
    if "effect" not in row:
      axes.text(0, height, f" {row['verdict']}", fontsize=7, va="center")
      continue
    colour = colours.get(row["verdict"].split()[0], "0.2")
    axes.plot([row["low"], row["high"]], [height] * 2, color=colour)
    axes.plot([row["effect"]], [height], "o", color=colour, markersize=4)
  axes.axvline(0, color="0.6", linewidth=0.8)
  axes.set_yticks(range(len(ordered)), [row["arm"] for row in ordered])
  axes.set_ylim(-0.5, len(ordered) - 0.5)
  axes.set(xlabel="effect on the test error, points (95 % interval)")
  for name, colour in (*colours.items(), ("no original", "0.2")):
    axes.plot([], [], "o-", color=colour, label=name, markersize=4)
  axes.legend(frameon=False, fontsize=8, loc="lower right")
  return figure


if __name__ == "__main__":
  cli.run(main, lambda: None, takes_files=True)
