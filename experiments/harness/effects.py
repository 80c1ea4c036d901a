"""Compares each arm of an experiment with its base.

  python -m experiments.harness.effects NAME

Reads results.csv and which test images each net got wrong; writes effects.csv,
the table of the README and the plot.
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
"""Effects are in points of test error, low and high the ends of an interval."""


def main(words: Sequence[str]) -> None:
  """Runs the command."""
  name = run.experiment_name(words, "effects")
  experiment, folder = plan.load(name), plan.HERE / name
  arms = experiment.arms[1:]
  if not arms or experiment.metric not in run.VIEWS:
    raise errors.InputError(
      f"the arms of {name!r} are not compared by test error; name another"
      " experiment."
    )
  rows = results.whole(name)
  found = [_effect(name, experiment, rows, arm) for arm in arms]
  tables.fill(folder / "README.md", "effects", _table(experiment, rows, found))
  tables.write_csv(folder / "effects.csv", COLUMNS, found)
  tables.save_plot(_plot(found), folder / name)
  print(f"wrote README.md, effects.csv and the plot of {folder}")


def _effect(
  name: str, experiment: plan.Experiment, rows: list[dict[str, str]], arm: Arm
) -> dict[str, Any]:
  """Returns a row of effects.csv; nets of the same seed are pairs."""
  base = experiment.arms[0].name
  nets, metric = arm.nets_of or arm.name, arm.metric or experiment.metric
  ours = results.numbers(rows, nets, metric)
  theirs = results.numbers(rows, base, experiment.metric)
  seeds = sorted(ours.keys() & theirs.keys())
  failed = results.failures(rows, nets)
  row = {
    "arm": arm.name,
    "change": arm.change,
    "pairs": len(seeds),
    "original": arm.original,
  }
  if len(seeds) < 2:
    failed_base = results.failures(rows, base)
    reason = failed or (failed_base and f"base: {failed_base}")
    return row | {"verdict": reason or f"{len(seeds)} of 2 pairs needed"}

  def compare(metric: str, metric_of_base: str) -> tuple[float, ...]:
    return intervals.of_paired_difference(
      np.array([results.wrong(name, nets, s, metric) for s in seeds]),
      np.array([results.wrong(name, base, s, metric_of_base) for s in seeds]),
    )

  effect, low, high = compare(metric, experiment.metric)
  points = {"effect": effect, "low": low, "high": high}
  if not arm.metric:
    one_view = "one_view_error"
    points["one_view_effect"] = compare(one_view, one_view)[0]
  verdict = intervals.verdict(low, high, arm.sign)
  if failed:
    verdict += f" ({failed})"
  rounded = {key: round(100 * value, 2) for key, value in points.items()}
  return row | rounded | {"verdict": verdict}


def _table(
  experiment: plan.Experiment,
  rows: list[dict[str, str]],
  found: list[dict[str, Any]],
) -> list[str]:
  """Returns the lines of the README's table."""
  base = experiment.arms[0].name
  lines = []
  for metric, views in (
    ("ten_view_error", "ten views"),
    ("one_view_error", "one view"),
  ):
    rates = results.numbers(rows, base, metric)
    if rates:
      mean, low, high = intervals.of_mean(np.array(list(rates.values())))
      lines.append(
        f"Base, {views}: {mean:.2%} ({low:.2%} to {high:.2%}), {len(rates)}"
        " nets."
      )
  if failed := results.failures(rows, base):
    lines.append(f"Base: {failed}.")
  lines += [
    "",
    "| arm | change | pairs | effect | one view | original | verdict |",
    "|---|---|---|---|---|---|---|",
  ]
  for row in found:
    effect = one_view = ""
    if "effect" in row:
      low, high = row["low"], row["high"]
      effect = f"{row['effect']:+.2f} ({low:+.2f} to {high:+.2f})"
    if "one_view_effect" in row:
      one_view = f"{row['one_view_effect']:+.2f}"
    cells = (
      f"`{row['arm']}`", row["change"], str(row["pairs"]), effect, one_view,
      row["original"], row["verdict"],
    )  # fmt: skip
    lines.append(f"| {' | '.join(cells)} |")
  return lines


def _plot(found: list[dict[str, Any]]) -> Figure:
  """Draws the effects and their intervals, smallest below."""
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
