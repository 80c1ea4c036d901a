"""Times the convolutions of AlexNet by four algorithms, and their errors.

  python experiments/convolutions/run.py            # batch 32, 5 trials
  python experiments/convolutions/run.py --quick    # batch 2, 1 trial
  python experiments/convolutions/run.py --draw     # tables and plot anew

Layers of the two-tower net: conv1 and conv3 whole, one tower of conv2, conv4
and conv5. The trials of all algorithms alternate. Each command writes
results.csv, convolutions.png and the tables in README.md. It fails if a layer,
direction and algorithm has neither a row nor a reason in `skipped`.
"""

import argparse
import csv
import functools
import importlib.metadata
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import algorithms as convolutions
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

from alexnet_jax.runtime import platforms

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"

Row = dict[str, Any]


class Layer(NamedTuple):
  """Geometry of a convolution in the net; square, stride and pads alike."""

  side: int
  channels: int
  filters: int
  window: int
  stride: int
  pad: tuple[int, int]

  @property
  def outputs(self) -> int:
    """Side of the result in pixels."""
    return (self.side + sum(self.pad) - self.window) // self.stride + 1


LAYERS = {
  "conv1": Layer(224, 3, 96, 11, 4, (0, 3)),
  "conv2": Layer(27, 48, 128, 5, 1, (2, 2)),
  "conv3": Layer(13, 256, 384, 3, 1, (1, 1)),
  "conv4": Layer(13, 192, 192, 3, 1, (1, 1)),
  "conv5": Layer(13, 192, 128, 3, 1, (1, 1)),
}
DIRECTIONS = ("forward", "input gradient", "kernel gradient")
ALGORITHMS: dict[str, Callable[..., Any]] = {
  "direct": convolutions.direct,
  "im2col": convolutions.im2col,
  "im2col, 4 images": functools.partial(convolutions.im2col, group=4),
  "fft": convolutions.fft,
  "winograd 2x2": functools.partial(convolutions.winograd, tile=2),
  "winograd 4x4": functools.partial(convolutions.winograd, tile=4),
}


def skipped(layer: str, direction: str, algorithm: str) -> str | None:
  """Returns why a combination has no row, or None where it must have one."""
  geometry = LAYERS[layer]
  if layer == "conv1" and direction == "input gradient":
    return "the image needs no gradient"
  if algorithm.startswith("winograd"):
    tile = int(algorithm[-1])
    if geometry.stride != 1:
      return "Winograd slides by 1"
    if tile not in convolutions.TILES[geometry.window]:
      return f"no F({tile}x{tile}, {geometry.window}x{geometry.window})"
  return None


COMBINATIONS = [
  (layer, direction, algorithm)
  for layer in LAYERS
  for direction in DIRECTIONS
  for algorithm in ALGORITHMS
  if not skipped(layer, direction, algorithm)
]


def nonzeros(matrix: convolutions.Matrix) -> int:
  """Returns the multiply-accumulates of a matrix with a vector."""
  return sum(entry != 0 for row in matrix for entry in row)


