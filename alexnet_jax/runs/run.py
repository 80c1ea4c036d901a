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
from alexnet_jax.parallel import layouts, placement
from alexnet_jax.runs import checkpoint, logs, saving
from alexnet_jax.runs.events import Events
from alexnet_jax.runs.meter import Meter
from alexnet_jax.runtime import errors

Figures = list[dict[str, float]]
"""Loss and errors of each net, and then, of several, of all together."""


class Chunk(NamedTuple):
  """The batches of the steps that one call takes.

  Attributes:
    batches: a batch, or the index of several and their count.
    batch_of: from the turn of a step, from 0, to its batch.
  """

  batches: Any
  batch_of: Callable[[int], steps.Batch]


class InFlight(NamedTuple):
  """Steps that the devices may still be computing.

  Attributes:
    first: number of the first step.
    count: how many steps there are.
    sums: of each step, stacked; of a single step as they are.
    chunk: their batches.
  """

  first: int
  count: int
  sums: dict[str, jax.Array]
  chunk: Chunk

  def sums_of_steps(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Waits for the steps; yields the number and the sums of each."""
    held = {name: np.asarray(x) for name, x in self.sums.items()}
    stacked = isinstance(self.chunk.batches, tuple)
    for turn in range(self.count):
      sums = {name: x[turn] for name, x in held.items()} if stacked else held
      yield self.first + turn, sums


@dataclasses.dataclass
class Run:
  """A run under way.

  Attributes:
    steps_per_call: most steps that `step_fn` takes.
    step_fn: (state, chunk) -> (state, sums).
    eval_mesh: for evaluations, which are data parallel in every layout.
    learning_rate: of the conv kernels, by step and drops.
    state: on the devices.
    plateau: the state's, on the host.
    saved: whether what is here is also on disk.
  """

  config: Any
  workdir: Path
  splits: dict[str, records.Examples]
  net: AlexNet
  augmentation: augment.Augmentation
  layout: layouts.Layout
  mesh: Mesh
  eval_mesh: Mesh
  learning_rate: Callable[..., Any]
  steps_per_call: int
  step_fn: Callable[[steps.TrainState, Chunk], Any]
  view_step: Callable[..., jax.Array]
  feed: feed.Feed
  events: Events
  log: logs.NullLogger
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
    self.meter = Meter(self.progress.totals)
    self.in_flight: InFlight | None = None
    self.saved = True

  def next_batches(self, count: int) -> Chunk:
    """Waits for the batches of the next `count` steps."""
    if self.steps_per_call == 1:
      batch = next(self.feed)
      return Chunk(batch, lambda turn: batch)
    index = self.feed.indices(count, self.steps_per_call)
    return Chunk(
      (self.feed.pool, index, count),
      lambda turn: self.feed.batch_of(index, turn),
    )

  def rates(self) -> np.ndarray:
    """Returns the learning rate of each member in the newest step."""
    rates = self.learning_rate(max(self.step - 1, 0), self.plateau.drops)
    return np.broadcast_to(rates, (self.config.ensemble,))

  def of_members(self, values: list[float]) -> np.ndarray:
    """Returns one value per member, in the shape of the plateau's arrays."""
    own = values[: self.config.ensemble]
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
    rates, stopped = self.rates(), np.atleast_1d(self.plateau.stopped)
    for number, each in enumerate(figures):
      epoch = self.events.epoch(self.step)
      about: dict[str, Any] = {
        "step": self.step,
        "epoch": epoch,
        "split": split,
      }
      rate = rates.mean()
      if number < self.config.ensemble > 1:
        # A net that has come to its end has no new figures but the test's.
        if stopped[number] and split != "test":
          continue
        about["member"], rate = number, rates[number]
      self.log.record(about | each | {"learning_rate": float(rate)})

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
