"""The style of all figures, and how they are written.

They suit a column of 85 mm; fonts have 7 points and are embedded.
"""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import figure

from alexnet_jax.runtime import cli

STYLE: Any = {
  "pdf.fonttype": 42,
  "font.size": 7,
  "axes.titlesize": 7,
  "axes.linewidth": 0.6,
  "axes.spines.top": False,
  "axes.spines.right": False,
}


def save(plot: figure.Figure, file: Path, dpi: int = 300) -> None:
  """Writes a plot as PNG or PDF; the same plot gives the same bytes."""
  with matplotlib.rc_context(STYLE), cli.replacing(file) as new:
    undated = {"CreationDate": None} if file.suffix == ".pdf" else None
    plot.savefig(new, dpi=dpi, metadata=undated)


def plain(name: str, most: int = 28) -> str:
  """Returns a name as matplotlib should write it, cut to so many letters."""
  name = name.encode(errors="backslashreplace").decode()  # Of bytes, perhaps.
  short = name if len(name) <= most else f"{name[: most - 1]}…"
  return short.replace("$", r"\$")  # It would begin a formula.
