"""What all contestants get: configs, pictures and statistics. No framework."""

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax.configs import alexnet, cifar10, one_tower, one_weird_trick

NETS = {
  "two_tower": alexnet,
  "one_tower": one_tower,
  "one_weird_trick": one_weird_trick,
}
EPOCH_NET = "cifar10"
EPOCH_EXAMPLES = 50_000
SEED = 0


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Of a training split; see `alexnet_jax.augment.Augmentation`."""

  mean_image: np.ndarray
  colour_axes: np.ndarray
  colour_sds: np.ndarray


def config_of(net: str, batch_size: int, half: bool = False) -> Any:
  """Returns the config of a net.

  Args:
    net: a key of `NETS`, or `EPOCH_NET`.
    batch_size: of a step.
    half: whether to compute in bfloat16.
  """
  module = cifar10 if net == EPOCH_NET else NETS[net]
  config: Any = module.get_config()
  config.batch_size = batch_size
  config.compute_dtype = "bfloat16" if half else "float32"
  return config


def statistics(config: Any) -> Statistics:
  """Returns made-up statistics of the right shapes and magnitudes."""
  size = config.image_size_px
  rng = np.random.default_rng(SEED)
  axes, _ = np.linalg.qr(rng.standard_normal((3, 3)))
  return Statistics(
    rng.uniform(100, 150, (size, size, 3)).astype(np.float32),
    axes.astype(np.float32),
    np.array([110, 25, 10], np.float32),
  )


def examples(config: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns uint8 [count, S, S, 3] of random pixels and int32 [count]."""
  size = config.image_size_px
  rng = np.random.default_rng(SEED)
  images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
  labels = rng.integers(0, config.num_classes, count).astype(np.int32)
  return images, labels


def memory_gb() -> float:
  """Returns the largest resident set of this process so far.

  Not `ru_maxrss`, which a process inherits from the one that started it.
  """
  with open("/proc/self/status") as file:
    (line,) = (line for line in file if line.startswith("VmHWM"))
  return int(line.split()[1]) * 1024 / 1e9


def commit() -> str:
  """Returns the commit, with -dirty after it if there are changes."""
  words = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
  run = subprocess.run(
    [*words, "--exclude=*"],
    cwd=Path(__file__).parent,
    capture_output=True,
    check=True,
  )
  return run.stdout.decode().strip()
