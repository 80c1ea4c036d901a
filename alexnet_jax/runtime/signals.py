"""How a run is asked to stop: SIGTERM and Ctrl-C, in one process or several."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from alexnet_jax.runtime import errors

_stop_requested = threading.Event()


def stop_requested() -> bool:
  """Whether this process, being the only one, was told to stop."""
  return _stop_requested.is_set() and jax.process_count() == 1


class StopRequest:
  """Says whether the run is to stop.

  SIGTERM or Ctrl-C ask for it; a second Ctrl-C ends the process at once. One
  that comes before the first question ends it too: there is nothing to save.
  """

  def __init__(self):
    self._questions = 0

  def __call__(self) -> bool:
    """Returns whether to save and stop now, the same in all processes.

    To be asked equally often by all of them, and by the main thread.
    """
    self._questions += 1
    if jax.process_count() == 1:
      return _stop_requested.is_set()
    # jax lets all stop at the number after the newest that was asked for.
    return multihost_utils.reached_preemption_sync_point(self._questions)

  def _handle(self, number: int, _) -> None:
    """Runs in the main thread, when it comes back to Python."""
    if not self._questions and jax.process_count() == 1:
      # Not by an exception: some thread may never come back from its reading.
      errors.exit_immediately("told to stop before the first step", 0)

  def _hear(self, pipe: int) -> None:
    """Runs in a thread of its own: the main one may be within a long step."""
    while numbers := os.read(pipe, 1):
      if numbers[0] == signal.SIGINT and _stop_requested.is_set():
        errors.exit_immediately("interrupted", 130)
      if not _stop_requested.is_set() and self._questions:
        os.write(2, b"stopping after this step; Ctrl-C stops at once\n")
      _stop_requested.set()
      if numbers[0] == signal.SIGINT and jax.process_count() > 1:
        os.kill(os.getpid(), signal.SIGTERM)  # jax tells the others.


@contextlib.contextmanager
def handle_signals() -> Iterator[StopRequest]:
  """Yields the request; to be entered after jax has met other processes."""
  request = StopRequest()
  _stop_requested.clear()
  heard, told = os.pipe()
  os.set_blocking(told, False)
  threading.Thread(target=request._hear, args=[heard], daemon=True).start()
  # Of several processes, jax takes SIGTERM and tells it to all.
  taken = [signal.SIGINT] + [signal.SIGTERM] * (jax.process_count() == 1)
  before = {number: signal.signal(number, request._handle) for number in taken}
  signal.set_wakeup_fd(told, warn_on_full_buffer=False)
  try:
    yield request
  finally:
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
      signal.signal(number, handler)
    os.close(told)
