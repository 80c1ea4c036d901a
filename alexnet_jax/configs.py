"""The folder configs/ of a clone, as the package that an install has here."""

import importlib
from pathlib import Path
from typing import Any

# An installed package alexnet_jax/configs/ takes the place of this file.
__path__ = [str(Path(__file__).parents[1] / "configs")]


def __getattr__(name: str) -> Any:
  try:
    return importlib.import_module(f"{__name__}.{name}")
  except ModuleNotFoundError as e:
    raise AttributeError(f"{__name__} has no config {name!r}") from e
