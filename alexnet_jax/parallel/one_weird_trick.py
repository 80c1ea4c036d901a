"""One Weird Trick (arXiv 1404.5997): fc layers that see everyone's examples.

The conv layers run as in data parallelism. Then their outputs travel to the
devices that hold the units of the fc layers, a part of the examples at a time:
everyone's at once (owt_a), those of one device (owt_b), or an equal part of
everyone's (owt_c). Each such part is a pass through the fc layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax import augment
from alexnet_jax.parallel import collectives, layouts

Loss = Callable[..., tuple[jax.Array, Any]]
"""(logits_BxK, labels_B) -> loss of an update, sums."""


def make_gradients(
  apply: Callable[..., Any],
  augmentation: augment.Augmentation,
  layout: layouts.Layout,
  loss: Loss,
) -> Callable[..., Any]:
  """Returns the forward and backward pass of a batch; see `steps.Gradients`."""
  classifier_gradients = _make_classifier_gradients(apply, loss)

  def gradients(params, batch, example_index_B, step, seed):
    total: Any = None

    def classify(x, labels_B, keys_B):
      nonlocal total
      (grads, dx), sums = classifier_gradients(
        params["classifier"], x, labels_B, keys_B
      )
      new = grads, sums
      total = new if total is None else jax.tree.map(jnp.add, total, new)
      return dx

    dfeatures = _features_gradients(
      apply, augmentation, layout, params["features"], batch, example_index_B,
      step, seed, classify,
    )  # fmt: skip
    dclassifier, sums = total
    return {"features": dfeatures, "classifier": dclassifier}, sums

  return gradients


def make_train_step(
  apply: Callable[..., Any],
  augmentation: augment.Augmentation,
  layout: layouts.Layout,
  loss: Loss,
  update: Callable[..., Any],
) -> Callable[..., Any]:
  """Returns a step that updates the fc layers after each part of the batch.

  The conv layers are updated once, from all examples (section 4, variable
  batch size). `update` is as `steps.update`, with its optimizer.
  """
  classifier_gradients = _make_classifier_gradients(apply, loss)

  def train_step(state, batch, example_index_B, seed):
    new, sums, flags = state, None, None

    def classify(x, labels_B, keys_B):
      nonlocal new, sums, flags
      held = {"classifier": new.params["classifier"]}
      params = collectives.gather_params(layout, held)
      (grads, dx), more = classifier_gradients(
        params["classifier"], x, labels_B, keys_B
      )
      grads = collectives.reduce_grads(layout, {"classifier": grads})
      bad = collectives.nonfinite_flags(grads)
      flags = bad if flags is None else jax.tree.map(jnp.maximum, flags, bad)
      sums = more if sums is None else jax.tree.map(jnp.add, sums, more)
      new = update(new, grads, skip=False)
      return dx / layout.fc_updates

    held = {"features": state.params["features"]}
    dfeatures = _features_gradients(
      apply, augmentation, layout,
      collectives.gather_params(layout, held)["features"],
      batch, example_index_B, state.step, seed, classify,
    )  # fmt: skip
    grads = collectives.reduce_grads(layout, {"features": dfeatures})
    flags |= collectives.nonfinite_flags(grads)
    nonfinite = collectives.count_nonfinite_shards(layout, flags)
    sums = collectives.psum_if(sums, layout.data_axes)
    skip = jnp.any(nonfinite > 0) | ~jnp.isfinite(sums["loss"])
    skip |= state.plateau.stopped
    new = update(new, grads, skip=skip)
    params, opt_state = jax.tree.map(
      lambda a, b: jnp.where(skip, a, b),
      (state.params, state.opt_state),
      (new.params, new.opt_state),
    )
    new = dataclasses.replace(
      state, step=state.step + 1, params=params, opt_state=opt_state
    )
    return new, sums | {"nonfinite": nonfinite}

  return train_step


def _make_classifier_gradients(
  apply: Callable[..., Any], loss: Loss
) -> Callable[..., Any]:
  """Returns the gradients by the fc parameters and by their input."""

  def loss_fn(classifier, x, labels_B, keys_B):
    variables = {"params": {"classifier": classifier}}
    logits = apply(variables, x, keys_B, method="classify")
    return loss(logits, labels_B)

  return jax.grad(loss_fn, (0, 1), has_aux=True)


def _features_gradients(
  apply, augmentation, layout, features, batch, example_index_B, step, seed,
  classify,
):  # fmt: skip
  """Returns the gradients by the conv parameters.

  `classify(x, labels_B, keys_B)` is called for each pass and returns dx, the
  gradient by its input.
  """
  views = augment.training_views(
    batch["image"], example_index_B, step, seed, augmentation
  )
  keys_B = augment.dropout_keys(seed, step, example_index_B)

  def extract(features):
    variables = {"params": {"features": features}}
    return apply(variables, views, keys_B, method="extract")

  x, pull_back = jax.vjp(extract, features)
  sent = x, jnp.stack([batch["label"], example_index_B], axis=1)
  arriving = collectives.to_classifier(layout, sent, 0)
  dx: list[jax.Array] = []
  for turn in range(layout.passes):
    x, about_Bx2 = arriving
    if turn + 1 < layout.passes:
      # The next examples travel during this pass. Those after them wait, so
      # that a device holds the examples of two passes at most.
      sent, dx = lax.optimization_barrier((sent, dx))
      arriving = collectives.to_classifier(layout, sent, turn + 1)
    labels_B, index_B = about_Bx2[:, 0], about_Bx2[:, 1]
    dx_turn = classify(x, labels_B, augment.dropout_keys(seed, step, index_B))
    dx.append(collectives.to_features(layout, dx_turn, turn))
  return pull_back(collectives.concat_passes(layout, dx))[0]
