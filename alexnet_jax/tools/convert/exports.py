"""A net as a file for other systems: of weights alone, or of all it computes.

A whole net takes pixels of 0..255, mean image and scale are in it; weights
alone leave both to who uses them.
"""

import collections
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors import numpy

from alexnet_jax import augment
from alexnet_jax.runtime import errors
from alexnet_jax.tools import inference
from alexnet_jax.tools.convert import arrays, files, nets, onnx_graph

PLATFORMS = ("cpu", "cuda", "tpu")


def _centre(model: inference.Model) -> np.ndarray:
  """Returns the mean image of the centre view, [H, W, 3]."""
  size, config = model.config.crop_size_px, model.config
  ((top, left, _),) = augment.views(1, config.image_size_px, size)
  mean = model.augmentation.mean_image
  return mean[top : top + size, left : left + size]


def _state_dict(model: inference.Model) -> dict[str, np.ndarray]:
  """Returns weights in torch's layout; torchvision's net under its names."""
  network = model.net.network
  found = arrays.to_torch(network, model.members[0])
  if not nets.is_torchvisions(network, model.config):
    return found
  numbers = {name: number for number, name in files.TORCHVISION.items()}
  return {
    f"{numbers[layer]}.{kind}": values
    for name, values in found.items()
    for layer, _, kind in [name.partition(".")]
  }


def _write_safetensors(model: inference.Model, path: Path) -> None:
  about = {"producer": files.PRODUCER}
  path.write_bytes(numpy.save(_state_dict(model), about))


def _write_torch(model: inference.Model, path: Path) -> None:
  torch = files.torch_itself()
  weights: Any = collections.OrderedDict(
    (name, torch.tensor(values)) for name, values in _state_dict(model).items()
  )
  weights._metadata = {"": {"version": 1, "producer": files.PRODUCER}}
  data = io.BytesIO()  # torch tells a full disk by errors of its own.
  torch.save(weights, data)
  path.write_bytes(data.getbuffer())


def _write_onnx(model: inference.Model, path: Path) -> None:
  onnx_graph.write(
    path,
    model.net.network,
    arrays.to_torch(model.net.network, model.members[0]),
    _centre(model),
    model.config.input_scale,
  )


def _write_stablehlo(model: inference.Model, path: Path) -> None:
  mean = _centre(model)[None]
  scale = np.array(model.config.input_scale, np.float32).reshape(1, 1, 1, 3)
  (params,) = jax.device_get(model.members)

  def logits(images):
    return model.net.apply({"params": params}, (images - mean) * scale)

  (batch,) = jax.export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, *mean.shape[1:]), jnp.float32)
  whole = jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images)
  path.write_bytes(whole.serialize())


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of file.

  Attributes:
    suffix: of its name.
    write: what is written.
    about: a line for its user; {size} is the side of the image.
  """

  suffix: str
  write: Callable[[inference.Model, Path], None]
  about: str


_WEIGHTS = (
  "The net takes float32 [N, 3, {size}, {size}], RGB of 0..255 less the mean"
  " image, times input_scale: neither is in the file."
)
_WHOLE = "It takes float32 {shape}, RGB of 0..255, and gives logits."
_NCHW, _NHWC = "[N, 3, {size}, {size}]", "[N, {size}, {size}, 3]"
KINDS = {
  "safetensors": Kind(".safetensors", _write_safetensors, _WEIGHTS),
  "torch": Kind(".pth", _write_torch, _WEIGHTS),
  "onnx": Kind(".onnx", _write_onnx, _WHOLE.replace("{shape}", _NCHW)),
  "stablehlo": Kind(
    ".stablehlo", _write_stablehlo, _WHOLE.replace("{shape}", _NHWC)
  ),
}


def write(model: inference.Model, kind: str, folder: Path) -> Path:
  """Writes a net into a folder, and returns its file.

  Args:
    model: of a single net.
    kind: of `KINDS`.
    folder: that exists.

  Raises:
    InputError: an ensemble, or a package is not installed.
  """
  if len(model.members) > 1:
    raise errors.InputError(
      f"it holds {len(model.members)} nets of an ensemble; only a single net"
      " becomes a file."
    )
  path = folder / f"alexnet{KINDS[kind].suffix}"
  KINDS[kind].write(model, path)
  return path
