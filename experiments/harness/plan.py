"""An experiment as data: its arms, their seeds, and what judges them."""

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
"""The folder of all experiments."""


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way to train.

  Attributes:
    name: in results.csv and in the names of folders.
    config: as `--config=` takes it.
    change: what differs from the base, in words.
    fields: of the config, to be set.
    original: what the original authors saw, with the source.
    sign: of the original's effect on the error: 1 higher than the base, -1
      lower, 0 not known.
    points: the original's effect on the error, if it gives a number.
    of_paper: whether the paper claims this effect.
    caveat: what else may explain the difference.
    nets_of: the arm whose nets are judged, if this arm trains none.
    metric: the column of results.csv, if not the experiment's.
    seeds: number of nets; their seeds start from 0.
  """

  name: str
  config: str
  change: str = ""
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  original: str = ""
  sign: int = 0
  points: float | None = None
  of_paper: bool = False
  caveat: str = ""
  nets_of: str = ""
  metric: str = ""
  seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A question and the runs that answer it.

  Attributes:
    arms: the base first.
    metric: the column of results.csv that judges the arms.
    keeps_answers: whether each net's log probabilities of the test images are
      kept.
  """

  arms: tuple[Arm, ...]
  metric: str
  keeps_answers: bool = False


def load(name: str) -> Experiment:
  """Returns `EXPERIMENT` of experiments/NAME/experiment.py.

  Raises:
    InputError: there is no such experiment, or two of its arms share a name.
  """
  known = [file.parent.name for file in HERE.glob("*/experiment.py")]
  if name not in known:
    raise errors.unknown("experiment", name, known)
  file = HERE / name / "experiment.py"
  experiment = runpy.run_path(str(file)).get("EXPERIMENT")
  if experiment is None:
    raise errors.InputError(f"{file} must define EXPERIMENT.")
  names = [arm.name for arm in experiment.arms]
  for arm in names:
    if names.count(arm) > 1:
      raise errors.InputError(f"{file} has two arms {arm!r}; rename one.")
  return experiment


def select(experiment: Experiment, names: Iterable[str]) -> tuple[Arm, ...]:
  """Returns the named arms, or all arms that train nets if none is named.

  Raises:
    InputError: there is no such arm, or it trains no nets.
  """
  by_name = {arm.name: arm for arm in experiment.arms if not arm.nets_of}
  nets_of = {arm.name: arm.nets_of for arm in experiment.arms if arm.nets_of}
  for name in names:
    if name in nets_of:
      raise errors.InputError(
        f"--only={name!r} trains no nets: it judges those of"
        f" {nets_of[name]!r}; name that arm."
      )
    if name not in by_name:
      raise errors.unknown("--only", name, by_name)
  return tuple(by_name[name] for name in names) or tuple(by_name.values())


def config_of(arm: Arm, seed: int = 0, members: int = 1) -> ConfigDict:
  """Returns the config of a program that trains nets of an arm.

  Args:
    arm: of the nets.
    seed: of the first net.
    members: number of nets.

  Raises:
    InputError: the config lacks one of the arm's fields, or has another type.
  """
  config = config_files.load_config(str(HERE.parent / arm.config))
  fields = {**arm.fields, "seed": seed, "ensemble": members}
  try:
    with cli.refuse_unknown_fields():
      config.update_from_flattened_dict(fields)
  except (errors.InputError, TypeError) as e:
    raise errors.InputError(f"arm {arm.name!r}: {e}") from e
  return config.copy_and_resolve_references().lock()


def digest_of(config: ConfigDict) -> str:
  """Returns twelve hex digits that depend on all but the seed."""
  return digest_of_fields(fields_of(config.to_dict()))


def digest_of_fields(fields: Mapping[str, Any]) -> str:
  """Returns the digest of what `fields_of` returns."""
  text = json.dumps(fields, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def fields_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a config that decide what is trained, as in JSON."""
  free = {*run_files.MAY_CHANGE_ON_RESUME, "seed", "ensemble"}
  # An experiment's data and test decide its results.
  free -= {"data_dir", "test_split", "test_views"}
  free.remove("log_every_steps")  # It decides what training errors are of.
  fields = config_files.flatten(json.loads(json.dumps(config)))
  return {name: value for name, value in fields.items() if name not in free}


def command_of(name: str, arm: Arm, seed: int) -> str:
  """Returns the command that trains one net of an arm again."""
  fields = {**arm.fields, "seed": seed}
  words = ["alexnet", "train", f"--config={arm.config}"]
  words += [f"--config.{name}={value}" for name, value in fields.items()]
  return shlex.join([*words, f"--workdir=runs/{name}/{arm.name}-{seed}"])
