"""What a verdict leaves: a table in the README, a CSV file, a plot."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from alexnet_jax.runtime import errors
from alexnet_jax.tools.figures import plots


def fill(readme: Path, name: str, lines: Iterable[str]) -> None:
  """Puts lines between `<!-- NAME -->` and `<!-- end -->` of a README.

  Raises:
    InputError: the marks are not there.
  """
  text = readme.read_text() if readme.exists() else ""
  head, mark, rest = text.partition(f"<!-- {name} -->\n")
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
  """Writes rows under a heading."""
  with file.open("w", newline="") as out:
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def save_plot(figure: Figure, file: Path) -> None:
  """Writes FILE.png and FILE.pdf."""
  for ending in (".png", ".pdf"):
    plots.save(figure, file.with_suffix(ending))
