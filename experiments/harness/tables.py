"""What a verdict writes: a table in the README, a CSV file, a plot."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from alexnet_jax.runtime import errors
from alexnet_jax.tools.figures import plots


def fill(readme: Path, name: str, lines: Iterable[str]) -> None:
  """Replaces what stands between `<!-- NAME -->` and `<!-- end -->`.

  Raises:
    InputError: the README lacks these marks.
  """
  head, mark, rest = readme.read_text().partition(f"<!-- {name} -->\n")
  _, end, tail = rest.partition("<!-- end -->")
  if not (mark and end):
    raise errors.InputError(
      f"{readme} must have the lines <!-- {name} --> and <!-- end -->, between"
      " which the table goes; write them."
    )
  readme.write_text(head + mark + "\n".join(lines) + "\n" + end + tail)


def write_csv(
  file: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
  """Writes a header and rows."""
  with file.open("w", newline="") as out:
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def save_plot(figure: Figure, file: Path) -> None:
  """Writes FILE.png and FILE.pdf."""
  for suffix in (".png", ".pdf"):
    plots.save(figure, file.with_suffix(suffix))
