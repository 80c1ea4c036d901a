"""What a program computes with: devices, versions and the code's commit."""

import importlib.metadata
import os
import subprocess
from pathlib import Path
from typing import Any

import jax

from alexnet_jax.runtime import machine

_PACKAGES = "jax", "jaxlib", "numpy", "alexnet-jax"


def environment(config: Any, devices: list[Any]) -> dict[str, Any]:
  """Returns what decides how sums are rounded; every value is JSON."""
  return {
    "platform": devices[0].platform,
    "device_kind": devices[0].device_kind,
    "device_count": len(devices),
    "process_count": jax.process_count(),
    "cpu_count": machine.cpu_count(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "layout": config.layout,
    "microbatches": config.microbatches,
    **{name: _version(name) for name in _PACKAGES},
  }


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:  # The code of a checkout.
    return None


def commit() -> str | None:
  """Returns the commit of the code, None if it lies in no checkout."""

  def git(*words: str) -> str:
    folder = Path(__file__).parent
    command = ["git", *words]
    return subprocess.check_output(
      command, cwd=folder, stderr=subprocess.DEVNULL, text=True
    ).strip()

  try:
    git("ls-files", "--error-unmatch", __file__)  # Not a checkout around it.
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
  except (OSError, subprocess.CalledProcessError):
    return None
