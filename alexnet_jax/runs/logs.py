"""What a run writes down and shows: config, metrics, TensorBoard, a bar."""

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import progress as rich_progress
from rich.console import Console

from alexnet_jax.runs import run_files
from alexnet_jax.runtime import errors

# Where torch is installed TensorBoardX imports it, which takes seconds, for
# nothing that is used here; to an import, None says that it is not there.
_hides_torch = "torch" not in sys.modules
if _hides_torch:
  sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
try:
  from tensorboardX.event_file_writer import EventsWriter
  from tensorboardX.proto import event_pb2, summary_pb2
finally:
  if _hides_torch:
    del sys.modules["torch"]

# Protobuf makes their classes when they are imported.
_EVENTS: Any = event_pb2
_SUMMARIES: Any = summary_pb2


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
  """Returns the records of `metrics.jsonl`; a cut last line is left out.

  Raises:
    InputError: another line is damaged.
  """
  records = []
  file = workdir / "metrics.jsonl"
  try:
    lines = file.read_bytes().splitlines() if file.exists() else []
  except OSError as e:
    raise errors.InputError(
      f"{str(file)!r} cannot be read ({e.strerror}); mend or remove it."
    ) from e
  for number, line in enumerate(lines, start=1):
    try:
      record = json.loads(line)
      held = record if isinstance(record, dict) else {}
      if not isinstance(held.get("step"), int) or not isinstance(
        held.get("split"), str
      ):
        raise ValueError("it has no step or no split")
    except (ValueError, RecursionError) as e:
      if number == len(lines):
        break
      raise errors.InputError(
        f"{file} is damaged in line {number} ({e}); mend or remove that line."
      ) from e
    records.append(record)
  return records


class NullLogger:
  """What the other processes of a run have for a `Logger`: it only knows."""

  def __init__(self, workdir: Path, start_step: int, evaluated: bool):
    """Reads what the run that goes on after `start_step` had written.

    Args:
      workdir: of the run.
      start_step: steps done; records of a lost stretch are dropped.
      evaluated: whether the evaluation that may be due at that step is done.
    """
    # That of the test comes last of all.
    splits = ("train", "validation", "test")[: 3 if evaluated else 1]
    self._kept = [
      record
      for record in read_metrics(workdir)
      if record["step"] < start_step
      or (record["step"] == start_step and record["split"] in splits)
    ]

  def __enter__(self) -> "NullLogger":
    """Returns itself."""
    return self

  def __exit__(self, *_) -> None:
    """Has nothing to close."""

  def holds(self, step: int, split: str) -> bool:
    """Whether the run had this record before it went on."""
    return any((r["step"], r["split"]) == (step, split) for r in self._kept)

  def advance(self, step: int, epoch: float) -> None:
    """Shows nothing."""

  def record(self, record: dict[str, Any]) -> None:
    """Writes nothing."""

  def keep_confusions(
    self, step: int, views: int, counts: Mapping[tuple[int, int], int]
  ) -> None:
    """Writes nothing."""

  def flush(self) -> bool:
    """Has nothing that is not written."""
    return True

  def print(self, text: str) -> None:
    """Prints nothing."""


