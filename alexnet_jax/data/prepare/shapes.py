"""Draws a data set: one big shape per picture on a cluttered ground.

Each shape has a random pose, colour and texture, among fragments of shapes and
under thin bars. Colours do not depend on the class, so a classifier has to find
the outline. Shapes are signed distances, negative inside, in the unit circle.
"""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from alexnet_jax.data.prepare import shards

Array = np.ndarray
Distance = Callable[[Array, Array], Array]


def _rotate(x: Array, y: Array, angle_rad: float) -> tuple[Array, Array]:
  cos, sin = math.cos(angle_rad), math.sin(angle_rad)
  return cos * x - sin * y, sin * x + cos * y


def _box(x: Array, y: Array, half_x: float, half_y: float) -> Array:
  return np.maximum(np.abs(x) - half_x, np.abs(y) - half_y)


def _star(x: Array, y: Array) -> Array:
  # Five lines bound a pentagram; its inside is beyond at most one of them.
  sides = [_rotate(x, y, math.tau * k / 5)[0] - 0.31 for k in range(5)]
  return np.sort(sides, axis=0)[-2]


def _crescent(x: Array, y: Array) -> Array:
  return np.maximum(np.hypot(x, y) - 1, 0.8 - np.hypot(x - 0.5, y))


def _heart(x: Array, y: Array) -> Array:
  u, v = _rotate(x, y, math.tau / 8)
  lobes = np.minimum(np.hypot(u - 0.5, v), np.hypot(u, v - 0.5)) - 0.5
  return np.minimum(_box(u, v, 0.5, 0.5), lobes)


def _arrow(x: Array, y: Array) -> Array:
  head = np.maximum(0.8 * np.abs(x) + 0.6 * (y - 1), -y)
  return np.minimum(head, _box(x, y + 0.45, 0.2, 0.5))


def _ell(x: Array, y: Array) -> Array:
  stem, foot = _box(x + 0.33, y, 0.22, 0.8), _box(x, y + 0.58, 0.55, 0.22)
  return np.minimum(stem, foot)


_SHAPES: dict[str, Distance] = {
  "disk": lambda x, y: np.hypot(x, y) - 0.9,
  "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.22,
  "triangle": lambda x, y: np.maximum(0.866 * np.abs(x) + y / 2, -y) - 0.5,
  "square": lambda x, y: _box(x, y, 0.7, 0.7),
  "star": _star,
  "cross": lambda x, y: np.minimum(_box(x, y, 0.9, 0.3), _box(x, y, 0.3, 0.9)),
  "crescent": _crescent,
  "heart": _heart,
  "arrow": _arrow,
  "ell": _ell,
}
CLASSES: tuple[str, ...] = tuple(_SHAPES)


def _colour(rng: np.random.Generator) -> Array:
  return rng.random((3, 1, 1), np.float32)


def _wave(phase: Array) -> Array:
  """Returns a sine-like wave of period 1, of arithmetic alone."""
  ramp = 4 * np.abs(phase - np.rint(phase)) - 1
  return ramp * (1.5 - 0.5 * ramp * ramp)


def _texture(rng: np.random.Generator, x: Array, y: Array) -> Array:
  """Draws a random pattern over x and y: [3, h, w] offsets within +-1/4."""
  u, v = _rotate(x, y, rng.uniform(0, math.tau))
  pitch, kind = rng.uniform(0.8, 2.2), rng.integers(4)
  if kind == 0:
    field = u / 1.5
  elif kind == 1:
    field = np.clip(3 * _wave(pitch * u), -1, 1)
  elif kind == 2:
    field = np.clip(4 * _wave(pitch * u) * _wave(pitch * v), -1, 1)
  else:
    waves = rng.uniform(-1, 1, (3, 3)).tolist()
    field = sum(_wave(a * u + b * v + c) for a, b, c in waves) / 2
  return (_colour(rng) - 0.5) / 3 * field


