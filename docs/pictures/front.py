"""Draws front.png, the README's picture: the paper's Fig. 1 and Fig. 3.

  python docs/pictures/front.py

The curves are the nets of experiments/figure1, five seeds each. The filters
are those of experiments/pictures/filters.png.
"""

import csv
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parents[1] / "experiments"
FIGURE1 = EXPERIMENTS / "figure1"
# Arm of the experiment, colour, and where its label stands: passes, error.
CURVES = (
  ("relu", "ReLU", "#0072b2", (4.6, 35)),
  ("tanh", "tanh", "#d55e00", (21, 37)),
  ("sigmoid", "sigmoid", "#6b6b6b", (12, 60)),
)
TARGET = 25  # The training error in % up to which the passes are counted.
# In filters.png: the first pixel of each column and row of tiles, the side of
# a tile, and the pixels of a filter.
COLUMNS = [9 + round(44.27 * column) for column in range(16)]
ROWS = (7, 51, 103, 147)
SIDE = 38
FILTER = 5


def read_curve(folder: Path) -> np.ndarray:
  """Returns [N, 2]: passes over the training images, training error in %."""
  text = (folder / "metrics.jsonl").read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  lines = [line for line in lines if line["split"] == "train"]
  ends = np.array([0] + [line["epoch"] for line in lines])
  errors = [100 * line["top1_error"] for line in lines]
  return np.stack([(ends[1:] + ends[:-1]) / 2, errors], axis=1)


def read_passes(arm: str) -> float:
  """Returns the mean number of passes that an arm takes to the target."""
  with (FIGURE1 / "results.csv").open() as file:
    rows = [row for row in csv.DictReader(file) if row["arm"] == arm]
  return float(np.mean([float(row["epochs_to_target"]) for row in rows]))


def draw_curves(axes: Any) -> None:
  """Draws each net of each activation, and the paper's factor of six."""
  for arm, label, colour, place in CURVES:
    for seed in range(5):
      passes, error = read_curve(FIGURE1 / "runs" / f"{arm}-{seed}").T
      axes.plot(passes, error, color=colour, linewidth=1, alpha=0.75)
    axes.text(*place, label, color=colour, weight="bold")
  relu = read_passes("relu")
  axes.axhline(TARGET, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
  axes.plot([relu, 6 * relu], [TARGET - 7] * 2, "k|-", linewidth=1)
  axes.text(
    3.5 * relu,
    TARGET - 15,
    f"the paper: 6 times; here: {read_passes('tanh') / relu:.1f} times",
    ha="center",
  )
  axes.set(
    title="Fig. 1: ReLU learns sooner than tanh",
    xlabel="passes over CIFAR-10",
    ylabel="training error (%)",
    xlim=(0, 48),
    ylim=(0, 95),
  )


def read_filters() -> np.ndarray:
  """Returns uint8 [64, 5, 5, 3]: the filters of tower 1, then of tower 2."""
  image = Image.open(EXPERIMENTS / "pictures" / "filters.png").convert("RGB")
  at = ((np.arange(FILTER) + 0.5) * SIDE / FILTER).astype(int)
  pixels = np.asarray(image)
  return np.stack([pixels[y + at][:, x + at] for y in ROWS for x in COLUMNS])


def draw_filters(axes: Any) -> None:
  """Draws conv1's filters, a block of 4 x 8 for each tower."""
  step, gap, enlarged = 48, 18, 8
  canvas = np.full((8 * step + gap, 8 * step, 3), 255, np.uint8)
  for index, tile in enumerate(read_filters()):
    y = index // 8 * step + gap * (index >= 32)
    x = index % 8 * step
    tile = tile.repeat(enlarged, axis=0).repeat(enlarged, axis=1)
    canvas[y : y + len(tile), x : x + len(tile)] = tile
  axes.imshow(canvas)
  for tower in (1, 2):
    middle = (4 * tower - 2) * step + gap * (tower - 1) - 4
    axes.text(
      -8, middle, f"tower {tower}", rotation=90, ha="right", va="center"
    )
  axes.set_title("Fig. 3: conv1's filters")
  axes.axis("off")


def main() -> None:
  """Writes front.png."""
  style: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
  }
  with matplotlib.rc_context(style):
    figure, (left, right) = plt.subplots(
      1, 2, figsize=(9.6, 3.7), width_ratios=(1.75, 1), layout="constrained"
    )
    draw_curves(left)
    draw_filters(right)
    figure.savefig(HERE / "front.png", dpi=150)


if __name__ == "__main__":
  main()
