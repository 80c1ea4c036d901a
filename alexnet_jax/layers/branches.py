"""Layers that hold layers."""

import dataclasses
import functools

import jax.numpy as jnp

from alexnet_jax.model import Layer, Row, Shape


@dataclasses.dataclass(frozen=True)
class Branch:
  """Layers one after another; Flax would rename those of a tuple."""

  layers: tuple[Layer, ...]

  def describe(self, shape: Shape) -> Shape:
    """Returns the output shape for an image's input shape."""
    for layer in self.layers:
      shape = layer.describe(shape).output_shape
    return shape


class Sum(Layer):
  """Adds up what several branches make of one input."""

  output_name = ""
  branches: tuple[Branch, ...] = ()

  def __call__(self, x, keys_B=None):
    ends = []
    for branch in self.branches:
      end = x
      for layer in branch.layers:  # Its params stand beside those of others.
        end = layer.clone(parent=self.parent)(end, keys_B)
      ends.append(end)
    return functools.reduce(jnp.add, ends)

  def describe(self, shape: Shape) -> Row:
    ends = {branch.describe(shape) for branch in self.branches}
    if len(ends) > 1:
      raise ValueError(
        f"its branches end in the shapes {sorted(ends)}; give their rows"
        " filters, strides and padding that make these equal"
      )
    return Row(self, ends.pop(), 0, 0)

  def local(self, parts: int, axis: str) -> "Sum":
    branches = [
      Branch(tuple(layer.local(parts, axis) for layer in branch.layers))
      for branch in self.branches
    ]
    return self.clone(branches=tuple(branches))
