"""Masked counts and sums; a mean is taken once, over a whole split."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax.parallel import collectives

Sums = dict[str, jax.Array]
Totals = dict[str, Any]
"""Sums of many batches on the host, a number each or one per member."""


def sums(
  logits_BxK: jax.Array,
  labels_B: jax.Array,
  mask_B: jax.Array,
  class_axes: tuple[str, ...] = (),
) -> Sums:
  """Returns what a batch adds to the loss and to the errors.

  Of equal logits that of the lower class wins. A logit that is NaN is an error.

  Args:
    logits_BxK: float32; with `class_axes` this device's share of the classes.
    labels_B: integer classes.
    mask_B: float32, 1 for an example and 0 for padding.
    class_axes: mesh axes of the classes; devices exchange no logits.

  Returns:
    float32 scalars: `loss` in nats, `top1_errors`, `top5_errors` if there are
    more than five classes, `examples`.
  """
  count = logits_BxK.shape[1]
  first = lax.axis_index(class_axes) * count if class_axes else 0
  classes = jnp.arange(count)[None] + first
  is_label = classes == labels_B[:, None]
  peak_B = lax.stop_gradient(jnp.max(logits_BxK, axis=1))
  if class_axes:
    peak_B = lax.pmax(peak_B, class_axes)
  label_logits_B, scale_B = collectives.psum_if(
    (
      jnp.sum(jnp.where(is_label, logits_BxK, 0.0), axis=1),
      jnp.sum(jnp.exp(logits_BxK - peak_B[:, None]), axis=1),
    ),
    class_axes,
  )
  losses = jnp.log(scale_B) + peak_B - label_logits_B
  ahead = ~(logits_BxK <= label_logits_B[:, None])
  tied = (logits_BxK == label_logits_B[:, None]) & (classes < labels_B[:, None])
  rank_B = collectives.psum_if(jnp.sum(ahead | tied, axis=1), class_axes)
  sums = {
    "loss": jnp.sum(jnp.where(mask_B > 0, losses, 0.0)),
    "examples": jnp.sum(mask_B),
  }
  for k in (1, 5) if collectives.psum_if(count, class_axes) > 5 else (1,):
    sums[f"top{k}_errors"] = jnp.sum(jnp.where(rank_B >= k, mask_B, 0.0))
  return sums


def add(totals: Totals, sums: Sums) -> None:
  """Waits for the sums of a batch and adds them up in place, in float64."""
  for name, value in sums.items():
    totals[name] = totals.get(name, 0.0) + np.float64(value)


def means(totals: Totals) -> Totals:
  """Returns loss in nats per example and errors as fractions from 0 to 1."""
  return {
    name.replace("errors", "error"): total / totals["examples"]
    for name, total in totals.items()
    if name != "examples"
  }