def macs(
  layer: str, direction: str, algorithm: str, batch: int
) -> tuple[float, float]:
  """Returns multiply-accumulates: of the products, and of the transforms.

  A complex product counts as four; an FFT of N real numbers as N log2 N, which
  is half of its usual 5 / 2 N log2 N additions and multiplications, rounded
  down. What multiplies zeros, of padding or past the edge, counts.

  Args:
    layer: of `LAYERS`.
    direction: of `DIRECTIONS`.
    algorithm: of `ALGORITHMS`.
    batch: images.
  """
  side, channels, filters, window, _, pad = geometry = LAYERS[layer]
  outputs, pairs = geometry.outputs, channels * filters
  maps = {
    "forward": (channels, filters),
    "input gradient": (filters, channels),
    "kernel gradient": (channels, filters),
  }[direction]
  if algorithm == "fft":
    # The sides that the algorithm takes: the next 2^a 3^b 5^c.
    n = next(n for n in range(side + sum(pad), 1000) if 30**16 % n == 0)
    half = n // 2 + 1
    frequencies = n * half
    images = batch * sum(maps) * n * n * math.log2(n * n)
    kernel = 4 * pairs * window * (half * window + frequencies)
    return 4.0 * frequencies * batch * pairs, images + kernel
  if not algorithm.startswith("winograd"):
    return float(batch * outputs**2 * window**2 * pairs), 0.0
  tile = int(algorithm[-1])
  result, weights, data = map(nonzeros, convolutions.cook_toom(tile, window))
  n = tile + window - 1
  tiles = -(-outputs // tile)
  # Rows of all tiles first (a row is shared by the tiles along it), then
  # columns; a result is m x n before its columns are made.
  from_data = data * tiles * (tiles * tile + window - 1) + data * n * tiles**2
  of_result = result * n * tiles**2 + result * tile * tiles**2
  if direction == "kernel gradient":
    of_result = result * tiles * tiles * tile + result * n * tiles**2
  transforms = batch * (maps[0] * from_data + maps[1] * of_result)
  kernel = pairs * weights * (window + n)
  return float(n * n * batch * tiles**2 * pairs), float(transforms + kernel)


def arrays(layer: str, batch: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns an input, as after a ReLU, a kernel and a gradient."""
  geometry = LAYERS[layer]
  side, channels, filters, window, _, _ = geometry
  rng = np.random.default_rng(0)
  x = rng.standard_normal((batch, side, side, channels), np.float32)
  kernel = rng.standard_normal((window, window, channels, filters), np.float32)
  dy_shape = (batch, geometry.outputs, geometry.outputs, filters)
  dy = rng.standard_normal(dy_shape, np.float32)
  return jnp.maximum(x, 0), jnp.asarray(kernel), jnp.asarray(dy)


def exact(
  layer: str, x: np.ndarray, kernel: np.ndarray, dy: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns what each direction gives in float64, place by place."""
  side, channels, filters, window, stride, pad = geometry = LAYERS[layer]
  x, kernel, dy = (values.astype(np.float64) for values in (x, kernel, dy))
  padded = np.pad(x, ((0, 0), pad, pad, (0, 0)))
  y, dx, dkernel = (np.zeros(a.shape) for a in (dy, padded, kernel))
  reach = (geometry.outputs - 1) * stride + 1
  for i, j in np.ndindex(window, window):
    rows, cols = slice(i, i + reach, stride), slice(j, j + reach, stride)
    seen = padded[:, rows, cols]
    y += seen @ kernel[i, j]
    dx[:, rows, cols] += dy @ kernel[i, j].T
    dkernel[i, j] = seen.reshape(-1, channels).T @ dy.reshape(-1, filters)
  inside = slice(pad[0], pad[0] + side)
  return dict(zip(DIRECTIONS, (y, dx[:, inside, inside], dkernel), strict=True))


def program(layer: str, direction: str, algorithm: str, inputs: Any) -> Any:
  """Returns the compiled function of (x, kernel, dy)."""
  geometry = LAYERS[layer]

  def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    pads = (geometry.pad, geometry.pad)
    return ALGORITHMS[algorithm](x, kernel, geometry.stride, pads)

  def run(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> jax.Array:
    if direction == "forward":
      return convolve(x, kernel)
    if direction == "input gradient":
      return jax.vjp(lambda x: convolve(x, kernel), x)[1](dy)[0]
    return jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](dy)[0]

  return platforms.jit(run).lower(*inputs).compile()


def measure(batch: int, trials: int) -> list[Row]:
  """Returns a row for each combination; trials of a layer alternate."""
  rows = []
  for layer in LAYERS:
    inputs = arrays(layer, batch)
    wanted = exact(layer, *(np.asarray(values) for values in inputs))
    programs = {
      (direction, algorithm): program(layer, direction, algorithm, inputs)
      for name, direction, algorithm in COMBINATIONS
      if name == layer
    }
    errors = {}
    for (direction, algorithm), run in programs.items():
      error = np.abs(np.float64(run(*inputs)) - wanted[direction]).max()
      errors[direction, algorithm] = error / np.abs(wanted[direction]).max()
    seconds: dict[Any, list[float]] = {key: [] for key in programs}
    for _ in range(trials):
      for key, run in programs.items():
        start = time.perf_counter()
        jax.block_until_ready(run(*inputs))
        seconds[key].append(time.perf_counter() - start)
    for (direction, algorithm), run in programs.items():
      products, transforms = macs(layer, direction, algorithm, batch)
      direct = macs(layer, direction, "direct", batch)[0]
      times = seconds[direction, algorithm]
      rows.append(
        {
          "layer": layer,
          "direction": direction,
          "algorithm": algorithm,
          "median_ms": 1000 * statistics.median(times),
          "least_ms": 1000 * min(times),
          "most_ms": 1000 * max(times),
          "product_macs": products,
          "transform_macs": transforms,
          "macs_of_direct": (products + transforms) / direct,
          "extra_bytes": run.memory_analysis().temp_size_in_bytes,
          "relative_error": errors[direction, algorithm],
          "trials": trials,
          "batch": batch,
        }
        | about()
      )
      print({name: rows[-1][name] for name in list(rows[-1])[:11]}, flush=True)
  return rows


@functools.cache
def about() -> dict[str, str]:
  """Returns what the results depend on beside the code."""
  words = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
  run = subprocess.run(
    [*words, "--exclude=*"], cwd=HERE, capture_output=True, check=True
  )
  device = jax.devices()[0].device_kind
  if jax.default_backend() == "cpu":
    device = f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}"
  return {
    "device": device,
    "precision": str(jax.config.jax_default_matmul_precision),  # pyright: ignore[reportAttributeAccessIssue]
    "jax": jax.__version__,
    "jaxlib": importlib.metadata.version("jaxlib"),
    "commit": run.stdout.decode().strip(),
  }


Found = dict[tuple[str, str, str], Row]


def by_combination(rows: list[Row]) -> Found:
  """Returns the row of each combination.

  Raises:
    SystemExit: one is missing or twice there, or none should be.
  """
  found = {
    (row["layer"], row["direction"], row["algorithm"]): row for row in rows
  }
  for key in COMBINATIONS:
    if key not in found:
      raise SystemExit(f"no row for {', '.join(key)}")
  if len(rows) != len(COMBINATIONS):
    raise SystemExit(f"{len(rows)} rows, not {len(COMBINATIONS)}")
  return found


def tables(rows: list[Row]) -> str:
  """Returns the tables of README.md."""
  found, first = by_combination(rows), rows[0]

  def milliseconds(row: Row) -> str:
    median, least, most = (
      f"{float(row[f'{name}_ms']):.3g}" for name in ("median", "least", "most")
    )
    return f"{median} ({least} to {most})"

  def arithmetic(row: Row) -> str:
    total = float(row["product_macs"]) + float(row["transform_macs"])
    return f"{total / 1e6:,.0f} ({float(row['macs_of_direct']):.2f})"

  parts = [
    f"Batch {first['batch']}, float32 ({first['precision']} precision),"
    f" {first['trials']} trials, {first['device']}, jax {first['jax']}, jaxlib"
    f" {first['jaxlib']}, commit {first['commit']}."
  ]
  for heading, cell in (
    ("Milliseconds, median and range:", milliseconds),
    (
      "Millions of multiply-accumulates, with those of transforms (share of"
      " direct's):",
      arithmetic,
    ),
    (
      "MB of memory beside arguments and result:",
      lambda row: f"{float(row['extra_bytes']) / 1e6:,.1f}",
    ),
    (
      "Largest error against float64, relative to the largest value:",
      lambda row: f"{float(row['relative_error']):.1e}",
    ),
  ):
    parts += ["", heading, "", *table(found, cell)]
  reasons: dict[str, list[str]] = {}
  for layer in LAYERS:
    for direction in DIRECTIONS:
      for algorithm in ALGORITHMS:
        reason = skipped(layer, direction, algorithm)
        if reason:
          reasons.setdefault(reason, []).append(layer)
  lines = [
    f"{reason} ({', '.join(dict.fromkeys(layers))})"
    for reason, layers in reasons.items()
  ]
  return "\n".join([*parts, "", f"Not there: {'; '.join(lines)}."])


def table(found: Found, cell: Callable[[Row], str]) -> list[str]:
  """Returns a table in Markdown: a line for each layer and direction."""
  lines = [
    f"| layer | direction | {' | '.join(ALGORITHMS)} |",
    "|---" * (2 + len(ALGORITHMS)) + "|",
  ]
  for layer in LAYERS:
    for direction in DIRECTIONS:
      keys = [(layer, direction, algorithm) for algorithm in ALGORITHMS]
      if any(key in found for key in keys):
        cells = [cell(found[key]) if key in found else "" for key in keys]
        lines.append(f"| {layer} | {direction} | {' | '.join(cells)} |")
  return lines


COLOURS = ("#444444", "#ddaa33", "#ee8866", "#3366bb", "#117733", "#44bb99")


def draw(rows: list[Row]) -> None:
  """Writes convolutions.png: times, with their range, and errors."""
  found = by_combination(rows)
  figure, axes = plt.subplots(2, 3, figsize=(13, 7), sharex=True, sharey="row")
  width = 0.8 / len(ALGORITHMS)
  for column, direction in enumerate(DIRECTIONS):
    times, errors = axes[:, column]
    for number, algorithm in enumerate(ALGORITHMS):
      here = [
        (place + (number + 0.5) * width - 0.4, found[key])
        for place, layer in enumerate(LAYERS)
        if (key := (layer, direction, algorithm)) in found
      ]
      places = [place for place, _ in here]
      median, least, most, error = (
        np.array([float(row[name]) for _, row in here])
        for name in ("median_ms", "least_ms", "most_ms", "relative_error")
      )
      style = {"color": COLOURS[number], "label": algorithm}
      times.bar(
        places, median, width, yerr=(median - least, most - median), **style
      )
      errors.plot(places, error, "o", **style)
    times.set(title=direction, yscale="log")
    errors.set(yscale="log")
    errors.set_xticks(range(len(LAYERS)), list(LAYERS))
    for axis in (times, errors):
      axis.grid(alpha=0.25, axis="y")
      axis.spines[["top", "right"]].set_visible(False)
  axes[0, 0].set_ylabel("milliseconds, median and range")
  axes[1, 0].set_ylabel("largest error / largest value")
  axes[1, 0].legend(frameon=False, fontsize=8)
  figure.suptitle(
    f"Convolutions of AlexNet (conv2, 4, 5: one tower), batch"
    f" {rows[0]['batch']}, float32, {rows[0]['device']}"
  )
  figure.tight_layout()
  figure.savefig(HERE / "convolutions.png", dpi=120)


def write_readme(rows: list[Row]) -> None:
  """Puts the tables between their marks in README.md."""
  path = HERE / "README.md"
  begin, end = "<!-- tables -->\n", "<!-- end -->"
  text, count = re.subn(
    f"{begin}.*{end}",
    lambda _: f"{begin}\n{tables(rows)}\n\n{end}",
    path.read_text(),
    flags=re.DOTALL,
  )
  if not count:
    raise SystemExit(f"{path} has no {begin.strip()}")
  path.write_text(text)


def main() -> None:
  """Measures, and draws."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--trials", type=int, default=5)
  parser.add_argument(
    "--precision", default="highest", help="of products, on an accelerator"
  )
  parser.add_argument("--quick", action="store_true", help="batch 2, 1 trial")
  parser.add_argument("--draw", action="store_true", help="results.csv anew")
  args = parser.parse_args()
  if not args.draw:
    jax.config.update("jax_default_matmul_precision", args.precision)
    batch, trials = (2, 1) if args.quick else (args.batch, args.trials)
    rows = measure(batch, trials)
    by_combination(rows)
    with RESULTS.open("w", newline="") as file:
      writer = csv.DictWriter(file, list(rows[0]))
      writer.writeheader()
      writer.writerows(rows)
  with RESULTS.open(newline="") as file:
    rows = list(csv.DictReader(file))
  write_readme(rows)
  draw(rows)


if __name__ == "__main__":
  main()
