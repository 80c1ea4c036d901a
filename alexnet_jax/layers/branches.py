"""Layers that hold layers."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from alexnet_jax.model import Layer, Row, Shape, run


class Sum(Layer):
  """Adds up what several branches make of one input; a branch is layers."""

  output_name = ""
  branches: tuple[tuple[Layer, ...], ...] = ()

  def describe(self, shape: Shape) -> Row:
    ends = set()
    for branch in self.branches:
      end = shape
      for layer in branch:
        end = layer.describe(end).output_shape
      ends.add(end)
    if len(ends) > 1:
      raise ValueError(f"its branches end in the shapes {sorted(ends)}")
    return Row(self, ends.pop(), 0, 0)

  def local(self, parts: int, axis: str) -> "Sum":
    branches = [
      tuple(layer.local(parts, axis) for layer in branch)
      for branch in self.branches
    ]
    return self.clone(branches=tuple(branches))

  def run(self, half: nn.Module, x: Any, keys_B: Any) -> Any:
    ends = [run(branch, half, x, keys_B) for branch in self.branches]
    return functools.reduce(jnp.add, ends)
