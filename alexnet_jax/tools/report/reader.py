"""What runs and experiments have left in their folders, as far as it is whole.

Whatever is missing or damaged is left out and told in a line; nothing here
raises for what is inside of a run's folder.
"""

import collections
import csv
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.runs import config_files
from alexnet_jax.runtime import errors

DRAWN = ("loss", "top1_error", "top5_error", "learning_rate")
SPLITS = ("train", "validation", "test")
FINISHED = "finished"
_EXPERIMENT = "experiment"
# Columns of results.csv that are no figure of the run.
_ABOUT = (
  "arm seed digest commit device versions nets_in_program steps wall_s outcome"
).split()
_NEEDED = ("arm", "seed", "outcome")
_LARGEST_STEP = 2**53  # Beyond it a page could not tell steps apart.

# Of the lines of a split; None where all nets of an ensemble are meant.
Key = tuple[int | None, str]


@dataclasses.dataclass(frozen=True)
class Series:
  """The lines of one split, in the order of their steps.

  Attributes:
    step: float64 [N].
    epoch: float64 [N], NaN where a line has none.
    values: float64 [N] of each field, NaN where a line has none.
  """

  step: np.ndarray
  epoch: np.ndarray
  values: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Run:
  """A folder of one run.

  Attributes:
    name: that no other run has.
    folder: where it is.
    arm: of the experiment, or None.
    seed: as it is written in the experiment's table, or None.
    outcome: `finished`, or what else the table says; None if there is none.
    config: flattened.
    series: of each net and split.
    class_names: in the order of labels, or empty.
    confusions: as in `confusions.json`, or None.
  """

  name: str
  folder: Path
  arm: str | None
  seed: str | None
  outcome: str | None
  config: dict[str, Any]
  series: dict[Key, Series]
  class_names: tuple[str, ...]
  confusions: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Result:
  """A row of results.csv; a figure that is not there is left out."""

  arm: str
  seed: str
  outcome: str
  figures: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The table of an experiment.

  Attributes:
    name: that no other experiment has.
    columns: names of the figures, in their order.
    results: one for each arm and seed.
    effects: rows of effects.csv with their heading, or empty.
  """

  name: str
  columns: list[str]
  results: list[Result]
  effects: list[list[str]]


@dataclasses.dataclass(frozen=True)
class Found:
  """All that was read.

  Attributes:
    experiments: by name.
    runs: (name of the experiment or None, run).
    notes: a line for everything that is missing or damaged.
  """

  experiments: dict[str, Experiment]
  runs: list[tuple[str | None, Run]]
  notes: list[str]


def read(folders: Sequence[Path]) -> Found:
  """Reads runs, experiments and folders of runs.

  Args:
    folders: in any mixture; what is named twice is read once.

  Raises:
    InputError: a folder does not exist, or is none of these.
  """
  found = Found({}, [], [])
  names: set[str] = set()
  seen: set[Path] = set()

  def new_name(folder: Path) -> str:
    parts = folder.resolve().parts
    count = 1
    while (name := "/".join(parts[-count:])) in names:
      count += 1
    names.add(name)
    return name

  looked = [(folder, *_look_into(folder)) for folder in folders]
  # What is one of an experiment is not read as a run of its own before.
  looked.sort(key=lambda x: x[1] != _EXPERIMENT)
  for folder, kind, inside in looked:
    if kind != _EXPERIMENT:
      _tell_of_deeper(folder, found.notes)
      for run in inside:
        if run.resolve() not in seen:
          seen.add(run.resolve())
          held = read_run(run, new_name(run), found.notes)
          found.runs.append((None, held))
      continue
    if folder.resolve() in seen:
      continue
    seen.add(folder.resolve())
    experiment = read_experiment(folder, new_name(folder), found.notes)
    found.experiments[experiment.name] = experiment
    rows = {f"{r.arm}-{r.seed}": r for r in experiment.results}
    order = list(rows)
    inside.sort(key=lambda x: order.index(x.name) if x.name in rows else 1e9)
    without_row = []
    for path in inside:
      seen.add(path.resolve())
      row = rows.pop(path.name, None)
      arm, _, seed = path.name.rpartition("-")
      if row is None:
        without_row.append(path.name)
        row = Result(arm or path.name, seed if arm else "", "", {})
      held = read_run(path, new_name(path), found.notes, row)
      found.runs.append((experiment.name, held))
    _tell_of_unmatched(folder, without_row, list(rows), found.notes)
  return found


def _tell_of_unmatched(
  folder: Path, without_row: list[str], without_folder: list[str],
  notes: list[str],
) -> None:  # fmt: skip
  if without_row:
    notes.append(
      f"{_quote(folder)}: {errors.first_few(map(repr, without_row))} in no"
      " whole row of results.csv; among the curves, not in the tables."
    )
  if without_folder:
    notes.append(
      f"{_quote(folder)}: {errors.first_few(map(repr, without_folder))}"
      " without a folder in runs/; in the tables, not among the curves."
    )


def _tell_of_deeper(folder: Path, notes: list[str]) -> None:
  """Adds a line for folders of runs, and experiments, in a folder."""
  files = (*folder.glob("*/*/metrics.jsonl"), *folder.glob("*/runs/*/*.jsonl"))
  deeper = {folder / file.relative_to(folder).parts[0] for file in files}
  if deeper:
    notes.append(
      f"{errors.first_few(map(_quote, sorted(deeper)))}: there are more runs,"
      " which are not shown; name these folders."
    )


def _look_into(folder: Path) -> tuple[str, list[Path]]:
  """Returns `run`, `runs` or `experiment`, and the folders of its runs."""
  if not folder.exists():
    raise errors.InputError(
      f"{str(folder)!r} does not exist; name the folder of a run or of an"
      " experiment."
    )
  if (folder / "results.csv").is_file() and (folder / "runs").is_dir():
    return _EXPERIMENT, _runs_in(folder / "runs")
  if _is_run(folder):
    return "run", [folder]
  inside = _runs_in(folder) if folder.is_dir() else []
  if not inside:
    raise errors.InputError(
      f"{str(folder)!r} is no run (config.json, metrics.jsonl), no experiment"
      " (results.csv, runs/) and no folder of runs; name one, such as"
      " runs/quickstart."
    )
  return "runs", inside


def _is_run(folder: Path) -> bool:
  return any(
    (folder / name).is_file() for name in ("config.json", "metrics.jsonl")
  )


def _runs_in(folder: Path) -> list[Path]:
  try:
    return sorted(path for path in folder.iterdir() if _is_run(path))
  except OSError as e:
    raise errors.InputError(
      f"{str(folder)!r} cannot be read ({e.strerror}); make it readable."
    ) from e


def read_run(
  folder: Path, name: str, notes: list[str], row: Result | None = None
) -> Run:
  """Reads the folder of a run.

  Args:
    folder: of the run.
    name: for it.
    notes: gets a line for everything that is missing or damaged.
    row: of the run, if it is one of an experiment.
  """
  config = _read_json(folder / "config.json", dict, notes)
  if config is None and not (folder / "config.json").exists():
    notes.append(
      f"{_quote(folder)} has no config.json; its fields are unknown."
    )
  class_names = _read_json(folder / "class_names.json", list, notes) or []
  confusions = _read_json(folder / "confusions.json", dict, notes)
  if confusions is not None and not _are_confusions(confusions):
    notes.append(
      f"{_quote(folder / 'confusions.json')} is damaged (no counts of"
      " [label, predicted, count]); left out."
    )
    confusions = None
  series = read_series(folder, notes)
  flat = config_files.flatten(config or {})
  if row is None:
    _tell_of_unfinished(folder, flat, series, notes)
  return Run(
    name=name,
    folder=folder,
    arm=row.arm if row else None,
    seed=row.seed if row else None,
    outcome=row.outcome or None if row else None,
    config=flat,
    series=series,
    class_names=tuple(str(name) for name in class_names),
    confusions=confusions,
  )


def _tell_of_unfinished(
  folder: Path,
  config: dict[str, Any],
  series: dict[Key, Series],
  notes: list[str],
) -> None:
  """Adds a line for a run that has neither a test nor all of its steps."""
  trained = [s for (_, split), s in series.items() if split == "train"]
  if not trained or any(split == "test" for _, split in series):
    return
  # Without a test none can tell whether these have ended.
  ends_early = (
    config.get("schedule") == "plateau"
    or _number(config.get("stop_at_train_error")) > 0
  )
  if ends_early and config.get("test_split") == "":
    return
  step = max(s.step[-1] for s in trained)
  epoch = max(s.epoch[-1] for s in trained)
  steps, epochs = (
    _number(config.get(f"total_{x}")) for x in ("steps", "epochs")
  )
  if step < steps or (math.isnan(steps) and epoch < epochs - 0.005):
    whole = f"step {step:,.0f} of {steps:,.0f}"
    if math.isnan(steps):
      whole = f"epoch {epoch:.2f} of {epochs:g}"
    notes.append(f"{_quote(folder)} is not finished: it stands at {whole}.")


def _read_json(file: Path, kind: type, notes: list[str]) -> Any:
  """Returns what a file holds, None where it is missing or damaged."""
  if not file.exists():
    return None
  try:
    found = json.loads(file.read_bytes())
    if not isinstance(found, kind):
      raise ValueError(f"no {kind.__name__}")
  except (OSError, ValueError, RecursionError) as e:
    notes.append(f"{_quote(file)} is damaged ({_line(e)}); left out.")
    return None
  return found


def _are_confusions(found: dict[str, Any]) -> bool:
  counts = found.get("counts")
  return isinstance(counts, list) and all(
    isinstance(row, list)
    and len(row) == 3
    and all(type(x) is int and 0 <= x < _LARGEST_STEP for x in row)
    for row in counts
  )


def read_series(folder: Path, notes: list[str]) -> dict[Key, Series]:
  """Returns the lines of metrics.jsonl by net and split.

  Args:
    folder: of the run.
    notes: gets a line if there are none, and for each damaged one.
  """
  file = folder / "metrics.jsonl"
  try:
    content = file.read_bytes() if file.exists() else b""
  except OSError as e:
    notes.append(f"{_quote(file)} cannot be read ({e.strerror}); left out.")
    return {}
  rows: dict[Key, list[tuple]] = collections.defaultdict(list)
  fields = ("epoch", "images_per_second", *DRAWN)
  damaged, strange = [], 0
  lines = content.split(b"\n")
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
      key, step = _key_of(record)
    except (ValueError, RecursionError) as e:
      if number == len(lines):
        notes.append(
          f"{_quote(file)} ends in a cut line ({number}); the rest is shown."
        )
      else:
        damaged.append((number, _line(e)))
      continue
    figures = [_number(record.get(name)) for name in fields]
    strange += sum(
      math.isnan(figure) and record.get(name) is not None
      for name, figure in zip(fields, figures, strict=True)
    )
    rows[key].append((step, *figures))
  if damaged:
    numbers = errors.first_few((str(number) for number, _ in damaged), 10)
    notes.append(
      f"{_quote(file)} is damaged in line {numbers} ({damaged[0][1]});"
      " every other line is shown."
    )
  if strange:
    notes.append(
      f"{_quote(file)} has {strange} figures that are no finite number; they"
      " are left out."
    )
  if not rows:
    notes.append(f"{_quote(folder)} has no metrics; there are no curves of it.")
  return {key: _series(found, fields) for key, found in rows.items()}


def _key_of(record: Any) -> tuple[Key, int]:
  if not isinstance(record, dict):
    raise ValueError("no JSON object")
  step, split, member = (record.get(x) for x in ("step", "split", "member"))
  if type(step) is not int or not 0 <= step < _LARGEST_STEP:
    raise ValueError("it has no step")
  if not isinstance(split, str):
    raise ValueError("it has no split")
  return (member if type(member) is int else None, split), step


def _number(value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return math.nan
  try:
    return float(value) if math.isfinite(value) else math.nan
  except OverflowError:
    return math.nan


def _series(rows: list[tuple], fields: Sequence[str]) -> Series:
  table = np.array(rows, np.float64)
  table = table[np.argsort(table[:, 0], kind="stable")]
  values = dict(zip(fields, table.T[1:], strict=True))
  return Series(table[:, 0], values.pop("epoch"), values)


def read_experiment(folder: Path, name: str, notes: list[str]) -> Experiment:
  """Reads the tables of an experiment.

  Args:
    folder: of the experiment.
    name: for it.
    notes: gets a line for each row that is cut or doubled.

  Raises:
    InputError: results.csv has no arms, seeds and outcomes, or cannot be read.
  """
  file = folder / "results.csv"
  try:
    text = file.read_bytes().decode(errors="replace").removeprefix("\ufeff")
  except OSError as e:
    raise errors.InputError(
      f"{str(file)!r} cannot be read ({e.strerror}); make it readable."
    ) from e
  lines = csv_rows(text)
  _, header = next(lines, (0, []))
  missing = [column for column in _NEEDED if column not in header]
  if missing:
    raise errors.InputError(
      f"{str(file)!r} has no column {', '.join(missing)}; its first line must"
      f" name {', '.join(_NEEDED)} and figures."
    )
  columns = [column for column in header if column not in _ABOUT]
  results: dict[tuple[str, str], Result] = {}
  for number, cells in lines:
    if len(cells) != len(header):
      notes.append(
        f"{_quote(file)} has {len(cells)} of {len(header)} cells in line"
        f" {number}; that row is left out."
      )
      continue
    row = dict(zip(header, cells, strict=True))
    figures = {column: _figure(row[column]) for column in columns}
    if strange := [x for x in columns if figures[x] is None and row[x].strip()]:
      notes.append(
        f"{_quote(file)} has no number in line {number},"
        f" {errors.first_few(map(repr, strange))}; taken as empty."
      )
    if (row["arm"], row["seed"]) in results:
      notes.append(
        f"{_quote(file)} has {row['arm']!r} with seed {row['seed']!r} again in"
        f" line {number}, which is the one that is shown."
      )
    results[row["arm"], row["seed"]] = Result(
      row["arm"],
      row["seed"],
      row["outcome"],
      {name: value for name, value in figures.items() if value is not None},
    )
  if text and not text.endswith("\n"):
    notes.append(
      f"{_quote(file)} has no end of line after its last row, which may be cut."
    )
  return Experiment(
    name, columns, list(results.values()), _read_effects(folder, notes)
  )


def _read_effects(folder: Path, notes: list[str]) -> list[list[str]]:
  file = folder / "effects.csv"
  try:
    text = file.read_bytes().decode(errors="replace").removeprefix("\ufeff")
  except FileNotFoundError:
    return []
  except OSError as e:
    notes.append(f"{_quote(file)} cannot be read ({e.strerror}); left out.")
    return []
  rows = [cells for _, cells in csv_rows(text)]
  width = len(rows[0]) if rows else 0
  whole = [row for row in rows if len(row) == width]
  if len(whole) < len(rows):
    notes.append(
      f"{_quote(file)} has {len(rows) - len(whole)} rows that are cut; they are"
      " left out."
    )
  return whole


def csv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
  """Yields the number of each line that is not empty, and its cells.

  A row is a line, so that a quote which is lost costs no other row; of what is
  no row at all there are no cells.
  """
  for number, line in enumerate(text.split("\n"), start=1):
    line = line.removesuffix("\r").replace("\0", "\ufffd")
    if not line:
      continue
    try:
      cells = next(csv.reader([line], strict=True))
    except csv.Error:
      cells = []
    yield number, cells


def _figure(cell: str) -> float | None:
  try:
    value = float(cell)
  except ValueError:
    return None
  return value if math.isfinite(value) else None


def _quote(path: Path) -> str:
  return repr(str(path))


def _line(error: Exception) -> str:
  return " ".join(str(error).split())
