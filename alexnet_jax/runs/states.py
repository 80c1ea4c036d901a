"""The state of a run before its first step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from alexnet_jax import schedules
from alexnet_jax.model import AlexNet
from alexnet_jax.parallel import ensemble, layouts, placement
from alexnet_jax.steps import TrainState


def init_params(model: AlexNet, seed: int) -> Any:
  """Returns the parameters before the first step, drawn from `config.seed`."""
  size = model.network.input_size_px
  images = jnp.zeros((1, size, size, 3))
  # Compiled, so that the forward pass behind the shapes is never run.
  return jax.jit(model.init)(jax.random.key(seed), images)["params"]


def init_state(
  params_of_members: list[Any], tx: optax.GradientTransformation
) -> TrainState:
  """Returns the state of one net, or of several of them, before any step."""
  params, *more = params_of_members
  if more:
    params = ensemble.stack(params_of_members)

  @jax.jit  # As one program, not one for the zeros of each array.
  def init(params):
    opt_state = {half: tx.init({half: params[half]}) for half in params}
    plateau = schedules.Plateau.start()
    if more:
      plateau = ensemble.stack([plateau] * len(params_of_members))
    return jnp.int32(0), opt_state, plateau

  step, opt_state, plateau = init(params)
  return TrainState(step, params, opt_state, plateau)


def abstract(
  net: AlexNet, tx: Any, layout: layouts.Layout, mesh: Mesh
) -> TrainState:
  """Returns the shapes and shardings of a run's state."""
  state = jax.eval_shape(
    lambda: init_state([init_params(net, 0)] * layout.members, tx)
  )
  where = placement.shardings(mesh, placement.specs(layout, state))
  return jax.tree.map(lambda x, s: x.update(sharding=s), state, where)
