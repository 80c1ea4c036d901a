"""The architecture table of a config.

python -m alexnet_jax.summary --config=configs/alexnet.py
"""

import sys

from rich import box
from rich.console import Console
from rich.table import Table

from alexnet_jax import cli, networks


def table(network: networks.Network) -> Table:
  """Returns the table of a net: a line for every layer, and the totals."""
  side = network.input_size_px
  grid = Table("layer", box=box.SIMPLE_HEAD)
  for heading in ("output", "filters", "parameters", "MACs / image"):
    grid.add_column(heading, justify="right")
  grid.add_row("input", f"{side} x {side} x 3", "", "", "")
  rows = networks.rows(network)
  for row in rows:
    grid.add_row(
      _name(row.layer),
      " x ".join(map(str, row.output_shape)),
      _filters(row.layer),
      f"{row.parameters:,}" if row.parameters else "",
      f"{row.macs:,}" if row.macs else "",
    )
  grid.add_section()
  parameters = sum(row.parameters for row in rows)
  macs = sum(row.macs for row in rows)
  grid.add_row("total", "", "", f"{parameters:,}", f"{macs:,}")
  return grid


def _name(layer: networks.Layer) -> str:
  match layer:
    case networks.Conv() | networks.Dense():
      return layer.name
    case networks.Activation():
      return f"  {layer.function}"
    case networks.LocalResponseNorm():
      return f"  local response norm {layer.window}"
    case networks.MaxPool():
      return f"  max pool {layer.window} / {layer.stride}"
    case networks.AveragePool():
      return f"  average pool {layer.window} / {layer.stride}"
    case networks.Dropout():
      return f"  dropout {layer.rate:g}"
    case networks.Join():
      return "  towers join"


def _filters(layer: networks.Layer) -> str:
  if not isinstance(layer, networks.Conv):
    return ""
  towers = f"{layer.towers} x " if layer.towers > 1 else ""
  side, filters = layer.kernel, layer.filters // layer.towers
  return f"{towers}{filters} of {side} x {side} / {layer.stride}"


def main(_) -> None:
  """Runs the command."""
  config, _ = cli.config()
  console = Console(width=None if sys.stdout.isatty() else 100)
  console.print(table(networks.from_config(config)), highlight=False)


if __name__ == "__main__":
  cli.run(main, cli.define_config)
