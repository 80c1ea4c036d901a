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

from alexnet_jax.runs import digests
from alexnet_jax.runtime import errors
from alexnet_jax.steps import TrainState

_FOLDER = "checkpoints"
_UNFINISHED = ".unfinished"
_REPLACED = f".replaced{_UNFINISHED}"


@dataclasses.dataclass
class Progress:
  """What a run knows besides its arrays; every value is JSON."""

  batches: dict[str, Any]  # The position in the training batches.
  fingerprint: dict[str, str]  # The digest of each file of the splits.
  # Sums of the metrics since the last training record.
  totals: dict[str, Any] = dataclasses.field(default_factory=dict)
  evaluated: bool = True  # Whether the validation due at this step is done.
  best_step: int | None = None  # Of the lowest validation error.
  best_error: float | None = None
  skipped: int = 0  # Steps that were skipped because they were not finite.


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
  unfinished, final = unfinished_folder(workdir, step), folder_of(workdir, step)
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

  Nothing may be saved into the workdir meanwhile.
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
  """Returns the newest undamaged step, and the damage of each newer one.

  The step is None if nothing was saved. Raises InputError if all are damaged.
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
  """Renames damaged checkpoints, so that their steps can be saved again."""
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

  `state` holds arrays or `jax.ShapeDtypeStruct`s, with the shardings to restore
  to. Raises InputError if the checkpoint holds other arrays, or only params.
  """
  folder = folder_of(workdir, step)
  progress = _read_progress(folder)
  if not progress:
    raise errors.InputError(
      f"{str(folder)!r} holds only parameters, from which training cannot"
      f" resume; use --config.init_from={workdir} and another --workdir."
    )
  names = "params", "opt_state", "plateau"
  parts = {name: getattr(state, name) for name in names}
  _check_shapes(folder, parts)
  items = {k: ocp.args.StandardRestore(part) for k, part in parts.items()}
  found = _restore(folder, **items)
  step_array = jax.device_put(jnp.int32(step), state.step.sharding)
  restored = TrainState(step_array, *(found[name] for name in parts))
  return restored, Progress(**progress)


def read_params(workdir: Path, step: int, expected: Any = None) -> Any:
  """Returns the parameters of a checkpoint as numpy arrays.

  Raises InputError if their shapes are not those of the `expected` parameters.
  """
  folder = folder_of(workdir, step)
  if expected:
    _check_shapes(folder, {"params": expected})
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
    _metadata(folder / "params"),
  )
  return _arrays_handler().restore(
    folder / "params", args=ocp.args.PyTreeRestore(restore_args=as_numpy)
  )


def find_step(workdir: Path, which: str) -> int:
  """Returns the step of an undamaged checkpoint, or raises InputError.

  `which` is newest, best (of the lowest validation error) or a step.
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
  name, steps = which, [str(step) for step in steps_of(workdir)]
  if which == "best":
    name = str(_read_progress(folder_of(workdir, newest)).get("best_step"))
  if name not in steps:
    raise errors.InputError(
      f"{where} has no checkpoint of step {name} (step={which!r}); choose one"
      f" of {', '.join(steps)}, or newest."
    )
  if problem := digests.problem(folder_of(workdir, int(name))):
    raise errors.InputError(
      f"the checkpoint of step {name} in {where} is damaged ({problem}); choose"
      f" another, such as {newest}."
    )
  return int(name)


def write_params(workdir: Path, params: Any) -> None:
  """Writes parameters of another program as the checkpoint of step 0."""
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    checkpointer.save(
      unfinished_folder(workdir, 0),
      args=ocp.args.Composite(params=ocp.args.StandardSave(params)),
    )
  commit(workdir, 0)


def digest(params: Any) -> str:
  """Returns one SHA-256 of a tree of arrays.

  It covers the arrays in the order of their paths: path, dtype and shape in a
  line, as in `classifier/fc6/bias float32 (4096,)`, then the bytes in C order,
  little endian.
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
  saved = _flatten({part: _metadata(folder / part) for part in parts})
  wanted = _flatten(parts)
  there, here = (
    {path: tuple(array.shape) for path, array in arrays.items()}
    for arrays in (saved, wanted)
  )
  differing = [
    f"{path} ({there.get(path, 'absent')} there, {here.get(path, 'absent')}"
    " here)"
    for path in sorted(there | here, key=lambda x: (x[:6] != "params", x))
    if there.get(path) != here.get(path)
  ]
  if differing:
    raise errors.InputError(
      f"{str(folder)!r} is of another net: {errors.first_few(differing)}."
      " Choose the config that it was trained with, or another --workdir."
    )
