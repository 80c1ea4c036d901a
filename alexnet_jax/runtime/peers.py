"""The processes of a run to one another: they meet, and then watch.

jax knows of neither. It aborts where processes do not meet, and where one dies
the others hang until its heartbeat is missed, or end in a traceback.
"""

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from alexnet_jax.runtime import errors

# A process that is not heard of for so long is given up.
SILENCE_S = 20
_BEAT_S = 1
_RETRY_S = 0.25
_HELLO_S = 5
# One that ends because of an error may not be the only one that has it.
_GRACE_S = 5
# After so long a process that was lost would have ended this one.
KNOWN_S = _GRACE_S + 2 * _BEAT_S
_SHOWN = 60
_REMEDY = (
  "; the others end too. The same command, again in all of them, goes on from"
  " the newest checkpoint."
)


class Group(NamedTuple):
  """Who this process is among those of the run."""

  coordinator: str  # HOST:PORT of process 0.
  num_processes: int
  process_id: int
  remedy: str  # If they do not meet there.
  method: str | None  # By which jax finds this process's devices.


Connections = Mapping[int, socket.socket]
"""To the others, by number: of process 0 to all, of those to process 0."""


def meet(group: Group, timeout_s: int) -> Connections:
  """Returns when all processes of a group are there; else all raise.

  Args:
    group: of this process.
    timeout_s: seconds to wait.

  Raises:
    InputError: they do not meet in time, or are not of one run.
  """
  if group.process_id == 0:
    return _await_others(group, timeout_s)
  return {0: _report(group, timeout_s)}


def _await_others(group: Group, timeout_s: int) -> Connections:
  """Waits as process 0 for the rest, and tells them if something is wrong."""
  deadline = time.monotonic() + timeout_s
  port = int(group.coordinator.rpartition(":")[2])
  with contextlib.ExitStack() as stack:
    try:
      server = stack.enter_context(_listen(port))
    except OSError as e:
      raise errors.InputError(
        f"process 0 cannot listen on port {port} of {group.coordinator}"
        f" ({e.strerror}); another run may use it: {group.remedy}"
      ) from e
    connections: dict[int, socket.socket] = {}
    strangers: list[socket.socket] = []
    missing = set(range(1, group.num_processes))
    problem = ""
    while missing and not problem:
      server.settimeout(max(deadline - time.monotonic(), 0.001))
      try:
        connection, _ = server.accept()
      except TimeoutError:
        problem = (
          f"{name(missing)} of {group.num_processes} did not come to process 0"
          f" at {group.coordinator} within --timeout_s={timeout_s};"
          f" {group.remedy}"
        )
        break
      match _hear(connection, _HELLO_S):
        case [int(process), int(count)]:
          pass
        case _:
          connection.close()
          continue  # A probe of the port, no process of ours.
      if count != group.num_processes:
        problem = (
          f"process {process} was started as one of {count}, process 0 as one"
          f" of {group.num_processes}; {group.remedy}"
        )
      elif process not in missing:
        problem = (
          f"two processes came to {group.coordinator} as process {process};"
          " give each a --process_id of its own."
        )
      else:
        missing.discard(process)
        connections[process] = connection
        continue
      strangers.append(connection)
  for connection in (*connections.values(), *strangers):
    _tell(connection, problem)
  if problem:
    for connection in (*connections.values(), *strangers):
      connection.close()
    raise errors.InputError(problem)
  return connections


def _report(group: Group, timeout_s: int) -> socket.socket:
  """Comes to process 0, and hears from it whether all is well."""
  me = f"process {group.process_id} of {group.num_processes}"
  host, _, port = group.coordinator.rpartition(":")
  deadline = time.monotonic() + timeout_s
  while True:
    left = deadline - time.monotonic()
    try:
      connection = socket.create_connection(
        (host.strip("[]"), int(port)), timeout=max(min(left, 5), 0.001)
      )
      break
    except OSError as e:
      if time.monotonic() + _RETRY_S > deadline:
        raise errors.InputError(
          f"{me} cannot reach process 0 at {group.coordinator} within"
          f" --timeout_s={timeout_s} ({e.strerror or e}); start process 0"
          f" there, and {group.remedy}"
        ) from e
      time.sleep(_RETRY_S)
  _tell(connection, [group.process_id, group.num_processes])
  # Process 0 may have come last: it decides when the time is over.
  answer = _hear(connection, timeout_s + _HELLO_S)
  if answer == "":
    return connection
  connection.close()
  raise errors.InputError(
    answer
    if isinstance(answer, str)
    else f"{me} reached {group.coordinator}, but what listens there is not"
    f" process 0 of this run, or it has ended; {group.remedy}"
  )


def _listen(port: int) -> socket.socket:
  """Returns a socket that listens on every address of this machine."""
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ("", port), family=socket.AF_INET6, dualstack_ipv6=True
    )
  return socket.create_server(("", port))


