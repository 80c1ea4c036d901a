"""The paper's update (section 5), its rates and their schedules."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from alexnet_jax.parallel import collectives
from alexnet_jax.runtime import errors, platforms

Schedule = Callable[[Any, Any], Any]
"""Factor of the first rate, by step (int32) and drops on a plateau (int32)."""

Rates = Callable[[Any, Any, Any], Any]
"""Tree of learning rates for a tree of arrays, by step and drops."""

Split = Callable[[Any], tuple[str, ...]]
"""Mesh axes that the array of a path is split over."""


def step_of_epoch(epoch: float, num_examples: int, batch_size: int) -> int:
  """Returns the first step that starts at or after `epoch` passes."""
  # Steps are counted in 32 bits.
  return math.ceil(min(epoch * num_examples / batch_size, 2**31 - 1))


def on_plateau(drop_factor: float) -> Schedule:
  """Returns the schedule that `Plateau` drops (paper 5)."""
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
  """Returns `target_factor` to the power of minus progress (lr.cu)."""
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


def _progress(step: Any, total_steps: int) -> jax.Array:
  return jnp.minimum(jnp.asarray(step) / total_steps, 1.0)


def _power(base: float, exponent: Any) -> jax.Array:
  return jnp.float32(base) ** jnp.asarray(exponent).astype(jnp.float32)


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
    # Each an array of its own: the training step eats them.
    return cls(
      jnp.float32(jnp.inf), jnp.int32(0), jnp.int32(0), jnp.bool_(False)
    )

  def after(self, error: Any, patience: int, max_drops: int) -> "Plateau":
    """Returns the state after an evaluation.

    An error that is not below the best is stale; `patience` of them in a row
    lower the rate, or end the run where it was lowered `max_drops` times.

    Args:
      error: of the validation split; of several members, of each.
      patience: evaluations.
      max_drops: paper 5: three.
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


class _Velocity(NamedTuple):
  """The velocity of each array."""

  velocity: Any


def velocity(rates: Rates, momentum: float) -> optax.GradientTransformation:
  """Returns `v <- m v - rate u; w <- w + v` for updates u (paper 5).

  The rate stands inside the velocity, so a drop of the rate does not shrink the
  velocity gathered before it; `optax.sgd` multiplies after the momentum. Where
  a rate is 0, neither array nor velocity moves (weights.cu).

  Args:
    rates: learning rate of each array.
    momentum: m (paper: 0.9).

  Returns:
    A transformation whose `update` takes by name `step`, `drops`, and `hold`,
    whether to move nothing.
  """

  def init(params):
    return _Velocity(optax.tree.zeros_like(params))

  def update(updates, state, params=None, *, step, drops=0, hold=False):
    now = jax.tree.map(
      lambda rate: jnp.where(hold, 0.0, rate), rates(updates, step, drops)
    )
    # Once, so that the weights need only it, in place.
    moved = jax.tree.map(
      lambda v, u, rate: platforms.materialize(
        jnp.where(rate > 0, momentum * v - rate * u, v)
      ),
      state.velocity,
      updates,
      now,
    )
    steps = jax.tree.map(
      lambda v, rate: jnp.where(rate > 0, v, jnp.zeros_like(v)), moved, now
    )
    return steps, _Velocity(moved)

  return optax.GradientTransformationExtraArgs(
    init,
    update,  # pyright: ignore[reportArgumentType]
  )


def decay(decay_of: Callable[[Any], float]) -> optax.GradientTransformation:
  """Returns `u + decay w` for updates u.

  Args:
    decay_of: the decay of the array of a path.
  """

  def update(updates, params):
    return jax.tree.map_with_path(
      lambda path, u, w: u + decay_of(path) * w if decay_of(path) else u,
      updates,
      params,
    )

  return optax.stateless(update)


def trust(coefficient: float, split: Split) -> optax.GradientTransformation:
  """Returns `u * coefficient |w| / |u|` for updates u of kernels.

  The ratio is 1 where either length is 0; biases are left as they are.

  Args:
    coefficient: length of a step by that of the weights.
    split: as lengths are those of whole arrays.

  Source: LARS, You et al. 2017 (arXiv 1708.03888), section 4.
  """

  def scaled(path, u, w):
    if not _is_kernel(path):
      return u
    squares = jnp.sum(w * w), jnp.sum(u * u)
    own, wanted = map(jnp.sqrt, collectives.psum_if(squares, split(path)))
    plain = (own == 0) | (wanted == 0)
    return u * jnp.where(plain, 1.0, coefficient * own / wanted)

  def update(updates, params):
    return jax.tree.map_with_path(scaled, updates, params)

  return optax.stateless(update)


def _is_kernel(path: Any) -> bool:
  return path[-1].key == "kernel"


def _weight_decay(config: Any) -> Callable[[Any], float]:
  exceptions = dict(config.weight_decay_of_layers)

  def of(path):
    if _is_kernel(path) or config.weight_decay_of_biases:
      return exceptions.get(path[-2].key, config.weight_decay)
    return 0.0

  return of


