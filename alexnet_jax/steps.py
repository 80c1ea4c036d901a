"""One step of training and one of evaluation, as pure functions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from alexnet_jax import augment, metrics, optimizer, parallel
from alexnet_jax.model import AlexNet

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes.

  Attributes:
    step: int32 number of updates done.
    params: {"features": ..., "classifier": ...} of float32 arrays.
    opt_state: velocity and step count of the optimizer.
    plateau: what the validation errors have come to.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  plateau: optimizer.Plateau


def init_params(model: AlexNet, seed: int) -> Any:
  """Returns the parameters before the first step, drawn from the seed alone.

  Args:
    model: the net.
    seed: `config.seed`.
  """
  size = model.network.input_size_px
  images = jnp.zeros((1, size, size, 3))
  # Compiled, so that the forward pass behind the shapes is never run.
  return jax.jit(model.init)(jax.random.key(seed), images)["params"]


def init_state(params: Any, tx: optax.GradientTransformation) -> TrainState:
  """Returns the state before the first step."""
  plateau = optimizer.Plateau.start()
  return TrainState(jnp.int32(0), params, tx.init(params), plateau)


def _fold_in(keys_B: jax.Array, value: int) -> jax.Array:
  return jax.vmap(jax.random.fold_in, (0, None))(keys_B, value)


def make_train_step(
  model: AlexNet,
  tx: optax.GradientTransformationExtraArgs,
  augmentation: augment.Augmentation,
  mesh: Mesh,
  seed: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, metrics.Sums]]:
  """Returns the jitted `(state, batch) -> (state, sums)`; it eats its state.

  Each example's randomness is a function of the seed, the step and its index in
  the whole batch alone, so neither a resumed run nor another number of devices
  changes it.

  Args:
    model: the net.
    tx: the optimizer.
    augmentation: from uint8 images to the net's input.
    mesh: from `parallel.make_mesh`.
    seed: `config.seed`.
  """

  def local_step(state, batch, view_keys_B, keys_B):
    images = augment.augment(
      batch["image"],
      _fold_in(view_keys_B, 0),
      _fold_in(keys_B, 2),
      state.step,
      augmentation,
    )
    labels = batch["label"]
    batch_size = labels.shape[0] * lax.axis_size("data")

    def loss_fn(params):
      # From here each device has its own copy; on the way back shard_map turns
      # this into the one sum of the gradients over 'data'.
      params = lax.pcast(params, "data", to="varying")
      logits: Any = model.apply({"params": params}, images, _fold_in(keys_B, 1))
      sums = metrics.sums(logits, labels, jnp.ones(labels.shape))
      return sums["loss"] / batch_size, sums

    grads, sums = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(
      grads, state.opt_state, state.params, drops=state.plateau.drops
    )
    params = optax.apply_updates(state.params, updates)
    new_state = dataclasses.replace(
      state, step=state.step + 1, params=params, opt_state=opt_state
    )
    return new_state, lax.psum(sums, "data")

  sharded_step = jax.shard_map(
    local_step,
    mesh=mesh,
    in_specs=(parallel.REPLICATED, *[parallel.BATCH] * 3),
    out_specs=(parallel.REPLICATED, parallel.REPLICATED),
  )

  def train_step(state, batch):
    step_key = jax.random.fold_in(jax.random.key(seed), state.step)
    indices_B = jnp.arange(batch["label"].shape[0])
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(step_key, indices_B)
    # Images that share a view take it from the first of them.
    firsts_B = indices_B - indices_B % augmentation.images_per_crop
    return sharded_step(state, batch, keys_B[firsts_B], keys_B)

  return jax.jit(train_step, donate_argnums=0)


def make_view_step(
  model: AlexNet, augmentation: augment.Augmentation, mesh: Mesh
) -> Callable[[Any, Batch, jax.Array], jax.Array]:
  """Returns the jitted `(params, batch, view) -> log_probabilities_BxK`.

  Args:
    model: the net.
    augmentation: gives the crop and the mean image.
    mesh: from `parallel.make_mesh`.
  """

  def local_step(params, batch, view):
    images = augment.look(batch["image"], view, augmentation)
    logits: Any = model.apply({"params": params}, images)
    return jax.nn.log_softmax(logits)

  return jax.jit(
    jax.shard_map(
      local_step,
      mesh=mesh,
      in_specs=(parallel.REPLICATED, parallel.BATCH, parallel.REPLICATED),
      out_specs=parallel.BATCH,
    )
  )
