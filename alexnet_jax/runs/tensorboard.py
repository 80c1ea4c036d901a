"""TensorBoard's event files, for scalars alone."""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

# tensorboardX would import torch, which takes seconds. A module that is None
# counts as not installed.
try:
  sys.modules.setdefault("torch", None)  # pyright: ignore[reportCallIssue, reportArgumentType]
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto import event_pb2
finally:
  if sys.modules["torch"] is None:
    del sys.modules["torch"]

_event_pb2: Any = event_pb2  # Protobuf makes its classes on import.


class ScalarWriter:
  """Writes scalars by step; drops those that a full disk does not take."""

  # SummaryWriter of tensorboardX hangs after its thread has met a full disk.

  def __init__(self, folder: Path, first_step: int):
    """Makes the folder; readers drop older files' `first_step` and later."""
    folder.mkdir(exist_ok=True)
    self._prefix = str(folder / "events")
    self._writer: EventsWriter | None = None
    start = _event_pb2.SessionLog.START
    self._write(step=first_step, session_log={"status": start})

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Writes the scalars of a step by their names."""
    values = [{"tag": k, "simple_value": v} for k, v in scalars.items()]
    self._write(step=step, summary={"value": values})

  def close(self) -> None:
    """Closes the file."""
    writer, self._writer = self._writer, None
    with contextlib.suppress(OSError):
      if writer:
        writer.close()

  def _write(self, **fields: Any) -> None:
    event = _event_pb2.Event(wall_time=time.time(), **fields)
    try:
      # The name has only seconds, and would replace a file of this second.
      suffix = f".{time.time_ns()}"
      self._writer = self._writer or EventsWriter(self._prefix, suffix)
      self._writer.write_event(event)
      self._writer.flush()
    except OSError:
      # Readers stop at an event that is cut; the next one has a new file.
      self.close()
