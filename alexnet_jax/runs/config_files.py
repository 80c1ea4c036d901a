"""Configs: found by name or path, loaded, overridden by flags, checked."""

import runpy
from collections.abc import Collection
from pathlib import Path
from typing import Any

from absl import flags
from flax import traverse_util
from ml_collections import config_dict, config_flags

from alexnet_jax import augment, configs, networks, ops
from alexnet_jax.parallel import layouts
from alexnet_jax.runtime import cli, errors

CONFIGS = Path(configs.__path__[0])


def load_config(path: str) -> config_dict.ConfigDict:
  """Returns the config of `NAME` or `FILE.py`, either with `:ARGUMENT`."""
  name, _, argument = path.partition(":")
  file = find_config(name)
  try:
    get_config = runpy.run_path(str(file))["get_config"]
    found = get_config(argument) if argument else get_config()
    if not isinstance(found, config_dict.ConfigDict):
      raise TypeError(f"get_config() returns {found!r}, no ConfigDict")
  except (SyntaxError, ImportError, NameError, LookupError, TypeError) as e:
    raise errors.InputError(
      f"{path!r} cannot be loaded ({errors.reason(e)}); write get_config() as"
      " in configs/alexnet.py. It gets what follows a colon: ablations:list."
    ) from e
  except ValueError as e:
    raise errors.InputError(f"{path!r}: {e}.") from e
  return found


def find_config(name: str) -> Path:
  """Returns the file of a config, by its name in the package or its path."""
  if name.endswith(".py") or "/" in name:
    if not Path(name).is_file():
      raise errors.InputError(
        f"--config={name!r} does not exist; give a .py file or a config's name."
      )
    return Path(name)
  known = [path.stem for path in CONFIGS.glob("[a-z]*.py")]
  if name not in known:
    raise errors.unknown("--config", name, known)
  return CONFIGS / f"{name}.py"


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
  """Returns a nested config as one level, by the names that flags have: a.b."""
  return traverse_util.flatten_dict(tree, sep=".")


class _ConfigParser(flags.ArgumentParser):
  def parse(self, path: str) -> config_dict.ConfigDict:
    return load_config(path).lock()


def define_config(default: str = "quickstart") -> None:
  """Defines the flags `--config=NAME` and `--config.FIELD=VALUE`."""
  # Without --config the fields are looked up here, else when flags are parsed.
  with cli.refuse_unknown_fields():
    try:
      config_flags.DEFINE_config_file(
        "config",
        str(find_config(default)),
        "Name or file of a config, with :ARGUMENT if it takes one."
        " --config.FIELD=VALUE changes a field; configs/alexnet.py lists them.",
      )
    except (flags.Error, ValueError, TypeError, IndexError) as e:
      reason = " ".join(str(e).split())
      raise errors.InputError(f"bad --config flags: {reason}") from e
  flags.FLAGS["config"].parser = _ConfigParser()
  flags.FLAGS["config"].default_as_str = default


def config() -> tuple[config_dict.ConfigDict, str]:
  """Returns the config of the command line and a name for it."""
  path = config_flags.get_config_filename(flags.FLAGS["config"])
  file, _, argument = path.partition(":")
  # No comma: evaluate's --workdir is a list. No slash: it names a folder.
  changes, at, base = argument.replace(",", "+").partition("@")
  words = (Path(file).stem, f"{changes}{at}{Path(base).stem}")
  name = "-".join(filter(None, words))
  return flags.FLAGS.config.copy_and_resolve_references(), name


def overridden() -> dict[str, Any]:
  """Returns the fields that the command line sets, as one level of names."""
  return config_flags.get_override_values(flags.FLAGS["config"])


