"""Why a run comes to nothing: what is not finite, and from which layer on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import augment, networks
from alexnet_jax.data import batches
from alexnet_jax.parallel import ensemble, placement
from alexnet_jax.runs.run import Run
from alexnet_jax.runtime import errors, platforms


def _losses(sums: Any) -> np.ndarray:
  return np.atleast_1d(sums["loss"] / sums["examples"])


def is_finite(sums: Any, nonfinite: np.ndarray) -> bool:
  """Whether loss and gradients of a step are finite, for all members."""
  return not nonfinite.any() and bool(np.isfinite(_losses(sums)).all())


def skip_or_raise(run: Run, step: int, sums: Any, nonfinite: Any) -> None:
  """Counts a step that was not finite; the device has left it out.

  Args:
    run: the run.
    step: number of the step.
    sums: of the step, see `metrics.sums`.
    nonfinite: count for each array of gradients, see `steps.make_step`.

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
  cause = first_nonfinite_layer(run, step, member)
  raise errors.DivergedError(
    f"{loss}: {cause or _nonfinite_gradients(run, nonfinite[member])}, with"
    f" learning_rate={run.rates()[member]:g}; lower it, or skip such steps with"
    f" --config.skip_nonfinite_steps=N. {run.describe_latest()}"
  )


def first_nonfinite_layer(run: Run, step: int, member: int) -> str:
  """Returns which layer's outputs are not finite first, and for which images.

  It is "" if all outputs are finite with the parameters of now.
  """
  split, config = run.splits["train"], run.config
  start, seed = step - 1, config.seed + member
  order = batches.ShuffledBatches(len(split), config.batch_size, seed)
  images = batches.load(split, order[start], config.image_size_px)["image"]
  params = jax.device_get(placement.replicate(run.mesh, run.state.params))
  names = networks.layer_names(run.net.network)

  @platforms.jit
  def find_finite(params, images, index_B, seed):
    _, found = run.net.apply(
      {"params": params},
      augment.training_views(images, index_B, start, seed, run.augmentation),
      augment.dropout_keys(seed, start, index_B),
      capture_intermediates=lambda module, _: module.name in names,
      mutable=["intermediates"],
    )
    halves: Any = found["intermediates"]
    outputs = halves["features"] | halves["classifier"]
    finite = [jnp.isfinite(outputs[name]["__call__"][0]) for name in names]
    return [x.reshape(len(x), -1).all(axis=1) for x in finite]

  finite_LxB = find_finite(
    ensemble.unstack(params, config.ensemble)[member],
    images,
    jnp.arange(len(images)),
    np.uint32(seed),
  )
  for name, finite_B in zip(names, jax.device_get(finite_LxB), strict=True):
    if not finite_B.all():
      bad = order[start][~finite_B]
      return (
        f"the outputs of {name} are not finite for {len(bad)} of"
        f" {len(images)} images, examples {errors.first_few(map(str, bad), 8)}"
        f" of {split.split!r}"
      )
  return ""


def _nonfinite_gradients(run: Run, counts: np.ndarray) -> str:
  """Returns which arrays have gradients that are not finite."""
  # Gradients come from the last layer down: the last bad one is the first.
  names = networks.layer_names(run.net.network)
  bad = [
    (names.index(path[-2].key), f"{path[-2].key}/{path[-1].key}")
    for (path, _), count in zip(
      jax.tree.leaves_with_path(run.state.params), counts, strict=True
    )
    if count
  ]
  _, array = max(bad, default=(0, "no array"))
  return (
    f"the outputs are finite, but the gradients of {len(bad)} arrays are not,"
    f" first that of {array}"
  )
