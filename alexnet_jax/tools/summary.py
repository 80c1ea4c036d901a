"""The architecture table of a config, or how two configs differ.

alexnet summary --config=configs/alexnet.py
alexnet summary --diff configs/alexnet.py configs/run145.py
"""

import difflib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table

from alexnet_jax import networks
from alexnet_jax.runs import config_files
from alexnet_jax.runtime import cli, errors

Line = tuple[str, str, str, str, str]
"""Layer, output, filters, parameters and MACs of a layer, in words."""


def lines(network: networks.Network) -> tuple[list[Line], Line]:
  """Returns a line for every layer of a net, and one for the totals."""
  side = network.input_size_px
  rows = networks.rows(network)
  layers = [("input", f"{side} x {side} x 3", "", "", "")]
  layers += [
    (
      _name(row.layer),
      " x ".join(map(str, row.output_shape)),
      _filters(row.layer),
      f"{row.parameters:,}" if row.parameters else "",
      f"{row.macs:,}" if row.macs else "",
    )
    for row in rows
  ]
  parameters = sum(row.parameters for row in rows)
  macs = sum(row.macs for row in rows)
  return layers, ("total", "", "", f"{parameters:,}", f"{macs:,}")


def _grid(*first: str) -> Table:
  grid = Table(*first, box=box.SIMPLE_HEAD)
  for heading in ("output", "filters", "parameters", "MACs / image"):
    grid.add_column(heading, justify="right")
  return grid


def table(network: networks.Network) -> Table:
  """Returns the table of a net: a line for every layer, and the totals."""
  layers, totals = lines(network)
  grid = _grid("layer")
  for line in layers:
    grid.add_row(*line)
  grid.add_section()
  grid.add_row(*totals)
  return grid


def difference(a: Any, b: Any) -> tuple[Table, Table]:
  """Returns how two configs differ: fields, and layers with their totals.

  Args:
    a: a whole config, its lines marked with -.
    b: another, its lines marked with +.
  """
  fields = Table("field", "-", "+", box=box.SIMPLE_HEAD)
  mine, theirs = (config_files.flatten(config.to_dict()) for config in (a, b))
  for name in sorted(mine | theirs):
    held, other = (side.get(name, "no such field") for side in (mine, theirs))
    if held != other:
      fields.add_row(name, str(held), str(other))
  grid = _grid("", "layer")
  (ours, total), (others, other_total) = (
    lines(networks.from_config(config)) for config in (a, b)
  )
  matcher = difflib.SequenceMatcher(None, ours, others, autojunk=False)
  for tag, i, j, k, m in matcher.get_opcodes():
    if tag != "equal":
      for sign, changed in (("-", ours[i:j]), ("+", others[k:m])):
        for line in changed:
          grid.add_row(sign, *line)
  if total != other_total:
    grid.add_section()
    grid.add_row("-", *total)
    grid.add_row("+", *other_total)
  return fields, grid


def _name(layer: networks.Layer) -> str:
  match layer:
    case networks.Conv() | networks.Dense():
      return layer.name
    case networks.Activation():
      return f"  {layer.function}"
    case networks.LocalResponseNorm():
      within = f"{layer.towers} towers, " if layer.towers > 1 else ""
      return f"  lrn {within}k {layer.k:g}, alpha {layer.alpha:g}"
    case networks.MapNorm():
      return f"  map norm {layer.window} x {layer.window}"
    case networks.MaxPool():
      inside = ", inside" * (not layer.ceil)
      return f"  max pool {layer.window} / {layer.stride}{inside}"
    case networks.AveragePool():
      return f"  average pool {layer.window} / {layer.stride}"
    case networks.Dropout():
      return f"  dropout {layer.rate:g}{', rescaled' * layer.rescaled}"
    case networks.Join():
      return "  towers join"
    case networks.Flatten():
      return "  flatten"


def _filters(layer: networks.Layer) -> str:
  if not isinstance(layer, networks.Conv | networks.Dense):
    return ""
  towers = f"{layer.towers} x " if layer.towers > 1 else ""
  if isinstance(layer, networks.Dense):
    return towers and f"{towers}{layer.units // layer.towers}"
  side, filters = layer.kernel, layer.filters // layer.towers
  padding = f" pad {layer.padding}" if layer.padding else ""
  return f"{towers}{filters} of {side} x {side} / {layer.stride}{padding}"


def main(argv: Sequence[str]) -> None:
  """Runs the command."""
  console = Console(width=None if sys.stdout.isatty() else 110)
  if not flags.FLAGS.diff and len(argv) == 1:
    config, _ = config_files.config()
    console.print(table(networks.from_config(config)), highlight=False)
    return
  if len(argv) != 3 or not flags.FLAGS.diff:
    raise errors.InputError(
      f"{len(argv) - 1} config files were given; write --config=FILE for one,"
      " or --diff FILE FILE for two."
    )
  overrides = [word for word in sys.argv if word.startswith("--config")]
  if overrides:
    raise errors.InputError(
      f"--diff compares files alone, without {overrides[0]}."
    )
  a, b = (config_files.load_config(path) for path in argv[1:])
  fields, grid = difference(a, b)
  if not fields.row_count:
    console.print("no field differs", highlight=False)
    return
  console.print(fields, highlight=False)
  if grid.row_count:
    console.print(grid, highlight=False)


def _define_flags() -> None:
  flags.DEFINE_bool("diff", False, "Compare two config files.")
  config_files.define_config()


def command() -> None:
  """`alexnet summary`."""
  cli.run(main, _define_flags, takes_files=True)
