"""Saving the states of a run in the background, also on a full disk."""

import contextlib
import dataclasses
import errno
import math
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from alexnet_jax.runs import checkpoint, logs
from alexnet_jax.runtime import errors, hosts
from alexnet_jax.steps import TrainState

_SAVE_AGAIN_S = 60  # After a failed save, while training goes on.
_RETRY_S = 10  # After a failed save that is waited for.


class Saver(contextlib.AbstractContextManager):
  """Saves the states of a run, one at a time, in the background.

  A failed save prints a warning; the run goes on, but not after three in a row
  that making room would not mend. All processes of a run call the methods in
  the same order.
  """

  def __init__(
    self,
    workdir: Path,
    config: Any,
    log: logs.Logger,
    best_step: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    about: dict[str, Any] | None = None,
    is_held: Callable[[], bool] = lambda: True,
  ):
    """Keeps the checkpoint of `best_step` until a better one is saved.

    Checkpoints also hold `about`. Nothing is saved once the workdir of process
    0 is not the one that was locked, which `is_held` says.
    """
    self._workdir = workdir.absolute()
    self._keep = config.checkpoints_to_keep
    self._every_s = 60 * config.checkpoint_every_minutes
    self._log = log
    self._best_step = best_step
    self._should_stop = should_stop
    self._about = about or {}
    self._is_held = is_held
    # Why the last save failed, and whether room would mend it.
    self._failure: tuple[str, bool] | None = None
    self._failures = 0  # In a row that room would not mend.
    self._tried_at = time.monotonic()
    self._thread: threading.Thread | None = None
    self._checkpointer = _open_checkpointer()

  def __exit__(self, *_) -> None:
    """Waits for the save that is under way."""
    self.wait()
    self._checkpointer.close()

  def is_due(self) -> bool:
    """Whether to save now, by the clock of process 0: the same in all."""
    most_s = _SAVE_AGAIN_S if self._failure else math.inf
    waited_s = time.monotonic() - self._tried_at
    return hosts.from_first(waited_s >= min(self._every_s, most_s))

  def save(
    self,
    state: TrainState,
    progress: checkpoint.Progress,
    *,
    wait: bool = False,
  ) -> bool:
    """Saves a state while the next steps run; returns False if it has failed.

    With `wait` it returns when checkpoint and log are on disk. If that fails,
    it tries again, or raises InputError once the run `should_stop`. Raises
    InputError if the parameters are not finite, the workdir is lost, or saving
    fails again and again.
    """
    self._start(state, progress)
    if not wait:
      return not self._failure
    while not hosts.from_first(self.wait() and self._log.flush()):
      if self._should_stop():
        why, _ = self._failure or ("metrics.jsonl could not be written", False)
        raise errors.SavingError(
          f"step {int(state.step)} could not be saved ({why})."
          f" {checkpoint.describe_latest(self._workdir)}"
        )
      time.sleep(_RETRY_S)
      self._start(state, progress)
    return True

  def wait(self) -> bool:
    """Waits for the save under way; returns whether the last one succeeded."""
    if self._thread:
      self._thread.join()
    return not self._failure

  def _start(self, state: TrainState, progress: checkpoint.Progress) -> None:
    self._log.flush()
    self.wait()
    step = int(state.step)
    self._check_workdir(step)
    if not _all_finite(state.params):
      raise errors.InputError(
        f"the parameters are not finite after step {step}, which is not saved;"
        " lower --config.learning_rate."
        f" {checkpoint.describe_latest(self._workdir)}"
      )
    self._failure, self._tried_at = None, time.monotonic()
    with self._report_errors(step):
      # TensorStore prints a traceback for each array that it cannot write.
      arrays = jax.tree.leaves((state.params, state.opt_state))
      needed = sum(array.nbytes for array in arrays)
      free = shutil.disk_usage(self._workdir).free
      if hosts.from_first(free < needed):
        raise OSError(errno.ENOSPC, f"{needed:,} bytes needed, {free:,} free")
      unfinished = checkpoint.unfinished_folder(self._workdir, step)
      # Orbax would wait for minutes if it cannot make its folder.
      unfinished.parent.mkdir(exist_ok=True)
      tempfile.TemporaryFile(dir=unfinished.parent).close()
      about = self._about | {"step": step, "records": self._log.count}
      self._checkpointer.save(
        unfinished,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(state.params),
          opt_state=ocp.args.StandardSave(state.opt_state),
          plateau=ocp.args.StandardSave(state.plateau),
          progress=ocp.args.JsonSave(
            about | {"progress": dataclasses.asdict(progress)}
          ),
        ),
        force=True,
      )
      self._thread = threading.Thread(
        target=self._finish, args=(step, progress.best_step)
      )
      self._thread.start()

  def _check_workdir(self, step: int) -> None:
    """Raises InputError, in all processes, if the run cannot be saved."""
    if not hosts.from_first(self._is_held()):
      raise errors.SavingError(
        f"workdir={str(self._workdir)!r}, or .lock in it, was removed, moved or"
        f" made anew under the run, which ends unsaved at step {step}; start it"
        " again with the --workdir that holds its checkpoints."
      )
    failures = [x for x in hosts.gather(self._failure) if x]
    is_lasting = failures and not any(is_full for _, is_full in failures)
    self._failures = self._failures + 1 if is_lasting else 0
    if self._failures >= 3:
      raise errors.SavingError(
        f"no step could be saved, three times in a row ({failures[0][0]}); mend"
        " that, and the same command resumes."
        f" {checkpoint.describe_latest(self._workdir)}"
      )

  def _finish(self, step: int, best_step: int | None) -> None:
    """Makes a checkpoint of the files of Orbax, and removes old ones."""
    with self._report_errors(step):
      self._checkpointer.wait_until_finished()
      if jax.process_index() == 0:
        self._log.sync()  # A resumed run finds the records before its step.
        if not self._is_held():
          raise FileNotFoundError("the workdir is lost")
        checkpoint.commit(self._workdir, step)
        if step == best_step:
          self._best_step = step
        for old in checkpoint.steps_of(self._workdir)[: -self._keep]:
          if old != self._best_step:
            checkpoint.remove(self._workdir, old)

  @contextlib.contextmanager
  def _report_errors(self, step: int) -> Iterator[None]:
    """Turns an error into a warning: a run survives a full disk."""
    try:
      yield
    except Exception as e:  # Orbax and TensorStore raise errors of many types.
      # TensorStore adds codes, options and source lines in brackets.
      cause, *_ = re.split(r" \[(?!Errno)", f"{type(e).__name__}: {e}")
      cause, is_full = " ".join(cause.split()), errors.disk_is_full(e)
      self._failure, self._tried_at = (cause, is_full), time.monotonic()
      # Another file may have failed too, which the next save would raise.
      with contextlib.suppress(Exception):
        self._checkpointer.close()
      self._checkpointer = _open_checkpointer()
      if not self._is_held():  # The next save says so.
        return
      if jax.process_index() == 0:
        checkpoint.clean(self._workdir)
      remedy = f"Make room in {self._workdir}; it" if is_full else "It"
      # A process without a log may be the only one that has this error.
      show = self._log.print if jax.process_index() == 0 else print
      show(
        f"WARNING: step {step} could not be saved ({cause}). {remedy}"
        f" is tried again {_SAVE_AGAIN_S} s later, while the run goes on."
        f" {checkpoint.describe_latest(self._workdir)}"
      )


def _open_checkpointer() -> ocp.AsyncCheckpointer:
  # Of several processes, others wait for so long when one cannot save.
  options = ocp.AsyncOptions(timeout_secs=300)
  handler = ocp.CompositeCheckpointHandler()
  return ocp.AsyncCheckpointer(handler, async_options=options)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
  leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
  return jnp.all(jnp.stack(leaves))
