"""Pictures of a net and of what it makes of images, for print.

Each function draws one; `plots.save` writes it.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import figure

from alexnet_jax.runtime import errors
from alexnet_jax.tools.figures import plots

SUFFIXES = (".png", ".pdf")
OTHER, TRUE = "#0072b2", "#d55e00"
_PANELS_ACROSS = 4
_MAPS = 32  # That are drawn of a layer.
_NAMED_CLASSES = 40


def check_name(file: Path) -> None:
  """Raises InputError unless it is a .png or .pdf in a folder that exists."""
  if file.suffix not in SUFFIXES or not file.parent.is_dir():
    raise errors.InputError(
      f"{str(file)!r} must end in .png or .pdf, in a folder that exists."
    )


@matplotlib.rc_context(plots.STYLE)
def panel(
  shown: Sequence[tuple[Path, np.ndarray, dict[str, Any]]],
) -> figure.Figure:
  """Returns images over bars of their best classes, as the paper's Fig. 4.

  A known true class is written under its image; its bar has another colour.
  `shown` is as `predict.predictions` yields, without unreadable images.
  """
  across = min(_PANELS_ACROSS, len(shown))
  down = math.ceil(len(shown) / across)
  bars = 0.2 * max(len(found["top"]) for _, _, found in shown)
  size = 1.65 * across, (1.9 + bars) * down
  plot = figure.Figure(size, layout="constrained")
  heights = [1.55, bars] * down
  grid = plot.subplots(2 * down, across, height_ratios=heights, squeeze=False)
  for axes in grid.flat:
    axes.set_axis_off()
  for place, (path, image, found) in enumerate(shown):
    row, column = divmod(place, across)
    above, below = grid[2 * row : 2 * row + 2, column]
    above.imshow(image)
    weight = "bold" if found["true"] else "normal"
    _write_under(above, found["true"] or path.name, 24, weight)
    _draw_bars(below, found)
  return plot


def _write_under(axes: Any, text: str, most: int, weight: Any = None) -> None:
  text = plots.plain(text, most)
  place = {"transform": axes.transAxes, "ha": "center", "va": "top"}
  axes.text(0.5, -0.03, text, weight=weight, **place)


def _draw_bars(axes: Any, found: dict[str, Any]) -> None:
  """Draws the probabilities of the best classes, the best on top."""
  for row, each in enumerate(found["top"]):
    name = each["class"]
    colour, weight = OTHER, "normal"
    if name == found["true"]:  # Its bar may be too short to show the colour.
      colour, weight = TRUE, "bold"
    axes.barh(row, each["probability"], color=colour, alpha=0.45, height=0.86)
    axes.text(0.015, row, plots.plain(name), va="center", weight=weight)
  axes.set(xlim=(0, 1), ylim=(len(found["top"]) - 0.5, -0.5))


def sheet(pictures_NxHxWx3: np.ndarray, across: int) -> np.ndarray:
  """Returns uint8 pictures in rows of `across`, with gaps between them.

  The last axis is RGB and opacity; gaps are transparent.
  """
  count, height, width, _ = pictures_NxHxWx3.shape
  opacity = np.full((count, height, width, 1), 255, np.uint8)
  pixels = np.concatenate([pictures_NxHxWx3, opacity], axis=-1)
  pixels = np.pad(pixels, ((0, -count % across), (0, 1), (0, 1), (0, 0)))
  rows = pixels.reshape(-1, across, height + 1, width + 1, 4).swapaxes(1, 2)
  return rows.reshape(-1, across * (width + 1), 4)[:-1, :-1]


def scaled(arrays_NxHxWxC: np.ndarray, black: float = np.inf) -> np.ndarray:
  """Returns uint8 arrays, each scaled from its lowest to its highest value.

  The lowest value is at most `black`.
  """
  axes = (1, 2, 3)
  low = np.minimum(arrays_NxHxWxC.min(axis=axes, keepdims=True), black)
  high = arrays_NxHxWxC.max(axis=axes, keepdims=True)
  shares = (arrays_NxHxWxC - low) / np.maximum(high - low, 1e-12)
  return np.round(255 * shares).astype(np.uint8)


def tile_filters(kernel_HxWx3xN: np.ndarray, towers: int) -> np.ndarray:
  """Returns a sheet of filters, each scaled on its own (paper, Fig. 3).

  With two towers, the first half stands above a gap and the second below.
  """
  height, count = kernel_HxWx3xN.shape[0], kernel_HxWx3xN.shape[-1]
  across = min(16 if count >= 32 else 8, count // towers)
  pictures = scaled(np.moveaxis(kernel_HxWx3xN, -1, 0))
  blocks = [sheet(part, across) for part in np.split(pictures, towers)]
  gap = np.zeros((max(2, height // 2), blocks[0].shape[1], 4), np.uint8)
  parts = [part for block in blocks for part in (gap, block)]
  return np.concatenate(parts[1:])


def colourfulness(kernel_HxWx3xN: np.ndarray) -> np.ndarray:
  """Returns how much of each filter's energy is in colour, 0 to 1, [N].

  That is the share that is left without each pixel's mean over R, G and B.
  """
  grey = kernel_HxWx3xN.mean(axis=2, keepdims=True)
  chroma = ((kernel_HxWx3xN - grey) ** 2).sum(axis=(0, 1, 2))
  energy = (kernel_HxWx3xN**2).sum(axis=(0, 1, 2))
  return chroma / np.maximum(energy, np.finfo(energy.dtype).tiny)


@matplotlib.rc_context(plots.STYLE)
def filters(kernel_HxWx3xN: np.ndarray, towers: int) -> figure.Figure:
  """Returns conv1's filters, towers apart (the paper's Fig. 3).

  Beside each tower stands how much of its filters' energy is in colour; of
  noise it is two thirds.
  """
  picture = tile_filters(kernel_HxWx3xN, towers)
  parts = np.array_split(colourfulness(kernel_HxWx3xN), towers)
  height, width = picture.shape[:2]
  inches = 4.6
  plot = figure.Figure((inches + 1.3, inches * height / width + 0.1))
  axes = plot.add_axes((0.01, 0.01, inches / (inches + 1.3), 0.98))
  axes.imshow(picture, interpolation="nearest")
  axes.set_axis_off()
  for tower, part in enumerate(parts):
    name = f"tower {tower + 1}: " if towers > 1 else ""
    text = f"{name}{len(part)} filters,\n{part.mean():.0%} in colour"
    y = 1 - (tower + 0.5) / towers
    axes.text(1.02, y, text, transform=axes.transAxes, va="center")
  return plot


@matplotlib.rc_context(plots.STYLE)
def activations(
  image: np.ndarray, maps: dict[str, np.ndarray]
) -> figure.Figure:
  """Returns an image and the maps that each layer makes of it, [H, W, C].

  Black is the lowest value of a map, at most 0; white is its highest.
  """
  sheets, heights, width = {"image": image}, [1.2], 6.0
  for name, maps_HxWxC in maps.items():
    drawn = np.moveaxis(maps_HxWxC, -1, 0)[:_MAPS, :, :, None]
    grey = scaled(drawn, black=0)
    picture = sheet(grey.repeat(3, axis=3), min(16, len(drawn)))
    count = maps_HxWxC.shape[-1]
    if count > _MAPS:
      name += f", the first {_MAPS} of {count} maps"
    sheets[name] = picture
    heights.append(0.2 + width * picture.shape[0] / picture.shape[1])
  plot = figure.Figure((width, sum(heights)), layout="constrained")
  grid = plot.subplots(len(heights), 1, height_ratios=heights, squeeze=False)
  for axes, (title, picture) in zip(grid.flat, sheets.items(), strict=True):
    axes.imshow(picture, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, loc="left", pad=2)
  return plot


@matplotlib.rc_context(plots.STYLE)
def rows_of_images(
  rows: Sequence[tuple[str, Sequence[np.ndarray], Sequence[str]]],
) -> figure.Figure:
  """Returns rows of images, with a title each and a word under every image."""
  across = max(len(images) for _, images, _ in rows)
  plot = figure.Figure((1.0 * across, 1.3 * len(rows)), layout="constrained")
  grid = plot.subplots(len(rows), across, squeeze=False)
  for axes in grid.flat:
    axes.set_axis_off()
  for line, (title, images, words) in zip(grid, rows, strict=True):
    line[0].set_title(plots.plain(title), loc="left", pad=2)
    for axes, image, word in zip(line, images, words, strict=False):
      axes.imshow(image)
      _write_under(axes, word, 20)
  return plot


@matplotlib.rc_context(plots.STYLE)
def occlusion(
  image: np.ndarray, hidden: np.ndarray, probability: float, name: str, px: int
) -> figure.Figure:
  """Returns an image beside a class's probability with each part hidden.

  `hidden` [R, C] is the probability of the class `name` with a square of `px`
  pixels over that part, `probability` that with nothing hidden.
  """
  plot = figure.Figure((4.2, 2.2), layout="constrained")
  left, right = plot.subplots(1, 2)
  left.imshow(image)
  left.set_title(f"{plots.plain(name)}: {probability:.1%}", loc="left")
  drawn = right.imshow(
    hidden, cmap="viridis", vmin=0, vmax=max(probability, hidden.max()),
    extent=(0, image.shape[1], image.shape[0], 0), interpolation="nearest",
  )  # fmt: skip
  right.set_title(f"{px} x {px} pixels hidden there", loc="left")
  plot.colorbar(drawn, ax=right, label="probability")
  for axes in (left, right):
    axes.set_axis_off()
  return plot


@matplotlib.rc_context(plots.STYLE)
def confusion(counts: np.ndarray, names: Sequence[str]) -> figure.Figure:
  """Returns the confusion matrix, each row as shares of its label's images.

  `counts` [K, K] are images by label and predicted class. With many classes,
  names and shares are not written.
  """
  shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  few = len(names) <= _NAMED_CLASSES
  inches = max(2.4, 0.26 * len(names)) if few else 5.0
  plot = figure.Figure((inches + 1.2, inches + 0.7), layout="constrained")
  axes: Any = plot.subplots()
  drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
  if few:
    written = [plots.plain(name) for name in names]
    axes.set_xticks(range(len(names)), written, rotation=90)
    axes.set_yticks(range(len(names)), written)
    for (row, column), share in np.ndenumerate(shares):
      if round(share):
        colour = "white" if share > 50 else "black"
        style = {"color": colour, "ha": "center", "va": "center", "size": 6}
        axes.text(column, row, str(round(share)), **style)
  axes.set(xlabel="predicted", ylabel="label")
  plot.colorbar(drawn, ax=axes, label="% of the label's images", shrink=0.7)
  return plot
