"""Many training steps as one program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from alexnet_jax.parallel import layouts, placement
from alexnet_jax.runtime import platforms


def make_train_loop(
  step: Callable[..., Any],
  draw: Callable[[Any, jax.Array], dict[str, jax.Array]],
  layout: layouts.Layout,
  mesh: Mesh,
  deterministic: bool = False,
) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
  """Returns many steps as one program, for examples that live on the devices.

  The jitted `(state, pool, index_NxB, count) -> (state, sums_N)` takes the
  first `count` of N steps, and donates its state. `draw` takes the batch of an
  index from the pool.
  """

  def loop(state, pool, index_NxB, count):
    def body(turn, carry):
      state, sums_N = carry
      state, sums = step(state, draw(pool, index_NxB[turn]))
      return state, jax.tree.map(
        lambda all_N, one: all_N.at[turn].set(one), sums_N, sums
      )

    batch = jax.eval_shape(draw, pool, index_NxB[0])
    _, like = jax.eval_shape(step, state, batch)
    sums_N = jax.tree.map(
      lambda x: jnp.zeros((len(index_NxB), *x.shape), x.dtype), like
    )
    where = placement.specs(layout, state), placement.REPLICATED
    return lax.with_sharding_constraint(
      lax.fori_loop(0, count, body, (state, sums_N)),
      placement.shardings(mesh, where),
    )

  return platforms.jit(loop, deterministic, donate_argnums=0)
