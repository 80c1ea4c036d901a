"""Why a run comes to nothing: what is not finite, and since which layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alexnet_jax import augment, networks
from alexnet_jax.model import AlexNet
from alexnet_jax.runtime import platforms


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
