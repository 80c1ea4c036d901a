"""Several nets in one program: the same step for each member.

Arrays of a state have a first axis for the members, but for the step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from alexnet_jax.runtime import platforms


def stack(trees: Sequence[Any]) -> Any:
  """Returns the trees of all members as one, along a new first axis."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Any, members: int) -> list[Any]:
  """Returns the tree of each member; of a single net, the tree itself."""
  if members == 1:
    return [tree]
  return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(members)]


def step_of_members(step_of_one: Callable[..., Any]) -> Callable[..., Any]:
  """Returns the step of all members of a device, from the step of one net.

  Both are `(state, batch, example_index_B, seed) -> (state, sums)`; for members
  the batch, the seeds and the sums have a first axis too.
  """

  def step(state, batch, example_index_B, seeds):
    def step_of_member(params, opt_state, plateau, batch, seed):
      own = state.replace(params=params, opt_state=opt_state, plateau=plateau)
      new, sums = step_of_one(own, batch, example_index_B, seed)
      return (new.params, new.opt_state, new.plateau), sums

    own = (state.params, state.opt_state, state.plateau, batch, seeds)
    if platforms.loops_are_fast():
      new, sums = jax.vmap(step_of_member)(*own)
    else:
      members = range(len(seeds))
      each = [jax.tree.map(lambda x, i=i: x[i], own) for i in members]
      new, sums = stack([step_of_member(*arrays) for arrays in each])
    return type(state)(state.step + 1, *new), sums

  return step
