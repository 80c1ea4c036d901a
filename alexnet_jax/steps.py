"""One step of training and one of evaluation, as pure functions."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from alexnet_jax import augment, metrics, networks, optimizer
from alexnet_jax.model import AlexNet
from alexnet_jax.parallel import collectives, layouts, placement
from alexnet_jax.runtime import platforms

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes; of several members, one above the other.

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


def stack_members(trees: Sequence[Any]) -> Any:
  """Returns the trees of all members as one, along a new first axis."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack_members(tree: Any, members: int) -> list[Any]:
  """Returns the tree of each member; of one that is alone, the tree itself."""
  if members == 1:
    return [tree]
  return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(members)]


def init_state(
  params: Any, tx: optax.GradientTransformation, members: int = 1
) -> TrainState:
  """Returns the state before the first step.

  Args:
    params: of the net; of several members, one above the other.
    tx: the optimizer.
    members: how many nets there are.
  """

  @jax.jit  # Else each array's noughts are a program of their own.
  def start(params):
    opt_state = {stack: tx.init({stack: params[stack]}) for stack in params}
    plateau = optimizer.Plateau.start()
    if members > 1:
      plateau = stack_members([plateau] * members)
    return jnp.int32(0), opt_state, plateau

  step, opt_state, plateau = start(params)
  return TrainState(step, params, opt_state, plateau)


def _example_keys(seed: Any, step: Any, rows_B: jax.Array) -> jax.Array:
  """Returns the key of each example, by its row in the whole batch."""
  step_key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(jax.random.fold_in, (None, 0))(step_key, rows_B)


def _see(
  images: jax.Array,
  rows_B: jax.Array,
  seed: Any,
  step: Any,
  augmentation: augment.Augmentation,
) -> tuple[jax.Array, jax.Array]:
  """Returns what the net sees of images in a step, and keys for dropout."""
  keys = functools.partial(_example_keys, seed, step)
  # Images that share a view take it from the first of them.
  firsts = rows_B - rows_B % augmentation.images_per_view
  views = augment.augment(
    images,
    _fold_in(keys(firsts), 0),
    _fold_in(keys(rows_B), 2),
    step,
    augmentation,
  )
  return views, _fold_in(keys(rows_B), 1)


def _fold_in(keys_B: jax.Array, value: int) -> jax.Array:
  return jax.vmap(jax.random.fold_in, (0, None))(keys_B, value)


def _add(total: Any, more: Any) -> Any:
  return more if total is None else jax.tree.map(jnp.add, total, more)


Step = Callable[[TrainState, Batch], tuple[TrainState, metrics.Sums]]


