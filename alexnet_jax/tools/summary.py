"""The layers of a config with shapes and counts, or how two configs differ.

alexnet summary --config=alexnet
alexnet summary --diff alexnet run145
"""

import dataclasses
import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table

from alexnet_jax import model, networks
from alexnet_jax.runs import config_files
from alexnet_jax.runtime import errors

Line = tuple[str, str, str, str, str]
"""Name, output shape, settings, parameters and MACs of a layer, as text."""

# Fields that other columns show, or that matter only in training.
_HIDDEN = (
  "name", "parent", "filters", "units", "bias", "dropout_index", "axis",
  "output_dtype", "branches",
)  # fmt: skip


def lines(network: model.Network) -> list[Line]:
  """Returns a line per layer, the total, and the shares of conv and fc."""
  side = network.input_size_px
  rows = networks.rows(network)
  found = [("input", f"{side} x {side} x 3", "", "", "")]
  found += [
    (
      _name(row.layer),
      " x ".join(map(str, row.output_shape)),
      _settings(row.layer),
      f"{row.parameters:,}" if row.parameters else "",
      f"{row.macs:,}" if row.macs else "",
    )
    for row in rows
  ]

  def counts(kind: type[model.Layer]) -> tuple[int, int]:
    of_kind = [row for row in rows if isinstance(row.layer, kind)]
    parameters = sum(row.parameters for row in of_kind)
    return parameters, sum(row.macs for row in of_kind)

  parameters, macs = counts(model.Layer)
  found.append(("total", "", "", f"{parameters:,}", f"{macs:,}"))
  for name, kind in (("conv", model.Conv), ("fc", model.Dense)):
    own, own_macs = counts(kind)
    shares = f"{own / parameters:.1%}", f"{own_macs / macs:.1%}"
    found.append((f"  {name} layers", "", "", *shares))
  return found


def table(network: model.Network) -> Table:
  """Returns the table of a net, its totals apart."""
  grid = _grid("layer")
  for line in lines(network):
    if line[0] == "total":
      grid.add_section()
    grid.add_row(*line)
  return grid


def difference(a: Any, b: Any) -> tuple[Table, Table]:
  """Returns how two configs differ: in fields, and in layers and totals."""
  fields = Table("field", "-", "+", box=box.SIMPLE_HEAD)
  flat_a, flat_b = (config_files.flatten(x.to_dict()) for x in (a, b))
  for name in sorted(flat_a | flat_b):
    old, new = (flat.get(name, "no such field") for flat in (flat_a, flat_b))
    if old != new:
      fields.add_row(name, str(old), str(new))
  layers = _grid("", "layer")
  lines_a, lines_b = (lines(networks.from_config(c)) for c in (a, b))
  matcher = difflib.SequenceMatcher(None, lines_a, lines_b, autojunk=False)
  for tag, i, j, k, m in matcher.get_opcodes():
    if tag != "equal":
      for line in lines_a[i:j]:
        layers.add_row("-", *line)
      for line in lines_b[k:m]:
        layers.add_row("+", *line)
  return fields, layers


def _grid(*first: str) -> Table:
  grid = Table(*first, "output", "settings", box=box.SIMPLE_HEAD)
  for heading in ("parameters", "MACs / image"):
    grid.add_column(heading, justify="right")
  return grid


def _name(layer: model.Layer) -> str:
  """Returns the name of a layer with weights, else the name of its class."""
  words = re.findall("[A-Z][a-z]+", type(layer).__name__)
  return layer.name or f"  {' '.join(words).lower()}"


def _settings(layer: model.Layer) -> str:
  """Returns the fields of a layer, without defaults of 0, 1 or None."""
  found = []
  for field in dataclasses.fields(layer):
    value = getattr(layer, field.name)
    is_plain = value == field.default and value in (0, 1, None)
    is_initial = field.name == "sigma" and isinstance(layer, model.Weighted)
    if field.name in _HIDDEN or is_plain or is_initial:
      continue
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if not isinstance(value, str):
      text = f"{field.name.replace('_', ' ')} {text}"
    found.append(text)
  return ", ".join(found)


def main(argv: Sequence[str]) -> None:
  console = Console(
    width=None if sys.stdout.isatty() else 130, highlight=False, markup=False
  )
  if not flags.FLAGS.diff and len(argv) == 1:
    config, _ = config_files.config()
    config_files.check(config)
    console.print(table(networks.from_config(config)))
    return
  if len(argv) != 3 or not flags.FLAGS.diff:
    raise errors.InputError(
      f"{len(argv) - 1} configs are named; write --config=NAME for one, or"
      " --diff NAME NAME for two."
    )
  if config_files.overridden():
    raise errors.InputError(
      "--diff compares two configs as they are; drop --config.FIELD=VALUE."
    )
  a, b = (config_files.load_config(path) for path in argv[1:])
  for config in (a, b):
    config_files.check(config)
  fields, layers = difference(a, b)
  if not fields.row_count:
    console.print("no field differs")
    return
  console.print(fields)
  if layers.row_count:
    console.print(layers)


def define_flags() -> None:
  flags.DEFINE_bool("diff", False, "Compare two configs.")
  config_files.define_config()
