"""TensorBoard's event files, for scalars alone."""

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

# tensorboardX would import torch, which takes seconds; None hides it.
try:
  sys.modules.setdefault("torch", None)  # pyright: ignore[reportCallIssue, reportArgumentType]
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto import event_pb2
finally:
  if sys.modules["torch"] is None:
    del sys.modules["torch"]

_event_pb2: Any = event_pb2  # Protobuf makes its classes on import.


class ScalarWriter:
  """Writes scalars; drops what a full disk refuses (SummaryWriter hangs)."""

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
    if writer:
      with contextlib.suppress(OSError):
        writer.close()

  def _write(self, **fields: Any) -> None:
    event = _event_pb2.Event(wall_time=time.time(), **fields)
    try:
      # By default a new file could replace one of the same second.
      suffix = f".{time.time_ns()}"
      self._writer = self._writer or EventsWriter(self._prefix, suffix)
      self._writer.write_event(event)
      self._writer.flush()
    except OSError:
      # Readers stop at an event that is cut; the next one has a new file.
      self.close()
