"""Config files: found, loaded, checked."""

import inspect
import re
import runpy
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from alexnet_jax.runtime import cli, errors

CONFIGS = Path(__file__).parents[2] / "configs"


def load_config(path: str) -> config_dict.ConfigDict:
  """Returns the config of `FILE.py` or `FILE.py:ARGUMENT`.

  Raises:
    InputError: there is no such file, or it refuses the argument.
  """
  file, colon, argument = path.partition(":")
  if not file.endswith(".py") or not Path(file).is_file():
    raise errors.InputError(
      f"{file!r} is no config file that exists; give one like"
      " configs/alexnet.py."
    )
  get_config = runpy.run_path(file).get("get_config")
  if get_config is None:
    raise errors.InputError(
      f"{file!r} has no get_config(); start from configs/alexnet.py."
    )
  parameters = inspect.signature(get_config).parameters.values()
  needed = any(p.default is inspect.Parameter.empty for p in parameters)
  if (needed and not argument) or (colon and not parameters):
    raise errors.InputError(
      f"{path!r}: {file} {'needs an' if needed else 'takes no'} argument after"
      f" a colon{', such as list' if needed else ''}."
    )
  try:
    return get_config(argument) if argument else get_config()
  except ValueError as e:
    raise errors.InputError(f"{path!r}: {e}.") from e


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns a nested config as one level of `a.b` names, as flags have them."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def define_config(default: Path = CONFIGS / "quickstart.py") -> None:
  """Defines `--config=FILE[:ARGUMENT]`.

  Args:
    default: the config where none is named.

  Raises:
    InputError: see `load_config`; or no such field in the config.
  """
  # ml_collections reports what is wrong with a file by a traceback of its own.
  asked = re.search(r"(?:^|\0)--?config[=\0]([^\0]*)", "\0".join(sys.argv))
  if asked:
    load_config(asked[1])
  # Overrides on the command line are looked up here, before flags are parsed,
  # unless a file is named: then they are when flags are.
  try:
    with cli.config_told():
      config_flags.DEFINE_config_file(
        "config", str(default), "Config file; --config.FIELD=VALUE overrides."
      )
  except (flags.Error, ValueError, TypeError, IndexError) as e:
    reason = " ".join(str(e).split())
    raise errors.InputError(f"bad --config flags: {reason}") from e


def config() -> tuple[config_dict.ConfigDict, str]:
  """Returns the config of the command line and a name for it."""
  path = config_flags.get_config_filename(flags.FLAGS["config"])
  file, _, argument = path.partition(":")
  # No comma: evaluate's --workdir is a list.
  name = "-".join(filter(None, (Path(file).stem, argument.replace(",", "+"))))
  return flags.FLAGS.config.copy_and_resolve_references(), name


def overridden() -> dict[str, Any]:
  """Returns the fields that the command line has set, as one level of names."""
  return config_flags.get_override_values(flags.FLAGS["config"])