# The lowest and highest value of each number, also of those in tuples. Whole
# numbers have whole bounds; steps are counted in 32 bits.
COUNT = (1, 2**31 - 1)
POSITIVE, NOT_NEGATIVE = (1e-38, 2e9), (0.0, 2e9)
NORM = dict(k=(1e-6, 1e6), alpha=(0.0, 1e6), beta=(0.0, 100.0), window=(1, 99))
RANGES: dict[str, tuple[float, float]] = {
  "num_classes": (2, 2**31 - 1),
  "network.towers": (1, 2**20),
  "network.pool_window": (2, 11),
  "network.pool_stride": (1, 11),
  "network.dropout_rate": (0.0, 0.999),
  **{f"network.lrn.{name}": bounds for name, bounds in NORM.items()},
  **{f"network.map_norm.{name}": bounds for name, bounds in NORM.items()},
  "device_cache_fraction": (0.0, 1.0),
  "momentum": (0.0, 0.999999),
  "stop_at_train_error": (0.0, 0.999999),
  **dict.fromkeys(("target_factor", "target_factor_of_biases"), (1.0, 2e9)),
  **dict.fromkeys(("dexp_rates", "dexp_rates_of_biases"), (2, 1000)),
  "network.blur.sigma": (1e-3, 1e3),
  "network.blur.window": (1, 99),
  "network.blur.stride": (1, 99),
  **dict.fromkeys((
    "image_size_px", "crop_size_px", "images_per_view", "reader_threads",
    "steps_per_call", "batch_size", "batch_scaling_base", "microbatches",
    "fc_batch_size", "ensemble", "plateau_patience", "total_steps",
    "log_every_steps", "checkpoint_every_steps", "checkpoints_to_keep",
  ), COUNT),
  **dict.fromkeys((
    "seed", "plateau_drops", "check_learning_after_steps",
    "skip_nonfinite_steps",
  ), (0, 2**31 - 1)),
  **dict.fromkeys((
    "input_scale", "colour_noise_divisor", "colour_noise_epochs", "lars_trust",
    "learning_rate", "learning_rate_drop_factor", "learning_rate_drop_epochs",
    "total_epochs", "evaluate_every_epochs", "checkpoint_every_minutes",
    "input_timeout_s",
  ), POSITIVE),
  **dict.fromkeys((
    "colour_noise", "weight_decay", "learning_rate_of_biases",
    "learning_rate_of_reinit_layers", "warmup_epochs",
  ), NOT_NEGATIVE),
}  # fmt: skip
# Of a layer's row.
ROW_RANGES = {
  **dict.fromkeys(("filters", "units", "kernel", "stride"), (1, 2**20)),
  "padding": (0, 2**20),
  "sigma": (1e-12, 1e6),
  "bias": (-1e6, 1e6),
}
MAY_BE_NONE = ("colour_noise_epochs", "total_steps", "fc_batch_size")
TUPLES = ("input_scale", "learning_rate_drop_epochs")
CHOICES = {
  "test_views": augment.VIEWS,
  "compute_dtype": ("float32", "bfloat16"),
  "matmul_precision": ("default", "high", "highest"),
  "mean_crop": ("own place", "centre"),
  "network.initialization": ("sigma", "he"),
  "network.activation": tuple(ops.ACTIVATIONS),
  "optimizer": ("sgd", "lars"),
  "schedule": ("plateau", "epochs", "linear", "exp", "dexp"),
  "schedule_of_biases": ("weights", "constant", "dexp"),
  "batch_scaling": ("none", "linear", "sqrt"),
  "layout": layouts.LAYOUTS,
}


def check(config: Any) -> None:
  """Raises InputError for the first field of a config that breaks a rule."""
  fields = flatten(config.to_dict())
  with cli.refuse_unknown_fields():
    for name, value in flatten(load_config("alexnet").to_dict()).items():
      if isinstance(value, bool) and not name.startswith("network."):
        rule = f"{name}={fields[name]!r} must be True or False."
        _require(isinstance(fields[name], bool), rule)
    for name, bounds in RANGES.items():
      for value in fields[name] if name in TUPLES else (fields[name],):
        if value is not None or name not in MAY_BE_NONE:
          _check_number(name, value, bounds)
    for name, known in CHOICES.items():
      _check_known(name, fields[name], known)
  rows = _check_rows(config)
  _check_exceptions(fields, rows)
  _check_between(config)


def _check_number(name: str, value: Any, bounds: tuple[float, float]) -> None:
  low, high = bounds
  whole = isinstance(low, int)
  right = type(value) is int or (type(value) is float and not whole)
  if not right or not low <= value <= high:  # No comparison with NaN holds.
    raise errors.InputError(
      f"--config.{name}={value!r} must be {'whole, ' if whole else ''}at least"
      f" {low:.10g}, at most {high:.10g}."
    )


