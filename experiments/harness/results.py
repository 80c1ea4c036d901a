"""results.csv of an experiment: a row for each net that was trained."""

import contextlib
import csv
import fcntl
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.runs import config_files
from alexnet_jax.runtime import errors
from alexnet_jax.tools.report import reader
from experiments.harness import plan

COLUMNS = [
  "arm",
  "seed",
  "digest",
  "commit",
  "device",
  "versions",
  "nets_in_program",
  "steps",
  "wall_s",
  "outcome",
  "epochs_to_target",
  "train_error",
  "validation_error",
  "one_view_error",
  "ten_view_error",
]
"""Errors are fractions. `wall_s` is an equal share of the program's seconds of
training, without those of a try that was killed."""
_FIGURES = COLUMNS[COLUMNS.index("epochs_to_target") :]

WORKDIRS = plan.HERE.parent / "runs" / "experiments"
FINISHED = reader.FINISHED
CHANCE, DIVERGED = "stuck at chance", "diverged"
_OUTCOMES = (FINISHED, CHANCE, DIVERGED)


def file_of(name: str) -> Path:
  """Returns where the results of an experiment are."""
  return plan.HERE / name / "results.csv"


def folder_of(name: str, arm: str, seed: int) -> Path:
  """Returns where config, metrics and answers of a net are kept."""
  return plan.HERE / name / "runs" / f"{arm}-{seed}"


def programs(digest: str) -> Iterator[tuple[Path, int, int]]:
  """Yields workdir, first seed and number of nets of what was begun here."""
  for folder in sorted((WORKDIRS / digest).glob("*-*")):
    if program := re.fullmatch(r"(\d+)-(\d+)", folder.name):
      yield folder, int(program[1]), int(program[2])


def read(name: str) -> list[dict[str, str]]:
  """Returns the rows of an experiment.

  Raises:
    InputError: the file is damaged.
  """
  file = file_of(name)
  if not file.exists():
    return []
  try:
    text = file.read_text(errors="replace")
  except OSError as e:
    raise errors.InputError(
      f"{file} cannot be read ({e.strerror}); make it readable."
    ) from e
  lines = reader.csv_rows(text)
  _, head = next(lines, (1, []))
  if head != COLUMNS:
    raise errors.InputError(
      f"{file} is damaged in line 1: it must be {','.join(COLUMNS)}."
    )
  found = {}
  for number, cells in lines:
    try:
      row = _row(cells)
      net = row["arm"], int(row["seed"])
      if net in found:
        raise ValueError(f"{net[0]!r}, seed {net[1]}, has a row above")
      if number > text.count("\n"):
        raise ValueError("its end is missing")
    except ValueError as e:
      raise errors.InputError(
        f"{file} is damaged in line {number} ({e}); remove that line, and"
        f" python -m experiments.harness.run {name} puts it there again."
      ) from e
    found[net] = row
  return list(found.values())


def _row(cells: Sequence[str]) -> dict[str, str]:
  """Returns a row by column; raises ValueError for what can be none."""
  if len(cells) != len(COLUMNS):
    raise ValueError(f"it has {len(cells)} cells, not {len(COLUMNS)}")
  row = dict(zip(COLUMNS, cells, strict=True))
  if int(row["seed"]) < 0:
    raise ValueError(f"seed is {row['seed']}")
  if row["outcome"] not in _OUTCOMES:
    raise ValueError(f"outcome {row['outcome']!r} is none of {_OUTCOMES}")
  for column in _FIGURES:
    most = 1 if column.endswith("_error") else 1e9
    if not 0 <= float(row[column] or 0) <= most:
      raise ValueError(f"{column} is {row[column]}")
  return row


