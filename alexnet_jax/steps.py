"""One step of training, and one of evaluation, as pure functions.

Read `train_step` first: on one device `gather_params` and `reduce_grads` do
nothing. `make_step` puts around it what a layout asks for: microbatches, One
Weird Trick, an ensemble, several devices.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from alexnet_jax import augment, metrics, optimizer, schedules
from alexnet_jax.model import AlexNet
from alexnet_jax.parallel import (
  collectives,
  ensemble,
  layouts,
  microbatches,
  one_weird_trick,
  placement,
)
from alexnet_jax.runtime import platforms

Batch = dict[str, jax.Array]
Gradients = Callable[..., tuple[Any, metrics.Sums]]
"""(params, batch, example_index_B, step, seed) -> gradients of params, sums."""


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes; of an ensemble, stacked by member."""

  step: jax.Array  # int32, updates done
  params: Any  # {"features": ..., "classifier": ...} of float32 arrays
  opt_state: Any  # of the optimizer, for each half of params by itself
  plateau: schedules.Plateau


def train_step(
  state: TrainState,
  batch: Batch,
  example_index_B: jax.Array,
  seed: Any,
  *,
  gradients: Gradients,
  tx: optax.GradientTransformationExtraArgs,
  layout: layouts.Layout,
) -> tuple[TrainState, metrics.Sums]:
  """Takes one step; of several devices, what each of them does.

  A step whose loss or gradient is not finite changes nothing but its number.

  Args:
    state: before the step.
    batch: this device's examples, uint8 images and int32 labels.
    example_index_B: their places in the whole batch.
    seed: `config.seed`, the root of all random keys.
    gradients: the forward and backward pass.
    tx: the optimizer.
    layout: who computes what.
  """
  params = collectives.gather_params(layout, state.params)
  grads, sums = gradients(params, batch, example_index_B, state.step, seed)
  grads = collectives.reduce_grads(layout, grads)
  sums = collectives.psum_if(sums, layout.data_axes)
  flags = collectives.nonfinite_flags(grads)
  nonfinite = collectives.count_nonfinite_shards(layout, flags)
  skip = jnp.any(nonfinite > 0) | ~jnp.isfinite(sums["loss"])
  # A member of an ensemble that has ended is not updated.
  new = update(state, grads, tx, skip | state.plateau.stopped)
  new = dataclasses.replace(new, step=state.step + 1)
  return new, sums | {"nonfinite": nonfinite}


def update(state: TrainState, grads: Any, tx: Any, skip: Any) -> TrainState:
  """Returns the state after an update of the halves that `grads` has."""
  params: Any = dict(state.params)
  opt_state: Any = dict(state.opt_state)
  for half in grads:
    old = {half: params[half]}
    updates, opt_state[half] = tx.update(
      {half: grads[half]},
      opt_state[half],
      old,
      step=state.step,
      drops=state.plateau.drops,
      skip=skip,
    )
    params |= optax.apply_updates(old, updates)
  return dataclasses.replace(state, params=params, opt_state=opt_state)


def loss_and_sums(
  logits_BxK: jax.Array, labels_B: jax.Array, layout: layouts.Layout
) -> tuple[jax.Array, metrics.Sums]:
  """Returns this device's part of the loss of an update, and its sums."""
  ones_B = jnp.ones(labels_B.shape)
  sums = metrics.sums(logits_BxK, labels_B, ones_B, layout.class_axes)
  return sums["loss"] * layout.fc_updates / layout.batch_size, sums


def make_gradients(
  apply: Any, augmentation: augment.Augmentation, loss: Callable[..., Any]
) -> Gradients:
  """Returns the forward and backward pass of a batch."""

  def loss_fn(params, views, labels_B, keys_B):
    return loss(apply({"params": params}, views, keys_B), labels_B)

  def gradients(params, batch, example_index_B, step, seed):
    views = augment.training_views(
      batch["image"], example_index_B, step, seed, augmentation
    )
    keys_B = augment.dropout_keys(seed, step, example_index_B)
    return jax.grad(loss_fn, has_aux=True)(
      params, views, batch["label"], keys_B
    )

  return gradients


def make_step(
  config: Any,
  model: AlexNet,
  tx: optax.GradientTransformationExtraArgs,
  augmentation: augment.Augmentation,
  layout: layouts.Layout,
  mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, metrics.Sums]]:
  """Returns the pure `(state, batch) -> (state, sums)` of training.

  Beside `metrics.sums`, `sums` has `nonfinite`: int32, above 0 for each array
  whose gradient is not finite, in the order of `jax.tree.leaves`. The mesh has
  the layout's shape (`placement.make_mesh`).
  """
  model = model.clone(network=layout.local_network(model.network))
  apply = optimizer.freeze(config, model.apply)
  loss = functools.partial(loss_and_sums, layout=layout)
  if layout.fc_updates > 1:
    step = one_weird_trick.make_train_step(
      apply,
      augmentation,
      layout,
      loss,
      functools.partial(update, tx=tx),
    )
  else:
    if layout.name in layouts.OWT:
      gradients = one_weird_trick.make_gradients(
        apply, augmentation, layout, loss
      )
    else:
      gradients = make_gradients(apply, augmentation, loss)
    gradients = microbatches.accumulate(gradients, layout.microbatches)
    step = functools.partial(
      train_step, gradients=gradients, tx=tx, layout=layout
    )
  seed: Any = jnp.uint32(config.seed)
  if layout.members > 1:
    step = ensemble.step_of_members(step)
    seed = jnp.arange(layout.members, dtype=jnp.uint32) + seed
  batch_specs = layout.batch_spec, P(layout.example_axes), layout.member_spec

  def sharded_step(state, batch):
    specs = placement.specs(layout, state)
    step_on_device: Any = jax.shard_map(
      step,
      mesh=mesh,
      in_specs=(specs, *batch_specs),
      out_specs=(specs, layout.member_spec),
    )
    # The net sets its precision too; this is for its gradients.
    with platforms.matmul_precision(config.matmul_precision):
      state, sums = step_on_device(state, batch, layout.example_order(), seed)
    everywhere = placement.shardings(mesh, placement.REPLICATED)
    return state, lax.with_sharding_constraint(sums, everywhere)

  return sharded_step


def make_view_step(
  model: AlexNet,
  augmentation: augment.Augmentation,
  mesh: Mesh,
  deterministic: bool = False,
) -> Callable[[Any, Batch, np.ndarray], jax.Array]:
  """Returns the jitted `(params, batch, views_Vx3) -> log_probabilities_BxK`.

  A probability is the mean of the views' softmaxes (paper 4.1); `views_Vx3` is
  from `augment.views`.
  """

  def view_step(params, batch, views_Vx3):
    def see(view):
      return augment.test_view(batch["image"], view, augmentation)

    images = jnp.concatenate([see(view) for view in views_Vx3])
    logits: Any = model.apply({"params": params}, images)
    count, classes = len(views_Vx3), logits.shape[-1]
    each = jax.nn.log_softmax(logits).reshape(count, -1, classes)
    return jax.nn.logsumexp(each, axis=0) - math.log(count)

  specs = placement.REPLICATED, placement.BATCH, placement.REPLICATED
  sharded = jax.shard_map(
    view_step, mesh=mesh, in_specs=specs, out_specs=placement.BATCH
  )
  return platforms.jit(sharded, deterministic)
