"""The folder of a run: who holds it, and what the run knows of itself."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data import records, statistics
from alexnet_jax.runs import config_files
from alexnet_jax.runtime import errors

# They say where, how often and when to give up, not what is computed, so a run
# may change them.
MAY_CHANGE_ON_RESUME = (
  "checkpoint_every_minutes",
  "checkpoint_every_steps",
  "checkpoints_to_keep",
  "data_dir",
  "check_learning_after_steps",
  "device_cache_fraction",
  "input_timeout_s",
  "layout",
  "log_every_steps",
  "microbatches",
  "reader_threads",
  "skip_nonfinite_steps",
  "steps_per_call",
)


@contextlib.contextmanager
def claim_workdir(workdir: Path, config: ConfigDict) -> Iterator[None]:
  """Holds a workdir, new or of the same run, and writes `config.json` there.

  A run is the same if its config differs in `MAY_CHANGE_ON_RESUME` alone.

  Args:
    workdir: made if it does not exist.
    config: of this run.

  Yields:
    While no other process can claim it; the lock dies with the process.

  Raises:
    InputError: the workdir cannot be written, is held by another process, or
      belongs to another config.
  """
  file = workdir / "config.json"
  with contextlib.ExitStack() as stack:
    with writing(workdir):
      workdir.mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context((workdir / ".lock").open("w"))
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as e:
        raise errors.InputError(
          f"workdir={str(workdir)!r} is in use by another program; wait until"
          " it ends, or choose another --workdir."
        ) from e
      asked = config_files.flatten(json.loads(json.dumps(config.to_dict())))
      try:
        whole = _completed(_read_object(file)) if file.exists() else {}
      except ValueError as e:
        raise errors.InputError(f"{file} is damaged ({e}); remove it.") from e
      held = config_files.flatten(whole) or asked
      differing = [
        f"{name} ({held.get(name)} there, {asked.get(name)} asked)"
        for name in sorted(held | asked)
        if held.get(name) != asked.get(name)
        and name not in MAY_CHANGE_ON_RESUME
      ]
      if differing:
        shown = " ".join(errors.first_few(differing).split())
        raise errors.InputError(
          f"workdir={str(workdir)!r} holds a run of another config:"
          f" {shown}. Choose another --workdir."
        )
      write_config(workdir, config)
    yield


@contextlib.contextmanager
def writing(workdir: Path) -> Iterator[None]:
  """Raises InputError where a workdir turns out not to be writable."""
  try:
    yield
  except OSError as e:
    raise errors.InputError(
      f"workdir={str(workdir)!r} cannot be written ({e.strerror}); make it"
      " writable, with room, or choose another with --workdir."
    ) from e


def write_config(workdir: Path, config: ConfigDict) -> None:
  """Writes `config.json`."""
  text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
  _replace(workdir / "config.json", text + "\n")


def read_config(workdir: Path) -> Any:
  """Returns the config of a run.

  Raises:
    InputError: the workdir holds no run.
  """
  file = workdir / "config.json"
  try:
    return ConfigDict(_completed(_read_object(file))).lock()
  # An AttributeError is for a field that is called as a method is.
  except (OSError, ValueError, AttributeError) as e:
    raise errors.InputError(
      f"workdir={str(workdir)!r} holds no run ({file.name}: {e}); train one"
      " with alexnet train --workdir=DIR."
    ) from e


def _completed(config: dict[str, Any]) -> dict[str, Any]:
  """Returns a run's config with the fields that there were not yet.

  They are as in configs/alexnet.py, which is what was done without them.
  """
  base = config_files.load_config(
    str(config_files.CONFIGS / "alexnet.py")
  ).to_json()
  added = {k: v for k, v in json.loads(base).items() if k != "network"}
  return added | config


def _read_object(file: Path) -> dict[str, Any]:
  try:
    found = json.loads(file.read_text())
  except RecursionError as e:
    raise ValueError("it is nested too deeply") from e
  if not isinstance(found, dict):
    raise ValueError("it holds no JSON object")
  return found


def _replace(file: Path, text: str) -> None:
  new = file.with_suffix(".new")
  new.write_text(text)
  os.replace(new, file)


def write_run_metadata(
  workdir: Path, class_names: tuple[str, ...], held: statistics.Statistics
) -> None:
  """Writes what `kept` reads."""
  statistics.write(workdir, held)
  names = json.dumps(class_names, indent=2, ensure_ascii=False)
  # Where it is, all of them are whole.
  new = workdir / "class_names.new"
  new.write_text(names + "\n", encoding="utf-8")
  new.replace(workdir / "class_names.json")


def check_run_metadata(
  workdir: Path, dataset: records.Dataset, held: statistics.Statistics
) -> None:
  """Puts class names and statistics into a run's workdir, or compares them.

  Raises:
    InputError: the run was trained on other data.
  """
  if not (workdir / "class_names.json").exists():
    write_run_metadata(workdir, dataset.class_names, held)
    return
  class_names, known = read_run_metadata(workdir)
  for what, same in (
    ("classes", class_names == dataset.class_names),
    ("a mean image", np.array_equal(known.mean_image, held.mean_image)),
  ):
    if not same:
      raise errors.InputError(
        f"data_dir={str(dataset.directory)!r} has {what} other than the run in"
        f" {str(workdir)!r} was trained with; restore the data, or choose"
        " another --workdir."
      )


def read_run_metadata(
  workdir: Path,
) -> tuple[tuple[str, ...], statistics.Statistics]:
  """Returns the class names and statistics that a run was trained with.

  Raises:
    InputError: they are missing or damaged.
  """
  file = workdir / "class_names.json"
  try:
    class_names = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(class_names, list) or not all(
      isinstance(name, str) for name in class_names
    ):
      raise ValueError("it is no list of names")
  except (OSError, ValueError, RecursionError) as e:
    raise errors.InputError(
      f"workdir={str(workdir)!r} has no usable {file.name} ({e}); it is no run"
      " of this version: train it anew."
    ) from e
  return tuple(class_names), statistics.read(workdir)
