"""What each arm is worth, from results.csv and the answers of each net.

python -m experiments.ablations.verdict
"""

import csv
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

from experiments import intervals, plan, results, tables
from experiments.plan import Arm

HERE = Path(__file__).parent
NAME = HERE.name
COLUMNS = ["arm", "change", "effect", "low", "high", "original", "verdict"]


def main() -> None:
  """Writes effects.csv, the table of the README and the plot."""
  experiment = plan.load(NAME)
  rows = results.read(NAME)
  base, *arms = experiment.arms
  found = [_effect(experiment, rows, base, arm) for arm in arms]
  with (HERE / "effects.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
  tables.fill(HERE / "README.md", "effects", _table(experiment, rows, found))
  _plot(found)


def _nets(
  rows: list[dict[str, str]], arm: Arm
) -> tuple[dict[str, str], dict[str, str]]:
  """Returns the outcomes of an arm's nets, by seed, and those that finished."""
  name = arm.nets_of or arm.name
  outcomes = {r["seed"]: r["outcome"] for r in rows if r["arm"] == name}
  good = {s: o for s, o in outcomes.items() if o == results.FINISHED}
  return outcomes, good


def _wrong(arm: Arm, metric: str, seeds: list[int]) -> np.ndarray:
  name = arm.nets_of or arm.name
  return np.array([results.wrong(NAME, name, seed, metric) for seed in seeds])


def _effect(
  experiment: plan.Experiment, rows: list[dict[str, str]], base: Arm, arm: Arm
) -> dict[str, Any]:
  """Returns a row of effects.csv, in points of error; seeds are paired."""
  outcomes, good = _nets(rows, arm)
  seeds = sorted(int(s) for s in good.keys() & _nets(rows, base)[1].keys())
  about = {"arm": arm.name, "change": arm.change, "original": arm.original}
  failed = [o for o in outcomes.values() if o != results.FINISHED]
  if failed or not seeds:
    what = ", ".join(f"{failed.count(o)} {o}" for o in sorted(set(failed)))
    text = f"{what} of {len(outcomes)}" if outcomes else "not run"
    return about | {"effect": "", "low": "", "high": "", "verdict": text}
  effect = intervals.of_paired_difference(
    _wrong(arm, arm.metric or experiment.metric, seeds),
    _wrong(base, experiment.metric, seeds),
  )
  points = {
    name: round(100 * value, 2)
    for name, value in zip(("effect", "low", "high"), effect, strict=True)
  }
  verdict = intervals.verdict(effect[1], effect[2], arm.sign)
  return about | points | {"verdict": verdict}


def _table(
  experiment: plan.Experiment,
  rows: list[dict[str, str]],
  found: list[dict[str, Any]],
) -> list[str]:
  base = experiment.arms[0]
  errors = results.numbers(rows, base.name, experiment.metric)
  mean, low, high = intervals.of_mean(np.array(list(errors.values())))
  lines = [
    f"Base: {mean:.2%} test error on ten views ({low:.2%} to {high:.2%},"
    f" {len(errors)} nets).",
    "",
    "| arm | change | nets | error | effect, points | original | verdict |",
    "|---|---|---|---|---|---|---|",
  ]
  for arm, row in zip(experiment.arms[1:], found, strict=True):
    name = arm.nets_of or arm.name
    nets = results.numbers(rows, name, arm.metric or experiment.metric)
    error = f"{np.mean(list(nets.values())):.2%}" if nets else ""
    effect = ""
    if row["effect"] != "":
      effect = f"{row['effect']:+} ({row['low']:+} to {row['high']:+})"
    cells = (
      f"`{arm.name}`", arm.change, str(len(nets)), error, effect,
      arm.original, str(row["verdict"]),
    )  # fmt: skip
    lines.append(f"| {' | '.join(cells)} |")
  return lines


def _plot(found: list[dict[str, Any]]) -> None:
  matplotlib.rcParams["pdf.fonttype"] = 42
  known = [row for row in found if row["effect"] != ""]
  known.sort(key=lambda row: row["effect"])
  figure, axes = plt.subplots(figsize=(5.2, 4.2), layout="constrained")
  colours = {"agrees": "C0", "disagrees": "C3", "undecided": "0.5"}
  for height, row in enumerate(known):
    effect, low, high = (float(str(row[x])) for x in ("effect", "low", "high"))
    colour = colours.get(str(row["verdict"]), "0.2")
    axes.plot([low, high], [height] * 2, color=colour, linewidth=1.5)
    axes.plot([effect], [height], "o", color=colour, markersize=4)
  axes.axvline(0, color="0.6", linewidth=0.8)
  axes.set_yticks(range(len(known)), [str(row["arm"]) for row in known])
  axes.set(xlabel="effect on the test error, points (95 % interval)")
  for name, colour in colours.items():
    axes.plot([], [], "o-", color=colour, label=name, markersize=4)
  axes.plot([], [], "o-", color="0.2", label="no original", markersize=4)
  axes.legend(frameon=False, fontsize=8, loc="lower right")
  for ending in ("png", "pdf"):
    figure.savefig(HERE / f"ablations.{ending}", dpi=200)


if __name__ == "__main__":
  main()
