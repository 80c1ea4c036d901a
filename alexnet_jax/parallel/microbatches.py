"""A batch in parts, one after another, for less memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.runtime import platforms


def accumulate(gradients: Callable[..., Any], count: int) -> Callable[..., Any]:
  """Returns `steps.Gradients` that add up those of `count` microbatches."""
  if count == 1:
    return gradients

  def accumulated(params, batch, example_index_B, step, seed):
    parts = jax.tree.map(
      lambda x: x.reshape(count, -1, *x.shape[1:]), (batch, example_index_B)
    )

    def add(total, part):
      grads = gradients(params, *part, step, seed)
      return jax.tree.map(jnp.add, total, grads), None

    total = gradients(params, *jax.tree.map(lambda x: x[0], parts), step, seed)
    if platforms.loops_are_fast():
      rest = jax.tree.map(lambda x: x[1:], parts)
      return lax.scan(add, total, rest)[0]
    for i in range(1, count):
      total, _ = add(total, jax.tree.map(lambda x, i=i: x[i], parts))
    return total

  return accumulated
