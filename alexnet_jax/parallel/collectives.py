"""What devices send to one another, inside `jax.shard_map`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.parallel.layouts import OWT, Layout
from alexnet_jax.runtime import platforms


def psum_if(tree: Any, axes: tuple[str, ...]) -> Any:
  """Returns the sum over the devices along mesh axes, if there are any."""
  return lax.psum(tree, axes) if axes else tree


def gather_params(layout: Layout, params: Any) -> Any:
  """Returns both halves of the parameters, or one, as a device uses them.

  What is stored split is gathered. The rest becomes each device's own copy, so
  that gradients stay where they arise until `reduce_grads`.
  """

  def of(path, w):
    if layout.is_fsdp(path):
      return lax.all_gather(w, layout.data_axes, axis=0, tiled=True)
    axes = layout.axes_to_add(path)
    return lax.pcast(w, axes, to="varying") if axes else w

  return jax.tree.map_with_path(of, params)


def reduce_grads(layout: Layout, grads: Any) -> Any:
  """Returns the gradients of all examples, stored as the parameters are.

  `grads` are by what `gather_params` returned, from this device's examples.
  """

  def of(path, g):
    if layout.is_fsdp(path):
      return lax.psum_scatter(
        g, layout.data_axes, scatter_dimension=0, tiled=True
      )
    return psum_if(g, layout.axes_to_add(path))

  return jax.tree.map_with_path(of, grads)


def nonfinite_flags(grads: Any) -> Any:
  """Returns int32 1 for each array of which a number is not finite, else 0."""

  def flag(g):
    finite = lax.platform_dependent(g, **platforms.ALL_FINITE)
    return (~finite).astype(jnp.int32)

  return jax.tree.map(flag, grads)


def count_nonfinite_shards(layout: Layout, flags: Any) -> jax.Array:
  """Returns in how many parts of each array a flag is set, in their order.

  `flags` are those of this device's parts, from `nonfinite_flags`.
  """
  leaves = jax.tree.leaves_with_path(flags)
  axes = [layout.axes_of(path) for path, _ in leaves]
  found = jnp.zeros(len(leaves), jnp.int32)
  for each in sorted(set(axes)):
    # One exchange for all arrays that are split alike.
    held = [
      leaf if of == each else jnp.int32(0)
      for of, (_, leaf) in zip(axes, leaves, strict=True)
    ]
    found += psum_if(jnp.stack(held), each)
  return found


def to_classifier(layout: Layout, tree: Any, turn: int) -> Any:
  """Returns the examples of a pass through the fc layers, where they are seen.

  `tree` holds arrays over this device's examples; `turn` counts the passes.
  """

  def of(x):
    if layout.name == "owt_b":
      return broadcast(x, layout.model_axes, turn)
    mine = jnp.split(x, layout.passes)[turn]
    if layout.name in OWT:
      return lax.all_gather(mine, layout.model_axes, axis=0, tiled=True)
    return mine

  return jax.tree.map(of, tree)


def to_features(layout: Layout, dx: jax.Array, turn: int) -> jax.Array:
  """Returns the gradients of the examples of a pass, where they came from.

  `dx` is this device's part of the gradient by what `to_classifier` returned.
  """
  if layout.name == "owt_b":
    return add_up_to(dx, layout.model_axes, turn)
  if layout.name in OWT:
    return lax.psum_scatter(
      dx, layout.model_axes, scatter_dimension=0, tiled=True
    )
  return dx


def concat_passes(layout: Layout, parts: list[jax.Array]) -> jax.Array:
  """Returns the gradients of this device's examples from those of all passes.

  `parts` are what `to_features` returned, pass by pass.
  """
  if layout.name == "owt_b":
    return functools.reduce(jnp.add, parts)
  return jnp.concatenate(parts)


def broadcast(x: jax.Array, axis: Any, source: int) -> jax.Array:
  """Returns the array of the device at place `source` on all along an axis.

  Whoever has it passes it on to one that has not, so that each receives it once
  and it takes log2(devices) rounds.
  """
  place = (lax.axis_index(axis) - source) % lax.axis_size(axis)
  for reached, pairs in _rounds(lax.axis_size(axis), source):
    x = jnp.where(place < reached, x, lax.ppermute(x, axis, pairs))
  return x


def add_up_to(x: jax.Array, axis: Any, target: int) -> jax.Array:
  """Returns the sum over devices at place `target`, and zeros elsewhere.

  The way back of `broadcast`.
  """
  for _, pairs in reversed(_rounds(lax.axis_size(axis), target)):
    x += lax.ppermute(x, axis, [(to, by) for by, to in pairs])
  return jnp.where(lax.axis_index(axis) == target, x, jnp.zeros_like(x))


def _rounds(count: int, source: int) -> list[tuple[int, list[tuple[int, int]]]]:
  """Returns how many had it, and who sends to whom, in a broadcast's rounds."""
  rounds, reached = [], 1
  while reached < count:
    new = min(reached, count - reached)
    senders = [(source + i) % count for i in range(new)]
    pairs = [(sender, (sender + reached) % count) for sender in senders]
    rounds.append((reached, pairs))
    reached *= 2
  return rounds
