"""Files of weights, read without running anything that is in them."""

import dataclasses
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax import errors
from alexnet_jax.convert import caffe, onnx_graph
from alexnet_jax.convert.arrays import Arrays

# torchvision numbers layers; so do those who took its net over.
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


@dataclasses.dataclass(frozen=True)
class Found:
  """What a file holds.

  Attributes:
    arrays: by name, in the layout of `arrays.py`; float32.
    steps: what is done one after another, in the words of `nets.steps`; None
      where the file holds weights alone.
    input_size_px: side of the image, where the file says.
    pools_inside: of each max pool, whether its windows stay inside its input,
      where the file says.
  """

  arrays: Arrays
  steps: list[str] | None = None
  input_size_px: int | None = None
  pools_inside: list[bool] | None = None


class _RefusedError(Exception):
  """What a pickle asks for beyond arrays."""


def _by_layer(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns a state dict's arrays under the names of the paper's layers."""
  found = {}
  for key, values in tensors.items():
    module, _, kind = key.replace("module.", "").rpartition(".")
    found[f"{TORCHVISION.get(module, module)}.{kind}"] = values
  return found


def _read_safetensors(path: Path) -> Found:
  from safetensors import numpy as safetensors

  return Found(_by_layer(safetensors.load_file(path)))


def torch_itself() -> Any:
  """Returns the package, which only its own files need.

  Raises:
    InputError: it is not installed.
  """
  try:
    import torch
  except ImportError as e:
    raise errors.InputError(
      "torch's files need torch, which is not installed; pip install torch, or"
      " take safetensors."
    ) from e
  return torch


def _read_torch(path: Path) -> Found:
  torch = torch_itself()
  try:
    whole = torch.load(path, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as e:
    asked = re.search(r"GLOBAL (\S+)", str(e))
    raise _RefusedError(asked[1]) if asked else e from e
  tensors = whole.get("state_dict", whole) if isinstance(whole, dict) else whole
  if not isinstance(tensors, dict) or not all(
    isinstance(values, torch.Tensor) for values in tensors.values()
  ):
    raise ValueError(f"it holds a {type(whole).__name__}, no state dict")
  return Found(_by_layer({k: v.float().numpy() for k, v in tensors.items()}))


class _Unpickler(pickle.Unpickler):
  """Makes numpy arrays, and nothing else."""

  def find_class(self, module: str, name: str) -> Any:
    module = re.sub(r"^numpy\.core\b", "numpy._core", module)
    if (module, name) not in {
      ("numpy._core.multiarray", "_reconstruct"),
      ("numpy", "ndarray"),
      ("numpy", "dtype"),
      ("_codecs", "encode"),  # Python 2's text, as bytes.
    }:
      raise _RefusedError(f"{module}.{name}")
    return super().find_class(module, name)


def _read_npy(path: Path) -> Found:
  """Reads a pickled {layer: [weights, biases]}, as caffe-tensorflow writes it.

  Kernels are [rows, columns, inputs, filters] and [inputs, units] there, with
  channels running fastest.
  """
  with path.open("rb") as file:
    version = np.lib.format.read_magic(file)
    header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[version](file)
    if not header[2].hasobject:
      raise ValueError(f"it is one array of {header[2]}, no dictionary of them")
    layers = _Unpickler(file, encoding="latin1").load()
  if isinstance(layers, np.ndarray):
    layers = layers.item()
  found = {}
  inputs = 0
  for name, layer in sorted(layers.items()):
    named = isinstance(layer, dict)
    kernel, bias = (layer["weights"], layer["biases"]) if named else layer
    kernel = np.asarray(kernel, np.float32)
    if kernel.ndim == 4:
      weight = kernel.transpose(3, 2, 0, 1)
      inputs = len(weight)
    else:
      maps = kernel.reshape(-1, inputs, kernel.shape[1])
      weight = maps.transpose(2, 1, 0).reshape(kernel.shape[::-1])
      inputs = len(weight)
    found[f"{name}.weight"] = weight
    found[f"{name}.bias"] = np.asarray(bias, np.float32).reshape(-1)
  return Found(found)


def _read_caffe(path: Path) -> Found:
  return Found(*caffe.read(path.read_bytes()))


def _read_onnx(path: Path) -> Found:
  return Found(*onnx_graph.read(path))


READERS: dict[str, Callable[[Path], Found]] = {
  ".safetensors": _read_safetensors,
  ".pth": _read_torch,
  ".pt": _read_torch,
  ".npy": _read_npy,
  ".caffemodel": _read_caffe,
  ".onnx": _read_onnx,
}


def read(path: Path) -> Found:
  """Returns what a file of weights holds.

  Raises:
    InputError: no such file, one of another kind, a damaged one, or a pickle
      that wants to run code.
  """
  if path.suffix not in READERS:
    raise errors.unknown("the kind of file", path.suffix, READERS)
  if not path.is_file():
    raise errors.InputError(f"{str(path)!r} is no file that exists.")
  try:
    return READERS[path.suffix](path)
  except errors.InputError:
    raise
  except _RefusedError as e:
    raise errors.InputError(
      f"{str(path)!r} wants to run {e}, which weights have no need of: it is"
      " not opened. Take a file from another source."
    ) from e
  # A damaged file has errors of as many kinds as there are libraries.
  except Exception as e:
    reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
    raise errors.InputError(
      f"{str(path)!r} cannot be read ({reason}); it is damaged, or of another"
      " kind than its name says. Get it anew."
    ) from e
