"""The command line: `alexnet COMMAND`, or `python -m alexnet_jax COMMAND`."""

import importlib
import os
import sys

from alexnet_jax.runtime import cli, errors

# Modules with `main` and `define_flags`; they are imported when needed.
COMMANDS = {
  "train": ("main", "train a net, then test it"),
  "prepare": ("tools.prepare", "turn images into a data set"),
  "evaluate": ("tools.evaluate", "the errors of runs on a split"),
  "predict": ("tools.predict", "the most likely classes of images"),
  "summary": ("tools.summary", "the layers of a config, with their sizes"),
  "show": ("tools.show", "draw what the net sees of a data set"),
  "figures": ("tools.figures.command", "pictures of a trained net"),
  "report": ("tools.report.command", "runs and experiments as one HTML page"),
  "features": ("tools.features", "write a layer's outputs for a split"),
  "convert": ("tools.convert.command", "weights from and to other programs"),
  "plan": ("tools.plan.command", "the memory and traffic of a layout"),
  "checkpoint": ("tools.checkpoint", "verify or digest a run's checkpoints"),
}
TAKES_FILES = {"predict", "summary", "report", "checkpoint"}


def main() -> None:
  """Runs the command that the first word names."""
  name = sys.argv[1] if len(sys.argv) > 1 else "--help"
  if name in ("-h", "--help", "help"):
    print("usage: alexnet COMMAND [--FLAG=VALUE ...]\n")
    for command, (_, purpose) in COMMANDS.items():
      print(f"  {command:12} {purpose}")
    print("\n`alexnet COMMAND --help` lists the flags of a command.")
    return
  if name not in COMMANDS:
    print(
      f"error: {errors.unknown('command', name, COMMANDS)}", file=sys.stderr
    )
    sys.exit(1)
  sys.argv[:2] = [f"alexnet {name}"]
  os.environ["JAX_ENABLE_X64"] = "0"  # jax is imported now, if at all.
  module = importlib.import_module(f"alexnet_jax.{COMMANDS[name][0]}")
  cli.run(module.main, module.define_flags, name in TAKES_FILES)
