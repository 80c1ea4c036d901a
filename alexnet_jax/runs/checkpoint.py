"""Checkpoints: saved behind the steps, verified when restored."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import itertools
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from alexnet_jax.parallel import placement
from alexnet_jax.runs import digests
from alexnet_jax.runtime import errors, hosts, peers
from alexnet_jax.steps import TrainState

_FOLDER = "checkpoints"
# What is not yet, or no more, a checkpoint; removed by the next run.
_UNFINISHED = ".unfinished"
_REPLACED = ".replaced"
_RETRY_S = 60
_PATIENCE_S = 300


@dataclasses.dataclass(frozen=True)
class Progress:
  """What a run knows besides its arrays, all of it JSON.

  Attributes:
    batches: position of the training batches.
    fingerprint: digest of each file of the training split.
    totals: sums of the steps since the last training record.
    evaluated: whether an evaluation that was due at this step is done.
    best_step: of the lowest validation error, None before the first.
    best_error: that error.
    skipped: steps whose update was left out, not being finite.
  """

  batches: dict[str, Any]
  fingerprint: dict[str, str]
  totals: dict[str, Any] = dataclasses.field(default_factory=dict)
  evaluated: bool = True
  best_step: int | None = None
  best_error: float | None = None
  skipped: int = 0


class Saver:
  """Saves the states of a run, one at a time, while it goes on."""

  def __init__(
    self,
    workdir: Path,
    *,
    keep: int,
    every_minutes: float | None,
    best_step: int | None = None,
    say: Callable[[str], None],
  ):
    """Opens the folder of a run.

    Args:
      workdir: of the run.
      keep: how many of the newest checkpoints to keep, beside the best.
      every_minutes: see `is_due`.
      best_step: which is kept until a better one is saved.
      say: tells the user of a save that failed.
    """
    self._folder = workdir.absolute() / _FOLDER
    self._keep = keep
    self._every_s = 60 * every_minutes if every_minutes else float("inf")
    self._best_step = best_step
    self._say = say
    self._saved_at = time.monotonic()
    self._failed_at: float | None = None
    self._checkpointer = _open()
    self._thread = concurrent.futures.ThreadPoolExecutor(1)
    self._ending: concurrent.futures.Future[None] | None = None

  def __enter__(self) -> "Saver":
    """Returns itself."""
    return self

  def __exit__(self, *_) -> None:
    """Waits for what is being saved."""
    self.wait()
    self._thread.shutdown()
    self._checkpointer.close()

  def is_due(self) -> bool:
    """Whether it is time: by the minutes, or to try again what failed."""
    now = time.monotonic()
    failed_at = self._failed_at
    again = failed_at is not None and now - failed_at >= _RETRY_S
    return again or now - self._saved_at >= self._every_s

  def save(self, state: TrainState, progress: Progress) -> None:
    """Starts to save a state; the files are written behind the next steps.

    A save that fails is told of, and leaves nothing behind; the run goes on.

    Args:
      state: the state after some step.
      progress: goes with it.

    Raises:
      InputError: the parameters are not finite; nothing is saved.
    """
    self.wait()
    step = int(state.step)
    if not _all_finite(state.params):
      raise errors.InputError(
        f"the parameters are not finite after step {step}, which is not saved;"
        f" lower learning_rate. {newest_of(self._folder.parent)}"
      )
    self._saved_at = time.monotonic()
    with self._report_save_errors(step):
      self._check_room(state)
      self._checkpointer.save(
        self._unfinished(step),
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(state.params),
          opt_state=ocp.args.StandardSave(state.opt_state),
          plateau=ocp.args.StandardSave(state.plateau),
          progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
        ),
        force=True,
      )
      self._ending = self._thread.submit(self._end, step, progress.best_step)

  def _check_room(self, state: TrainState) -> None:
    # TensorStore would print a traceback for each array that it cannot write.
    arrays = jax.tree.leaves((state.params, state.opt_state))
    needed = sum(array.nbytes for array in arrays)
    free = shutil.disk_usage(self._folder.parent).free
    if hosts.from_first(free < needed):
      raise OSError(
        errno.ENOSPC, f"{needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free"
      )

  def wait(self) -> bool:
    """Waits for what is being saved; returns whether nothing failed."""
    if self._ending:
      self._ending.result()
      self._ending = None
    return self._failed_at is None

  def _end(self, step: int, best_step: int | None) -> None:
    """Makes a checkpoint of what Orbax has written, and removes the old."""
    with self._report_save_errors(step):
      self._checkpointer.wait_until_finished()
      if hosts.is_first():
        digests.write(self._unfinished(step))
        # A step may be there from before an evaluation that has changed it.
        with contextlib.suppress(FileNotFoundError):
          self._at(step).rename(self._unfinished(f"{step}{_REPLACED}"))
        self._unfinished(step).rename(self._at(step))
        if step == best_step:
          self._best_step = step
        for old in steps_of(self._folder.parent)[: -self._keep]:
          if old != self._best_step:
            # What is half removed must be no checkpoint.
            self._at(old).rename(self._unfinished(old))
        clean(self._folder.parent)
      self._failed_at = None

  @contextlib.contextmanager
  def _report_save_errors(self, step: int) -> Iterator[None]:
    try:
      yield
    # Orbax and TensorStore have errors of many kinds for a disk that is full,
    # read-only or gone; the run is worth more than any of them.
    except Exception as e:
      if jax.process_count() > 1:  # It may be that another one has died.
        time.sleep(peers.KNOWN_S)
      # It would tell of the same error again, at the next save.
      with contextlib.suppress(Exception):
        self._checkpointer.close()
      self._checkpointer = _open()
      if hosts.is_first():
        self._clean_for_good()
      self._failed_at = time.monotonic()
      # Where this process has no log, it may be the only one that knows.
      say = self._say if hosts.is_first() else print
      say(
        f"WARNING: step {step} could not be saved ({_reason(e)}). Make room in"
        f" {self._folder}; the run goes on and tries again in"
        f" {_RETRY_S} s. {newest_of(self._folder.parent)}"
      )

  def _clean_for_good(self) -> None:
    """Removes what a failed save has left.

    Where one of a step's trees fails, Orbax's threads go on with the others,
    and tell nobody when they have ended: it is waited for a second of rest.
    """
    rests = 0
    for _ in range(100):  # Or ten, where nothing can be removed.
      left = any(self._folder.glob(f"*{_UNFINISHED}*"))
      if left:
        clean(self._folder.parent)
      rests = 0 if left else rests + 1
      if rests == 10:
        return
      time.sleep(0.1)

  def _at(self, step: int | str) -> Path:
    return self._folder / str(step)

  def _unfinished(self, step: int | str) -> Path:
    return self._folder / f"{step}{_UNFINISHED}"


def _open() -> ocp.AsyncCheckpointer:
  # For so long the other processes wait for one that has failed.
  patience = ocp.AsyncOptions(timeout_secs=_PATIENCE_S)
  return ocp.AsyncCheckpointer(
    ocp.CompositeCheckpointHandler(), async_options=patience
  )


def folder_of(workdir: Path, step: int) -> Path:
  """Returns the folder of a checkpoint."""
  return workdir.absolute() / _FOLDER / str(step)


def steps_of(workdir: Path) -> list[int]:
  """Returns the steps that a run has saved, good or not, in their order."""
  names = [path.name for path in (workdir / _FOLDER).glob("*")]
  return sorted(int(name) for name in names if name.isdecimal())


def clean(workdir: Path) -> None:
  """Puts back what a killed run was replacing; removes what it left half-done.

  Args:
    workdir: of a run that no other process goes on with.
  """
  folder = workdir / _FOLDER
  for left in folder.glob(f"*{_REPLACED}{_UNFINISHED}"):
    step = folder / left.name.partition(".")[0]
    if not step.exists():
      left.rename(step)
  for left in folder.glob(f"*{_UNFINISHED}*"):
    shutil.rmtree(left, ignore_errors=True)


def exists(workdir: Path) -> bool:
  """Whether a run has saved a step, be it one that `clean` brings back."""
  names = [path.name for path in (workdir / _FOLDER).glob("*")]
  return any(name.isdecimal() or _REPLACED in name for name in names)


def newest_of(workdir: Path) -> str:
  """Returns a sentence that says what a run can go on from."""
  steps = steps_of(workdir)
  if not steps:
    return "There is no checkpoint yet."
  return f"The newest checkpoint is that of step {steps[-1]}."


def newest_good(workdir: Path) -> tuple[int | None, dict[int, str]]:
  """Returns the newest step whose files are as they were written.

  Args:
    workdir: of a run, or of none.

  Returns:
    The step, None if nothing was saved, and what is wrong with newer ones.

  Raises:
    InputError: none of the steps is good.
  """
  bad: dict[int, str] = {}
  for step in reversed(steps_of(workdir)):
    problem = digests.problem(workdir / _FOLDER / str(step))
    if not problem:
      return step, bad
    bad[step] = problem
  if bad:
    raise errors.InputError(
      f"no checkpoint in workdir={str(workdir)!r} is good:"
      f" {list_damaged(bad)}. Put one back from a copy, or choose another"
      " --workdir to start anew."
    )
  return None, bad


def quarantine(workdir: Path, bad: dict[int, str]) -> list[str]:
  """Renames damaged checkpoints, so that their steps can be saved again.

  Args:
    workdir: of the run.
    bad: from `newest_good`.

  Returns:
    A line for each of them, for the user.
  """
  lines = []
  for step, problem in bad.items():
    folder = workdir / _FOLDER / str(step)
    names = (f"{step}.damaged-{number}" for number in itertools.count(1))
    name = next(name for name in names if not folder.with_name(name).exists())
    folder.rename(folder.with_name(name))
    lines.append(
      f"WARNING: the checkpoint of step {step} is damaged ({problem}); it is"
      f" left as {_FOLDER}/{name}, and the step before it is taken."
    )
  return lines


def restore(
  workdir: Path, step: int, state: TrainState
) -> tuple[TrainState, Progress]:
  """Returns the state of a step, and what goes with it.

  Args:
    workdir: of the run.
    step: from `newest_good`.
    state: arrays or `jax.ShapeDtypeStruct`s, with their shardings.

  Raises:
    InputError: the checkpoint holds other arrays, or is of another version.
  """
  folder = folder_of(workdir, step)
  if not (folder / "progress").exists():
    raise errors.InputError(
      f"{str(folder)!r} holds weights from elsewhere, and no state to go on"
      f" from; start with --config.init_from={workdir} and another --workdir."
    )
  parts = {
    "params": state.params,
    "opt_state": state.opt_state,
    "plateau": state.plateau,
  }
  _compare(folder, parts)
  items = {}
  for name, part in parts.items():
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      part,
    )
    items[name] = ocp.args.StandardRestore(abstract)
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    found: Any = checkpointer.restore(
      folder,
      args=ocp.args.Composite(progress=ocp.args.JsonRestore(), **items),
    )
  restored = TrainState(
    jax.device_put(jnp.int32(step), state.step.sharding),
    *(found[name] for name in parts),
  )
  try:
    return restored, Progress(**found.progress)
  except TypeError as e:
    raise errors.InputError(
      f"{str(folder)!r} was saved by another version ({e}); choose another"
      " --workdir to start anew."
    ) from e


def write_params(workdir: Path, params: Any) -> None:
  """Makes a checkpoint, step 0, of parameters that come from elsewhere.

  Args:
    workdir: of the run, without a checkpoint.
    params: {"features": ..., "classifier": ...} of float32 arrays.
  """
  folder = workdir.absolute() / _FOLDER
  unfinished = folder / f"0{_UNFINISHED}"
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    args = ocp.args.Composite(params=ocp.args.StandardSave(params))
    checkpointer.save(unfinished, args=args)
  digests.write(unfinished)
  unfinished.rename(folder / "0")


def restore_params(
  workdir: Path, params: Any, mesh: Mesh, which: str = "newest"
) -> tuple[int, Any]:
  """Returns a step of a run and its parameters, on every device of a mesh.

  Args:
    workdir: of the run.
    params: parameters of the same shapes, or their abstract shapes.
    mesh: where to put the arrays.
    which: `newest`, `best`, of the lowest validation error, or a step.

  Raises:
    InputError: no such checkpoint, a damaged one, or one of other arrays.
  """
  step = find_step(workdir, which)
  folder = folder_of(workdir, step)
  _compare(folder, {"params": params})
  return step, placement.replicate(mesh, read_params(workdir, step))


def find_step(workdir: Path, which: str) -> int:
  """Returns a good step: `newest`, `best` or the one that is named."""
  newest, bad = newest_good(workdir)
  if newest is None:
    raise errors.InputError(
      f"workdir={str(workdir)!r} holds no checkpoint yet; train it first."
    )
  if which == "newest":
    for step, problem in bad.items():
      print(
        f"WARNING: the checkpoint of step {step} is damaged ({problem}); that"
        f" of step {newest} is taken.",
        file=sys.stderr,
      )
    return newest
  step: Any = which
  if which == "best":
    folder = workdir.absolute() / _FOLDER / str(newest)
    if not (folder / "progress").exists():
      raise errors.InputError(
        f"step='best' is of training, but workdir={str(workdir)!r} holds"
        " weights from elsewhere; take newest."
      )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
      args = ocp.args.Composite(progress=ocp.args.JsonRestore())
      found: Any = checkpointer.restore(folder, args=args)
    step = found.progress["best_step"]
  held = steps_of(workdir)
  if str(step) not in map(str, held):
    meant = f", which is {step}," if which == "best" else ""
    raise errors.InputError(
      f"step={which!r}{meant} is not in workdir={str(workdir)!r}; name one of"
      f" {', '.join(map(str, held))}, or newest."
    )
  step = int(step)
  problem = digests.problem(workdir / _FOLDER / str(step))
  if problem:
    raise errors.InputError(
      f"the checkpoint of step {step} in workdir={str(workdir)!r} is damaged"
      f" ({problem}); take another, such as {newest}."
    )
  return step


def digest(params: Any) -> str:
  """Returns one SHA-256 of parameters.

  It is that of, for each array in the order of its path: the path, data type
  and shape in one line, as in `classifier/fc6/bias float32 (4096,)`, and the
  bytes, little endian, the last axis running fastest.

  Args:
    params: a tree of arrays.
  """
  total = hashlib.sha256()
  for name, leaf in sorted(_flat(params).items()):
    values = np.asarray(leaf)
    total.update(f"{name} {values.dtype} {values.shape}\n".encode())
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    total.update(np.ascontiguousarray(little).data)
  return total.hexdigest()


def _flat(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by their paths."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _items() -> Any:
  # A Checkpointer would warn that one item is no whole checkpoint.
  return ocp.PyTreeCheckpointHandler()


def _metadata(folder: Path) -> Any:
  try:
    found: Any = _items().metadata(folder)
  except FileNotFoundError:
    return {}  # It may hold nothing at all.
  return found.tree


def _compare(folder: Path, parts: dict[str, Any]) -> None:
  """Raises InputError if a checkpoint holds other arrays than are wanted."""
  differing = []
  for name, part in parts.items():
    there, wanted = (
      {path: tuple(x.shape) for path, x in _flat(tree).items()}
      for tree in (_metadata(folder / name), part)
    )
    for path in sorted(there | wanted):
      if there.get(path) != wanted.get(path):
        shapes = (held.get(path, "absent") for held in (there, wanted))
        differing.append(
          "{}/{} ({} there, {} here)".format(name, path, *shapes)
        )
  if differing:
    raise errors.InputError(
      f"{str(folder)!r} is of another net: {errors.first_few(differing)}."
      " Choose the config that it was trained with, or another --workdir."
    )


def read_params(workdir: Path, step: int) -> Any:
  """Returns parameters as numpy arrays, on whatever devices they were written.

  Args:
    workdir: of the run.
    step: of the checkpoint.
  """
  folder = folder_of(workdir, step) / "params"
  whole = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _metadata(folder)
  )
  args = ocp.args.PyTreeRestore(restore_args=whole)
  return _items().restore(folder, args=args)


def list_damaged(bad: dict[int, str]) -> str:
  """Returns what is wrong with checkpoints, the first three of them."""
  lines = [f"step {step}: {problem}" for step, problem in bad.items()]
  return errors.first_few(lines, 3, between="; ")


def _reason(e: Exception) -> str:
  # TensorStore names long paths, and then lines of its own code.
  text = re.sub(r'"/[^"]*"|\[source locations.*', "", str(e), flags=re.DOTALL)
  return errors.reason(e, text)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
  leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
  return jnp.all(jnp.stack(leaves))
