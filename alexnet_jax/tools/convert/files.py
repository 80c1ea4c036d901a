"""Files of weights, read without running anything that is in them."""

import argparse
import dataclasses
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors

from alexnet_jax.runtime import errors
from alexnet_jax.tools.convert import caffe, onnx_graph
from alexnet_jax.tools.convert.arrays import Arrays

PRODUCER = onnx_graph.PRODUCER
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
    arrays: by name, in the layout of `arrays.py`.
    steps: what is done one after another, in the lines of `layer_strings.py`;
      None where the file holds weights alone.
    input_size_px: side of the image, where the file says.
    pools_inside: of each max pool, whether its windows stay inside its input,
      where the file says.
    is_ours: whether it was written here: its config is a file beside it.
    own_names: the file's names of the paper's layers, where they are others.
  """

  arrays: Arrays
  steps: list[str] | None = None
  input_size_px: int | None = None
  pools_inside: list[bool] | None = None
  is_ours: bool = False
  own_names: Mapping[str, str] = dataclasses.field(default_factory=dict)


class _RefusedError(Exception):
  """What a pickle asks for beyond arrays."""


def _by_layer(tensors: Mapping[str, np.ndarray], producer: str | None) -> Found:
  """Returns a state dict's arrays under the names of the paper's layers."""
  arrays, own_names = {}, {}
  for key, values in tensors.items():
    plain = re.sub(r"(^|\.)module\.", r"\1", key)  # DataParallel's.
    module, dot, kind = plain.rpartition(".")
    if module in TORCHVISION:
      own_names = {layer: name for name, layer in TORCHVISION.items()}
    arrays[f"{TORCHVISION.get(module, module)}{dot}{kind}"] = values
  return Found(arrays, is_ours=producer == PRODUCER, own_names=own_names)


def _read_safetensors(path: Path) -> Found:
  with safetensors.safe_open(path, "np") as file:
    arrays = {name: file.get_tensor(name) for name in file.keys()}
    about = file.metadata() or {}
  return _by_layer(arrays, about.get("producer"))


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
    # Training scripts keep their options, as names and values, in it.
    with (
      torch.serialization.safe_globals([argparse.Namespace]),
      warnings.catch_warnings(action="ignore"),
    ):
      whole = torch.load(path, map_location="cpu", weights_only=True)
  except pickle.UnpicklingError as e:
    if asked := re.search(r"GLOBAL (\S+)", str(e)):
      raise _RefusedError(asked[1]) from e
    _look_into(path)
    raise ValueError("its pickle is not as torch.save writes it") from e
  tensors = whole
  if isinstance(whole, dict):  # Perhaps the checkpoint of a training script.
    tensors = whole.get("state_dict", whole.get("model", whole))
  if not isinstance(tensors, dict) or not all(
    isinstance(name, str) and isinstance(values, torch.Tensor)
    for name, values in tensors.items()
  ):
    raise ValueError(f"a {type(tensors).__name__}, no state dict, is in it")
  arrays = {
    name: (x.float() if x.is_floating_point() else x).detach().numpy()
    for name, x in tensors.items()
  }
  about = getattr(tensors, "_metadata", {}).get("", {})
  return _by_layer(arrays, about.get("producer"))


class _Nothing:
  """What `_Namer` makes of all that a pickle asks for."""

  def __init__(self, *_: Any):
    pass

  def __setstate__(self, _: Any):
    pass


class _Namer(pickle.Unpickler):
  """Runs nothing, and raises _RefusedError for what is not torch's."""

  def find_class(self, module: str, name: str) -> Any:
    if module.partition(".")[0] in ("torch", "collections", "argparse"):
      return _Nothing
    raise _RefusedError(f"{module}.{name}")

  def persistent_load(self, pid: Any) -> Any:
    return _Nothing()


def _look_into(path: Path) -> None:
  """Raises _RefusedError for code that a file of torch's asks for.

  torch's own reader, which refuses it, names that of pickles of protocol 2
  alone.
  """
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      names = (x for x in archive.namelist() if x.endswith("data.pkl"))
      file = io.BytesIO(b"".join(map(archive.read, names)))
  else:
    file = io.BytesIO(path.read_bytes())
  try:
    while True:  # Older files are several pickles, one after another.
      _Namer(file).load()
  except _RefusedError:
    raise
  except Exception:  # At the end, or of half a file.
    return


class _Dtype:
  """What a pickle may say of the type of numbers."""

  def __init__(self, text: str, *_: Any):
    if not re.fullmatch(r"O8|f[248]", text):
      raise ValueError(f"it has numbers of type {text!r}")
    self.text = text

  def __setstate__(self, state: tuple[Any, ...]):
    if state[1] not in ("<", ">", "|"):
      raise ValueError(f"it has numbers of byte order {state[1]!r}")
    self.text = self.text if self.text == "O8" else state[1] + self.text


class _Array:
  """What a pickle may say of an array: numbers, or one object."""

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


def _encode(text: str, _: str) -> bytes:
  return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
  """Makes plain data, and of arrays what the classes above make of them.

  Not with numpy's own constructors: a pickle can tell those lies about memory.
  """

  _MEANT: ClassVar = {
    "multiarray._reconstruct": _Array,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,  # Of bytes, before they had pickles.
  }

  def find_class(self, module: str, name: str) -> Any:
    asked = f"{module}.{name}"
    meant = re.sub(r"^numpy\._?core\.", "", asked)
    if meant not in self._MEANT:
      raise _RefusedError(asked)
    return self._MEANT[meant]


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
  if isinstance(layers, _Array):
    layers = layers.values
  if not isinstance(layers, dict):
    raise ValueError(f"a {type(layers).__name__}, no dictionary, is in it")
  found = {}
  inputs = 0
  for name, layer in sorted(layers.items()):
    named = isinstance(layer, dict)
    kernel, bias = (layer["weights"], layer["biases"]) if named else layer
    kernel, bias = kernel.values, bias.values
    if kernel.ndim == 4:
      weight = kernel.transpose(3, 2, 0, 1)
      inputs = len(weight)
    else:
      maps = kernel.reshape(-1, inputs, kernel.shape[1])
      weight = maps.transpose(2, 1, 0).reshape(kernel.shape[::-1])
      inputs = len(weight)
    found[f"{name}.weight"] = weight
    found[f"{name}.bias"] = bias.reshape(-1)
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
  if not path.is_file():
    raise errors.InputError(
      f"{str(path)!r} is no file that exists; name a file of weights, or the"
      " workdir of a run."
    )
  kind = path.suffix.lower()
  if kind not in READERS:
    raise errors.unknown(f"{str(path)!r}: the kind of file", kind, READERS)
  try:
    if not path.stat().st_size:
      raise ValueError("it is empty")
    return READERS[kind](path)
  except errors.InputError:
    raise
  except _RefusedError as e:
    raise errors.InputError(
      f"{str(path)!r} wants to run {e}, which weights have no need of: it is"
      " not opened. Save the net's weights alone, or take a file from another"
      " source."
    ) from e
  # A damaged file has errors of as many kinds as there are libraries.
  except Exception as e:
    raise errors.InputError(
      f"{str(path)!r} cannot be read ({errors.reason(e)}); it is damaged, or"
      " of another kind than its name says. Get it anew."
    ) from e


def checked(arrays: Arrays) -> dict[str, np.ndarray]:
  """Returns a net's arrays in float32.

  Raises:
    InputError: they are no real numbers, or not all of them finite.
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
