"""The checkpoints of a run: where they are, verified, restored.

A checkpoint is a folder WORKDIR/checkpoints/STEP: the arrays and the progress
of a run as Orbax writes them, and SHA256SUMS. That file is written last and
compared before use, as Orbax restores flipped bits without an error. A folder
whose name holds ".unfinished" is no checkpoint.
"""

import dataclasses
import hashlib
import itertools
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from alexnet_jax.parallel import placement
from alexnet_jax.runs import digests
from alexnet_jax.runtime import errors
from alexnet_jax.steps import TrainState

_FOLDER = "checkpoints"
_UNFINISHED = ".unfinished"
_REPLACED = f".replaced{_UNFINISHED}"


@dataclasses.dataclass
class Progress:
  """What a run knows besides its arrays; every value is JSON.

  Attributes:
    batches: position in the training batches.
    fingerprint: digest of each file of the splits.
    totals: sums of the metrics since the last training record.
    evaluated: whether the validation that is due at this step is done.
    best_step: step of the lowest validation error; None before the first.
    best_error: the lowest validation error.
    skipped: number of steps that were skipped because they were not finite.
  """

  batches: dict[str, Any]
  fingerprint: dict[str, str]
  totals: dict[str, Any] = dataclasses.field(default_factory=dict)
  evaluated: bool = True
  best_step: int | None = None
  best_error: float | None = None
  skipped: int = 0


def folder_of(workdir: Path, step: int) -> Path:
  """Returns the folder of a checkpoint, as an absolute path."""
  return workdir.absolute() / _FOLDER / str(step)


def unfinished_folder(workdir: Path, step: int) -> Path:
  """Returns the folder to write a checkpoint into, before `commit`."""
  return folder_of(workdir, step).with_name(f"{step}{_UNFINISHED}")


def steps_of(workdir: Path) -> list[int]:
  """Returns the steps that a run has saved, damaged ones too, in order."""
  names = [path.name for path in (workdir / _FOLDER).glob("*")]
  return sorted(int(name) for name in names if name.isdecimal())


def exists(workdir: Path) -> bool:
  """Whether a run has a checkpoint, or one that `clean` brings back."""
  replaced = (workdir / _FOLDER).glob(f"*{_REPLACED}")
  return bool(steps_of(workdir)) or any(replaced)


def commit(workdir: Path, step: int) -> None:
  """Turns the complete `unfinished_folder` of a step into its checkpoint."""
  unfinished = unfinished_folder(workdir, step)
  final = folder_of(workdir, step)
  digests.write(unfinished)
  # A resumed run saves its step once more, after the validation.
  if final.exists():
    final.rename(final.with_name(f"{step}{_REPLACED}"))
  unfinished.rename(final)
  clean(workdir)


def remove(workdir: Path, step: int) -> None:
  """Removes a checkpoint; a kill leaves no part of it under its name."""
  folder_of(workdir, step).rename(unfinished_folder(workdir, step))
  clean(workdir)


def clean(workdir: Path) -> None:
  """Removes unfinished folders, and brings back a step that was being replaced.

  Args:
    workdir: folder of a run in which nothing is being saved.
  """
  folder = workdir / _FOLDER
  for replaced in folder.glob(f"*{_REPLACED}"):
    final = folder / replaced.name.removesuffix(_REPLACED)
    if not final.exists():
      replaced.rename(final)
  for unfinished in folder.glob(f"*{_UNFINISHED}*"):
    shutil.rmtree(unfinished, ignore_errors=True)


def describe_latest(workdir: Path) -> str:
  """Returns a sentence that says which step a run can resume from."""
  steps = steps_of(workdir)
  if not steps:
    return "There is no checkpoint yet."
  return f"The newest checkpoint is that of step {steps[-1]}."


def latest_valid(workdir: Path) -> tuple[int | None, dict[int, str]]:
  """Returns the newest step whose files are unchanged since they were written.

  Args:
    workdir: folder of a run; it need not exist.

  Returns:
    The step, or None if nothing was saved; and the damage of each newer step.

  Raises:
    InputError: all checkpoints are damaged.
  """
  damaged: dict[int, str] = {}
  for step in reversed(steps_of(workdir)):
    problem = digests.problem(folder_of(workdir, step))
    if not problem:
      return step, damaged
    damaged[step] = problem
  if damaged:
    step, problem = next(iter(damaged.items()))
    raise errors.InputError(
      f"no checkpoint in workdir={str(workdir)!r} is undamaged (step {step}:"
      f" {problem}). Put one back from a copy, or choose another --workdir to"
      " start anew."
    )
  return None, damaged


def quarantine(workdir: Path, damaged: dict[int, str]) -> None:
  """Renames damaged checkpoints, so that their steps can be saved again.

  Args:
    workdir: folder of the run.
    damaged: from `latest_valid`; a warning is printed for each step.
  """
  for step, problem in damaged.items():
    folder = folder_of(workdir, step)
    names = (f"{step}.damaged-{number}" for number in itertools.count(1))
    name = next(name for name in names if not folder.with_name(name).exists())
    folder.rename(folder.with_name(name))
    print(
      f"WARNING: the checkpoint of step {step} is damaged ({problem}). It is"
      f" now {_FOLDER}/{name}, and the step before it is used.",
      flush=True,
    )


