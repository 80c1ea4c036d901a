"""Are five nets in one program quicker than five runs one after another?

  python experiments/seeds_at_once/run.py

Times steps of one net and of five nets in one program, alternating in one
process, and steps of one net on a single core in another process. Prints rows
for the README.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from alexnet_jax import augment, networks, optimizer, steps
from alexnet_jax.parallel import layouts, placement
from alexnet_jax.runs import config_files, states
from alexnet_jax.runtime import platforms

NETS = ("cifar_19pct", "alexnet_cifar10")
MEMBERS, STEPS, TRIALS = 5, 10, 7


def trainer(config: Any) -> Callable[[], None]:
  """Returns a call that takes `STEPS` steps on random pictures."""
  net = networks.make_model(config)
  layout = layouts.from_config(config, net.network, 1)
  mesh = placement.make_mesh(1, layout.model)
  tx, _ = optimizer.from_config(config, 50_000, 1000, layout.axes_of)
  size, batch = config.image_size_px, config.batch_size
  rng = np.random.default_rng(0)
  augmentation = augment.Augmentation(
    crop_size_px=config.crop_size_px,
    random_crop=config.random_crop,
    mirror=config.mirror,
    images_per_view=config.images_per_view,
    colour_noise=config.colour_noise,
    colour_noise_steps=2**31 - 1,
    colour_noise_divisor=config.colour_noise_divisor,
    mean_image=np.full((size, size, 3), 120, np.float32),
    colour_axes=np.eye(3, dtype=np.float32),
    colour_sds=np.full(3, 50, np.float32),
  )
  members = layout.members
  each = [states.init_params(net, seed) for seed in range(members)]
  state = states.init_state(each, tx)
  where = placement.shardings(mesh, placement.specs(layout, state))
  state = jax.device_put(state, where)
  shape = (members, batch) if members > 1 else (batch,)
  pictures = {
    "image": rng.integers(0, 256, (*shape, size, size, 3), dtype=np.uint8),
    "label": rng.integers(0, 10, shape).astype(np.int32),
  }
  held = placement.put_batch(
    mesh, layout.batch_spec, layout.batch_shape, pictures
  )
  step = steps.make_step(config, net, tx, augmentation, layout, mesh)
  step = platforms.jit(step, donate_argnums=0)

  def take() -> None:
    nonlocal state
    for _ in range(STEPS):
      state, _ = step(state, held)
    jax.block_until_ready(state)

  take()  # It compiles.
  return take


def seconds(take: Callable[[], None]) -> float:
  """Returns the time of a call."""
  start = time.perf_counter()
  take()
  return time.perf_counter() - start


def speeds(name: str, sizes: tuple[int, ...]) -> list[list[float]]:
  """Returns images a second of each trial, for each number of nets."""
  takes = []
  for members in sizes:
    config: Any = config_files.load_config(name)
    with config.unlocked():
      config.ensemble = members
    takes.append(trainer(config))
  images = config.batch_size * STEPS
  found: list[list[float]] = [[] for _ in sizes]
  for _ in range(TRIALS):
    for rates, members, take in zip(found, sizes, takes, strict=True):
      rates.append(images * members / seconds(take))
  return found


def main() -> None:
  """Measures; `--one_core` is the other process."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--one_core", default="")
  options = parser.parse_args()
  if options.one_core:
    (rates,) = speeds(options.one_core, (1,))
    print(*rates)
    return
  cores = os.cpu_count()
  print("| net | one run | five in one program | ratio | one run, one core |")
  print("|---|---|---|---|---|")
  for name in NETS:
    alone, together = speeds(name, (1, MEMBERS))
    ratios = [t / a for a, t in zip(alone, together, strict=True)]
    command = [sys.executable, __file__, f"--one_core={name}"]
    child = subprocess.run(
      ["taskset", "-c", "0", *command],
      capture_output=True,
      text=True,
      check=True,
    )
    single = [float(x) for x in child.stdout.split()]
    cells = [_words(x) for x in (alone, together)]
    ratio = f"{statistics.median(ratios):.2f}"
    ratio += f" ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"| {name} | {' | '.join(cells)} | {ratio} | {_words(single)} |")
  print(f"\n{cores} cores, jax {jax.__version__}")


def _words(rates: list[float]) -> str:
  low, high = min(rates), max(rates)
  return f"{statistics.median(rates):,.0f} ({low:,.0f} to {high:,.0f})"


if __name__ == "__main__":
  main()
