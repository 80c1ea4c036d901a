"""How the learning rate falls: by plateau, by epoch, or by a curve."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

Schedule = Callable[[Any, Any], Any]
"""(step, drops on a plateau) -> factor of the first learning rate."""


def steps_in(epochs: float, num_examples: int, batch_size: int) -> Fraction:
  """Returns the exact number of steps in passes; 2.2 are 11/5."""
  return Fraction(str(epochs)) * num_examples / batch_size


def step_of_epoch(epoch: float, num_examples: int, batch_size: int) -> int:
  """Returns the first step that starts at or after `epoch` passes."""
  # Steps are counted in 32 bits.
  return min(math.ceil(steps_in(epoch, num_examples, batch_size)), 2**31 - 1)


def from_config(config: Any, num_examples: int, total_steps: int) -> Schedule:
  """Returns the schedule that a config describes.

  linear, exp and dexp fall from 1 to 1 / `target_factor`, as in lr.cu of
  cuda-convnet2: by equal steps, by equal ratios, and by `dexp_rates` levels.

  Args:
    config: a complete config.
    num_examples: size of the training split.
    total_steps: of the whole run.
  """

  def at(epoch: float) -> int:
    return step_of_epoch(epoch, num_examples, config.batch_size)

  drop_steps = [at(epoch) for epoch in config.learning_rate_drop_epochs]
  warmup_steps = at(config.warmup_epochs)

  def schedule(step, drops):
    step = jnp.asarray(step)
    progress = jnp.minimum(step / total_steps, 1.0)
    drop, target = config.learning_rate_drop_factor, config.target_factor
    match config.schedule:
      case "plateau":
        factor = _power(drop, drops)
      case "epochs":
        passed = jnp.sum(step >= jnp.array(drop_steps, jnp.int32))
        factor = _power(drop, passed)
      case "linear":
        factor = 1 - progress + progress / target
      case "exp":
        factor = _power(1 / target, progress)
      case _:
        factor = _dexp(step, total_steps, target, config.dexp_rates)
    if not warmup_steps:
      return factor
    return jnp.minimum((step + 1) / warmup_steps, 1.0) * factor

  return schedule


def of_biases(config: Any, schedule: Schedule, total_steps: int) -> Schedule:
  """Returns the schedule of the biases, given that of the weights."""

  def dexp(step, _):
    target, rates = config.target_factor_of_biases, config.dexp_rates_of_biases
    return _dexp(jnp.asarray(step), total_steps, target, rates)

  table = {"weights": schedule, "constant": lambda *_: 1.0, "dexp": dexp}
  return table[config.schedule_of_biases]


def _dexp(step: Any, total_steps: int, target: float, rates: int) -> jax.Array:
  ends = [(i + 1) * total_steps // rates for i in range(rates - 1)]
  level = jnp.sum(step > jnp.array(ends, jnp.int32))
  return _power(1 / target, level / (rates - 1))


def _power(base: float, exponent: Any) -> jax.Array:
  return jnp.float32(base) ** jnp.asarray(exponent).astype(jnp.float32)


@flax.struct.dataclass
class Plateau:
  """The best validation error, and what has followed from it."""

  best_error: jax.Array  # float32, the lowest so far
  stale: jax.Array  # int32, evaluations since then or since the last drop
  drops: jax.Array  # int32, how often the rate was lowered
  stopped: jax.Array  # bool, whether the run is to end

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
    lowered, or the run ends if it was lowered `max_drops` times (paper 5: 3).
    """
    error = jnp.float32(error)
    stale = jnp.where(error < self.best_error, 0, self.stale + 1)
    full = (stale >= patience) & ~self.stopped
    return Plateau(
      best_error=jnp.fmin(self.best_error, error),
      stale=jnp.where(full, 0, stale),
      drops=jnp.where(full, jnp.minimum(self.drops + 1, max_drops), self.drops),
      stopped=self.stopped | full & (self.drops == max_drops),
    )
