"""The folder of a run: its lock, its config, and what it knows of its data."""

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.data import statistics
from alexnet_jax.runs import checkpoint, config_files
from alexnet_jax.runtime import cli, errors, files, folders

PRETRAINED = Path(__file__).parents[1] / "pretrained"  # Of the package.
WEIGHTS = "weights.safetensors"  # From `convert`, instead of checkpoints.
# Fields that say where, how often and when to give up, not what is computed.
MAY_CHANGE_ON_RESUME = (
  "check_learning_after_steps", "checkpoint_every_minutes",
  "checkpoint_every_steps", "checkpoints_to_keep", "data_dir",
  "device_cache_fraction", "input_timeout_s", "layout", "log_every_steps",
  "microbatches", "reader_threads", "skip_nonfinite_steps", "steps_per_call",
  "test_split", "test_views",
)  # fmt: skip
LENGTH = "total_epochs", "total_steps"  # They may change under a condition.


def find_run(name: str | Path) -> Path:
  """Returns a run's folder: `pretrained` ships, ./pretrained is your own."""
  return PRETRAINED if name == "pretrained" else Path(name)


def holds_weights(workdir: Path) -> bool:
  """Returns whether a folder holds weights, and no checkpoints."""
  is_there = (workdir / WEIGHTS).is_file()
  return is_there and not checkpoint.steps_of(workdir)


def find_workdir(name: str | Path) -> Path:
  """Returns `find_run`; raises InputError if no run can be in that folder."""
  workdir = find_run(name)
  if workdir == PRETRAINED or holds_weights(workdir):
    raise errors.InputError(
      f"workdir={str(workdir)!r} is for weights alone, from which no run can"
      f" resume; start one by --config.init_from={shlex.quote(str(workdir))} in"
      " another --workdir."
    )
  return workdir


@contextlib.contextmanager
def claim_workdir(
  workdir: Path, config: ConfigDict, total_steps: int
) -> Iterator[tuple[int | None, Callable[[], bool]]]:
  """Locks a workdir until the process ends, and writes its `config.json`.

  Damaged checkpoints are moved aside. Yields the newest good step, and what
  says whether the workdir is still the folder that was locked. Raises
  InputError if it is locked, or holds a run whose config differs in more than
  `MAY_CHANGE_ON_RESUME`, or in a `total_steps` that would change steps which
  were taken; OSError if it cannot be written.
  """
  folders.check_path(workdir)
  find_workdir(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  with folders.hold(workdir) as is_held:
    if (workdir / "config.json").exists():
      _check_same_run(workdir, read_config(workdir), config)
    newest = checkpoint.quarantine_damaged(workdir)
    if newest is not None:  # Whatever has become of config.json.
      _, about = checkpoint.read_progress(workdir, newest)
      saved = _complete(about["config"])
      _check_same_run(workdir, saved, config)
      _check_length(workdir, saved, config, newest, total_steps)
    checkpoint.clean(workdir)
    write_config(workdir, config)
    yield newest, is_held


def _check_same_run(workdir: Path, saved: Any, config: ConfigDict) -> None:
  there, here = (
    config_files.flatten(json.loads(_to_json(each)))  # JSON has no tuples.
    for each in (saved, config)
  )
  for name in (*MAY_CHANGE_ON_RESUME, *LENGTH):
    there[name] = here[name]
  if differing := errors.differences(there, here):
    raise errors.InputError(
      f"workdir={str(workdir)!r} holds a run of another config: {differing}."
      " Choose another --workdir."
    )


def _check_length(
  workdir: Path, saved: Any, config: ConfigDict, taken: int, total_steps: int
) -> None:
  """Raises InputError if another length changes the steps that were taken."""
  there, here = ({name: x[name] for name in LENGTH} for x in (saved, config))
  why = f"it has taken {taken} steps" if total_steps <= taken else ""
  for name in ("schedule", "schedule_of_biases"):
    if config[name] in ("linear", "exp", "dexp"):
      why = f"with {name}={config[name]!r} the rate of each step depends on it"
  differing = errors.differences(there, here)
  if differing and why:
    layers = " --config.reinit_layers='()'" if config.reinit_layers else ""
    raise errors.InputError(
      f"workdir={str(workdir)!r} holds a run of another length: {differing};"
      f" {why}. Start another from its weights by --config.init_from="
      f"{shlex.quote(str(workdir))}{layers} --workdir=NEW."
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
    return _complete(json.loads(files.read(workdir / "config.json")))
  except (
    OSError, ValueError, TypeError, AttributeError, RecursionError
  ) as e:  # fmt: skip
    raise errors.InputError(
      f"workdir={str(workdir)!r} holds no run (config.json: {e}); choose"
      " another --workdir, or train one with alexnet train --workdir=DIR."
    ) from e


def _complete(saved: Any) -> ConfigDict:
  added = json.loads(config_files.load_config("alexnet").to_json())
  net = added["network"]
  for name in ["layers", *net["layers"]]:  # The run has its own.
    del net[name]
  saved["network"] = net | saved.get("network", {})
  return ConfigDict(added | saved).lock()


def has_statistics(workdir: Path) -> bool:
  """Whether a workdir has the statistics of its run."""
  return all((workdir / name).exists() for name in statistics.FILES)


def write_run_metadata(
  workdir: Path, class_names: tuple[str, ...], stats: statistics.Statistics
) -> None:
  """Writes what `read_run_metadata` reads."""
  statistics.write(workdir, stats)
  names = json.dumps(class_names, indent=2, ensure_ascii=False)
  replace_text(workdir / "class_names.json", names + "\n")


def read_run_metadata(
  workdir: Path, size_px: int
) -> tuple[tuple[str, ...], statistics.Statistics]:
  """Returns the class names and statistics that a run was trained with."""
  file = workdir / "class_names.json"
  try:
    class_names = tuple(json.loads(files.read(file)))
    if not all(isinstance(name, str) for name in class_names):
      raise ValueError("its names are no texts")
  except (OSError, ValueError, TypeError, RecursionError) as e:
    raise errors.InputError(
      f"workdir={str(workdir)!r} has no usable {file.name} ({e}); put a copy"
      " back, or remove it and resume the run, which writes it again."
    ) from e
  return class_names, statistics.read(workdir, size_px)
