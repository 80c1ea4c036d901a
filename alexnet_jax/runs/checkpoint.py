"""The checkpoints of a run: where they are, verified, restored.

A checkpoint is a folder WORKDIR/checkpoints/STEP: arrays and progress as Orbax
writes them, and SHA256SUMS. That file is written last and compared before use,
as Orbax restores flipped bits without an error.
"""

import dataclasses
import hashlib
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
_ArraysHandler: Any = ocp.PyTreeCheckpointHandler  # Typed for etils' paths.


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
  """Returns the folder to write a checkpoint into, for `commit` to rename."""
  return folder_of(workdir, step).with_name(f"{step}{_UNFINISHED}")


def steps_of(workdir: Path) -> list[int]:
  """Returns the steps that a run has saved, damaged ones too, in order."""
  names = [path.name for path in (workdir / _FOLDER).glob("*")]
  return sorted(int(name) for name in names if name.isdecimal())


def commit(workdir: Path, step: int) -> None:
  """Turns the complete `unfinished_folder` of a step into its checkpoint."""
  unfinished, final = unfinished_folder(workdir, step), folder_of(workdir, step)
  digests.write(unfinished)
  if final.exists():  # A resumed run saves its step again once it is validated.
    final.rename(final.with_name(f"{step}.old{_UNFINISHED}"))
  unfinished.rename(final)
  clean(workdir)


def remove(workdir: Path, step: int) -> None:
  """Removes a checkpoint; a kill leaves no part of it under its name."""
  folder_of(workdir, step).rename(unfinished_folder(workdir, step))
  clean(workdir)


def clean(workdir: Path) -> None:
  """Removes what killed saves and removals have left."""
  for folder in (workdir / _FOLDER).glob(f"*{_UNFINISHED}*"):
    shutil.rmtree(folder, ignore_errors=True)


def describe_latest(workdir: Path) -> str:
  """Returns a sentence that says which step a run can resume from."""
  if steps := steps_of(workdir):
    return f"The newest checkpoint is that of step {steps[-1]}."
  return "There is no checkpoint yet."


def latest_valid(workdir: Path) -> int | None:
  """Returns the newest good step, None without any; raises if all are bad."""
  steps = steps_of(workdir)
  for step in reversed(steps):
    problem = digests.problem(folder_of(workdir, step))
    if not problem:
      return step
    line = f"WARNING: the checkpoint of step {step} is damaged ({problem})"
    print(line, file=sys.stderr)
  if steps:
    raise errors.InputError(
      f"no checkpoint in workdir={str(workdir)!r} is undamaged. Put one back"
      " from a copy, or choose another --workdir to start anew."
    )
  return None


def quarantine_damaged(workdir: Path) -> int | None:
  """Returns `latest_valid`, after renaming the damaged steps above it."""
  newest = latest_valid(workdir)
  for step in steps_of(workdir):
    if newest is not None and step > newest:
      folder = folder_of(workdir, step)
      number = 1 + len(list(folder.parent.glob(f"{step}.damaged-*")))
      folder.rename(folder.with_name(f"{step}.damaged-{number}"))
  return newest


def restore(
  workdir: Path, step: int, state: TrainState
) -> tuple[TrainState, Progress]:
  """Returns a step's state, laid out as `state`, and its progress."""
  folder = folder_of(workdir, step)
  try:
    progress = Progress(**_read_progress(folder))
  except TypeError as e:
    raise errors.InputError(
      f"training cannot resume from {str(folder)!r}, which another program or"
      f" version wrote ({errors.reason(e)}); start a run from its parameters"
      f" with --config.init_from={workdir} and another --workdir."
    ) from e
  names = "params", "opt_state", "plateau"
  parts = {name: getattr(state, name) for name in names}
  _check_shapes(folder, parts)
  items = {k: ocp.args.StandardRestore(part) for k, part in parts.items()}
  found = _restore(folder, **items)
  step_array = jax.device_put(jnp.int32(step), state.step.sharding)
  return TrainState(step_array, *(found[name] for name in parts)), progress


def read_params(workdir: Path, step: int, expected: Any = None) -> Any:
  """Returns parameters as numpy arrays; refuses shapes that differ."""
  folder = folder_of(workdir, step)
  if expected:
    _check_shapes(folder, {"params": expected})
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
    _metadata(folder / "params"),
  )
  # A Checkpointer would warn that params alone are no whole checkpoint.
  return _ArraysHandler().restore(
    folder / "params", args=ocp.args.PyTreeRestore(restore_args=as_numpy)
  )


def find_step(workdir: Path, which: str) -> int:
  """Returns the step of an undamaged checkpoint, or raises InputError.

  `which` is newest, best (of the lowest validation error) or a step.
  """
  where = f"workdir={str(workdir)!r}"
  newest = latest_valid(workdir)
  if newest is None:
    raise errors.InputError(f"{where} holds no checkpoint yet; train it first.")
  if which == "newest":
    return newest
  steps = {str(step): step for step in steps_of(workdir)}
  if which == "best":
    which = str(_read_progress(folder_of(workdir, newest)).get("best_step"))
  problem = "there is none"
  if which in steps:
    problem = digests.problem(folder_of(workdir, steps[which]))
  if problem:
    raise errors.InputError(
      f"{where} has no good checkpoint of step {which} ({problem}); choose one"
      f" of {', '.join(steps)}, or newest."
    )
  return steps[which]


def write_params(workdir: Path, params: Any) -> None:
  """Writes parameters of another program as the checkpoint of step 0."""
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    checkpointer.save(
      unfinished_folder(workdir, 0),
      args=ocp.args.Composite(params=ocp.args.StandardSave(params)),
    )
  commit(workdir, 0)


def digest(params: Any) -> str:
  """Returns one SHA-256 of a tree of arrays, in the order of their paths.

  Of each it covers a line such as `classifier/fc6/bias float32 (4096,)`, then
  its bytes in C order, little endian.
  """
  total = hashlib.sha256()
  for name, leaf in sorted(_flatten(params).items()):
    values = np.asarray(leaf)
    total.update(f"{name} {values.dtype} {values.shape}\n".encode())
    total.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
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
  """Returns the fields of Progress; {} if only parameters were written."""
  if not (folder / "progress").exists():
    return {}
  return _restore(folder, progress=ocp.args.JsonRestore()).progress


def _metadata(folder: Path) -> Any:
  """Returns the tree of the arrays of a folder, without their values."""
  return _ArraysHandler().metadata(folder).tree


def _check_shapes(folder: Path, parts: dict[str, Any]) -> None:
  """Raises InputError if a checkpoint holds arrays of other names or shapes."""
  saved = {part: _metadata(folder / part) for part in parts}
  there, here = (
    {path: tuple(array.shape) for path, array in _flatten(tree).items()}
    for tree in (saved, parts)
  )
  if differing := errors.differences(there, here):
    raise errors.InputError(
      f"{str(folder)!r} is of another net: {differing}."
      " Choose the config that it was trained with, or another --workdir."
    )
