"""A program that uses the package as a library, and checks what is left of it.

It prints a line for each thing that went wrong.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

# Else it takes half a minute.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import numpy as np
from tiny_runs import QUICK

import alexnet_jax
from alexnet_jax import train
from alexnet_jax.configs import quickstart
from alexnet_jax.data.prepare import shapes
from alexnet_jax.tools import evaluate

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)


def settings():
  """What a library must leave as it is."""
  return {
    "stdout": (sys.stdout, sys.stderr, sys.stdin),
    "filters": list(warnings.filters),
    "logging": (logging.root.level, list(logging.root.handlers)),
    "signals": [signal.getsignal(x) for x in signal.valid_signals()],
    "platforms": jax.config.jax_platforms,
    "x64": jax.config.jax_enable_x64,
    "cache": jax.config.jax_compilation_cache_dir,
    "environment": dict(os.environ),
    "folder": os.getcwd(),
  }


def use(config, workdir, device):
  """Trains, evaluates, predicts; returns all that is computed."""
  train.train_and_evaluate(config, workdir)
  about = json.loads((workdir / "about.json").read_text())
  if (count := about["environment"]["device_count"]) != 1:
    print(f"about.json has device_count={count}, though one was used")
  model = alexnet_jax.load(workdir)
  for leaf in jax.tree.leaves(model.members):
    if leaf.devices() != {device}:
      print(f"parameters are on {leaf.devices()}, not on {device}")
  _, _, figures = evaluate.evaluate_runs([workdir])
  figures.pop("images_per_second")
  return {
    "predictions": model.predict(IMAGES),
    "features": model.features(iter(IMAGES), "fc6"),
    **{name: float(value) for name, value in figures.items()},
  }


def compare(found, expected):
  """Prints what differs, in value or type."""
  for name, value in found.items():
    other = expected[name]
    if isinstance(value, np.ndarray):
      same = value.dtype == other.dtype and (value == other).all()
    else:
      same = value == other
    if not same:
      print(f"{name}: {value} was {other}")


def main(place):
  """Uses it plainly; then in an event loop of a thread, with other settings."""
  shapes.generate(
    place / "shapes", size_px=32, workers=0, train=64, validation=16, test=16
  )
  config = quickstart.get_config().unlock()
  fields = {"data_dir": str(place / "shapes"), "total_steps": 4}
  config.update_from_flattened_dict({**QUICK, **fields})
  first, second = jax.devices()
  before = settings()
  with jax.default_device(first):
    expected = use(config.lock(), place / "plain", first)
  compare(settings(), before)

  async def in_loop():
    with jax.default_device(second):
      before = settings()
      found = use(config, place / "again", second)
      after = settings()
    compare(found, expected)
    compare(after, before)
    print("done")

  jax.config.update("jax_enable_x64", True)
  thread = threading.Thread(target=asyncio.run, args=[in_loop()])
  thread.start()
  thread.join()


if __name__ == "__main__":
  main(Path(sys.argv[1]))
