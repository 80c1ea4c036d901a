"""What a run writes down and shows: config, metrics, TensorBoard, a bar."""

import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich import progress as rich_progress
from rich.console import Console
from tensorboardX import SummaryWriter

from alexnet_jax import errors


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns a nested config as one level of `a.b` names."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


# They say where and how often, not what is computed, so a run may change them.
FREE_FIELDS = (
  "checkpoint_every_steps",
  "checkpoints_to_keep",
  "device_data_share",
  "layout",
  "log_every_steps",
  "microbatches",
  "reader_threads",
)


def claim_workdir(workdir: Path, config: ConfigDict) -> None:
  """Writes `config.json` into a workdir, if it is new or holds the same run.

  A run is the same if its config differs in `FREE_FIELDS` alone.

  Args:
    workdir: made if it does not exist.
    config: of this run.

  Raises:
    InputError: the workdir cannot be written, or belongs to another config.
  """
  file = workdir / "config.json"
  text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    asked = flatten(json.loads(text))
    held = flatten(_read_object(file)) if file.exists() else asked
    differing = [
      f"{name} ({held.get(name)} there, {asked.get(name)} asked)"
      for name in sorted(held | asked)
      if held.get(name) != asked.get(name) and name not in FREE_FIELDS
    ]
    if not differing:
      _replace(file, text + "\n")
  except OSError as e:
    raise errors.InputError(
      f"workdir={str(workdir)!r} cannot be written ({e.strerror}); choose"
      " another with --workdir."
    ) from e
  except ValueError as e:
    raise errors.InputError(f"{file} is damaged ({e}); remove it.") from e
  if differing:
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    raise errors.InputError(
      f"workdir={str(workdir)!r} holds a run of another config:"
      f" {', '.join(differing[:5])}{more}. Choose another --workdir."
    )


def read_config(workdir: Path) -> Any:
  """Returns the config of a run.

  Raises:
    InputError: the workdir holds no run.
  """
  file = workdir / "config.json"
  try:
    return ConfigDict(_read_object(file)).lock()
  except (OSError, ValueError) as e:
    raise errors.InputError(
      f"workdir={str(workdir)!r} holds no run ({file.name}: {e}); train one"
      " with python -m alexnet_jax.main --workdir=DIR."
    ) from e


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
  """Returns the records of `metrics.jsonl`; a cut last line is left out.

  Raises:
    InputError: another line is damaged.
  """
  records = []
  file = workdir / "metrics.jsonl"
  lines = file.read_text().splitlines() if file.exists() else []
  for number, line in enumerate(lines, start=1):
    try:
      record = json.loads(line)
      if not {"step", "split"} <= set(record):
        raise ValueError("it has no step or no split")
    except (ValueError, TypeError) as e:
      if number == len(lines):
        break
      raise errors.InputError(
        f"{file} is damaged in line {number} ({e}); mend or remove that line."
      ) from e
    records.append(record)
  return records


class SilentLog:
  """What the other processes of a run have for a `RunLog`: it only knows."""

  def __init__(self, workdir: Path, start_step: int):
    """Reads what the run that goes on after `start_step` had written."""
    found = read_metrics(workdir)
    self._kept = [record for record in found if record["step"] <= start_step]

  def __enter__(self) -> "SilentLog":
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

  def say(self, text: str) -> None:
    """Prints nothing."""


class RunLog(SilentLog):
  """Writes the records of a run and shows them."""

  def __init__(self, workdir: Path, start_step: int, total_steps: int):
    """Opens the files of a run that goes on after `start_step`.

    Args:
      workdir: of the run.
      start_step: steps done; later records of a lost stretch are dropped.
      total_steps: of the whole run.
    """
    super().__init__(workdir, start_step)
    file = workdir / "metrics.jsonl"
    _replace(file, "".join(json.dumps(r) + "\n" for r in self._kept))
    self._file = file.open("a")
    self._events = SummaryWriter(
      str(workdir / "tensorboard"), purge_step=start_step + 1
    )
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

  def __enter__(self) -> "RunLog":
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
    self._file.write(json.dumps(record, allow_nan=False) + "\n")
    self._file.flush()
    step, split = record["step"], record["split"]
    group = f"{split}/member{record['member']}" if "member" in record else split
    for name, value in record.items():
      if name not in ("step", "split", "member"):
        self._events.add_scalar(f"{group}/{name}", value, step)
    if "member" in record:
      return
    figures = (
      f"loss {record['loss']:.4f}  error {record['top1_error']:.2%}"
      f"  {record['images_per_second']:,.0f} images/s"
    )
    if split == "train" and not self._bar.disable:
      self._bar.update(self._task, last=figures)
      return
    self.say(
      f"step {step}/{self._total_steps}  epoch {record['epoch']:.2f}"
      f"  {split:<10}  {figures}"
    )

  def say(self, text: str) -> None:
    """Prints a line, above the bar where there is one."""
    if self._bar.disable:
      print(text, flush=True)
    else:
      self._bar.console.print(text, highlight=False, markup=False)


def _read_object(file: Path) -> dict[str, Any]:
  found = json.loads(file.read_text())
  if not isinstance(found, dict):
    raise ValueError("it holds no JSON object")
  return found


def _replace(file: Path, text: str) -> None:
  new = file.with_suffix(".new")
  new.write_text(text)
  os.replace(new, file)
