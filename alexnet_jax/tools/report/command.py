"""One HTML file about runs: curves, errors, config differences.

  alexnet report RUN_OR_EXPERIMENT... --output=report.html

RUN is a workdir, or a folder of several. EXPERIMENT is a folder with
`results.csv`, which has a row for each arm and seed, and `runs/ARM-SEED/`. The
file needs no network.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from alexnet_jax.runtime import cli, errors
from alexnet_jax.tools.report import page, reader


def main(argv: Sequence[str]) -> None:
  output = Path(flags.FLAGS.output)
  if len(argv) < 2:
    raise errors.InputError(
      "no run is named; write alexnet report runs/quickstart"
      " --output=report.html."
    )
  # A wrong name must not overwrite a file of a run.
  if output.suffix != ".html":
    raise errors.InputError(f"--output={str(output)!r} must end in .html.")
  found = reader.read([Path(name) for name in argv[1:]])
  with cli.replacing(output) as new:
    new.write_text(page.render(found), encoding="utf-8")
  for note in found.notes:
    cli.echo(f"note: {note}", sys.stderr)
  size_mb = output.stat().st_size / 1e6
  cli.echo(f"wrote {output}: {len(found.runs)} runs, {size_mb:.2f} MB")


def define_flags() -> None:
  flags.DEFINE_string("output", "report.html", "File to write.")
