"""Why a run comes to nothing: what is not finite, and from which layer on."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import augment, networks, schedules, steps
from alexnet_jax.data import batches
from alexnet_jax.model import AlexNet
from alexnet_jax.parallel import ensemble, placement
from alexnet_jax.runs.run import Run
from alexnet_jax.runtime import errors, hosts, platforms

# A loss this near to that of chance, as a fraction of it, is no better.
CHANCE_TOLERANCE = 0.01


def _losses(sums: Any) -> np.ndarray:
  return np.atleast_1d(sums["loss"] / sums["examples"])


def is_finite(sums: Any, nonfinite: np.ndarray) -> bool:
  """Whether loss and gradients of a step are finite, for all members.

  Args:
    sums: of the step, see `metrics.sums`.
    nonfinite: see `steps.make_step`.
  """
  return not nonfinite.any() and bool(np.isfinite(_losses(sums)).all())


def skip_or_raise(
  run: Run, step: int, sums: Any, nonfinite: np.ndarray, batch: steps.Batch
) -> None:
  """Counts a step that was not finite; the device has left it out.

  Args:
    run: the run.
    step: number of the step.
    sums: of the step.
    nonfinite: see `steps.make_step`.
    batch: of the step.

  Raises:
    DivergedError: more than `skip_nonfinite_steps` of them; names the layer.
  """
  losses = _losses(sums)
  nonfinite = np.atleast_2d(nonfinite)
  member = int(np.argmax(nonfinite.any(axis=1) | ~np.isfinite(losses)))
  whose = f" of member {member}" if len(losses) > 1 else ""
  loss = f"the loss{whose} is {losses[member]:g} at step {step}"
  allowed = run.config.skip_nonfinite_steps
  if run.progress.skipped < allowed:
    run.progress.skipped += 1
    run.log.print(
      f"WARNING: {loss}, or a gradient is not finite; the step is skipped"
      f" ({run.progress.skipped} of skip_nonfinite_steps={allowed})"
    )
    return
  remedy = (
    f"with learning_rate={run.rates()[member]:g}; lower it, or skip such steps"
    f" with --config.skip_nonfinite_steps=N. {run.describe_latest()}"
  )
  with hosts.raise_on_all_hosts():
    if layer := first_nonfinite_layer(run, step, batch):
      raise errors.DivergedError(f"{loss}: {layer}, {remedy}")
  # Gradients come from the last layer down: the last bad one is the first.
  paths = jax.tree.leaves_with_path(run.state.params)
  names = networks.layer_names(run.net.network)
  bad = [
    (names.index(path[-2].key), f"{path[-2].key}/{path[-1].key}")
    for (path, _), count in zip(paths, nonfinite[member], strict=True)
    if count
  ]
  _, array = max(bad, default=(0, "no array"))
  raise errors.DivergedError(
    f"{loss}, and the gradient of {len(bad)} arrays is not finite, first that"
    f" of {array}, for {_examples(run, step, member, slice(None))}, {remedy}"
  )


def _examples(run: Run, step: int, member: int, rows: Any) -> str:
  """Returns which examples some rows of a step's batch are, in words."""
  split = run.splits["train"]
  found = batches.examples_of(
    len(split),
    batch_size=run.config.batch_size,
    seed=run.config.seed + member,
    batch=step - 1,
  )[rows]
  return f"examples {errors.first_few(map(str, found), 8)} of {split.split!r}"


def first_nonfinite_layer(run: Run, step: int, batch: steps.Batch) -> str:
  """Returns which layer's outputs are not finite first, and for which images.

  The parameters are those of now, the images those that this process holds;
  "" if all outputs are finite.

  Args:
    run: the run.
    step: number of the step.
    batch: of the step.
  """
  params = jax.device_get(placement.replicate(run.mesh, run.state.params))
  members = ensemble.unstack(params, run.config.ensemble)
  probe = make_finite_probe(run.net, run.augmentation)
  order_B = run.layout.example_order()
  several = len(members) > 1
  for shard in batch["image"].addressable_shards:
    images = np.asarray(shard.data)
    numbers = range(len(members))[shard.index[0]] if several else [0]
    rows = order_B[shard.index[several]]
    for number, seen in zip(
      numbers, images if several else [images], strict=True
    ):
      seed = np.uint32(run.config.seed + number)
      finite_LxB = np.asarray(
        probe(members[number], seen, rows, np.int32(step - 1), seed)
      )
      for name, finite_B in zip(
        networks.layer_names(run.net.network), finite_LxB, strict=True
      ):
        if not finite_B.all():
          bad = rows[~finite_B]
          return (
            f"the outputs of {name} are not finite for {len(bad)} of"
            f" {len(rows)} images, {_examples(run, step, number, bad)}"
          )
  return ""


def check_above_chance(
  config: Any, step: int, figures: list[dict[str, float]]
) -> None:
  """Raises NotLearningError if a net still gives all classes the same chance.

  Args:
    config: a whole config.
    step: updates done.
    figures: of training, of each net.
  """
  if not 0 < config.check_learning_after_steps <= step:
    return
  chance = math.log(config.num_classes)
  for loss in (each["loss"] for each in figures):
    if abs(loss / chance - 1) < CHANCE_TOLERANCE:
      raise errors.NotLearningError(
        f"the net learns nothing: at step {step} its loss is {loss:.4f}, and"
        f" ln(num_classes={config.num_classes}) is {chance:.4f}. Usual causes:"
        f" learning_rate={config.learning_rate:g} is too high or too low; sigma"
        " or bias of a layer, so that no unit is active; labels that have"
        " nothing to do with the images (alexnet show draws them). To train"
        " on, pass --config.check_learning_after_steps=0."
      )


def make_finite_probe(
  model: AlexNet, augmentation: augment.Augmentation
) -> Callable[..., jax.Array]:
  """Returns a function that finds what is not finite in a forward pass.

  The jitted `(params, images, example_index_B, step, seed) -> finite_LxB` tells
  of each layer with weights and of each image whether the outputs are finite,
  as they are in training in the step after `step` updates.

  Args:
    model: the net.
    augmentation: as in training.
  """
  layers = networks.layer_names(model.network)

  def probe(params, images, example_index_B, step, seed):
    views = augment.training_views(
      images, example_index_B, step, seed, augmentation
    )
    _, found = model.apply(
      {"params": params},
      views,
      augment.dropout_keys(seed, step, example_index_B),
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


def print_plateau(run: Run, new: schedules.Plateau) -> None:
  """Prints a line for each net whose rate drops or that ends."""
  patience, old = run.config.plateau_patience, run.plateau
  why = f"no lower validation error in {patience} evaluations"
  for member, (ends, before, after) in enumerate(
    np.broadcast(new.stopped & ~old.stopped, old.drops, new.drops)
  ):
    who = f"member {member}: " if new.drops.ndim else ""
    if ends:
      run.log.print(f"{who}{why} after {int(after)} drops of the rate: the end")
    elif after > before:
      run.log.print(f"{who}{why}: the rate drops")