def _check_known(name: str, value: Any, known: Collection[Any]) -> None:
  if value not in known:
    raise errors.unknown(f"--config.{name}", value, known)


def _require(holds: bool, rule: str) -> None:
  """Raises InputError with a rule that begins with a field, as its flag."""
  if not holds:
    raise errors.InputError(f"--config.{rule}")


def _check_rows(config: Any) -> dict[str, Any]:
  """Checks the rows of the net; returns them, also those inside branches."""
  net = config.network.to_dict()
  known = [
    x for x, row in net.items() if isinstance(row, dict) and "then" in row
  ]
  rows: dict[str, Any] = {}

  def check_rows(field: str, names: Any) -> None:
    _require(
      isinstance(names, list | tuple),
      f"{field}={names!r} must be a tuple of names; one name needs a comma.",
    )
    for name in names:
      _check_known(field, name, known)
      _require(name not in rows, f"{field} names {name!r} twice; add a row.")
      row = rows[name] = net[name]
      for key, bounds in ROW_RANGES.items():
        has_no_bias = key == "bias" and "filters" in row and row[key] is None
        if key in row and not has_no_bias:
          _check_number(f"network.{name}.{key}", row[key], bounds)
      for word in row["then"]:
        _check_known(f"network.{name}.then", word, networks.LAYERS)
      for branch in row.get("branches", ()):
        check_rows(f"network.{name}.branches", branch)
      has_branches = row.get("branches", True)
      _require(bool(has_branches), f"network.{name}.branches names no row.")

  check_rows("network.layers", net["layers"])
  layers, classes = tuple(net["layers"]), config.num_classes
  _require(
    bool(layers) and net[layers[-1]].get("units") == classes,
    f"network.layers={layers} must end in a fully connected layer of"
    f" --config.num_classes={classes} units.",
  )
  return rows


def _check_exceptions(fields: dict[str, Any], rows: dict[str, Any]) -> None:
  """Checks the fields that name layers."""
  layers = [name for name, row in rows.items() if "sigma" in row]
  arrays = [f"{layer}/{x}" for layer in layers for x in ("kernel", "bias")]
  for layer in fields["reinit_layers"]:
    _check_known("reinit_layers", layer, layers)
  for field, parts in {
    "weight_decay_of_layers": {"layer": layers, "decay": NOT_NEGATIVE},
    "learning_rate_of_layers": {
      "epoch": NOT_NEGATIVE, "layer": layers + arrays, "rate": NOT_NEGATIVE,
    },
    "network.dropout_rate_of_layers": {
      "layer": [name for name, row in rows.items() if "dropout" in row["then"]],
      "rate": RANGES["network.dropout_rate"],
    },
  }.items():  # fmt: skip
    for entry in fields[field]:
      _require(
        isinstance(entry, list | tuple) and len(entry) == len(parts),
        f"{field} holds {entry!r}, which is not ({', '.join(parts)}).",
      )
      for (part, allowed), value in zip(parts.items(), entry, strict=True):
        if part == "layer":
          _check_known(field, value, allowed)
        else:
          _check_number(f"{field}: {part}", value, allowed)


def _check_between(c: Any) -> None:
  """Checks fields that depend on each other."""
  net = c.network
  for centred in ("lrn", "map_norm", "blur"):
    size = net[centred].window
    rule = f"network.{centred}.window={size} must be odd: it is centred."
    _require(size % 2 == 1, rule)
  _require(
    net.pool_stride <= net.pool_window,
    f"network.pool_stride={net.pool_stride} must be at most"
    f" --config.network.pool_window={net.pool_window}, or pixels are left out.",
  )
  _require(
    len(c.input_scale) == 3,
    f"input_scale={tuple(c.input_scale)} must be three numbers.",
  )
  _require(
    c.crop_size_px <= c.image_size_px,
    f"crop_size_px={c.crop_size_px} must be at most"
    f" --config.image_size_px={c.image_size_px}.",
  )
  _require(
    c.schedule != "plateau" or bool(c.validation_split),
    "schedule='plateau' watches the validation error, but"
    " --config.validation_split is ''; name a split, or pass"
    " --config.schedule=linear.",
  )
