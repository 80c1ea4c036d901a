"""Steps that are not finite: skipped, or traced to the first layer that is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import augment, networks
from alexnet_jax.data import batches
from alexnet_jax.parallel import ensemble, placement
from alexnet_jax.runs.run import Run
from alexnet_jax.runtime import errors, platforms


def is_finite(run: Run, step: int, sums: dict[str, Any]) -> bool:
  """Returns whether loss and gradients of a step are finite.

  Members of an ensemble that have ended do not count.

  Args:
    run: the run, which counts the steps that the device has skipped.
    step: number of the step.
    sums: of the step, see `steps.make_step`; "nonfinite" is taken out.

  Raises:
    DivergedError: more than `skip_nonfinite_steps` are not; names the layer.
  """
  nonfinite = np.atleast_2d(sums.pop("nonfinite"))  # By member and array.
  losses = np.atleast_1d(sums["loss"] / sums["examples"])
  bad = nonfinite.any(axis=1) | ~np.isfinite(losses)
  bad &= ~np.atleast_1d(run.plateau.stopped)
  if not bad.any():
    return True
  member = int(np.argmax(bad))
  whose = f" of member {member}" if len(losses) > 1 else ""
  loss = f"the loss{whose} is {losses[member]:g} at step {step}"
  allowed = run.config.skip_nonfinite_steps
  if run.progress.skipped >= allowed:
    cause = first_nonfinite_layer(run, step, member)
    raise errors.DivergedError(
      f"{loss}: {cause or _nonfinite_gradients(run, nonfinite[member])}, with"
      f" learning_rate={run.rates()[member]:g}; lower it, or skip such steps"
      f" with --config.skip_nonfinite_steps=N. {run.describe_latest()}"
    )
  run.progress.skipped += 1
  run.log.print(
    f"WARNING: {loss}, or a gradient is not finite; the step is skipped"
    f" ({run.progress.skipped} of skip_nonfinite_steps={allowed})"
  )
  return False


def first_nonfinite_layer(run: Run, step: int, member: int) -> str:
  """Returns which layer's outputs are not finite first, "" if all are."""
  split, config = run.splits["train"], run.config
  start, seed = step - 1, config.seed + member
  order = batches.ShuffledBatches(len(split), config.batch_size, seed)
  images = batches.load(split, order[start], config.image_size_px)["image"]
  params = jax.device_get(placement.replicate(run.mesh, run.state.params))
  names = networks.layer_names(run.net.network)

  @platforms.jit
  def outputs_of_layers(params, images, index_B, seed):
    return run.net.apply(
      {"params": params},
      augment.training_views(images, index_B, start, seed, run.augmentation),
      augment.dropout_keys(seed, start, index_B),
      capture_intermediates=lambda module, _: module.name in names,
      mutable=["intermediates"],
    )[1]["intermediates"]

  params = ensemble.unstack(params, config.ensemble)[member]
  index_B = np.arange(len(images))
  halves = outputs_of_layers(params, images, index_B, np.uint32(seed))
  outputs = halves["features"] | halves["classifier"]
  for name in names:
    (output,) = outputs[name]["__call__"]
    finite_B = jnp.isfinite(output).reshape(len(images), -1).all(axis=1)
    if not finite_B.all():
      return (
        f"the outputs of {name} are not finite for {int((~finite_B).sum())} of"
        f" {len(images)} images"
      )
  return ""


def _nonfinite_gradients(run: Run, counts: np.ndarray) -> str:
  """Returns which arrays have gradients that are not finite."""
  names = networks.layer_names(run.net.network)
  paths = [path[1:] for path, _ in jax.tree.leaves_with_path(run.state.params)]
  bad = [
    (names.index(layer.key), f"{layer.key}/{array.key}")
    for (layer, array), count in zip(paths, counts, strict=True)
    if count
  ]
  # Gradients come from the last layer down: the last bad one is the first.
  _, first = max(bad, default=(0, "no array"))
  return (
    f"the outputs are finite, but the gradients of {len(bad)} arrays are not,"
    f" first that of {first}"
  )