class Logger(NullLogger):
  """Writes the records of a run and shows them."""

  def __init__(
    self, workdir: Path, start_step: int, evaluated: bool, total_steps: int
  ):
    """Opens the files of a run that goes on after `start_step`.

    Args:
      workdir: of the run.
      start_step: see `NullLogger`.
      evaluated: see `NullLogger`.
      total_steps: of the whole run.
    """
    super().__init__(workdir, start_step, evaluated)
    self._workdir = workdir
    file = workdir / "metrics.jsonl"
    run_files._replace(file, "".join(json.dumps(r) + "\n" for r in self._kept))
    self._file = file.open("ab", buffering=0)
    self._unwritten = b""
    self._events = _Events(workdir / "tensorboard", start_step + 1)
    self._total_steps = total_steps
    console = Console()
    self._bar = rich_progress.Progress(
      rich_progress.TextColumn("{task.description}"),
      rich_progress.BarColumn(),
      rich_progress.TextColumn("{task.fields[last]}"),
      rich_progress.TimeRemainingColumn(),
      console=console,
      disable=not console.is_terminal,
    )
    self._bar.start()
    self._task = self._bar.add_task(
      "starting", total=total_steps, completed=start_step, last=""
    )

  def __enter__(self) -> "Logger":
    """Returns itself."""
    return self

  def __exit__(self, *_) -> None:
    """Takes the bar away and closes the files."""
    self._bar.stop()
    self._events.close()
    self._file.close()

  def advance(self, step: int, epoch: float) -> None:
    """Moves the bar to a step."""
    self._bar.update(
      self._task,
      completed=step,
      description=f"step {step}/{self._total_steps} epoch {epoch:.2f}",
    )

  def record(self, record: dict[str, Any]) -> None:
    """Writes one record: see README for its fields."""
    self._unwritten += json.dumps(record, allow_nan=False).encode() + b"\n"
    self.flush()
    step, split = record["step"], record["split"]
    group = f"{split}/member{record['member']}" if "member" in record else split
    self._events.add(
      step,
      {
        f"{group}/{name}": value
        for name, value in record.items()
        if name not in ("step", "split", "member")
      },
    )
    if "member" in record:
      return
    figures = (
      f"loss {record['loss']:.4f}  error {record['top1_error']:.2%}"
      f"  {record['images_per_second']:,.0f} images/s"
    )
    if split == "train" and not self._bar.disable:
      self._bar.update(self._task, last=figures)
      return
    self.print(
      f"step {step}/{self._total_steps}  epoch {record['epoch']:.2f}"
      f"  {split:<10}  {figures}"
    )

  def keep_confusions(
    self, step: int, views: int, counts: Mapping[tuple[int, int], int]
  ) -> None:
    """Writes `confusions.json`: what the test images were taken for.

    Args:
      step: updates done.
      views: of each image.
      counts: of images by (label, likeliest class), in an ensemble by all its
        members together.
    """
    held = {
      "split": "test",
      "step": step,
      "views": views,
      "counts": [[*pair, count] for pair, count in sorted(counts.items())],
    }
    try:
      run_files._replace(
        self._workdir / "confusions.json", json.dumps(held) + "\n"
      )
    except OSError as e:  # No reason to lose the test's figures.
      self.print(f"WARNING: no confusions.json could be written ({e.strerror})")

  def flush(self) -> bool:
    """Writes what a full disk has held up; returns whether all is written."""
    if not self._unwritten:
      return True
    whole = os.fstat(self._file.fileno()).st_size
    try:
      if self._file.write(self._unwritten) < len(self._unwritten):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as e:
      # No line is ever there in part.
      os.ftruncate(self._file.fileno(), whole)
      count = self._unwritten.count(b"\n")
      self.print(
        f"WARNING: {count} lines of {self._file.name} could not be written"
        f" ({e.strerror}). Make room; they are kept, and tried again."
      )
      return False
    self._unwritten = b""
    return True

  def print(self, text: str) -> None:
    """Prints a line, above the bar where there is one."""
    if self._bar.disable:
      print(text, flush=True)
    else:
      self._bar.console.print(text, highlight=False, markup=False)


class _Events:
  """TensorBoard's files, for scalars alone.

  tensorboardX's own writer hangs for ever where its thread meets a full disk.
  """

  def __init__(self, folder: Path, start_step: int):
    self._prefix = str(folder / "events")
    folder.mkdir(exist_ok=True)
    self._writer: EventsWriter | None = None
    start = _EVENTS.SessionLog(status=_EVENTS.SessionLog.START)
    # Readers forget what an earlier, lost stretch has written from here on.
    self._write(_EVENTS.Event(step=start_step, session_log=start))

  def add(self, step: int, scalars: dict[str, float]) -> None:
    """Writes figures; on a full disk they are left out."""
    values = [
      _SUMMARIES.Summary.Value(tag=tag, simple_value=value)
      for tag, value in scalars.items()
    ]
    summary = _SUMMARIES.Summary(value=values)
    self._write(_EVENTS.Event(step=step, summary=summary))

  def close(self) -> None:
    """Closes the file."""
    writer, self._writer = self._writer, None
    with contextlib.suppress(OSError):
      if writer:
        writer.close()

  def _write(self, event: Any) -> None:
    event.wall_time = time.time()
    try:
      # A file that ends in half an event is read up to there: a new one then.
      suffix = f".{time.time_ns()}"  # Else one of this second is overwritten.
      self._writer = self._writer or EventsWriter(self._prefix, suffix)
      self._writer.write_event(event)
      self._writer.flush()
    except OSError:
      self.close()