def make_step(
  model: AlexNet,
  tx: optax.GradientTransformationExtraArgs,
  augmentation: augment.Augmentation,
  layout: layouts.Layout,
  mesh: Mesh,
  seed: int,
) -> Step:
  """Returns the pure `(state, batch) -> (state, sums)` of training.

  Beside `metrics.sums`, `sums` has `nonfinite`: int32, above 0 for each array
  whose gradient is not finite, in the order of `jax.tree.leaves`. If there is
  one, or if the loss is not finite, the step changes neither parameters nor
  velocity.

  Each example's randomness is a function of the seed, the step and its row in
  the whole batch alone, so neither a resumed run nor another layout changes it.

  Args:
    model: the net.
    tx: the optimizer.
    augmentation: from uint8 images to the net's input.
    layout: who computes what.
    mesh: from `placement.make_mesh`, of the layout's shape.
    seed: `config.seed`.
  """
  local = model.clone(network=layout.local_network(model.network))
  unrolls = not platforms.loops_are_fast()

  def extract(features, views, keys_B) -> Any:
    variables = {"params": {"features": features}}
    return local.apply(variables, views, keys_B, method="extract")

  def loss_fn(classifier, x, labels_B, keys_B):
    variables = {"params": {"classifier": classifier}}
    logits: Any = local.apply(variables, x, keys_B, method="classify")
    ones_B = jnp.ones(labels_B.shape)
    sums = metrics.sums(logits, labels_B, ones_B, layout.class_axes)
    return sums["loss"] * layout.fc_updates / layout.batch_size, sums

  loss_gradients = jax.grad(loss_fn, (0, 1), has_aux=True)

  def local_step(state, batch, rows_B, seed):
    """What a device does with its examples and its part of the state."""
    params, opt_state = dict(state.params), dict(state.opt_state)
    used = {
      stack: collectives.gather_params(layout, {stack: params[stack]})[stack]
      for stack in params
    }

    nonfinite: Any = {}

    def gather(stack, grads):
      """Adds up the gradients of all devices, and looks at them."""
      grads = collectives.reduce_grads(layout, {stack: grads})[stack]
      bad = jax.tree.map(
        lambda g: ~platforms.by_platform(platforms.ALL_FINITE, g), grads
      )
      nonfinite[stack] = jax.tree.map(
        jnp.logical_or, nonfinite.get(stack, bad), bad
      )
      return grads

    def update(stack, grads, hold):
      old = {stack: params[stack]}
      updates, opt_state[stack] = tx.update(
        {stack: grads},
        opt_state[stack],
        old,
        step=state.step,
        drops=state.plateau.drops,
        hold=hold,
      )
      new: Any = optax.apply_updates(old, updates)
      params[stack] = new[stack]
      used[stack] = collectives.gather_params(layout, new)[stack]

    def classify(x, about_Bx2):
      """Returns gradients of x and of the classifier, and sums."""
      sent = x, about_Bx2
      arriving = collectives.to_classifier(layout, sent, 0)
      back: list[jax.Array] = []
      total: Any = None
      for turn in range(layout.passes):
        x, about = arriving
        if turn + 1 < layout.passes:
          # The next examples travel while these are worked on; those after
          # them wait, so that no more than two passes' are held.
          sent, back = lax.optimization_barrier((sent, back))
          arriving = collectives.to_classifier(layout, sent, turn + 1)
        labels = about[:, 0]
        keys = _example_keys(seed, state.step, about[:, 1])
        drop_keys = _fold_in(keys, 1)
        (grads, dx), sums = loss_gradients(
          used["classifier"], x, labels, drop_keys
        )
        back.append(
          collectives.to_features(layout, dx / layout.fc_updates, turn)
        )
        if layout.fc_updates > 1:
          update("classifier", gather("classifier", grads), False)
          grads = None
        total = _add(total, (grads, sums))
      return collectives.concat_passes(layout, back), *total

    def microbatch(image, labels, rows):
      """Returns gradients of features and of the classifier, and sums."""
      views, drop_keys = _see(image, rows, seed, state.step, augmentation)
      x, pull_back = jax.vjp(
        lambda features: extract(features, views, drop_keys), used["features"]
      )
      dx, dclassifier, sums = classify(x, jnp.stack([labels, rows], axis=1))
      return *pull_back(dx), dclassifier, sums

    count = layout.microbatches
    parts = [
      x.reshape(count, -1, *x.shape[1:])
      for x in (batch["image"], batch["label"], rows_B)
    ]
    total = microbatch(*(x[0] for x in parts))
    if unrolls:  # Not by scan: even unrolled, one of length one is a loop.
      for turn in range(1, count):
        total = _add(total, microbatch(*(x[turn] for x in parts)))
    elif count > 1:
      total, _ = lax.scan(
        lambda total, part: (_add(total, microbatch(*part)), None),
        total,
        [x[1:] for x in parts],
      )
    dfeatures, dclassifier, sums = total
    grads = {"features": gather("features", dfeatures)}
    if layout.fc_updates == 1:
      grads["classifier"] = gather("classifier", dclassifier)
    # No step makes rubbish of the state: who trains decides whether to go on.
    flags = jax.tree.map(lambda bad: bad.astype(jnp.int32), nonfinite)
    bad_parts = collectives.count_nonfinite_shards(layout, flags)
    sums = collectives.psum_if(sums, layout.data_axes)
    rubbish = jnp.any(bad_parts > 0) | ~jnp.isfinite(sums["loss"])
    # A member that has come to its end waits for the others.
    stands = rubbish | state.plateau.stopped
    for stack, found in grads.items():
      update(stack, found, stands)
    if layout.fc_updates > 1:
      params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(stands, old, new),
        (params, opt_state),
        (state.params, state.opt_state),
      )
    new = dataclasses.replace(
      state, step=state.step + 1, params=params, opt_state=opt_state
    )
    return new, sums | {"nonfinite": bad_parts}

  def local_members(state, batch, rows_B, seeds):
    """The same for each of this device's members, if there are several."""
    if layout.members == 1:
      return local_step(state, batch, rows_B, seeds[0])

    def member_step(own):
      params, opt_state, plateau, batch, seed = own
      old = TrainState(state.step, params, opt_state, plateau)
      new, sums = local_step(old, batch, rows_B, seed)
      return (new.params, new.opt_state, new.plateau), sums

    own = (state.params, state.opt_state, state.plateau, batch, seeds)
    if unrolls:
      each = [
        member_step(jax.tree.map(lambda x, i=i: x[i], own))
        for i in range(len(seeds))
      ]
      new, sums = stack_members(each)
    else:
      new, sums = jax.vmap(member_step)(own)
    return TrainState(state.step + 1, *new), sums

  def train_step(state, batch):
    specs = placement.specs(layout, state)
    rows_spec, member_spec = P(layout.example_axes), layout.member_spec
    sharded_step = jax.shard_map(
      local_members,
      mesh=mesh,
      in_specs=(specs, layout.batch_spec, rows_spec, member_spec),
      out_specs=(specs, member_spec),
    )
    seeds = jnp.arange(layout.members, dtype=jnp.uint32) + jnp.uint32(seed)
    state, sums = sharded_step(state, batch, layout.example_order(), seeds)
    everywhere = placement.shardings(mesh, placement.REPLICATED)
    return state, lax.with_sharding_constraint(sums, everywhere)

  return train_step


