"""The folder of a run: its lock, its config, and what it knows of its data."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.data import statistics
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

  The lock ends with the process, however that ends. Raises InputError if the
  workdir cannot be written, is locked, or holds a run whose config differs in
  more than `MAY_CHANGE_ON_RESUME`.
  """
  with contextlib.ExitStack() as stack:
    with errors.writing("workdir", workdir):
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
  there, here = (
    config_files.flatten(json.loads(_to_json(each)))  # JSON has no tuples.
    for each in (read_config(workdir), config)
  )
  for name in MAY_CHANGE_ON_RESUME:
    there[name] = here[name]
  if differing := errors.differences(there, here):
    raise errors.InputError(
      f"workdir={str(workdir)!r} holds a run of another config: {differing}."
      " Choose another --workdir."
    )


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
  workdir: Path, class_names: tuple[str, ...], stats: statistics.Statistics
) -> None:
  """Writes what `read_run_metadata` reads."""
  statistics.write(workdir, stats)
  names = json.dumps(class_names, indent=2, ensure_ascii=False)
  replace_text(workdir / "class_names.json", names + "\n")


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
