"""The folder of a run: its lock, its config, and what it knows of its data."""

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

# Fields that say where, how often and when to give up, not what is computed.
MAY_CHANGE_ON_RESUME = (
  "check_learning_after_steps", "checkpoint_every_minutes",
  "checkpoint_every_steps", "checkpoints_to_keep", "data_dir",
  "device_cache_fraction", "input_timeout_s", "layout", "log_every_steps",
  "microbatches", "reader_threads", "skip_nonfinite_steps", "steps_per_call",
)  # fmt: skip


@contextlib.contextmanager
def claim_workdir(workdir: Path, config: ConfigDict) -> Iterator[None]:
  """Locks a workdir, new or of the same run, and writes its `config.json`.

  The lock ends with the process, however that ends. The config may differ from
  the saved one in `MAY_CHANGE_ON_RESUME`.

  Raises:
    InputError: the workdir cannot be written, is locked by another process, or
      belongs to another config.
  """
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
      if (workdir / "config.json").exists():
        _check_same_run(workdir, config)
      write_config(workdir, config)
    yield


def _check_same_run(workdir: Path, config: ConfigDict) -> None:
  saved, asked = (
    config_files.flatten(json.loads(_to_json(each)))  # JSON has no tuples.
    for each in (read_config(workdir), config)
  )
  differing = [
    f"{name} ({saved.get(name)} there, {asked.get(name)} asked)"
    for name in sorted(saved | asked)
    if saved.get(name) != asked.get(name) and name not in MAY_CHANGE_ON_RESUME
  ]
  if differing:
    raise errors.InputError(
      f"workdir={str(workdir)!r} holds a run of another config:"
      f" {errors.first_few(differing)}. Choose another --workdir."
    )


@contextlib.contextmanager
def writing(workdir: Path) -> Iterator[None]:
  """Raises InputError if the workdir cannot be written in the block."""
  try:
    yield
  except OSError as e:
    raise errors.InputError(
      f"workdir={str(workdir)!r} cannot be written ({e.strerror}); make it"
      " writable, with room, or choose another with --workdir."
    ) from e


def replace_text(file: Path, text: str) -> None:
  """Writes a file; whoever reads it meanwhile sees the old or the new text."""
  new = file.with_suffix(".new")
  new.write_text(text, encoding="utf-8")
  os.replace(new, file)


def write_config(workdir: Path, config: ConfigDict) -> None:
  """Writes `config.json`."""
  replace_text(workdir / "config.json", _to_json(config) + "\n")


def _to_json(config: ConfigDict) -> str:
  return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def read_config(workdir: Path) -> Any:
  """Returns the config of a run; raises InputError if there is none.

  Fields that are newer than the run are as in configs/alexnet.py, which is what
  the code did before it had them.
  """
  try:
    saved = json.loads((workdir / "config.json").read_text())
    added = json.loads(config_files.load_config("alexnet").to_json())
    del added["network"]
    return ConfigDict(added | saved).lock()
  except (OSError, ValueError, TypeError, AttributeError) as e:
    raise errors.InputError(
      f"workdir={str(workdir)!r} holds no run (config.json: {e}); choose"
      " another --workdir, or train one with alexnet train --workdir=DIR."
    ) from e


def write_run_metadata(
  workdir: Path, class_names: tuple[str, ...], held: statistics.Statistics
) -> None:
  """Writes what `read_run_metadata` reads."""
  statistics.write(workdir, held)
  names = json.dumps(class_names, indent=2, ensure_ascii=False)
  # Written last: where it is, the statistics are complete.
  replace_text(workdir / "class_names.json", names + "\n")


def check_run_metadata(
  workdir: Path, dataset: records.Dataset, held: statistics.Statistics
) -> None:
  """Writes the class names and statistics of a new run, or compares them.

  Raises InputError if the run was trained on other data.
  """
  if not (workdir / "class_names.json").exists():
    write_run_metadata(workdir, dataset.class_names, held)
    return
  class_names, known = read_run_metadata(workdir)
  same_mean = np.array_equal(known.mean_image, held.mean_image)
  if class_names != dataset.class_names or not same_mean:
    raise errors.InputError(
      f"data_dir={str(dataset.directory)!r} has other classes or another mean"
      f" image than the run in {str(workdir)!r} was trained with; restore the"
      " data, or choose another --workdir."
    )


def read_run_metadata(
  workdir: Path,
) -> tuple[tuple[str, ...], statistics.Statistics]:
  """Returns the class names and statistics that a run was trained with.

  Raises InputError if they are missing or damaged.
  """
  file = workdir / "class_names.json"
  try:
    class_names = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(class_names, list) or not all(
      isinstance(name, str) for name in class_names
    ):
      raise ValueError("it is no list of names")
  except (OSError, ValueError) as e:
    raise errors.InputError(
      f"workdir={str(workdir)!r} has no usable {file.name} ({e}); train the run"
      " again."
    ) from e
  return tuple(class_names), statistics.read(workdir)
