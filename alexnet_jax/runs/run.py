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
from alexnet_jax.runs.meter import Meter
from alexnet_jax.runtime import errors

Figures = list[Any]
"""Loss and errors of each net, or None; then, of several, of all together."""


class InFlight(NamedTuple):
  """Steps that the devices may still be computing."""

  first: int  # Number of the first step.
  count: int
  sums: dict[str, jax.Array]
  stacked: bool  # Whether the first axis of the sums is the steps.

  def sums_of_steps(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Waits for the steps; yields the number and the sums of each."""
    found = jax.device_get(self.sums)
    for i in range(self.count):
      sums = {k: x[i] if self.stacked else x for k, x in found.items()}
      yield self.first + i, sums


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
  plateau: schedules.Plateau  # That of the state, in this process.
  progress: checkpoint.Progress

  def __post_init__(self):
    """Adds what follows from the fields."""
    # Read here, since the first step donates the state.
    self.step = self.start_step = int(self.state.step)
    # Evaluations are data parallel in every layout.
    self.eval_mesh = placement.make_mesh()
    self.view_step = steps.make_view_step(
      self.net, self.augmentation, self.eval_mesh, self.config.deterministic
    )
    # The steps of a period, as two whole numbers.
    epochs, count = self.config.evaluate_every_epochs, len(self.splits["train"])
    period = schedules.steps_in(epochs, count, self.config.batch_size)
    self.steps_of_periods = period.as_integer_ratio()
    self.meter = Meter(self.progress.totals)
    self.period = Meter(self.progress.period)
    # Of each net, the number of its last update, and the drops before it.
    drops = self.plateau.drops
    last: Any = self.progress.updates or (np.full_like(drops, self.step), drops)
    self.updates, self.drops = map(np.asarray, last)
    self.in_flight: InFlight | None = None
    self.saved = True  # Whether the state is also on disk.
    self.warned_of_chance = False

  def epoch(self, step: int) -> float:
    """Returns the passes over the training split after a step."""
    return step * self.config.batch_size / len(self.splits["train"])

  def logs_after(self, step: int) -> bool:
    """Whether training metrics are recorded after a step."""
    return step % self.config.log_every_steps == 0

  def ends_period(self, step: int) -> bool:
    """Whether a step ends another `evaluate_every_epochs`."""
    steps, periods = self.steps_of_periods
    return step * periods % steps < periods

  def validates_after(self, step: int) -> bool:
    """Whether the validation split is evaluated after a step."""
    is_due = self.ends_period(step) or step == self.total_steps
    return "validation" in self.splits and is_due

  def saves_after(self, step: int) -> bool:
    """Whether a step is saved, whatever the clock says."""
    return step % self.config.checkpoint_every_steps == 0

  def steps_until_event(self) -> int:
    """Returns how many steps the next call of `step_fn` takes."""
    events = self.logs_after, self.saves_after, self.ends_period
    for step in range(self.step + 1, self.step + self.steps_per_call):
      if step == self.total_steps or any(after(step) for after in events):
        return step - self.step
    return self.steps_per_call

  def next_batches(self, count: int) -> tuple[Any, ...]:
    """Waits for the batches of the next `count` steps."""
    if self.steps_per_call == 1:
      return (next(self.feed),)
    return self.feed.pool, self.feed.indices(count, self.steps_per_call), count

  def advance(self, count: int, sums: dict[str, jax.Array]) -> None:
    """Notes that the next steps have been started, and will return `sums`."""
    stacked = self.steps_per_call > 1
    self.in_flight = InFlight(self.step + 1, count, sums, stacked)
    self.step += count
    self.updates = np.where(self.plateau.stopped, self.updates, self.step)
    self.drops = np.asarray(self.plateau.drops)
    self.saved = False

  def rates(self) -> np.ndarray:
    """Returns the learning rate of each member in its last update."""
    rate_of = np.vectorize(self.learning_rate)
    return np.ravel(rate_of(np.maximum(self.updates - 1, 0), self.drops))

  def errors(self, figures: Figures) -> np.ndarray:
    """Returns the error of each member, in the shape of the plateau's."""
    members = figures[: self.config.ensemble]
    found = [each["top1_error"] if each else math.nan for each in members]
    return np.reshape(found, self.plateau.stale.shape)

  def set_plateau(self, new: schedules.Plateau, why: str) -> None:
    """Makes the next steps follow a plateau; says what changes and why."""
    old, self.plateau = self.plateau, new
    for member, (ends, drops) in enumerate(
      np.broadcast(new.stopped & ~old.stopped, new.drops > old.drops)
    ):
      whose = f"member {member}: " if new.drops.ndim else ""
      if ends or drops:
        what = "the end" if ends else "the rate drops"
        self.log.print(f"{whose}{why}: {what}")
    where = jax.tree.map(lambda x: x.sharding, self.state.plateau)
    self.state = dataclasses.replace(
      self.state, plateau=jax.device_put(new, where)
    )

  def show_training(self) -> None:
    """Shows the means of the steps since the last record, and keeps them."""
    if self.step == self.total_steps:
      return  # They are recorded.
    if figures := self.meter.take(keep=True):
      about = {"step": self.step, "epoch": self.epoch(self.step)}
      self.log.show({**about, "split": "train", **figures[-1]})

  def record(self, split: str, figures: Figures) -> None:
    """Records the figures of a split; raises DivergedError if a loss is NaN.

    Members of an ensemble that have ended have new figures only of the test.
    """

    def line(step, figures, rate, **member):
      about = {"step": int(step), "epoch": self.epoch(step), "split": split}
      return about | member | figures | {"learning_rate": float(rate)}

    rates, steps = self.rates(), np.ravel(self.updates)
    count = len(rates) if len(rates) > 1 else 0
    records = [
      line(steps[i], each, rates[i], member=i)
      for i, each in enumerate(figures[:count])
      if each and (split == "test" or steps[i] == self.step)
    ]
    for together in figures[count:]:
      records.append(line(self.step, together, rates.mean()))
    for record in records:
      if not math.isfinite(record["loss"]):
        raise errors.DivergedError(
          f"the {split} loss is {record['loss']} at step {self.step}; lower"
          f" --config.learning_rate. {self.describe_latest()}"
        )
    for record in records:
      self.log.record(record)

  def save_is_due(self) -> bool:
    """Whether to save now, by the steps or by the clock of process 0."""
    if self.saves_after(self.step):
      return True
    # Processes wait for the answer of the first, so they ask only sometimes.
    may_ask = jax.process_count() == 1 or self.logs_after(self.step)
    return may_ask and self.saver.is_due()

  def save(self, *, wait: bool) -> None:
    """Saves the state; see `Saver.save`."""
    self.progress.totals = self.meter.totals()
    self.progress.period = self.period.totals()
    self.progress.updates = self.updates.tolist(), self.drops.tolist()
    self.saved = self.saver.save(self.state, self.progress, wait=wait)
    self.meter.restart_clock()

  def describe_latest(self) -> str:
    """Returns a sentence that says which step the run can resume from."""
    self.saver.wait()
    return checkpoint.describe_latest(self.workdir)