def restore(
  workdir: Path, step: int, state: TrainState
) -> tuple[TrainState, Progress]:
  """Returns the state after a step, and the progress that goes with it.

  Args:
    workdir: folder of the run.
    step: from `latest_valid`.
    state: arrays or `jax.ShapeDtypeStruct`s, with the shardings to restore to.

  Raises:
    InputError: the checkpoint holds other arrays, or parameters alone.
  """
  folder = folder_of(workdir, step)
  progress = _read_progress(folder)
  if not progress:
    raise errors.InputError(
      f"{str(folder)!r} holds only parameters, from which training cannot"
      f" resume; use --config.init_from={workdir} and another --workdir."
    )
  parts = {
    "params": state.params,
    "opt_state": state.opt_state,
    "plateau": state.plateau,
  }
  _check_shapes(folder, parts)
  found = _restore(
    folder,
    **{name: ocp.args.StandardRestore(part) for name, part in parts.items()},
  )
  step_array = jax.device_put(jnp.int32(step), state.step.sharding)
  restored = TrainState(step_array, *(found[name] for name in parts))
  return restored, Progress(**progress)


def restore_params(
  workdir: Path, params: Any, mesh: Mesh, which: str = "newest"
) -> tuple[int, Any]:
  """Returns a step and its parameters, replicated on a mesh.

  Args:
    workdir: folder of the run.
    params: parameters of the same shapes, or their abstract shapes.
    mesh: devices to put the arrays on.
    which: see `find_step`.

  Raises:
    InputError: no such checkpoint, a damaged one, or one of other arrays.
  """
  step = find_step(workdir, which)
  _check_shapes(folder_of(workdir, step), {"params": params})
  return step, placement.replicate(mesh, read_params(workdir, step))


def read_params(workdir: Path, step: int) -> Any:
  """Returns the parameters of a checkpoint as numpy arrays."""
  folder = folder_of(workdir, step) / "params"
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _metadata(folder)
  )
  args = ocp.args.PyTreeRestore(restore_args=as_numpy)
  return _arrays_handler().restore(folder, args=args)


def find_step(workdir: Path, which: str) -> int:
  """Returns the step of an undamaged checkpoint.

  Args:
    workdir: folder of the run.
    which: `newest`, `best` (of the lowest validation error) or a step.

  Raises:
    InputError: there is no such checkpoint, or it is damaged.
  """
  where = f"workdir={str(workdir)!r}"
  newest, damaged = latest_valid(workdir)
  if newest is None:
    raise errors.InputError(f"{where} holds no checkpoint yet; train it first.")
  if which == "newest":
    for step, problem in damaged.items():
      print(
        f"WARNING: the checkpoint of step {step} is damaged ({problem}); that"
        f" of step {newest} is used.",
        file=sys.stderr,
      )
    return newest
  name = which
  if which == "best":
    name = str(_read_progress(folder_of(workdir, newest)).get("best_step"))
  steps = {str(step): step for step in steps_of(workdir)}
  if name not in steps:
    raise errors.InputError(
      f"{where} has no checkpoint of step {name} (step={which!r}); choose one"
      f" of {', '.join(steps)}, or newest."
    )
  if problem := digests.problem(folder_of(workdir, steps[name])):
    raise errors.InputError(
      f"the checkpoint of step {name} in {where} is damaged ({problem}); choose"
      f" another, such as {newest}."
    )
  return steps[name]


def write_params(workdir: Path, params: Any) -> None:
  """Writes parameters of another program as the checkpoint of step 0.

  Args:
    workdir: folder of a run without a checkpoint.
    params: {"features": ..., "classifier": ...} of float32 arrays.
  """
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    checkpointer.save(
      unfinished_folder(workdir, 0),
      args=ocp.args.Composite(params=ocp.args.StandardSave(params)),
    )
  commit(workdir, 0)


def digest(params: Any) -> str:
  """Returns one SHA-256 of parameters.

  It covers the arrays in the order of their paths: path, dtype and shape in a
  line, as in `classifier/fc6/bias float32 (4096,)`, then the bytes in C order,
  little endian.

  Args:
    params: a tree of arrays.
  """
  total = hashlib.sha256()
  for name, leaf in sorted(_flatten(params).items()):
    values = np.asarray(leaf)
    total.update(f"{name} {values.dtype} {values.shape}\n".encode())
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    total.update(np.ascontiguousarray(little).data)
  return total.hexdigest()


def _flatten(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by their paths."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _restore(folder: Path, **items: Any) -> Any:
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    return checkpointer.restore(folder, args=ocp.args.Composite(**items))


def _read_progress(folder: Path) -> dict[str, Any]:
  """Returns the fields of Progress, {} where only parameters were written."""
  if not (folder / "progress").exists():
    return {}
  return _restore(folder, progress=ocp.args.JsonRestore()).progress


def _arrays_handler() -> Any:
  # A Checkpointer would warn that params alone are no whole checkpoint.
  return ocp.PyTreeCheckpointHandler()


def _metadata(folder: Path) -> Any:
  """Returns the tree of the arrays of a folder, without their values."""
  return _arrays_handler().metadata(folder).tree


def _check_shapes(folder: Path, parts: dict[str, Any]) -> None:
  """Raises InputError if a checkpoint holds arrays of other names or shapes."""

  def shapes_of(tree: Any) -> dict[str, Any]:
    return {path: tuple(x.shape) for path, x in _flatten(tree).items()}

  differing = []
  for part, tree in parts.items():
    saved, wanted = shapes_of(_metadata(folder / part)), shapes_of(tree)
    differing += [
      f"{part}/{path} ({saved.get(path, 'absent')} there,"
      f" {wanted.get(path, 'absent')} here)"
      for path in sorted(saved | wanted)
      if saved.get(path) != wanted.get(path)
    ]
  if differing:
    raise errors.InputError(
      f"{str(folder)!r} is of another net: {errors.first_few(differing)}."
      " Choose the config that it was trained with, or another --workdir."
    )
