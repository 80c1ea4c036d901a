"""Learning curves: long ones reduced, and means over the seeds of an arm."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from alexnet_jax.tools.report import reader

# Points of one curve, and of all curves of a page.
_MOST, _FEWEST, _IN_ALL = 300, 40, 20_000


class Curve(NamedTuple):
  """The metrics of one split, of a run or on average over runs.

  Attributes:
    x: float64 [N] by `step` and `epoch`.
    values: float64 [3, N] by metric: the mean over a stretch of steps or over
      seeds, the smallest and the largest value.
  """

  x: dict[str, np.ndarray]
  values: dict[str, np.ndarray]


class Seed(NamedTuple):
  """One net: a run of its own, a seed of an arm, or a net of an ensemble."""

  name: str
  run: reader.Run
  lines: dict[str, reader.Lines]
  curves: dict[str, Curve]


class Group(NamedTuple):
  """What one entry of the legend stands for: an arm, or a run of its own."""

  name: str
  seeds: list[Seed]

  @property
  def finished(self) -> list[Seed]:
    """The seeds that means are taken over."""
    return [x for x in self.seeds if x.run.outcome == reader.FINISHED]

  def means(self) -> dict[str, Curve]:
    """Returns the mean curve over the finished seeds, for each split."""
    by_split = collections.defaultdict(list)
    for seed in self.finished:
      for split, curve in seed.curves.items():
        by_split[split].append(curve)
    return {split: mean_of(curves) for split, curves in by_split.items()}


def column_of(run: reader.Run, found: reader.Found) -> str:
  """Returns the name of a run's arm, or of the run if it has none."""
  if run.arm is None:
    return run.name
  alone = all(x.experiment == run.experiment for x in found.runs)
  return run.arm if alone else f"{run.experiment}/{run.arm}"


def groups_of(found: reader.Found) -> list[Group]:
  """Returns the groups of all runs that have metrics.

  The nets of an ensemble are the seeds of one group; the average of their
  predictions is a group of its own.
  """
  nets = []
  for run in found.runs:
    if run.members and run.arm is None:
      for member in run.members:
        net = f"{run.name}, net {member}"
        nets.append((f"{run.name}, each net", net, run, member))
      together = f"{run.name}, all together"
      nets.append((together, together, run, None))
    else:
      nets.append((column_of(run, found), run.name, run, None))
  count = sum(len(run.lines) for run in found.runs)
  most = max(_FEWEST, min(_MOST, _IN_ALL // max(1, count)))
  groups: dict[str, Group] = {}
  for group, name, run, member in nets:
    lines = {s: x for (m, s), x in run.lines.items() if m == member}
    if lines:
      curves = {split: reduce(x, most) for split, x in lines.items()}
      seed = Seed(name, run, lines, curves)
      groups.setdefault(group, Group(group, [])).seeds.append(seed)
  return list(groups.values())


def reduce(lines: reader.Lines, most: int) -> Curve:
  """Returns a curve of about `most` points, each of a stretch of steps.

  A third of the stretches are spaced on a logarithmic scale, so that the first
  steps are visible there. The last line is a stretch of its own.
  """
  count = len(lines["step"])
  bounds = np.arange(count + 1)
  if count > most:
    even = np.linspace(0, count - 1, most - most // 3)
    growing = np.geomspace(1, count - 1, most // 3)
    bounds = np.unique(np.concatenate([even, growing, [count]]).astype(int))
  starts = bounds[:-1]

  def means(values: np.ndarray) -> np.ndarray:
    finite = np.isfinite(values)
    total = np.add.reduceat(np.where(finite, values, 0), starts)
    present = np.add.reduceat(finite, starts, dtype=np.float64)
    return np.where(present > 0, total / np.maximum(present, 1), np.nan)

  values = {}
  for metric in reader.METRICS:
    value = lines[metric]
    if np.isfinite(value).any():
      low, high = (f.reduceat(value, starts) for f in (np.fmin, np.fmax))
      values[metric] = np.stack([means(value), low, high])
  x = {name: means(lines[name]) for name in ("step", "epoch")}
  return Curve(x, values)


def mean_of(curves: Sequence[Curve]) -> Curve:
  """Returns the mean over seeds, up to where the shortest of them ends.

  Beyond that point the mean would be one of other seeds.
  """
  if len(curves) == 1:
    return curves[0]
  steps = [curve.x["step"] for curve in curves]
  at = min(steps, key=lambda x: x[-1])
  at = at[at >= max(x[0] for x in steps)]
  if all(len(x) == 1 for x in steps):
    at = np.mean(steps, axis=0)

  def on_grid(curve: Curve, values: np.ndarray) -> np.ndarray:
    finite = np.isfinite(values)
    if not finite.any():
      return np.full(len(at), np.nan)
    return np.interp(at, curve.x["step"][finite], values[finite])

  values = {}
  for metric in reader.METRICS:
    if all(metric in curve.values for curve in curves):
      each = np.stack([on_grid(c, c.values[metric][0]) for c in curves])
      values[metric] = np.stack([each.mean(0), each.min(0), each.max(0)])
  epoch = np.mean([on_grid(c, c.x["epoch"]) for c in curves], axis=0)
  return Curve({"step": at, "epoch": epoch}, values)
