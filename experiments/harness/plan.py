"""What an experiment is: arms, seeds and the question, as data."""

import dataclasses
import hashlib
import json
import runpy
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.runs import config_files, run_files
from alexnet_jax.runtime import cli, errors

HERE = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way to train.

  Attributes:
    name: in results.csv and folders.
    config: as `--config=` takes it.
    change: from the base, in words.
    fields: of the config, that differ from it.
    original: what the originals saw, with the source.
    sign: of the original's effect on the error beside the base arm: 1 if it is
      higher, -1 if lower, 0 if none is known.
    nets_of: the arm whose nets these are, if it only looks at them otherwise.
    metric: a column of results.csv, if not the experiment's.
    seeds: how many nets, of seeds from 0.
  """

  name: str
  config: str
  change: str = ""
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  original: str = ""
  sign: int = 0
  nets_of: str = ""
  metric: str = ""
  seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A question and the runs that answer it.

  Attributes:
    arms: the base first.
    metric: the column of results.csv that the arms are judged by.
    keeps_answers: whether the log probabilities that each net gives the test
      images are kept with its metrics.
  """

  arms: tuple[Arm, ...]
  metric: str
  keeps_answers: bool = False


def load(name: str) -> Experiment:
  """Returns `EXPERIMENT` of experiments/NAME/experiment.py.

  Raises:
    InputError: there is no such experiment, or two of its arms have one name.
  """
  known = [file.parent.name for file in HERE.glob("*/experiment.py")]
  if name not in known:
    raise errors.unknown("experiment", name, known)
  file = HERE / name / "experiment.py"
  experiment = runpy.run_path(str(file)).get("EXPERIMENT")
  if not isinstance(experiment, Experiment):
    raise errors.InputError(
      f"{file} has no EXPERIMENT; write one, an Experiment of"
      " experiments.harness.plan."
    )
  names = [arm.name for arm in experiment.arms]
  for arm in names:
    if names.count(arm) > 1:
      raise errors.InputError(
        f"{file} has the arm {arm!r} twice; give each a name of its own."
      )
  return experiment


def select(experiment: Experiment, names: Iterable[str]) -> tuple[Arm, ...]:
  """Returns the arms of these names, all if there are none, that train nets.

  Raises:
    InputError: there is no such arm, or it has no nets of its own.
  """
  by_name = {arm.name: arm for arm in experiment.arms if not arm.nets_of}
  nets_of = {arm.name: arm.nets_of for arm in experiment.arms if arm.nets_of}
  for name in names:
    if name in nets_of:
      raise errors.InputError(
        f"--only={name!r} trains nothing: its nets are those of"
        f" {nets_of[name]!r}; name that."
      )
    if name not in by_name:
      raise errors.unknown("--only", name, by_name)
  return tuple(by_name[name] for name in names) or tuple(by_name.values())


def config_of(arm: Arm, seed: int = 0, members: int = 1) -> ConfigDict:
  """Returns the whole config of a program that trains nets of an arm.

  Raises:
    InputError: the arm has a field that the config has not, or a value of
      another type.
  """
  config = config_files.load_config(str(HERE.parent / arm.config))
  fields = {**arm.fields, "seed": seed, "ensemble": members}
  try:
    with cli.config_told():
      config.update_from_flattened_dict(fields)
  except (errors.InputError, TypeError) as e:
    raise errors.InputError(f"arm {arm.name!r}: {e}") from e
  return config.copy_and_resolve_references().lock()


def digest_of(config: ConfigDict) -> str:
  """Returns twelve digits that tell what is trained, whatever the seed."""
  return digest_of_fields(fields_of(config.to_dict()))


def digest_of_fields(fields: Mapping[str, Any]) -> str:
  """Returns the digest of what `fields_of` tells."""
  text = json.dumps(fields, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def fields_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a config that tell what is trained, as in JSON."""
  free = {*run_files.MAY_CHANGE_ON_RESUME, "seed", "ensemble"}
  free.remove("data_dir")  # Here it stays where it is, and tells what is seen.
  free.remove("log_every_steps")  # It says when `stop_at_train_error` looks.
  fields = config_files.flatten(json.loads(json.dumps(config)))
  return {name: value for name, value in fields.items() if name not in free}


def command_of(name: str, arm: Arm, seed: int) -> str:
  """Returns the command that trains one net of an experiment's arm again."""
  fields = {**arm.fields, "seed": seed}
  words = ["python", "-m", "alexnet_jax.main", f"--config={arm.config}"]
  words += [f"--config.{name}={value}" for name, value in fields.items()]
  return shlex.join([*words, f"--workdir=runs/{name}/{arm.name}-{seed}"])
