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
from alexnet_jax.runs import run_files, torch_layout
from alexnet_jax.tools import inference
from alexnet_jax.tools.convert import onnx_graph, weight_files

PLATFORMS = ("cpu", "cuda", "tpu")


def write(model: inference.Model, kind: str, folder: Path) -> Path:
  """Writes a single net as a kind of `KINDS`; returns the file."""
  path = folder / KINDS[kind].file
  KINDS[kind].write(model, path)
  return path


def _weights(model: inference.Model) -> dict[str, np.ndarray]:
  params = jax.device_get(model.members[0])
  found = torch_layout.to_torch(model.net.network, params)
  return {name: np.ascontiguousarray(x) for name, x in found.items()}


def _mean_image(model: inference.Model) -> np.ndarray:
  """Returns the mean image of the centre view, [H, W, 3]."""
  size = model.config.crop_size_px
  ((top, left, _),) = augment.views(1, model.config.image_size_px, size)
  mean_image = model.augmentation.mean_image
  return mean_image[top : top + size, left : left + size]


def _write_safetensors(model: inference.Model, path: Path) -> None:
  metadata = {"producer": torch_layout.PRODUCER, "step": str(model.step)}
  path.write_bytes(numpy.save(_weights(model), metadata))


def _write_torch(model: inference.Model, path: Path) -> None:
  torch = weight_files.optional_package("torch")
  tensors: Any = collections.OrderedDict(
    (name, torch.tensor(values)) for name, values in _weights(model).items()
  )
  tensors._metadata = {"": {"version": 1, "producer": torch_layout.PRODUCER}}
  torch.save(tensors, path)


def _write_onnx(model: inference.Model, path: Path) -> None:
  net, scale = model.net.network, model.config.input_scale
  onnx_graph.write(path, net, _weights(model), _mean_image(model), scale)


def _write_stablehlo(model: inference.Model, path: Path) -> None:
  mean = _mean_image(model)[None]
  scale = np.array(model.config.input_scale, np.float32).reshape(1, 1, 1, 3)
  params = jax.device_get(model.members[0])

  def logits(images):
    return model.net.apply({"params": params}, (images - mean) * scale)

  (batch,) = jax.export.symbolic_shape("batch")
  images = jax.ShapeDtypeStruct((batch, *mean.shape[1:]), jnp.float32)
  exported = jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images)
  path.write_bytes(exported.serialize())


class Kind(NamedTuple):
  """A kind of file; `about` is a line for its user, {size} the image's side."""

  file: str
  write: Callable[[inference.Model, Path], None]
  about: str


_WEIGHTS = (
  "The net takes float32 [N, 3, {size}, {size}], RGB of 0..255 less the mean"
  " image, times input_scale; neither is in the file."
)
_NCHW = "It takes float32 [N, 3, {size}, {size}], RGB of 0..255; gives logits."
_NHWC = "It takes float32 [N, {size}, {size}, 3], RGB of 0..255; gives logits."
KINDS = {
  "safetensors": Kind(run_files.WEIGHTS, _write_safetensors, _WEIGHTS),
  "torch": Kind("alexnet.pth", _write_torch, _WEIGHTS),
  "onnx": Kind("alexnet.onnx", _write_onnx, _NCHW),
  "stablehlo": Kind("alexnet.stablehlo", _write_stablehlo, _NHWC),
}
