"""Metrics of the training steps between two records, and their time."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from alexnet_jax import metrics
from alexnet_jax.runtime import platforms


class Meter:
  """Adds up what training steps return, from `totals` on."""

  def __init__(self, totals: dict[str, Any]):
    """Starts from the `totals()` of the checkpoint."""
    self._totals: metrics.Totals = {k: np.float64(v) for k, v in totals.items()}
    self._clear_times()
    self.restart_clock()

  def _clear_times(self) -> None:
    self._seconds = self._timed_images = self._waited_s = 0.0

  def totals(self) -> dict[str, Any]:
    """Returns the sums since the last `take`, for JSON."""
    return {name: value.tolist() for name, value in self._totals.items()}

  def restart_clock(self) -> None:
    """Leaves out the time since the last step, such as an evaluation's."""
    self._mark = platforms.clock()

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Times the wait for a batch."""
    start = platforms.clock()
    yield
    self._waited_s += platforms.clock() - start

  def add(self, sums_of_steps: list[metrics.Sums], active: Any = True) -> None:
    """Adds the sums of new steps, of the nets that have not ended."""
    if not sums_of_steps:
      return
    start, self._mark = self._mark, platforms.clock()
    self._seconds += self._mark - start
    for sums in sums_of_steps:
      own: Any = {name: np.where(active, x, 0) for name, x in sums.items()}
      metrics.add(self._totals, own)
      self._timed_images += float(np.sum(own["examples"]))

  def take(self, nets: Any = True, keep: bool = False) -> list[Any]:
    """Returns the means of each net since its last; clears them, or may `keep`.

    None for a net that took no steps, or is not among `nets`. If there are
    several, and none has steps left over, the mean over all follows.
    """
    if not self._totals or not np.any(nets):
      return []
    totals = {name: np.ravel(x) for name, x in self._totals.items()}
    took_steps = totals["examples"] > 0
    taken = took_steps & nets
    if not taken.any():
      return []
    # A resumed run may have nothing but what was saved.
    seconds = self._seconds or math.inf
    speed = {
      "images_per_second": self._timed_images / seconds,
      "input_wait": self._waited_s / seconds,
    }
    each: list[Any] = [None] * len(taken)
    for i in np.flatnonzero(taken):
      own = {name: float(x[i]) for name, x in totals.items()}
      each[i] = metrics.means(own) | speed
    if (took_steps & ~taken).any():
      self._totals = {k: np.where(taken, 0, x) for k, x in totals.items()}
      return each
    if len(each) > 1:
      found = [x for x in each if x]
      each.append({k: float(np.mean([x[k] for x in found])) for k in found[0]})
    if not keep:
      self._totals = {}
      self._clear_times()
    return each
