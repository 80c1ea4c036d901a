"""One HTML file about runs: curves, errors, configs, filters, confusions.

  alexnet report RUN_OR_EXPERIMENT... --output=report.html

RUN is a workdir, or a folder of several. EXPERIMENT is a folder with
`results.csv`, which has a row for each arm and seed, and `runs/ARM-SEED/`. The
file needs no network. `--figures=DIR` also draws plots for print.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from alexnet_jax.runtime import cli, errors
from alexnet_jax.tools.report import page, reader


def main(argv: Sequence[str]) -> None:
  """Runs the command."""
  options = flags.FLAGS
  output = Path(options.output)
  if len(argv) < 2:
    raise errors.InputError(
      "no run is named; write alexnet report runs/quickstart"
      " --output=report.html."
    )
  # A wrong name must not overwrite a file of a run.
  if output.suffix != ".html":
    raise errors.InputError(f"--output={options.output!r} must end in .html.")
  report = page.collect(reader.read([Path(name) for name in argv[1:]]))
  with cli.replacing(output) as new:
    new.write_text(page.render(report), encoding="utf-8")
  for note in report.found.notes:
    print(f"note: {note}", file=sys.stderr)
  size_mb = output.stat().st_size / 1e6
  print(f"wrote {output}: {len(report.found.runs)} runs, {size_mb:.2f} MB")
  if options.figures:
    from alexnet_jax.tools.figures import plots  # It takes a second.

    folder = Path(options.figures)
    cli.make_folder("--figures", folder)
    for name in plots.draw_all(report.groups, report.tables, folder):
      print(f"wrote {folder / name}")


def _define_flags() -> None:
  flags.DEFINE_string("output", "report.html", "HTML file to write.")
  flags.DEFINE_string("figures", None, "Folder for plots as PNG and PDF.")


def command() -> None:
  """`alexnet report`."""
  cli.run(main, _define_flags, takes_files=True)
