"""Reads what torch.save has written, new or old.

torch's own reader lets a file of 100 bytes ask for all memory. Here nothing is
larger than the file, and a name in it stands for no code.
"""

import io
import pickle
import struct
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np

_MAX_PICKLE_BYTES = 2**18  # It names the tensors; torchvision's has 2 kB.
_MAGIC = 0x1950A86A20F9469CFC6C  # Of files before torch 1.6.
_DTYPES = {
  "Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": jnp.bfloat16,
  "Char": "i1", "Byte": "u1", "Short": "i2", "Int": "i4", "Long": "i8",
  "Bool": "?",
}  # fmt: skip


class _Dict(dict):
  metadata: Any = None


_KNOWN: dict[str, Any] = {
  "collections.OrderedDict": lambda: _Dict(),
  "torch.Size": lambda shape: shape,
  "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
  # Storage, offset, shape and strides.
  "torch._utils._rebuild_tensor_v2": lambda *tensor: tensor[:4],
  **{f"torch.{name}Storage": np.dtype(x) for name, x in _DTYPES.items()},
}
# The one in C allocates a memo of any size that a file names.
_PythonUnpickler: Any = getattr(pickle, "_Unpickler")  # noqa: B009


class _Unpickler(_PythonUnpickler):
  dispatch = _PythonUnpickler.dispatch.copy()
  del dispatch[pickle.BYTEARRAY8[0]]  # It allocates before it reads.

  def __init__(self, data: io.BytesIO):
    super().__init__(data)
    self.dtypes: dict[str, np.dtype] = {}  # of storages

  def find_class(self, module, name):
    if f"{module}.{name}" not in _KNOWN:
      raise pickle.UnpicklingError(f"it names {module}.{name}, no weight")
    return _KNOWN[f"{module}.{name}"]

  def persistent_load(self, pid):
    kind, self.dtypes[pid[2]], key, _, _, *view = pid
    if kind != "storage" or any(view):
      raise pickle.UnpicklingError(
        f"it holds a {kind} that is no whole storage"
      )
    return key, self.dtypes[key]

  def load_build(self):
    # As pickle does it, a file could change attributes of `_KNOWN`.
    state = self.stack.pop()
    if isinstance(self.stack[-1], _Dict):
      self.stack[-1].metadata = state.get("_metadata")

  dispatch[pickle.BUILD[0]] = load_build


def read(data: bytes) -> tuple[dict[str, np.ndarray], str | None]:
  """Returns the arrays of a state dict, and the program that it names.

  It may be in the checkpoint of a training script. A file that is damaged or
  holds more raises many kinds of errors.
  """
  is_zip = zipfile.is_zipfile(io.BytesIO(data))
  content, storages = _open_zip(data) if is_zip else _open_old(data)
  tensors = content.get("state_dict", content.get("model", content))
  arrays = {}
  for name, ((key, dtype), offset, shape, strides) in tensors.items():
    steps = [stride * dtype.itemsize for stride in strides]
    # NumPy compares the places of all elements with the size of the buffer.
    arrays[name] = np.ndarray(
      shape, dtype, storages[key], offset * dtype.itemsize, steps
    )
    if arrays[name].nbytes > len(storages[key]):  # A stride may be 0.
      raise ValueError(f"{name} is larger than what the file holds of it")
  metadata = getattr(tensors, "metadata", None) or {"": {}}
  return arrays, metadata[""].get("producer")


def _open_zip(data: bytes) -> tuple[Any, dict[str, bytes]]:
  archive = zipfile.ZipFile(io.BytesIO(data))
  infos = archive.infolist()
  if any(x.compress_type for x in infos):
    raise ValueError("it is compressed, which torch.save does not do")
  if sum(x.file_size for x in infos) > len(data):
    raise ValueError("its parts are larger than the file")
  # Names begin with that of the file.
  parts = {x.filename.partition("/")[2]: archive.read(x) for x in infos}
  if parts.get("byteorder", b"little") != b"little":
    raise ValueError("its numbers are big-endian")
  content = _Unpickler(io.BytesIO(parts["data.pkl"][:_MAX_PICKLE_BYTES])).load()
  return content, {name.removeprefix("data/"): x for name, x in parts.items()}


def _open_old(data: bytes) -> tuple[Any, dict[str, memoryview]]:
  stream = io.BytesIO(data[:_MAX_PICKLE_BYTES])
  readers = [_Unpickler(stream) for _ in range(5)]
  magic, _, system, content, keys = (reader.load() for reader in readers)
  if magic != _MAGIC or not system["little_endian"]:
    raise ValueError(
      "torch.save did not write it, or its numbers are big-endian"
    )
  storages, start = {}, stream.tell()
  for key in keys:
    (count,) = struct.unpack_from("<q", data, start)
    stop = start + 8 + count * readers[3].dtypes[key].itemsize
    storages[key] = memoryview(data)[start + 8 : stop]
    start = stop
  return content, storages