def _rates(
  config: Any, schedule: Schedule, at: Callable[[float], int]
) -> Rates:
  """Returns the rate of each array, exceptions included."""
  first_of_features = _first_rate(config, config.batch_size)
  first_of_classifier = _first_rate(
    config, config.fc_batch_size or config.batch_size
  )
  exceptions = sorted(config.learning_rate_of_layers, key=lambda e: e[0])

  def rates(tree, step, drops):
    factor = schedule(step, drops)

    def newest(rate, *names):
      for epoch, name, value in exceptions:
        if name in names:
          rate = jnp.where(step >= at(epoch), jnp.float32(value), rate)
      return rate

    def of(path, _):
      layer = path[-2].key
      in_classifier = path[0].key == "classifier"
      first = first_of_classifier if in_classifier else first_of_features
      if layer in config.reinit_layers:
        first *= config.learning_rate_of_reinit_layers
      if _is_kernel(path):
        return newest(first * factor, layer, f"{layer}/kernel")
      own = first * config.learning_rate_of_biases
      if config.biases_follow_schedule:
        own = own * factor
      # A layer of rate 0 is frozen, its bias with it.
      awake = newest(jnp.float32(1), layer) > 0
      return jnp.where(awake, newest(own, f"{layer}/bias"), 0.0)

    return jax.tree.map_with_path(of, tree)

  return rates


def _first_rate(config: Any, batch_size: int) -> float:
  """The rate of the weights at first, scaled to the batch of an update."""
  ratio = batch_size / config.batch_scaling_base
  scale = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}
  return config.learning_rate * scale[config.batch_scaling]


def _schedule(
  config: Any, total_steps: int, at: Callable[[float], int]
) -> Schedule:
  factor = config.learning_rate_drop_factor
  drop_steps = [at(epoch) for epoch in config.learning_rate_drop_epochs]
  match config.schedule:
    case "plateau":
      schedule = on_plateau(factor)
    case "epochs":
      schedule = by_steps(drop_steps, factor)
    case "linear":
      schedule = linear(config.target_factor, total_steps)
    case "exp":
      schedule = exponential(config.target_factor, total_steps)
    case "dexp":
      schedule = discrete_exponential(
        config.target_factor, config.dexp_rates, total_steps
      )
    case _:
      raise errors.unknown("schedule", config.schedule, SCHEDULES)
  warmup_steps = at(config.warmup_epochs)
  if not warmup_steps:
    return schedule

  def warmed_up(step, drops):
    rise = jnp.minimum((jnp.asarray(step) + 1) / warmup_steps, 1.0)
    return rise * schedule(step, drops)

  return warmed_up


SCHEDULES = ("plateau", "epochs", "linear", "exp", "dexp")
OPTIMIZERS = ("sgd", "lars")
BATCH_SCALINGS = ("none", "linear", "sqrt")


def check(config: Any, layers: Iterable[str]) -> None:
  """Raises InputError for a name or a number that no optimizer can have.

  Args:
    config: a whole config.
    layers: names of the net's layers.
  """
  for field, known in (
    ("schedule", SCHEDULES),
    ("optimizer", OPTIMIZERS),
    ("batch_scaling", BATCH_SCALINGS),
  ):
    if config[field] not in known:
      raise errors.unknown(field, config[field], known)
  layers = list(layers)
  arrays = [f"{name}/{part}" for name in layers for part in ("kernel", "bias")]
  _check_entries(config, "weight_decay_of_layers", "(layer, decay)", layers)
  _check_entries(
    config, "learning_rate_of_layers", "(epoch, layer, rate)", layers + arrays
  )


def _check_entries(
  config: Any, field: str, form: str, known: Sequence[str]
) -> None:
  parts = form.strip("()").split(", ")
  for entry in config[field]:
    if not isinstance(entry, list | tuple) or len(entry) != len(parts):
      raise errors.InputError(f"{field} holds {entry!r}, which is not {form}.")
    for part, value in zip(parts, entry, strict=True):
      if part == "layer":
        if value not in known:
          raise errors.unknown(field, value, known)
      elif not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise errors.InputError(
          f"{field} holds {part} {value!r}; it must be a number of 0 or more."
        )


def from_config(
  config: Any,
  num_examples: int,
  total_steps: int,
  split: Split = lambda path: (),
) -> tuple[optax.GradientTransformationExtraArgs, Schedule]:
  """Returns the optimizer that a config describes, and the weights' rate.

  Args:
    config: a whole config, see `check`.
    num_examples: size of the training split.
    total_steps: of the whole run.
    split: as in `trust`; whole arrays by default.

  Returns:
    A transformation of {"features": ...}, {"classifier": ...} or both, whose
    `update` takes by name `step` (updates of the whole net done), `drops` and
    `hold` (whether to move nothing); and the learning rate of the convolutional
    weights by step and drops.
  """

  def at(epoch: float) -> int:
    return step_of_epoch(epoch, num_examples, config.batch_size)

  schedule = _schedule(config, total_steps, at)
  chain = [decay(_weight_decay(config))]
  if config.optimizer == "lars":
    chain.append(trust(config.lars_trust, split))
  chain.append(velocity(_rates(config, schedule, at), config.momentum))
  first = _first_rate(config, config.batch_size)
  tx = optax.with_extra_args_support(optax.chain(*chain))
  return tx, lambda step, drops: first * schedule(step, drops)