def make_train_step(*args: Any, **named: Any) -> Step:
  """Returns what `make_step` does for the same, jitted; it eats its state."""
  return platforms.jit(make_step(*args, **named), donate_argnums=0)


def make_train_loop(
  step: Step,
  draw: Callable[[Any, jax.Array], Batch],
  layout: layouts.Layout,
  mesh: Mesh,
) -> Callable[..., tuple[TrainState, metrics.Sums]]:
  """Returns many steps as one program, for examples that live on the devices.

  The jitted `(state, pool, index_NxB, count) -> (state, sums_N)` takes the
  first `count` of N steps, and eats its state.

  Args:
    step: from `make_step`.
    draw: from a pool of examples and the index of a batch to the batch.
    layout: of the step.
    mesh: of the layout.
  """

  def loop(state, pool, index_NxB, count):
    def body(turn, carry):
      state, sums_N = carry
      state, sums = step(state, draw(pool, index_NxB[turn]))
      return state, jax.tree.map(
        lambda all_N, one: all_N.at[turn].set(one), sums_N, sums
      )

    _, like = jax.eval_shape(
      lambda state, pool, index: step(state, draw(pool, index)),
      state,
      pool,
      index_NxB[0],
    )
    sums_N = jax.tree.map(
      lambda x: jnp.zeros((len(index_NxB), *x.shape), x.dtype), like
    )
    where = placement.specs(layout, state), placement.REPLICATED
    return lax.with_sharding_constraint(
      lax.fori_loop(0, count, body, (state, sums_N)),
      placement.shardings(mesh, where),
    )

  return platforms.jit(loop, donate_argnums=0)


def make_probe(
  model: AlexNet, augmentation: augment.Augmentation
) -> Callable[..., jax.Array]:
  """Returns a function that looks for what is not finite in a forward pass.

  The jitted `(params, images, rows_B, step, seed) -> finite_LxB` tells of each
  layer that has weights, and of each image, whether the outputs are finite as
  they are in training, in the step after `step` updates.

  Args:
    model: the net.
    augmentation: as in training.
  """
  layers = networks.names(model.network)

  def probe(params, images, rows_B, step, seed):
    views, drop_keys = _see(images, rows_B, seed, step, augmentation)
    _, found = model.apply(
      {"params": params},
      views,
      drop_keys,
      capture_intermediates=lambda module, _: module.name in layers,
      mutable=["intermediates"],
    )
    halves: Any = found["intermediates"]
    outputs = {
      name: seen["__call__"][0]
      for half in halves.values()
      for name, seen in half.items()
    }
    finite = [jnp.isfinite(outputs[name]) for name in layers]
    return jnp.stack([x.reshape(len(x), -1).all(axis=1) for x in finite])

  return platforms.jit(probe)


def make_view_step(
  model: AlexNet, augmentation: augment.Augmentation, mesh: Mesh
) -> Callable[[Any, Batch, np.ndarray], jax.Array]:
  """Returns the jitted `(params, batch, views_Vx3) -> log_probabilities_BxK`.

  Probabilities are the mean of the views' softmaxes (paper 4.1). All views are
  seen at once, as one batch of V B images.

  Args:
    model: the net.
    augmentation: gives the crop and the mean image.
    mesh: from `placement.make_mesh`.
  """

  def local_step(params, batch, views_Vx3):
    images = jnp.concatenate(
      [augment.look(batch["image"], view, augmentation) for view in views_Vx3]
    )
    logits: Any = model.apply({"params": params}, images)
    each = jax.nn.log_softmax(logits).reshape(
      len(views_Vx3), -1, logits.shape[-1]
    )
    return jax.nn.logsumexp(each, axis=0) - math.log(len(views_Vx3))

  return platforms.jit(
    jax.shard_map(
      local_step,
      mesh=mesh,
      in_specs=(placement.REPLICATED, placement.BATCH, placement.REPLICATED),
      out_specs=placement.BATCH,
    )
  )
