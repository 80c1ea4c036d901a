"""Saving the states of a run in the background, also on a full disk."""

import contextlib
import dataclasses
import errno
import math
import shutil
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

  A failed save prints a warning; the run goes on. All processes of a run call
  the methods in the same order.
  """

  def __init__(
    self,
    workdir: Path,
    config: Any,
    log: logs.Logger,
    best_step: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
  ):
    """Keeps the checkpoint of `best_step` until a better one is saved."""
    self._workdir = workdir.absolute()
    self._keep = config.checkpoints_to_keep
    self._every_s = 60 * config.checkpoint_every_minutes
    self._log = log
    self._best_step = best_step
    self._should_stop = should_stop
    self._failed = False
    self._tried_at = time.monotonic()
    self._thread: threading.Thread | None = None
    self._checkpointer = _open_checkpointer()

  def __exit__(self, *_) -> None:
    """Waits for the save that is under way."""
    self.wait()
    self._checkpointer.close()

  def is_due(self) -> bool:
    """Whether to save now, by the clock of process 0: the same in all."""
    most_s = _SAVE_AGAIN_S if self._failed else math.inf
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
    InputError if the parameters are not finite.
    """
    self._start(state, progress)
    if not wait:
      return not self._failed
    while not hosts.from_first(self.wait() and self._log.flush()):
      if self._should_stop():
        raise errors.InputError(
          f"step {int(state.step)} could not be saved."
          f" {checkpoint.describe_latest(self._workdir)}"
        )
      time.sleep(_RETRY_S)
      self._start(state, progress)
    return True

  def wait(self) -> bool:
    """Waits for the save under way; returns whether the last one succeeded."""
    if self._thread:
      self._thread.join()
    return not self._failed

  def _start(self, state: TrainState, progress: checkpoint.Progress) -> None:
    self._log.flush()  # A resumed run finds the records before its step.
    self.wait()
    step = int(state.step)
    if not _all_finite(state.params):
      raise errors.InputError(
        f"the parameters are not finite after step {step}, which is not saved;"
        f" lower learning_rate. {checkpoint.describe_latest(self._workdir)}"
      )
    self._failed, self._tried_at = False, time.monotonic()
    with self._report_errors(step):
      # TensorStore prints a traceback for each array that it cannot write.
      arrays = jax.tree.leaves((state.params, state.opt_state))
      needed = sum(array.nbytes for array in arrays)
      free = shutil.disk_usage(self._workdir).free
      if hosts.from_first(free < needed):
        raise OSError(errno.ENOSPC, f"{needed:,} bytes needed, {free:,} free")
      self._checkpointer.save(
        checkpoint.unfinished_folder(self._workdir, step),
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(state.params),
          opt_state=ocp.args.StandardSave(state.opt_state),
          plateau=ocp.args.StandardSave(state.plateau),
          progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
        ),
        force=True,
      )
      self._thread = threading.Thread(
        target=self._finish, args=(step, progress.best_step)
      )
      self._thread.start()

  def _finish(self, step: int, best_step: int | None) -> None:
    """Makes a checkpoint of the files of Orbax, and removes old ones."""
    with self._report_errors(step):
      self._checkpointer.wait_until_finished()
      if jax.process_index() == 0:
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
      self._failed, self._tried_at = True, time.monotonic()
      # Another file may have failed too, which the next save would raise.
      with contextlib.suppress(Exception):
        self._checkpointer.close()
      self._checkpointer = _open_checkpointer()
      if jax.process_index() == 0:
        checkpoint.clean(self._workdir)
      # TensorStore adds codes, options and source lines in brackets.
      cause, *_ = f"{type(e).__name__}: {e}".split(" [")
      # A process without a log may be the only one that has this error.
      show = self._log.print if jax.process_index() == 0 else print
      show(
        f"WARNING: step {step} could not be saved ({' '.join(cause.split())})."
        f" Make room in {self._workdir}; the run goes on and tries again in"
        f" {_SAVE_AGAIN_S} s. {checkpoint.describe_latest(self._workdir)}"
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