def _tell(connection: socket.socket, message: Any) -> None:
  # Who has left since hears nothing.
  with contextlib.suppress(OSError):
    connection.sendall(json.dumps(message).encode() + b"\n")


def _hear(connection: socket.socket, timeout_s: float) -> Any:
  """Returns the JSON value of a line, None for anything else."""
  connection.settimeout(timeout_s)
  line = b""
  with contextlib.suppress(OSError, ValueError):
    # Not a byte more: what follows is for the watch.
    while not line.endswith(b"\n") and len(line) < 2**16:
      byte = connection.recv(1)
      if not byte:
        break
      line += byte
    return json.loads(line)
  return None


@contextlib.contextmanager
def watching(connections: Connections, count: int) -> Iterator[None]:
  """Ends this process, in one line, if another is lost meanwhile.

  Lost is one whose connection closes before it has taken its leave, or that is
  silent for `SILENCE_S`. Then nothing of jax can be relied on: the process ends
  at once, with exit code 1. Without an error, none leaves before all have come
  to the end of the block.

  Args:
    connections: from `meet`.
    count: processes of the run.
  """
  watch = _Watch(connections, count)
  watch.start()
  reason = None
  try:
    yield
  except errors.InputError as e:
    e.exit_immediately = True  # jax's own farewell is one of all processes.
    reason = str(e)
    raise
  except Exception as e:
    # That of a collective which another process has died in. Who it was is
    # heard from the watch, which ends this process.
    time.sleep(KNOWN_S)
    reason = errors.reason(e)
    raise
  except BaseException as e:
    reason = f"ended by {type(e).__name__}"
    raise
  finally:
    watch.leave(reason)


class _Watch(threading.Thread):
  """Says that this process is alive, and hears whether the others are."""

  def __init__(self, connections: Connections, count: int):
    super().__init__(daemon=True)
    self._connections = dict(connections)
    self._count = count
    self._left = threading.Event()
    self._alone = threading.Event()

  def leave(self, reason: str | None) -> None:
    """Takes leave of the others; their errors are no more waited for.

    Args:
      reason: the error that ends this process, if one does. Else all leave
        together: the others tell process 0, and then it tells them.
    """
    is_first = 0 not in self._connections
    if reason is None and is_first:
      self._alone.wait()
    if reason is not None:
      self._left.set()
    for connection in self._connections.values():
      _tell(connection, {"left": reason})
    if reason is None and not is_first:
      self._alone.wait()
    self._left.set()

  def run(self) -> None:
    """Watches until this process leaves, or ends it."""
    heard = dict.fromkeys(self._connections, time.monotonic())
    said = dict.fromkeys(self._connections, b"")
    with selectors.DefaultSelector() as selector:
      for number, connection in self._connections.items():
        connection.settimeout(_BEAT_S)
        # What is held back until the last beat is acknowledged is lost with a
        # process that says it and ends.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ, number)
      beat_at, looked_at = 0.0, time.monotonic()
      while not self._left.is_set():
        if not heard:
          self._alone.set()
        ready = selector.select(_BEAT_S)
        now = time.monotonic()
        if now - looked_at > _GRACE_S:  # It was stopped itself.
          heard = dict.fromkeys(heard, now)
        looked_at = now
        if now - beat_at >= _BEAT_S:
          beat_at = now
          for connection in self._connections.values():
            _tell(connection, {})
        for key, _ in ready:
          number, connection = key.data, self._connections[key.data]
          try:
            data = connection.recv(2**12)
          except OSError:
            data = b""
          heard[number] = now
          *lines, said[number] = (said[number] + data).split(b"\n")
          if self._hears(number, lines):
            selector.unregister(connection)
            del heard[number]
          elif not data:
            self._end(f"process {number} of {self._count} was lost{_REMEDY}")
        for number, when in heard.items():
          if now - when > SILENCE_S:
            self._end(
              f"process {number} of {self._count} was silent for {SILENCE_S} s"
              f"{_REMEDY}"
            )

  def _hears(self, number: int, lines: list[bytes]) -> bool:
    """Takes in what a process says; returns whether it has left."""
    for line in lines:
      message = json.loads(line)
      if "lost" in message:
        self._end(message["lost"])
      if "left" in message:
        if message["left"] and not self._left.wait(_GRACE_S):
          self._end(f"process {number}: {message['left']}")
        return True
    return False

  def _end(self, text: str) -> None:
    for connection in self._connections.values():
      _tell(connection, {"lost": text})
    errors.exit_immediately(f"error: {text}", 1)


def name(processes: Any) -> str:
  """Returns `process 1`, or `processes 1, 2`."""
  ids = sorted(processes)
  return f"process{'es' * (len(ids) > 1)} {cut(', '.join(map(str, ids)))}"


def cut(text: str) -> str:
  """Returns the beginning of a text that is too long for a message."""
  return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
