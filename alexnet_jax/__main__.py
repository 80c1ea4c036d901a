"""The command line: `alexnet COMMAND`, or `python -m alexnet_jax COMMAND`."""

import importlib
import sys

# Each has `command()`. Imported when asked for: jax alone takes a second.
COMMANDS = {
  "train": ("main", "train a net, then test it"),
  "prepare": ("data.prepare.command", "turn images into a data set"),
  "evaluate": ("tools.evaluate", "errors of runs on a split"),
  "predict": ("tools.predict", "the likeliest classes of images"),
  "summary": ("tools.summary", "the layers of a config, shapes and counts"),
  "show": ("tools.show", "draw what the net sees of a data set"),
  "figures": ("tools.figures.command", "pictures of a trained net"),
  "report": ("tools.report.command", "runs and experiments as one HTML page"),
  "features": ("tools.features", "outputs of a layer for a split, as a file"),
  "probe": ("tools.probe", "a linear classifier on such a file"),
  "convert": ("tools.convert.command", "weights of other programs, in and out"),
  "plan": ("tools.plan.command", "memory and traffic of a layout, not run"),
  "checkpoint": ("tools.checkpoint", "verify or digest a run's checkpoints"),
}


def main() -> None:
  """Runs the command that the first word names."""
  name = sys.argv[1] if len(sys.argv) > 1 else "--help"
  if name in ("-h", "--help", "help"):
    print("usage: alexnet COMMAND [--FLAG=VALUE ...]\n")
    for command, (_, about) in COMMANDS.items():
      print(f"  {command:12} {about}")
    print("\n`alexnet COMMAND --help` lists the command's flags.")
    return
  if name not in COMMANDS:
    known = ", ".join(COMMANDS)
    sys.exit(f"error: {name!r} is no command; write one of {known}.")
  sys.argv[:2] = [f"alexnet {name}"]
  importlib.import_module(f"alexnet_jax.{COMMANDS[name][0]}").command()


if __name__ == "__main__":
  main()
