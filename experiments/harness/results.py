"""results.csv of an experiment: one row for each trained net."""

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
"""Errors are fractions. `wall_s` is the net's equal share of the training time
of its program; time lost in a killed try is not in it."""
_METRICS = COLUMNS[COLUMNS.index("epochs_to_target") :]

WORKDIRS = plan.HERE.parent / "runs" / "experiments"
FINISHED, AT_CHANCE, DIVERGED = "finished", "stuck at chance", "diverged"
_OUTCOMES = (FINISHED, AT_CHANCE, DIVERGED)


def file_of(name: str) -> Path:
  """Returns results.csv of an experiment."""
  return plan.HERE / name / "results.csv"


def folder_of(name: str, arm: str, seed: int) -> Path:
  """Returns the folder of a net's config, metrics and answers."""
  return plan.HERE / name / "runs" / f"{arm}-{seed}"


def programs(digest: str) -> Iterator[tuple[Path, int, int]]:
  """Yields workdir, first seed and number of nets of the programs begun."""
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
  text = file.read_text(errors="replace")
  reader = csv.DictReader(io.StringIO(text), strict=True)
  rows: dict[tuple[str, int], dict[str, str]] = {}
  try:
    if reader.fieldnames != COLUMNS:
      raise ValueError(f"it must be {','.join(COLUMNS)}")
    for row in reader:
      _check_row(row)
      net = row["arm"], int(row["seed"])
      if net in rows:
        raise ValueError(f"{net[0]!r}, seed {net[1]}, has two rows")
      rows[net] = row
    if not text.endswith("\n"):
      raise ValueError("its end is missing")
  except (csv.Error, ValueError) as e:
    raise errors.InputError(
      f"{file} is damaged in line {reader.line_num} ({e}); remove that line,"
      f" and python -m experiments.harness.run {name} adds it again."
    ) from e
  return list(rows.values())


def _check_row(row: Mapping[str, str]) -> None:
  """Raises ValueError for a row with an impossible value."""
  if None in row or None in row.values():
    raise ValueError(f"it does not have {len(COLUMNS)} cells")
  if int(row["seed"]) < 0:
    raise ValueError(f"seed is {row['seed']}")
  if row["outcome"] not in _OUTCOMES:
    raise ValueError(f"outcome {row['outcome']!r} is none of {_OUTCOMES}")
  for column in _METRICS:
    most = 1 if column.endswith("_error") else 1e9
    if not 0 <= float(row[column] or 0) <= most:
      raise ValueError(f"{column} is {row[column]}")


def whole(name: str) -> list[dict[str, str]]:
  """Returns the rows of an experiment that is complete.

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
  """Raises InputError for a row whose arm has another config by now.

  A config may have gained fields since, if their values are those of
  configs/alexnet.py, which is how nets were trained before these fields.

  Args:
    rows: of results.csv.
    configs: of each arm today.
    name: of the experiment.
  """
  for row in rows:
    arm, config = row["arm"], configs.get(row["arm"])
    if config is None:
      raise errors.unknown(f"{file_of(name)}: arm", arm, configs)
    digest = plan.digest_of(config)
    if row["digest"] != digest and not _only_gained_fields(name, row, config):
      raise errors.InputError(
        f"{file_of(name)} has a row of {arm!r} with config digest"
        f" {row['digest']}, but that arm's digest is {digest} now; remove its"
        " rows to train it again, or give the changed arm another name."
      )


def _only_gained_fields(name: str, row: Mapping[str, str], config: Any) -> bool:
  """Whether a config is the recorded one, plus fields that change nothing."""
  file = folder_of(name, row["arm"], int(row["seed"])) / "config.json"
  if not file.exists():
    return False
  base = config_files.load_config(str(config_files.CONFIGS / "alexnet.py"))
  defaults = plan.fields_of(base.to_dict())
  recorded = plan.fields_of(json.loads(file.read_text()))
  now = plan.fields_of(config.to_dict())
  return (
    plan.digest_of_fields(recorded) == row["digest"]
    and recorded.keys() <= now.keys()
    and all(
      value == recorded.get(name, defaults.get(name))
      for name, value in now.items()
    )
  )


def add(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
  """Appends rows, all or none of them; several programs may do so at once."""
  with _locked(file_of(name)) as file:
    known = read(name)
    have = {(row["arm"], row["seed"]) for row in known}
    fresh = [r for r in rows if (r["arm"], str(r["seed"])) not in have]
    new = file.with_suffix(".new")
    with new.open("w", newline="") as out:
      writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
      writer.writeheader()
      writer.writerows([*known, *fresh])
    os.replace(new, file)


def failures(rows: Sequence[Mapping[str, str]], arm: str) -> str:
  """Returns how many nets of an arm failed and how, such as "1 diverged"."""
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
    InputError: the net's wrong.npz is missing or damaged.
  """
  file = folder_of(name, arm, seed) / "wrong.npz"
  try:
    # np.load alone would leave a damaged file open.
    with file.open("rb") as data, np.load(data) as held:
      return np.unpackbits(held[metric], count=int(held["images"])).astype(bool)
  except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as e:
    raise errors.InputError(
      f"{file} cannot be read ({e}); restore it, or remove the row of {arm!r},"
      f" seed {seed}, and python -m experiments.harness.run {name} trains that"
      " net again."
    ) from e


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[Path]:
  with (file.parent / ".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield file