def _paint(
  rng: np.random.Generator,
  canvas: Array,
  shape: Distance,
  colour: Array,
  reach: float,
  shift: float,
  cut: float = np.inf,
) -> None:
  """Paints a randomly posed, textured shape onto a canvas, in place.

  The canvas is float32 [5, S, S]: x and y from -1 to 1, red, green, blue.
  `reach` is the radius of the circle around the shape and `shift` the largest
  move of its centre, in half image sides. The shape ends at x = `cut`.
  """
  size_px = canvas.shape[1]
  turn, lean = rng.uniform(0, math.tau, 2).tolist()
  centre, squeeze = rng.uniform(-shift, shift, (2, 1)), rng.uniform(0.72, 1)
  # Most shapes are small; working on their surroundings alone saves time.
  edges = (centre + [-reach, reach] + 1) / 2 * size_px + [-1, 2]
  (left, right), (top, bottom) = np.clip(edges, 0, size_px).astype(int)
  patch = canvas[:, top:bottom, left:right]
  # A squeeze along a random direction covers stretch and shear. It only
  # shrinks, so the shape stays inside its reach.
  centre_x, centre_y = centre.astype(np.float32)
  x, y = (patch[0, :1] - centre_x) / reach, (patch[1, :, :1] - centre_y) / reach
  x, y = _rotate(x, y, turn)
  x, y = _rotate(x, y / squeeze, lean)
  distance_px = np.maximum(shape(x, y), x - cut) * (reach * size_px / 2)
  cover = np.clip(0.5 - distance_px, 0, 1)
  patch[2:] += cover * (colour + _texture(rng, x, y) - patch[2:])


def draw(label: int, seed: Sequence[int], size_px: int = 64) -> np.ndarray:
  """Draws a picture of CLASSES[label], uint8 [S, S, 3].

  `seed` are non-negative integers that number it, e.g. (split, index). Another
  size shows the same scene.
  """
  rng = np.random.default_rng([*seed, label])
  shapes = list(_SHAPES.values())
  axis = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px * 2 - 1
  x, y = np.meshgrid(axis, axis)
  # One is light and the other dark; chance decides which.
  dark, light = 0.4 * _colour(rng), 0.6 + 0.4 * _colour(rng)
  ground, colour = (dark, light) if rng.random() < 0.5 else (light, dark)
  canvas = np.stack([x, y, *(ground + _texture(rng, x, y))])
  for _ in range(rng.integers(1, 4)):
    shape, cut = shapes[rng.integers(len(shapes))], rng.uniform(-0.3, 0.3)
    _paint(rng, canvas, shape, _colour(rng), rng.uniform(0.12, 0.3), 1, cut)
  reach = rng.uniform(0.6, 0.8)
  _paint(rng, canvas, shapes[label], colour, reach, max(0.05, 0.8 - reach))
  bar = functools.partial(_box, half_x=1, half_y=0.05)
  for _ in range(rng.integers(1, 3)):
    _paint(rng, canvas, bar, _colour(rng), rng.uniform(0.3, 0.8), 0.8)
  slope, _ = _rotate(x, y, rng.uniform(0, math.tau))
  image = canvas[2:] * (1 + rng.uniform(0, 0.3) * slope)
  image += rng.uniform(0.02, 0.1) * (rng.random(image.shape, np.float32) - 0.5)
  image = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
  return np.ascontiguousarray(image.transpose(1, 2, 0))


def encode(seed: Sequence[int], *, size_px: int) -> tuple[np.ndarray, bytes]:
  """Returns the picture numbered (seed, split, index), and its JPEG."""
  pixels = draw(seed[-1] % len(CLASSES), seed, size_px)
  return pixels, shards.encode_jpeg(pixels)


def generate(
  output: Path,
  *,
  train: int = 8000,
  validation: int = 1000,
  test: int = 2000,
  size_px: int = 64,
  seed: int = 0,
  workers: int | None = None,
) -> None:
  """Writes the data set, all classes equally often; see `shards.claim`."""
  counts = {"train": train, "validation": validation, "test": test}
  examples = {
    split: [((seed, number, i), i % len(CLASSES)) for i in range(count)]
    for number, (split, count) in enumerate(counts.items())
  }
  with shards.claim(output) as work:
    shards.write(
      work,
      output,
      examples,
      class_names=CLASSES,
      size_px=size_px,
      encoder=functools.partial(encode, size_px=size_px),
      workers=workers,
    )
