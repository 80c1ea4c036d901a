"""The checkpoints of a run: where they are, verified, restored.

A checkpoint is a folder WORKDIR/checkpoints/STEP: arrays and progress as Orbax
writes them, and SHA256SUMS. That file is written last and compared before use,
as Orbax restores flipped bits without an error. While a run removes and
replaces checkpoints, readers look again.
"""

import dataclasses
import hashlib
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from alexnet_jax.runs import digests
from alexnet_jax.runtime import errors, folders
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
  # The same since the last end of `evaluate_every_epochs`.
  period: dict[str, Any] = dataclasses.field(default_factory=dict)
  updates: Any = None  # Of each net its last, and the drops of its rate then.
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
  steps = {int(name) for name in names if name.isdecimal()}
  return sorted(step for step in steps if str(step) in names)


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


def problem(workdir: Path, step: int) -> str:
  """Returns what is wrong with a checkpoint, "" if nothing is.

  Raises FileNotFoundError if it is removed or replaced meanwhile.
  """
  folder = folder_of(workdir, step)
  inode = folder.lstat().st_ino
  found = digests.problem(folder)
  try:
    known = step if found else _read_about(folder).get("step", step)
  except (ValueError, AttributeError):
    known = "?"
  if known != step:
    found = f"its progress is that of step {known}"
  if found and folder.lstat().st_ino != inode:
    raise FileNotFoundError(folder)
  return found


def latest_valid(workdir: Path) -> int | None:
  """Returns the newest good step, None without any; raises if all are bad."""
  steps = steps_of(workdir)
  for step in reversed(steps):
    found = problem(workdir, step)
    if not found:
      return step
    line = f"WARNING: the checkpoint of step {step} is damaged ({found})"
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


def read_progress(workdir: Path, step: int) -> tuple[Progress, dict[str, Any]]:
  """Returns the progress of a step, and what the checkpoint says of its run."""
  folder = folder_of(workdir, step)
  about = _read_about(folder)
  try:
    return Progress(**about.pop("progress")), about
  except (KeyError, TypeError) as e:
    raise errors.InputError(
      f"training cannot resume from {str(folder)!r}, which another program or"
      f" version wrote ({errors.reason(e)}); start a run from its parameters"
      f" with --config.init_from={shlex.quote(str(workdir))} and another"
      " --workdir."
    ) from e


def restore(
  workdir: Path, step: int, state: TrainState
) -> tuple[TrainState, Progress]:
  """Returns a step's state, laid out as `state`, and its progress."""
  folder = folder_of(workdir, step)
  progress, _ = read_progress(workdir, step)
  names = "params", "opt_state", "plateau"
  parts = {name: getattr(state, name) for name in names}
  _check_shapes(folder, parts)
  items = {k: ocp.args.StandardRestore(part) for k, part in parts.items()}
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    found = checkpointer.restore(folder, args=ocp.args.Composite(**items))
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


@folders.looking_again
def load_params(
  workdir: Path, which: str, expected: Any = None
) -> tuple[int, Any]:
  """Returns the step that `find_step` finds, and its `read_params`."""
  step = find_step(workdir, which)
  return step, read_params(workdir, step, expected)


@folders.looking_again
def find_step(workdir: Path, which: str) -> int:
  """Returns the step of an undamaged checkpoint, or raises InputError.

  `which` is newest, best (of the lowest validation error) or a step.
  """
  folders.check_path(workdir)
  where = f"workdir={str(workdir)!r}"
  if not steps_of(workdir):
    raise errors.InputError(
      f"{where} holds no checkpoint yet; train it first, or choose another."
    )
  if which in ("newest", "best"):
    newest = latest_valid(workdir)
    if newest is None:
      raise FileNotFoundError(workdir)
    if which == "newest":
      return newest
    about = _read_about(folder_of(workdir, newest))
    best = about.get("progress", about).get("best_step")
    if best is None:
      raise errors.InputError(
        f"{where} has no best step, as it was never validated; choose newest."
      )
    which = str(best)
  steps = {str(step): step for step in steps_of(workdir)}
  found = problem(workdir, steps[which]) if which in steps else "there is none"
  if found:
    raise errors.InputError(
      f"{where} has no good checkpoint of step {which} ({found}); choose one"
      f" of {', '.join(steps)}, or newest."
    )
  return steps[which]


def write_params(workdir: Path, params: Any) -> None:
  """Writes parameters of another program as the checkpoint of step 0."""
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    checkpointer.save(
      unfinished_folder(workdir, 0),
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        progress=ocp.args.JsonSave({"step": 0}),
      ),
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


def _read_about(folder: Path) -> dict[str, Any]:
  """Returns the progress of a checkpoint, as JSON, with all that is with it."""
  file = folder / "progress" / "metadata"
  return json.loads(file.read_text()) if file.exists() else {}


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
