"""The state of a run before its first step."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from alexnet_jax import schedules
from alexnet_jax.model import AlexNet
from alexnet_jax.parallel import ensemble, layouts, placement
from alexnet_jax.runs import opened
from alexnet_jax.steps import TrainState


def init_params(model: AlexNet, seed: int) -> Any:
  """Returns the parameters before the first step, drawn from `config.seed`."""
  size = model.network.input_size_px
  images = jnp.zeros((1, size, size, 3))
  # Compiled, so that the forward pass behind the shapes is never run.
  return jax.jit(model.init)(jax.random.key(seed), images)["params"]


def init_state(
  params: Any, tx: optax.GradientTransformation, members: int = 1
) -> TrainState:
  """Returns the state before the first step.

  Args:
    params: of the net; of several members, stacked.
    tx: the optimizer.
    members: how many nets there are.
  """

  @jax.jit  # As one program, not one for the zeros of each array.
  def init(params):
    opt_state = {half: tx.init({half: params[half]}) for half in params}
    plateau = schedules.Plateau.start()
    if members > 1:
      plateau = ensemble.stack([plateau] * members)
    return jnp.int32(0), opt_state, plateau

  step, opt_state, plateau = init(params)
  return TrainState(step, params, opt_state, plateau)


def initial(
  config: Any, net: AlexNet, tx: Any, layout: layouts.Layout, mesh: Mesh
) -> tuple[TrainState, str]:
  """Returns the state before the first step, and what it was started with.

  Raises:
    InputError: see `opened.load_pretrained`.
  """
  drawn = [
    init_params(net, config.seed + member) for member in range(config.ensemble)
  ]
  origin = ""
  if config.init_from:
    source = Path(config.init_from)
    loaded = [
      opened.load_pretrained(
        source, params, placement.make_mesh(), config.reinit_layers
      )
      for params in drawn
    ]
    drawn = [params for params, _, _ in loaded]
    _, taken, left = loaded[0]
    origin = f"{', '.join(taken)} from {source}"
    origin += f"; {', '.join(left)} drawn anew" if left else ""
  state = of_members(drawn, tx)
  where = placement.shardings(mesh, placement.specs(layout, state))
  return jax.device_put(state, where), origin


def of_members(params_of_members: list[Any], tx: Any) -> TrainState:
  """Returns the state of one or more members before the first step."""
  params, *more = params_of_members
  if more:
    params = ensemble.stack([params, *more])
  return init_state(params, tx, len(params_of_members))


def abstract(
  net: AlexNet, tx: Any, layout: layouts.Layout, mesh: Mesh
) -> TrainState:
  """Returns the shapes of a state, and where its arrays are to be."""
  state = jax.eval_shape(
    lambda: of_members([init_params(net, 0)] * layout.members, tx)
  )
  where = placement.shardings(mesh, placement.specs(layout, state))
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    where,
  )
