"""Learning curves: long ones reduced, and means over the seeds of an arm."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from alexnet_jax.tools.report import reader

# Points of one curve, and of all curves of a page.
_MOST, _FEWEST, _IN_ALL = 300, 40, 20_000


class Curve(NamedTuple):
  """The metrics of one split, of a run or on average over runs."""

  x: dict[str, np.ndarray]  # [N] by `step` and `epoch`
  # By metric, [3, N]: mean, smallest and largest of a stretch or of the seeds.
  values: dict[str, np.ndarray]


class Seed(NamedTuple):
  """One net: a run of its own, a seed of an arm, or a net of an ensemble."""

  name: str
  run: reader.Run
  curves: dict[str, Curve]  # by split


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


def groups_of(runs: Sequence[reader.Run]) -> list[Group]:
  """Returns the groups of all runs that have metrics.

  The nets of an ensemble are the seeds of one group; the average of their
  predictions is a group of its own.
  """
  count = sum(len(run.lines) for run in runs)
  most = max(_FEWEST, min(_MOST, _IN_ALL // max(1, count)))
  groups: dict[str, Group] = {}
  for run in runs:
    nets = sorted({net for net, _ in run.lines}, key=str)
    for net in nets:
      name, group = run.name, run.group
      if net is not None:
        name, group = f"{name}, net {net}", f"{group}, each net"
      elif len(nets) > 1:
        name = group = f"{name}, all together"
      curves = {
        split: reduce(lines, most)
        for (of, split), lines in run.lines.items()
        if of == net
      }
      seed = Seed(name, run, curves)
      groups.setdefault(group, Group(group, [])).seeds.append(seed)
  return list(groups.values())


def reduce(lines: reader.Lines, most: int) -> Curve:
  """Returns a curve of at most `most` points, each of a stretch of steps.

  Short first stretches are visible on a logarithmic scale. The last line stays
  alone.
  """
  count = len(lines["step"])
  bounds = np.arange(count + 1)
  if count > most:
    even = np.linspace(0, count, most * 2 // 3)
    growing = np.geomspace(1, count, most // 3 - 1)
    bounds = np.unique(np.array([*even, *growing, count - 1], np.int64))
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
  steps = [curve.x["step"] for curve in curves]
  at = min(steps, key=lambda x: x[-1])
  at = at[at >= max(x[0] for x in steps)]
  if all(len(x) == 1 for x in steps):
    at = np.mean(steps, axis=0)

  def on_grid(curve: Curve, values: np.ndarray) -> np.ndarray:
    finite = np.isfinite(values)
    return np.interp(at, curve.x["step"][finite], values[finite])

  values = {}
  for metric in reader.METRICS:
    if all(metric in curve.values for curve in curves):
      each = np.stack([on_grid(c, c.values[metric][0]) for c in curves])
      values[metric] = np.stack([each.mean(0), each.min(0), each.max(0)])
  epoch = np.mean([on_grid(c, c.x["epoch"]) for c in curves], axis=0)
  return Curve({"step": at, "epoch": epoch}, values)
