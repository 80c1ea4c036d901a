"""What a run records and shows: metrics.jsonl, TensorBoard, a progress bar."""

import contextlib
import errno
import json
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from alexnet_jax.runs import run_files, tensorboard
from alexnet_jax.runtime import errors, platforms

_SHOW_EVERY_S = 60  # At least, while steps are taken.


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
  """Returns the records of `metrics.jsonl`, but for a last line that is cut."""
  file = workdir / "metrics.jsonl"
  lines = file.read_bytes().splitlines() if file.is_file() else []
  records = []
  for number, line in enumerate(lines, start=1):
    try:
      record = json.loads(line)
      if not {"step", "split"} <= {*record}:
        raise ValueError("it is no record of a run")
      records.append(record)
    except (ValueError, TypeError) as e:
      if number < len(lines):
        raise errors.InputError(
          f"{file} is damaged in line {number} ({e}); remove that line."
        ) from e
  return records


class Logger(contextlib.AbstractContextManager):
  """Writes the records of a run and shows them, in the first process alone."""

  def __init__(
    self,
    workdir: Path,
    start_step: int,
    evaluated: bool,
    total_steps: int,
    is_first: bool = True,
    count: int | None = None,
    goes_on: bool = False,
  ):
    """Opens the files, and drops records after the checkpoint of `start_step`.

    Its own validation is dropped if not `evaluated`, and its test if the run
    `goes_on`. Only `is_first` writes. `count` is the number of records at the
    checkpoint; if some are missing, a line says so.
    """
    self._before = read_metrics(workdir)
    keeps_test = evaluated and not goes_on and self.has(start_step, "test")

    def is_kept(record: dict[str, Any]) -> bool:
      if record["split"] == "test":  # A member's may be of an earlier step.
        return keeps_test
      if record["step"] == start_step:
        return evaluated or record["split"] == "train"
      return record["step"] < start_step

    kept = [x for x in self._before if is_kept(x)]
    unique = {(x["step"], x["split"], x.get("member")): x for x in kept}
    self._before = list(unique.values())
    # Of the records but those of a test, which no checkpoint follows.
    self.count = sum(record["split"] != "test" for record in self._before)
    self._start_step, self._total_steps = start_step, total_steps
    self._shown_at = time.monotonic()
    self._compiled_before_s = time.perf_counter() - platforms.clock()
    self._unwritten = b""
    self._file = self._scalars = None
    self._console = Console(
      quiet=not is_first, emoji=False, highlight=False, markup=False,
      soft_wrap=True,
    )  # fmt: skip
    self._bar = Progress(
      console=self._console, disable=not self._console.is_terminal
    )
    self._task = self._bar.add_task(
      f"step {start_step}/{total_steps}",
      total=total_steps,
      completed=start_step,
    )
    if is_first:
      file = workdir / "metrics.jsonl"
      lines = [json.dumps(record) + "\n" for record in self._before]
      run_files.replace_text(file, "".join(lines))
      self._file = file.open("ab", buffering=0)
      self.sync()
      self._scalars = tensorboard.ScalarWriter(
        workdir / "tensorboard", start_step + 1
      )
    doubled = len(kept) - len(unique)
    missing = max(0, (count or 0) - self.count)
    if doubled or missing:
      self.print(
        f"WARNING: of the lines of metrics.jsonl up to step {start_step},"
        f" {missing} are missing and {doubled} were there twice"
      )
    self._bar.start()

  def __exit__(self, *_) -> None:
    """Removes the bar and closes the files."""
    self._bar.stop()
    for opened in (self._scalars, self._file):
      if opened:
        opened.close()

  def has(self, step: int, split: str) -> bool:
    """Whether the run had this record before it was resumed."""
    # Of an ensemble, the record of all members together comes last.
    return any(
      (r["step"], r["split"]) == (step, split) and "member" not in r
      for r in self._before
    )

  def print(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    self._console.print(errors.printable(text))

  def advance(self, step: int, epoch: float) -> None:
    """Moves the bar to a step; after the first, says what compiling took."""
    if step == self._start_step + 1:
      compiled_s = time.perf_counter() - platforms.clock()
      self.print(f"compiled in {compiled_s - self._compiled_before_s:.1f} s")
    where = f"step {step}/{self._total_steps}  epoch {epoch:.2f}"
    self._bar.update(self._task, completed=step, description=where)

  def record(self, record: dict[str, Any]) -> None:
    """Writes and shows the metrics of a split."""
    if not self._file or not self._scalars:
      return
    self.count += record["split"] != "test"
    self._unwritten += json.dumps(record, allow_nan=False).encode() + b"\n"
    self.flush()
    step, split, member = record["step"], record["split"], record.get("member")
    group = split if member is None else f"{split}/member{member}"
    scalars = {k: v for k, v in record.items() if isinstance(v, float)}
    self._scalars.write(step, {f"{group}/{k}": v for k, v in scalars.items()})
    if member is None:
      self.show(record)

  def is_quiet(self) -> bool:
    """Whether no metrics were shown for so long that a line is due."""
    return time.monotonic() - self._shown_at > _SHOW_EVERY_S

  def show(self, record: dict[str, Any]) -> None:
    """Shows the metrics of a split in a line."""
    self._shown_at = time.monotonic()
    wait = record.get("input_wait", 0)
    self.print(
      f"step {record['step']}/{self._total_steps}  epoch {record['epoch']:.2f}"
      f"  {record['split']:<10}  loss {record['loss']:.4f}"
      f"  error {record['top1_error']:.2%}"
      f"  {record['images_per_second']:,.0f} images/s"
      + (f", {wait:.0%} waiting for images" if wait > 0.03 else "")
    )

  def flush(self) -> bool:
    """Writes what a full disk has delayed; returns whether all is written.

    Raises InputError if it fails for another reason.
    """
    if not self._file or not self._unwritten:
      return True
    size = self._file.seek(0, os.SEEK_END)
    try:
      if self._file.write(self._unwritten) < len(self._unwritten):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as e:
      self._file.truncate(size)  # Never leave a part of a line.
      if not errors.disk_is_full(e):
        raise errors.InputError(
          f"{self._file.name} cannot be written ({e.strerror}); mend that, and"
          " the same command resumes."
        ) from e
      count = self._unwritten.count(b"\n")
      self.print(
        f"WARNING: {count} lines of {self._file.name} could not be written"
        f" ({e.strerror}). Make room; they are kept and tried again."
      )
      return False
    self._unwritten = b""
    return True

  def sync(self) -> None:
    """Waits until what was written is on the disk."""
    if self._file:
      os.fsync(self._file.fileno())
