"""Writes a net for other programs: its weights, or all that it computes.

A whole net takes pixels of 0..255 and holds mean image and scale; weights alone
need both from outside.
"""

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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


def write(model: inference.Model, kind: str, folder: Path) -> Path:
  """Writes a single net as a kind of `KINDS`; returns the file."""
  if len(model.members) > 1:
    raise errors.InputError(
      f"the run is an ensemble of {len(model.members)} nets; only a single net"
      " can be exported."
    )
  path = folder / f"alexnet{KINDS[kind].suffix}"
  KINDS[kind].write(model, path)
  return path


def _mean_image(model: inference.Model) -> np.ndarray:
  """Returns the mean image of the centre view, [H, W, 3]."""
  size = model.config.crop_size_px
  ((top, left, _),) = augment.views(1, model.config.image_size_px, size)
  mean_image = model.augmentation.mean_image
  return mean_image[top : top + size, left : left + size]


def _state_dict(model: inference.Model) -> dict[str, np.ndarray]:
  """Returns weights in torch's layout; torchvision's net by its own names."""
  network = model.net.network
  found = arrays.to_torch(network, model.members[0])
  if not nets.is_torchvision(network, model.config, found):
    return found
  numbers = {name: number for number, name in files.TORCHVISION.items()}
  return {
    f"{numbers[layer]}.{kind}": values
    for name, values in found.items()
    for layer, _, kind in [name.partition(".")]
  }


def _write_safetensors(model: inference.Model, path: Path) -> None:
  metadata = {"producer": files.PRODUCER}
  path.write_bytes(numpy.save(_state_dict(model), metadata))


def _write_torch(model: inference.Model, path: Path) -> None:
  torch = onnx_graph.optional_package("torch")
  tensors: Any = collections.OrderedDict(
    (name, torch.tensor(values)) for name, values in _state_dict(model).items()
  )
  tensors._metadata = {"": {"version": 1, "producer": files.PRODUCER}}
  torch.save(tensors, path)


def _write_onnx(model: inference.Model, path: Path) -> None:
  onnx_graph.write(
    path,
    model.net.network,
    arrays.to_torch(model.net.network, model.members[0]),
    _mean_image(model),
    model.config.input_scale,
  )


def _write_stablehlo(model: inference.Model, path: Path) -> None:
  mean = _mean_image(model)[None]
  scale = np.array(model.config.input_scale, np.float32).reshape(1, 1, 1, 3)
  (params,) = jax.device_get(model.members)

  def logits(images):
    return model.net.apply({"params": params}, (images - mean) * scale)

  (batch,) = jax.export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, *mean.shape[1:]), jnp.float32)
  exported = jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images)
  path.write_bytes(exported.serialize())


class Kind(NamedTuple):
  """A kind of file; `about` is a line for its user, {size} the image's side."""

  suffix: str
  write: Callable[[inference.Model, Path], None]
  about: str


_WEIGHTS = (
  "The net takes float32 [N, 3, {size}, {size}], RGB of 0..255 less the mean"
  " image, times input_scale; neither is in the file."
)
_NCHW = "It takes float32 [N, 3, {size}, {size}], RGB of 0..255; gives logits."
_NHWC = "It takes float32 [N, {size}, {size}, 3], RGB of 0..255; gives logits."
KINDS = {
  "safetensors": Kind(".safetensors", _write_safetensors, _WEIGHTS),
  "torch": Kind(".pth", _write_torch, _WEIGHTS),
  "onnx": Kind(".onnx", _write_onnx, _NCHW),
  "stablehlo": Kind(".stablehlo", _write_stablehlo, _NHWC),
}
