"""Masked counts and sums; a mean is taken once, over a whole split."""

import jax
import jax.numpy as jnp
import optax

Sums = dict[str, jax.Array]


def sums(logits_BxK: jax.Array, labels_B: jax.Array, mask_B: jax.Array) -> Sums:
  """Returns what a batch adds to the loss and to the errors.

  A label is among the best k if fewer than k classes beat it, ties going to
  the lower class. A logit that is NaN is an error.

  Args:
    logits_BxK: float32.
    labels_B: integer classes.
    mask_B: float32, 1 for an example and 0 for padding.

  Returns:
    float32 scalars: `loss` in nats, `top1_errors`, `top5_errors`, `examples`.
  """
  label_logits = jnp.take_along_axis(logits_BxK, labels_B[:, None], axis=1)
  classes = jnp.arange(logits_BxK.shape[1])[None]
  ahead = ~(logits_BxK <= label_logits)
  tied = (logits_BxK == label_logits) & (classes < labels_B[:, None])
  rank_B = jnp.sum(ahead | tied, axis=1)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits_BxK, labels_B)
  return {
    "loss": jnp.sum(jnp.where(mask_B > 0, losses, 0.0)),
    "top1_errors": jnp.sum(jnp.where(rank_B >= 1, mask_B, 0.0)),
    "top5_errors": jnp.sum(jnp.where(rank_B >= 5, mask_B, 0.0)),
    "examples": jnp.sum(mask_B),
  }


def add(totals: dict[str, float], sums: Sums) -> None:
  """Waits for the sums of a batch and adds them up in place, as numbers."""
  for name, value in sums.items():
    totals[name] = totals.get(name, 0.0) + float(value)


def means(totals: dict[str, float]) -> dict[str, float]:
  """Returns loss in nats per example and errors as fractions from 0 to 1.

  Args:
    totals: added-up `sums` as Python numbers.
  """
  examples = totals["examples"]
  return {
    "loss": totals["loss"] / examples,
    "top1_error": totals["top1_errors"] / examples,
    "top5_error": totals["top5_errors"] / examples,
  }
