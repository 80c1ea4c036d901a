"""Reads files of weights. Nothing in a file is run."""

import argparse
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors

from alexnet_jax.runtime import errors
from alexnet_jax.tools.convert import caffe, onnx_graph
from alexnet_jax.tools.convert.arrays import Arrays, LoadedWeights, weight_of

PRODUCER = onnx_graph.PRODUCER
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
  torch = onnx_graph.optional_package("torch")
  try:
    # torchvision's training script saves its options, a Namespace of values.
    with (
      torch.serialization.safe_globals([argparse.Namespace]),
      warnings.catch_warnings(action="ignore"),
    ):
      content = torch.load(path, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as e:
    # Its own text is a page of advice; the reason is the error below it.
    raise ValueError(f"weights_only=True: {e.__context__ or e}") from e
  # Maybe it is the checkpoint of a training script.
  tensors = content.get("state_dict", content.get("model", content))
  arrays = {
    name: (x.float() if x.is_floating_point() else x).detach().numpy()
    for name, x in tensors.items()
  }
  metadata = getattr(tensors, "_metadata", {}).get("", {})
  return _from_state_dict(arrays, metadata.get("producer"))


class _Dtype:
  """Stands for numpy's dtype of floats or of objects."""

  def __init__(self, text: str, *_: Any):
    if not re.fullmatch(r"O8|f[248]", text):
      raise ValueError(f"it has numbers of type {text!r}")
    self.text = text

  def __setstate__(self, state: tuple[Any, ...]):
    if self.text != "O8":
      self.text = {"<": "<", ">": ">"}[state[1]] + self.text


class _Array:
  """Stands for numpy's array: of floats, or of one object."""

  def __init__(self, *_: Any):
    self.values: Any = None

  def __setstate__(self, state: tuple[Any, ...]):
    _, shape, dtype, by_column, data = state
    if dtype.text == "O8":
      (self.values,) = data
      return
    data = data.encode("latin1") if isinstance(data, str) else data
    values = np.frombuffer(data, dtype.text)
    self.values = values.reshape(shape, order="F" if by_column else "C")


class _Unpickler(pickle.Unpickler):
  """Reads plain data and arrays.

  Arrays are made by the classes above: a pickle can make numpy's own
  constructors read memory that is not theirs.
  """

  _ALLOWED: ClassVar = {
    "multiarray._reconstruct": _Array,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    # Bytes, in pickles for Python 2.
    "_codecs.encode": lambda text, _: text.encode("latin1"),
  }

  def find_class(self, module: str, name: str) -> Any:
    asked = re.sub(r"^numpy\._?core\.", "", f"{module}.{name}")
    if asked not in self._ALLOWED:
      raise ValueError(f"it asks for {asked}")
    return self._ALLOWED[asked]


def _read_npy(path: Path) -> LoadedWeights:
  """Reads a pickled {layer: [weights, biases]}, as caffe-tensorflow writes it.

  Its kernels are [rows, columns, inputs, filters] and [inputs, units], and
  channels run fastest.
  """
  with path.open("rb") as file:
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    layers = _Unpickler(file, encoding="latin1").load()
  layers = layers.values if isinstance(layers, _Array) else layers
  found = {}
  units = 0
  for name, layer in sorted(layers.items()):
    if isinstance(layer, dict):
      layer = layer["weights"], layer["biases"]
    kernel, bias = (array.values for array in layer)
    # Layers are in order: what the one before gives, this one takes.
    weight = weight_of(kernel, len(kernel) // max(units, 1))
    units = len(weight)
    found[f"{name}.weight"] = weight
    found[f"{name}.bias"] = bias.reshape(-1)
  return LoadedWeights(found)


READERS: dict[str, Callable[[Path], LoadedWeights]] = {
  ".safetensors": _read_safetensors,
  ".pth": _read_torch,
  ".pt": _read_torch,
  ".npy": _read_npy,
  ".caffemodel": lambda path: caffe.read(path.read_bytes()),
  ".onnx": onnx_graph.read,
}


def read(path: Path) -> LoadedWeights:
  """Returns what a file of weights holds.

  Raises:
    InputError: it is missing, damaged, or a pickle that wants to run code.
  """
  if not path.is_file():
    raise errors.InputError(
      f"{str(path)!r} is no file; name a file of weights, or a run and --to."
    )
  kind = path.suffix.lower()
  if kind not in READERS:
    raise errors.unknown(f"{str(path)!r}: the kind of file", kind, READERS)
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


def to_float32(arrays: Arrays) -> dict[str, np.ndarray]:
  """Returns a net's arrays in float32.

  Raises:
    InputError: an array is not of floats, or not finite.
  """
  found = {}
  for name, values in arrays.items():
    if values.dtype.kind != "f" and values.dtype.name != "bfloat16":
      raise errors.InputError(
        f"{name} is {values.dtype}; weights must be floats: take a file that"
        " was not quantized."
      )
    found[name] = values.astype(np.float32, copy=False)
    if not np.isfinite(found[name]).all():
      raise errors.InputError(
        f"{name} has numbers that are not finite; take another file."
      )
  return found