def whole(name: str) -> list[dict[str, str]]:
  """Returns the rows of an experiment, of which none is missing.

  Raises:
    InputError: a row is missing, damaged, or of another config.
  """
  rows = read(name)
  arms = plan.select(plan.load(name), ())
  check(rows, {arm.name: plan.config_of(arm) for arm in arms}, name)
  have = {(row["arm"], int(row["seed"])) for row in rows}
  for arm in arms:
    missing = [s for s in range(arm.seeds) if (arm.name, s) not in have]
    if missing:
      raise errors.InputError(
        f"{file_of(name)} has no row of {arm.name!r}, seeds"
        f" {', '.join(map(str, missing))};"
        f" python -m experiments.harness.run {name} trains them."
      )
  return rows


def check(
  rows: Sequence[Mapping[str, str]], configs: Mapping[str, Any], name: str
) -> None:
  """Raises InputError for a row of an arm that is another config now.

  Fields that have come since, whose first values change nothing, are no reason.

  Args:
    rows: of results.csv.
    configs: of each arm, as it is now.
    name: of the experiment.
  """
  for row in rows:
    arm, config = row["arm"], configs.get(row["arm"])
    if config is None:
      raise errors.unknown(f"{file_of(name)}: arm", arm, configs)
    digest = plan.digest_of(config)
    if row["digest"] != digest and not _has_grown(name, row, config):
      raise errors.InputError(
        f"{file_of(name)} has a row of {arm!r} with config digest"
        f" {row['digest']}, and that arm is {digest} now; remove its rows to"
        " train it anew, or give the changed arm another name."
      )


def _has_grown(name: str, row: Mapping[str, str], config: Any) -> bool:
  """Whether a config is that of a row but for fields that came after it.

  These must have the values of configs/alexnet.py, which change nothing. What
  the row's digest is of is kept beside its metrics.
  """
  file = folder_of(name, row["arm"], int(row["seed"])) / "config.json"
  if not file.exists():
    return False
  base = config_files.load_config(str(config_files.CONFIGS / "alexnet.py"))
  first = plan.fields_of(base.to_dict())
  held = plan.fields_of(json.loads(file.read_text()))
  now = plan.fields_of(config.to_dict())
  return (
    plan.digest_of_fields(held) == row["digest"]
    and held.keys() <= now.keys()
    and all(
      value == held.get(name, first.get(name)) for name, value in now.items()
    )
  )


def add(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
  """Appends rows, whole or not at all; programs may do so side by side."""
  with _locked(file_of(name)) as file:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    known = read(name)
    have = {(row["arm"], row["seed"]) for row in known}
    fresh = [r for r in rows if (r["arm"], str(r["seed"])) not in have]
    writer.writerows([*known, *fresh])
    new = file.with_suffix(".new")
    new.write_text(text.getvalue())
    os.replace(new, file)


def failures(rows: Sequence[Mapping[str, str]], arm: str) -> str:
  """Returns how many nets of an arm failed, and how, in words."""
  found = [row["outcome"] for row in rows if row["arm"] == arm]
  bad = [outcome for outcome in found if outcome != FINISHED]
  kinds = [f"{bad.count(kind)} {kind}" for kind in sorted(set(bad))]
  return f"{' and '.join(kinds)}, of {len(found)}" if bad else ""


def numbers(
  rows: Sequence[Mapping[str, str]], arm: str, metric: str
) -> dict[int, float]:
  """Returns a metric of the finished nets of an arm, by seed."""
  return {
    int(row["seed"]): float(row[metric])
    for row in rows
    if row["arm"] == arm and row["outcome"] == FINISHED and row[metric]
  }


def wrong(name: str, arm: str, seed: int, metric: str) -> np.ndarray:
  """Returns which test images a net got wrong, bool [N].

  Raises:
    InputError: its answers are gone, or damaged.
  """
  file = folder_of(name, arm, seed) / "wrong.npz"
  try:
    # Opened here: np.load leaves a damaged one open.
    with file.open("rb") as data, np.load(data) as held:
      return np.unpackbits(held[metric], count=int(held["images"])).astype(bool)
  except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as e:
    raise errors.InputError(
      f"{file} cannot be read ({e}); get it back, or remove the row of {arm!r},"
      f" seed {seed}, and"
      f" python -m experiments.harness.run {name} trains it anew."
    ) from e


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[Path]:
  with (file.parent / ".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield file
