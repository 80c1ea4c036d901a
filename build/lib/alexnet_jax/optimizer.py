"""The paper's update (section 5) and its schedule."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax


def step_of_epoch(epoch: float, num_examples: int, batch_size: int) -> int:
  """Returns the first step that starts at or after `epoch` passes."""
  return math.ceil(epoch * num_examples / batch_size)


def drops_by_epoch(
  learning_rate: float,
  drop_epochs: Sequence[float],
  drop_factor: float,
  *,
  num_examples: int,
  batch_size: int,
) -> optax.Schedule:
  """Returns a rate that is multiplied by `drop_factor` at each of the epochs.

  Args:
    learning_rate: the first rate.
    drop_epochs: passes over the training split after which the rate drops.
    drop_factor: what a drop multiplies the rate by (paper 5: 0.1).
    num_examples: size of the training split.
    batch_size: examples per step.
  """
  drop_steps = jnp.array(
    [step_of_epoch(e, num_examples, batch_size) for e in drop_epochs], jnp.int32
  )

  def schedule(step):
    drops = jnp.sum(jnp.asarray(step) >= drop_steps).astype(jnp.float32)
    return learning_rate * jnp.float32(drop_factor) ** drops

  return schedule


def paper_sgd(
  schedule: optax.Schedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
  """Returns `v <- m v - decay rate w - rate grad; w <- w + v` (paper 5).

  The rate stands inside the velocity, so a drop of the rate does not shrink the
  velocity gathered before it; `optax.sgd` multiplies after the momentum.

  Args:
    schedule: learning rate by step.
    momentum: m (paper: 0.9).
    weight_decay: decay, of every parameter (paper: 0.0005).
  """
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(schedule),
    optax.trace(decay=momentum),
  )


def from_config(
  config: Any, num_examples: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Returns the optimizer that a config describes, and its learning rate.

  Args:
    config: a whole config.
    num_examples: size of the training split.
  """
  schedule = drops_by_epoch(
    config.learning_rate,
    config.learning_rate_drop_epochs,
    config.learning_rate_drop_factor,
    num_examples=num_examples,
    batch_size=config.batch_size,
  )
  return paper_sgd(schedule, config.momentum, config.weight_decay), schedule
