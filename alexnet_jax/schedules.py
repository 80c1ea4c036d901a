"""How the learning rate falls: by plateau, by epoch, or by a curve."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

Schedule = Callable[[Any, Any], Any]
"""From the step and the drops on a plateau, both int32, to a factor of the
first learning rate."""


def step_of_epoch(epoch: float, num_examples: int, batch_size: int) -> int:
  """Returns the first step that starts at or after `epoch` passes."""
  # Steps are counted in 32 bits.
  return math.ceil(min(epoch * num_examples / batch_size, 2**31 - 1))


def on_plateau(drop_factor: float) -> Schedule:
  """Returns `drop_factor` to the power of the drops (paper 5)."""
  return lambda step, drops: _power(drop_factor, drops)


def by_steps(drop_steps: Sequence[int], drop_factor: float) -> Schedule:
  """Returns a schedule that is multiplied by `drop_factor` at each step."""
  at = jnp.array(drop_steps, jnp.int32)
  return lambda step, drops: _power(
    drop_factor, jnp.sum(jnp.asarray(step) >= at)
  )


def linear(target_factor: float, total_steps: int) -> Schedule:
  """Returns a straight line from 1 to 1 / `target_factor` (lr.cu)."""

  def schedule(step, drops):
    p = _progress(step, total_steps)
    return 1 - p + p / target_factor

  return schedule


def exponential(target_factor: float, total_steps: int) -> Schedule:
  """Returns a curve from 1 to 1 / `target_factor` by equal ratios (lr.cu)."""
  return lambda step, drops: _power(
    1 / target_factor, _progress(step, total_steps)
  )


def discrete_exponential(
  target_factor: float, count: int, total_steps: int
) -> Schedule:
  """Returns `exponential` in `count` levels of equal length (lr.cu: dexp).

  Level i, from 0, is `target_factor ** (-i / (count - 1))` and holds while
  progress is at most (i + 1) / count.
  """
  ends = [(i + 1) * total_steps // count for i in range(count - 1)]
  falls = jnp.array(ends, jnp.int32)

  def schedule(step, drops):
    level = jnp.sum(jnp.asarray(step) > falls)
    return _power(1 / target_factor, level / (count - 1))

  return schedule


def warmed_up(schedule: Schedule, warmup_steps: int) -> Schedule:
  """Returns a schedule that first rises linearly for some steps."""
  if not warmup_steps:
    return schedule

  def risen(step, drops):
    rise = jnp.minimum((jnp.asarray(step) + 1) / warmup_steps, 1.0)
    return rise * schedule(step, drops)

  return risen


def _progress(step: Any, total_steps: int) -> jax.Array:
  return jnp.minimum(jnp.asarray(step) / total_steps, 1.0)


def _power(base: float, exponent: Any) -> jax.Array:
  return jnp.float32(base) ** jnp.asarray(exponent).astype(jnp.float32)


def from_config(config: Any, num_examples: int, total_steps: int) -> Schedule:
  """Returns the schedule that a config describes.

  Args:
    config: a whole config.
    num_examples: size of the training split.
    total_steps: of the whole run.
  """

  def at(epoch: float) -> int:
    return step_of_epoch(epoch, num_examples, config.batch_size)

  factor, target = config.learning_rate_drop_factor, config.target_factor
  match config.schedule:
    case "plateau":
      schedule = on_plateau(factor)
    case "epochs":
      drops = [at(epoch) for epoch in config.learning_rate_drop_epochs]
      schedule = by_steps(drops, factor)
    case "linear":
      schedule = linear(target, total_steps)
    case "exp":
      schedule = exponential(target, total_steps)
    case _:
      schedule = discrete_exponential(target, config.dexp_rates, total_steps)
  return warmed_up(schedule, at(config.warmup_epochs))


@flax.struct.dataclass
class Plateau:
  """What the validation errors of a run have come to.

  Attributes:
    best_error: float32, the lowest so far.
    stale: int32 evaluations since then, or since the last drop.
    drops: int32 times that the rate was lowered.
    stopped: bool, whether the run is to end.
  """

  best_error: jax.Array
  stale: jax.Array
  drops: jax.Array
  stopped: jax.Array

  @classmethod
  def start(cls) -> "Plateau":
    """Returns the state before the first evaluation."""
    # Each is an array of its own, since a training step donates its state.
    return cls(
      jnp.float32(jnp.inf), jnp.int32(0), jnp.int32(0), jnp.bool_(False)
    )

  def after(self, error: Any, patience: int, max_drops: int) -> "Plateau":
    """Returns the state after an evaluation.

    After `patience` errors in a row that are not below the best, the rate is
    lowered; after `max_drops` times, the run ends instead (paper 5: three).

    Args:
      error: of the validation split; of several members, of each.
      patience: in evaluations.
      max_drops: how often the rate is lowered.
    """
    error = jnp.float32(error)
    stale = jnp.where(error < self.best_error, 0, self.stale + 1)
    full = stale >= patience
    return Plateau(
      best_error=jnp.fmin(self.best_error, error),
      stale=jnp.where(full, 0, stale),
      drops=jnp.where(full, jnp.minimum(self.drops + 1, max_drops), self.drops),
      stopped=self.stopped | full & (self.drops == max_drops),
    )
