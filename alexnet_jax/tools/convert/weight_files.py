"""Reads files of weights. Nothing in a file is run."""

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from alexnet_jax.runs.torch_layout import PRODUCER, LoadedWeights
from alexnet_jax.runtime import errors, files
from alexnet_jax.tools.convert import caffe, torch_files

# torchvision numbers its layers; so do programs that build on it.
TORCHVISION = {
  "features.0": "conv1",
  "features.3": "conv2",
  "features.6": "conv3",
  "features.8": "conv4",
  "features.10": "conv5",
  "classifier.1": "fc6",
  "classifier.4": "fc7",
  "classifier.6": "fc8",
}


def optional_package(name: str) -> Any:
  """Returns a package that only some files need, if it is installed."""
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise errors.InputError(
      f"this kind of file needs the package {name}; pip install {name}."
    ) from e


def _from_state_dict(
  tensors: Mapping[str, np.ndarray], producer: str | None
) -> LoadedWeights:
  arrays = {}
  for key, values in tensors.items():
    plain = re.sub(r"(^|\.)module\.", r"\1", key)  # Added by DataParallel.
    module, dot, kind = plain.rpartition(".")
    arrays[f"{TORCHVISION.get(module, module)}{dot}{kind}"] = values
  return LoadedWeights(arrays, is_ours=producer == PRODUCER)


def _read_safetensors(path: Path) -> LoadedWeights:
  with safetensors.safe_open(path, "np") as file:
    arrays = {name: file.get_tensor(name) for name in file.keys()}
    metadata = file.metadata() or {}
  return _from_state_dict(arrays, metadata.get("producer"))


def _read_torch(path: Path) -> LoadedWeights:
  return _from_state_dict(*torch_files.read(files.read(path)))


READERS: dict[str, Callable[[Path], LoadedWeights]] = {
  ".safetensors": _read_safetensors,
  ".pth": _read_torch,
  ".pt": _read_torch,
  ".caffemodel": lambda path: caffe.read(files.read(path)),
}


def read(path: Path) -> LoadedWeights:
  """Returns what a file holds; raises InputError if it wants to run code."""
  if not path.is_file():
    raise errors.InputError(
      f"{str(path)!r} is no file; name a file of weights, or a run and --to."
    )
  kind = path.suffix.lower()
  if kind not in READERS:
    raise errors.InputError(
      f"{str(path)!r} is of a kind that is not read; take one that ends in"
      f" {', '.join(READERS)}."
    )
  try:
    return READERS[kind](path)
  except errors.InputError:
    raise
  # Each library has errors of its own for damaged files.
  except Exception as e:
    raise errors.InputError(
      f"{str(path)!r} cannot be read ({errors.reason(e)}): it is damaged, holds"
      " more than weights, or is of another kind than its name says. Nothing in"
      " it was run. Save the net's state dict alone, or get the file again."
    ) from e
