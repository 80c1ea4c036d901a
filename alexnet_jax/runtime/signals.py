"""How a user stops a run: SIGTERM, SIGHUP or Ctrl-C, to one process of it."""

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
  """Whether a run of one process has received a signal to stop."""
  return _stop_requested.is_set() and jax.process_count() == 1


class StopRequest:
  """Called after each step, says whether to save and stop now.

  A second Ctrl-C, or a signal before the first call, ends the process at once.
  """

  def __init__(self):
    self._num_calls = 0
    self._stop = False

  def __call__(self) -> bool:
    """Returns the same in all processes, which must call it equally often."""
    self._num_calls += 1
    if jax.process_count() == 1:
      return _stop_requested.is_set()
    # jax chooses a call that no process has made yet, and all stop there.
    reached = multihost_utils.reached_preemption_sync_point
    self._stop = self._stop or reached(self._num_calls)
    return self._stop

  def _handle(self, number: int, _) -> None:
    # An exception would wait for data threads that may hang.
    if not self._num_calls and jax.process_count() == 1:
      errors.exit_immediately("stopped before the first step", 0)
    if number == signal.SIGINT and _stop_requested.is_set():
      errors.exit_immediately("interrupted", 130)
    is_first = not _stop_requested.is_set()
    _stop_requested.set()  # First of all: the next signal may interrupt here.
    if is_first:
      _say(b"stopping after this step; Ctrl-C stops at once\n")
    if number != signal.SIGTERM and jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)  # jax tells the other processes.


def _say(line: bytes) -> None:
  """Writes to stderr; drops the output to a terminal that is gone."""
  for output, text in ((2, line), (1, b"")):
    try:
      os.write(output, text)
    except OSError:
      null = os.open(os.devnull, os.O_WRONLY)
      os.dup2(null, output)
      os.close(null)


@contextlib.contextmanager
def handle_signals() -> Iterator[StopRequest]:
  """Yields what says when to stop. Enter it after `hosts.initialize`."""
  request = StopRequest()
  _stop_requested.clear()
  # With several processes, SIGTERM is left to jax, which tells all of them.
  taken = [signal.SIGINT] + [signal.SIGTERM] * (jax.process_count() == 1)
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # As nohup sets it.
    taken.append(signal.SIGHUP)
  before = {number: signal.signal(number, request._handle) for number in taken}
  try:
    yield request
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
