"""Metrics of the training steps between two records, and their time."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from alexnet_jax import metrics


class Meter:
  """Adds up what training steps return, from `totals` on."""

  def __init__(self, totals: dict[str, Any]):
    """Starts from the `totals()` of the checkpoint."""
    self._calls = 0
    self._totals: metrics.Totals = {k: np.float64(v) for k, v in totals.items()}
    self._clear_times()
    self.restart_clock()

  def _clear_times(self) -> None:
    self._seconds = self._timed_images = self._waited_s = 0.0

  def __bool__(self) -> bool:
    """Whether a step was added since the last `take`."""
    return bool(self._totals)

  def totals(self) -> dict[str, Any]:
    """Returns the sums since the last `take`, for JSON."""
    return {name: value.tolist() for name, value in self._totals.items()}

  def restart_clock(self) -> None:
    """Leaves out the time since the last step, such as an evaluation's."""
    self._mark = time.perf_counter()

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Times the wait for a batch."""
    start = time.perf_counter()
    yield
    self._waited_s += time.perf_counter() - start

  def add(self, sums_of_steps: list[metrics.Sums]) -> None:
    """Adds the sums of the steps that ended since the last call."""
    if not sums_of_steps:
      return
    start, self._mark = self._mark, time.perf_counter()
    self._calls += 1
    if self._calls == 2:  # The first call's time was spent on compiling.
      self._clear_times()
    self._seconds += self._mark - start
    for sums in sums_of_steps:
      metrics.add(self._totals, sums)
      self._timed_images += float(np.sum(sums["examples"]))

  def take(self) -> list[dict[str, float]]:
    """Returns the means of each member since the last call, and clears them.

    If there are several, the mean over those whose loss is finite follows.
    """
    means = metrics.means(self._totals)
    each = [
      {name: float(np.ravel(values)[member]) for name, values in means.items()}
      for member in range(np.size(means["loss"]))
    ]
    if len(each) > 1:
      finite = np.isfinite(means["loss"])
      each.append({name: float(v[finite].mean()) for name, v in means.items()})
    # A resumed run may have nothing but what was saved.
    seconds = self._seconds or math.inf
    speed = {
      "images_per_second": self._timed_images / seconds,
      "input_wait": self._waited_s / seconds,
    }
    self._totals = {}
    self._clear_times()
    return [figures | speed for figures in each]
