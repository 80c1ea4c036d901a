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
  "nets",
  "verdict",
  "points",
  "of_paper",
  "original",
  "change",
]
"""Effects and the original's points are of test error, low and high the ends of
an interval."""
_NOTHING, _FAILED = "no original", "failed"
_COLOURS = {
  intervals.AGREES: "C0",
  intervals.SMALLER: "C1",
  intervals.UNDECIDED: "0.6",
  intervals.DISAGREES: "C3",
  _NOTHING: "0.2",
}
_ORIGINAL: Any = {
  "marker": "D",
  "markersize": 5,
  "markerfacecolor": "none",
  "markeredgecolor": "k",
  "linestyle": "none",
  "zorder": 3,
}


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
  spread = _spread(experiment, rows)
  found = [_effect(name, experiment, rows, arm, spread) for arm in arms]
  lines = [*_summary(experiment, rows, spread, found), "", *_table(found)]
  tables.fill(folder / "README.md", "effects", lines)
  tables.write_csv(folder / "effects.csv", COLUMNS, found)
  tables.save_plot(_plot(found), folder / name)
  print(f"wrote README.md, effects.csv and the plot of {folder}")


def _spread(
  experiment: plan.Experiment, rows: list[dict[str, str]]
) -> intervals.Spread | None:
  """Returns the spread of nets within arms, if two arms have two nets."""
  rates = [
    np.array(list(results.numbers(rows, arm.name, experiment.metric).values()))
    for arm in experiment.arms
    if not arm.nets_of
  ]
  rates = [x for x in rates if len(x) > 1]
  return intervals.spread_of(rates) if len(rates) > 1 else None


def _effect(
  name: str,
  experiment: plan.Experiment,
  rows: list[dict[str, str]],
  arm: Arm,
  spread: intervals.Spread | None,
) -> dict[str, Any]:
  """Returns a row of effects.csv: the nets of an arm against the base's."""
  base = experiment.arms[0].name
  nets, metric = arm.nets_of or arm.name, arm.metric or experiment.metric
  seeds = sorted(results.numbers(rows, nets, metric))
  seeds_of_base = sorted(results.numbers(rows, base, experiment.metric))
  failed = results.failures(rows, nets)
  row = {
    "arm": arm.name,
    "change": arm.change,
    "nets": len(seeds),
    "points": arm.points,
    "of_paper": arm.of_paper,
    "original": arm.original,
  }
  if min(len(seeds), len(seeds_of_base)) < 2:
    failed_base = results.failures(rows, base)
    reason = failed or (failed_base and f"base: {failed_base}")
    return row | {"verdict": reason or "an arm needs two nets"}

  def wrong(arm: str, seeds: list[int], metric: str) -> np.ndarray:
    return np.array([results.wrong(name, arm, s, metric) for s in seeds])

  ours = wrong(nets, seeds, metric)
  theirs = wrong(base, seeds_of_base, experiment.metric)
  if nets == base:  # The same nets, tested in another way.
    found = intervals.of_paired_difference(ours, theirs)
  else:
    pooled = spread and spread.is_common and not arm.metric
    found = intervals.of_difference(ours, theirs, spread if pooled else None)
  effect, low, high = (100 * x for x in found)
  points = {"effect": effect, "low": low, "high": high}
  if not arm.metric:
    one_view = [
      wrong(arm, seeds, "one_view_error").mean()
      for arm, seeds in ((nets, seeds), (base, seeds_of_base))
    ]
    points["one_view_effect"] = 100 * (one_view[0] - one_view[1])
  verdict = intervals.verdict(low, high, arm.sign, arm.points)
  verdict = ", ".join(filter(None, (verdict, arm.caveat)))
  if failed:
    verdict += f" ({failed})"
  # Adding 0 turns -0 into 0.
  rounded = {key: round(value, 2) + 0.0 for key, value in points.items()}
  return row | rounded | {"verdict": verdict}


def _summary(
  experiment: plan.Experiment,
  rows: list[dict[str, str]],
  spread: intervals.Spread | None,
  found: list[dict[str, Any]],
) -> list[str]:
  """Returns lines about the base, the spread and the paper's effects."""
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
  if spread:
    whose = "pooled over all arms" if spread.is_common else "each arm's own"
    lines.append(
      f"Spread of nets: {whose} (Bartlett's test of equal spreads: p ="
      f" {spread.p_value:.2g})."
    )
  if claims := [_kind(row) for row in found if row["of_paper"]]:
    kinds = (*intervals.VERDICTS, _FAILED)
    counts = [f"{x} {claims.count(x)}" for x in kinds if x in claims]
    lines += ["", f"The paper's {len(claims)} effects: {', '.join(counts)}."]
  return lines


def _kind(row: dict[str, Any]) -> str:
  """Returns which of the verdicts a row has."""
  kinds = (x for x in intervals.VERDICTS if row["verdict"].startswith(x))
  return next(kinds, _NOTHING if "effect" in row else _FAILED)


def _table(found: list[dict[str, Any]]) -> list[str]:
  """Returns the lines of the README's table; the paper's verdicts are bold."""
  lines = [
    "| arm | change | nets | effect | one view | original | verdict |",
    "|---|---|---|---|---|---|---|",
  ]
  for row in found:
    effect = one_view = ""
    if "effect" in row:
      low, high = row["low"], row["high"]
      effect = f"{row['effect']:+.2f} ({low:+.2f} to {high:+.2f})"
    if "one_view_effect" in row:
      one_view = f"{row['one_view_effect']:+.2f}"
    bold = "**" if row["of_paper"] else ""
    cells = (
      f"`{row['arm']}`", row["change"], str(row["nets"]), effect, one_view,
      row["original"], f"{bold}{row['verdict']}{bold}",
    )  # fmt: skip
    lines.append(f"| {' | '.join(cells)} |")
  return lines


def _plot(found: list[dict[str, Any]]) -> Figure:
  """Draws the effects, their intervals and the original's effects."""
  ordered = sorted(found, key=lambda row: row.get("effect", np.inf))
  figure, axes = plt.subplots(
    figsize=(5.2, 1.6 + 0.18 * len(ordered)), layout="constrained"
  )
  for height, row in enumerate(ordered):
    if row["points"] is not None:
      axes.plot([row["points"]], [height], **_ORIGINAL)
    if "effect" not in row:
      axes.text(0, height, f" {row['verdict']}", fontsize=7, va="center")
      continue
    colour = _COLOURS[_kind(row)]
    axes.plot([row["low"], row["high"]], [height] * 2, color=colour)
    axes.plot([row["effect"]], [height], "o", color=colour, markersize=4)
  axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
  axes.set_yticks(range(len(ordered)), [row["arm"] for row in ordered])
  axes.set_ylim(-0.5, len(ordered) - 0.5)
  axes.set(xlabel="effect on the test error, points (95 % interval)")
  kinds = {_kind(row) for row in ordered}
  for name, colour in _COLOURS.items():
    if name in kinds:
      axes.plot([], [], "o-", color=colour, label=name, markersize=4)
  if any(row["points"] is not None for row in ordered):
    axes.plot([], [], **_ORIGINAL, label="the original's effect")
  figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
  return figure


if __name__ == "__main__":
  cli.run(main, lambda: None, takes_files=True)
