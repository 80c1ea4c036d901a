"""Parameters, optimizer and data position, saved and restored by Orbax."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from alexnet_jax import errors, layouts
from alexnet_jax.steps import TrainState


def open_manager(
  workdir: Path, keep: int | None = None
) -> ocp.CheckpointManager:
  """Returns the manager of `workdir/checkpoints`.

  Args:
    workdir: of the run.
    keep: how many of the newest checkpoints to keep; all by default.
  """
  return ocp.CheckpointManager(
    (workdir / "checkpoints").absolute(),
    options=ocp.CheckpointManagerOptions(max_to_keep=keep),
  )


def save(
  manager: ocp.CheckpointManager, state: TrainState, position: dict[str, Any]
) -> None:
  """Starts to save a state; the files are written behind the next steps.

  Args:
    manager: from `open_manager`.
    state: the state after some step.
    position: `get_state()` of the training batches.

  Raises:
    InputError: the parameters are not finite; nothing is saved.
  """
  step = int(state.step)
  if not _all_finite(state.params):
    raise errors.InputError(
      f"the parameters are not finite after step {step}; the newest checkpoint"
      f" is step {manager.latest_step()}. Lower learning_rate."
    )
  manager.save(
    step,
    args=ocp.args.Composite(
      params=ocp.args.StandardSave(state.params),
      opt_state=ocp.args.StandardSave(state.opt_state),
      plateau=ocp.args.StandardSave(state.plateau),
      data=ocp.args.JsonSave(position),
    ),
  )


def restore(
  manager: ocp.CheckpointManager, state: TrainState
) -> tuple[TrainState, dict[str, Any]]:
  """Returns the newest state and the data position that goes with it.

  Args:
    manager: from `open_manager`, with at least one checkpoint.
    state: a state of the same shapes, on the mesh; its values are not used.
  """
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  step = manager.latest_step()
  found: Any = manager.restore(
    step,
    args=ocp.args.Composite(
      params=ocp.args.StandardRestore(abstract.params),
      opt_state=ocp.args.StandardRestore(abstract.opt_state),
      plateau=ocp.args.StandardRestore(abstract.plateau),
      data=ocp.args.JsonRestore(),
    ),
  )
  step = jax.device_put(jnp.int32(step), state.step.sharding)
  state = TrainState(step, found.params, found.opt_state, found.plateau)
  return state, found.data


def exists(workdir: Path) -> bool:
  """Whether a run has a checkpoint; a workdir that is not there has none."""
  return any((workdir / "checkpoints").glob("[0-9]*"))


def restore_params(workdir: Path, params: Any, mesh: Mesh) -> tuple[int, Any]:
  """Returns the newest step of a run and its parameters; there is one.

  Args:
    workdir: of the run.
    params: parameters of the same shapes, or their abstract shapes.
    mesh: where to put the arrays.
  """
  with open_manager(workdir) as manager:
    step = manager.latest_step()
    whole = jax.sharding.NamedSharding(mesh, layouts.REPLICATED)
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), params
    )
    args = ocp.args.StandardRestore(abstract)
    found: Any = manager.restore(step, args=ocp.args.Composite(params=args))
  return step, found.params


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
  leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
  return jnp.all(jnp.stack(leaves))
