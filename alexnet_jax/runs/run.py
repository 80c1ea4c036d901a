"""A run under way: what it is made of, and where it stands."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from alexnet_jax import augment, schedules, steps
from alexnet_jax.data import feed, records
from alexnet_jax.model import AlexNet
from alexnet_jax.parallel import placement
from alexnet_jax.runs import checkpoint, logs, saving
from alexnet_jax.runs.events import Events
from alexnet_jax.runs.meter import Meter
from alexnet_jax.runtime import errors

Figures = list[dict[str, float]]
"""Loss and errors of each net, and then, of several, of all together."""


class InFlight(NamedTuple):
  """Steps that the devices may still be computing."""

  first: int  # Number of the first step.
  count: int
  sums: dict[str, jax.Array]
  stacked: bool  # Whether the first axis of the sums is the steps.

  def sums_of_steps(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Waits for the steps; yields the number and the sums of each."""
    held = {name: np.asarray(x) for name, x in self.sums.items()}
    for turn in range(self.count):
      own = {name: x[turn] if self.stacked else x for name, x in held.items()}
      yield self.first + turn, own


@dataclasses.dataclass
class Run:
  """A run under way."""

  config: Any
  workdir: Path
  splits: dict[str, records.Examples]
  net: AlexNet
  augmentation: augment.Augmentation
  mesh: Mesh
  learning_rate: Callable[..., Any]  # Of the conv kernels, by step and drops.
  steps_per_call: int  # The most steps that `step_fn` takes.
  step_fn: Callable[..., Any]  # Takes a state and `next_batches`.
  feed: feed.Feed
  total_steps: int
  log: logs.Logger
  saver: saving.Saver
  should_stop: Callable[[], bool]
  state: steps.TrainState
  progress: checkpoint.Progress

  def __post_init__(self):
    """Reads the state here, since the first step donates it."""
    self.step = self.start_step = int(self.state.step)
    self.plateau: schedules.Plateau = jax.device_get(
      placement.replicate(self.mesh, self.state.plateau)
    )
    # Evaluations are data parallel in every layout.
    self.eval_mesh = placement.make_mesh()
    self.view_step = steps.make_view_step(
      self.net, self.augmentation, self.eval_mesh
    )
    self.events = Events(
      self.config,
      self.total_steps,
      steps_per_epoch=len(self.splits["train"]) / self.config.batch_size,
      has_validation="validation" in self.splits,
    )
    self.meter = Meter(self.progress.totals)
    self.in_flight: InFlight | None = None
    self.saved = True  # Whether the state is also on disk.

  def next_batches(self, count: int) -> tuple[Any, ...]:
    """Waits for the batches of the next `count` steps."""
    if self.steps_per_call == 1:
      return (next(self.feed),)
    return self.feed.pool, self.feed.indices(count, self.steps_per_call), count

  def rates(self) -> np.ndarray:
    """Returns the learning rate of each member in the newest step."""
    rates = self.learning_rate(max(self.step - 1, 0), self.plateau.drops)
    return np.broadcast_to(rates, (self.config.ensemble,))

  def errors(self, figures: Figures) -> np.ndarray:
    """Returns the error of each member, in the shape of the plateau's."""
    own = [each["top1_error"] for each in figures[: self.config.ensemble]]
    return np.reshape(own, self.plateau.stale.shape)

  def set_plateau(self, plateau: schedules.Plateau) -> None:
    """Makes the next steps follow a plateau."""
    where = jax.tree.map(lambda x: x.sharding, self.state.plateau)
    self.plateau = plateau
    self.state = dataclasses.replace(
      self.state, plateau=jax.device_put(plateau, where)
    )

  def record(self, split: str, figures: Figures) -> None:
    """Records the figures of a split.

    Raises:
      DivergedError: a loss is not finite.
    """
    for loss in (each["loss"] for each in figures):
      if not math.isfinite(loss):
        raise errors.DivergedError(
          f"the {split} loss is {loss} at step {self.step}; lower"
          f" learning_rate. {self.describe_latest()}"
        )
    epoch = self.events.epoch(self.step)
    about = {"step": self.step, "epoch": epoch, "split": split}
    rates, stopped = self.rates(), np.atleast_1d(self.plateau.stopped)
    for member, each in enumerate(figures):
      if member == self.config.ensemble or len(figures) == 1:
        rate = {"learning_rate": float(rates.mean())}
        self.log.record(about | each | rate)
      elif split == "test" or not stopped[member]:
        # Before the test, a net that has ended has no new figures.
        rate = {"learning_rate": float(rates[member])}
        self.log.record(about | {"member": member} | each | rate)

  def save_is_due(self) -> bool:
    """Whether to save now, by the steps or by the clock of process 0."""
    if self.events.saves(self.step):
      return True
    # The processes wait for the answer of the first: they ask only sometimes.
    asks = jax.process_count() == 1 or self.events.logs(self.step)
    return asks and self.saver.is_due()

  def save(self, *, wait: bool, retry: bool) -> None:
    """Saves the state; see `Saver.save`."""
    self.progress.totals = self.meter.totals()
    self.saved = self.saver.save(
      self.state, self.progress, wait=wait, retry=retry
    )

  def describe_latest(self) -> str:
    """Returns a sentence that says which step the run can resume from."""
    self.saver.wait()
    return checkpoint.describe_latest(self.workdir)

  def stop_message(self) -> str:
    """Returns what to print where the run stops before its end."""
    return f"stopped after step {self.step}; the same command resumes"
