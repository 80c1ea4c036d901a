"""The paper's update (section 5) in optax, with its rates array by array.

`v <- 0.9 v - rate (decay w + gradient); w <- w + v`. A lower rate does not
shrink the velocity v gathered before, as it would in `optax.sgd`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from alexnet_jax import schedules
from alexnet_jax.parallel import lars
from alexnet_jax.runtime import platforms

Rates = Callable[[Any, Any, Any], Any]
"""(arrays, step, drops on a plateau) -> learning rate of each array."""


def from_config(
  config: Any,
  num_examples: int,
  total_steps: int,
  split: lars.Split = lambda path: (),
) -> tuple[optax.GradientTransformationExtraArgs, schedules.Schedule]:
  """Returns the optimizer that a config describes, and the conv layers' rate.

  Args:
    config: a complete config.
    num_examples: size of the training split.
    total_steps: of the whole run.
    split: how arrays are split over devices; by default they are not.

  Returns:
    A transformation of one or both halves of params, whose `update` also takes
    `step` (updates done), `drops` (of the plateau) and `skip` (to change
    nothing); and the rate of the conv kernels by step and drops.
  """
  schedule = schedules.from_config(config, num_examples, total_steps)
  transformations = [add_decayed_weights(config)]
  if config.optimizer == "lars":
    transformations.append(lars.scale_by_trust_ratio(config.lars_trust, split))
  of_biases = schedules.of_biases(config, schedule, total_steps)
  rates = _rates(config, schedule, of_biases, num_examples)
  transformations.append(momentum(config.momentum, rates))
  first = _first_rate(config, config.batch_size)
  tx = optax.with_extra_args_support(optax.chain(*transformations))
  return tx, lambda step, drops: first * schedule(step, drops)


def freeze(config: Any, apply: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `model.apply` without gradients by arrays that never learn."""

  def of(path, w):
    names = path[-2].key, f"{path[-2].key}/{path[-1].key}"
    rates = {t: r for t, x, r in config.learning_rate_of_layers if x in names}
    learns = 0 not in rates or any(rates.values())
    return w if learns else jax.lax.stop_gradient(w)

  return lambda variables, *args, **kwargs: apply(
    jax.tree.map_with_path(of, variables), *args, **kwargs
  )


def add_decayed_weights(config: Any) -> optax.GradientTransformation:
  """Returns `u + decay w` for updates u, with the decay of each array."""
  exceptions = dict(config.weight_decay_of_layers)

  def decay_of(path, _):
    if path[-1].key == "kernel" or config.weight_decay_of_biases:
      return exceptions.get(path[-2].key, config.weight_decay)
    return 0.0

  decays = {0.0, config.weight_decay, *exceptions.values()}
  return optax.partition(
    {
      d: optax.add_decayed_weights(d) if d else optax.identity() for d in decays
    },
    lambda params: jax.tree.map_with_path(decay_of, params),
  )


def momentum(
  decay: float, rates: Rates
) -> optax.GradientTransformationExtraArgs:
  """Returns `v <- decay v - rate u; w <- w + v` for updates u (paper 5).

  Where a rate is 0, neither w nor v changes (weights.cu).
  """
  trace: Any = optax.trace(decay)

  def update(updates, state, params=None, *, step, drops=0, skip=False, **_):
    now = jax.tree.map(
      lambda rate: jnp.where(skip, 0.0, rate), rates(updates, step, drops)
    )
    steps = jax.tree.map(lambda rate, u: -rate * u, now, updates)
    _, moved = trace.update(steps, state)
    # Materialized, so that XLA updates the weights in place.
    velocity = jax.tree.map(
      lambda rate, v, old: platforms.materialize(jnp.where(rate > 0, v, old)),
      now,
      moved.trace,
      state.trace,
    )
    moves = jax.tree.map(
      lambda rate, v: jnp.where(rate > 0, v, jnp.zeros_like(v)), now, velocity
    )
    return moves, optax.TraceState(velocity)

  return optax.GradientTransformationExtraArgs(
    trace.init,
    update,  # pyright: ignore[reportArgumentType]
  )


def _rates(
  config: Any, schedule: Any, schedule_of_biases: Any, num_examples: int
) -> Rates:
  """Returns the learning rate of each array, exceptions included."""
  first_rates = {
    "features": _first_rate(config, config.batch_size),
    "classifier": _first_rate(
      config, config.fc_batch_size or config.batch_size
    ),
  }
  exceptions = [
    (schedules.step_of_epoch(t, num_examples, config.batch_size), *what)
    for t, *what in sorted(config.learning_rate_of_layers, key=lambda x: x[0])
  ]

  def rates(tree, step, drops):
    factor = schedule(step, drops)
    factor_of_biases = schedule_of_biases(step, drops)

    def newest(rate, *names):
      for start, name, value in exceptions:
        if name in names:
          rate = jnp.where(step >= start, jnp.float32(value), rate)
      return rate

    def rate_of(path, _):
      half, layer = path[0].key, path[-2].key
      first = first_rates[half]
      if layer in config.reinit_layers:
        first *= config.learning_rate_of_reinit_layers
      if path[-1].key == "kernel":
        return newest(first * factor, layer, f"{layer}/kernel")
      rate = first * config.learning_rate_of_biases * factor_of_biases
      # A layer of rate 0 is frozen with its bias.
      learns = newest(jnp.float32(1), layer) > 0
      return jnp.where(learns, newest(rate, f"{layer}/bias"), 0.0)

    return jax.tree.map_with_path(rate_of, tree)

  return rates


def _first_rate(config: Any, batch_size: int) -> float:
  """Returns the first rate of the weights, scaled to the batch of an update."""
  ratio = batch_size / config.batch_scaling_base
  scale = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}
  return config.learning_rate * scale[config.batch_scaling]
