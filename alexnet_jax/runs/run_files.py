"""The folder of a run: its lock, its config, and what it knows of its data."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.data import statistics
from alexnet_jax.runs import config_files
from alexnet_jax.runtime import cli, errors

# Fields that say where, how often and when to give up, not what is computed.
MAY_CHANGE_ON_RESUME = (
  "check_learning_after_steps", "checkpoint_every_minutes",
  "checkpoint_every_steps", "checkpoints_to_keep", "data_dir",
  "device_cache_fraction", "input_timeout_s", "layout", "log_every_steps",
  "microbatches", "reader_threads", "skip_nonfinite_steps", "steps_per_call",
)  # fmt: skip


@contextlib.contextmanager
def claim_workdir(workdir: Path, config: ConfigDict) -> Iterator[None]:
  """Locks a workdir until the process ends, and writes its `config.json`.

  Raises InputError if it is locked, or holds a run whose config differs in more
  than `MAY_CHANGE_ON_RESUME`; OSError if it cannot be written.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / ".lock").open("w") as lock:
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
  with cli.replacing(file) as new:
    new.write_text(text, encoding="utf-8")


def write_config(workdir: Path, config: ConfigDict) -> None:
  """Writes `config.json`."""
  replace_text(workdir / "config.json", _to_json(config) + "\n")


def _to_json(config: ConfigDict) -> str:
  return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def read_config(workdir: Path) -> Any:
  """Returns the config of a run; newer fields are as in configs/alexnet.py."""
  try:
    saved = json.loads((workdir / "config.json").read_text())
    added = json.loads(config_files.load_config("alexnet").to_json())
    net = added["network"]
    for name in ["layers", *net["layers"]]:  # The run has its own.
      del net[name]
    saved["network"] = net | saved.get("network", {})
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
  """Returns the class names and statistics that a run was trained with."""
  file = workdir / "class_names.json"
  try:
    class_names = tuple(json.loads(file.read_text(encoding="utf-8")))
  except (OSError, ValueError, TypeError) as e:
    raise errors.InputError(
      f"workdir={str(workdir)!r} has no usable {file.name} ({e}); train the run"
      " again."
    ) from e
  return class_names, statistics.read(workdir)
