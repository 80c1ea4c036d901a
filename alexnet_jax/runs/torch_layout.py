"""Weights as torch, ONNX and Caffe lay them out, and as this package does.

There, a convolution's weight is [filters, inputs, rows, columns] and a fully
connected layer's [units, inputs]; inputs that were maps run [channel, row,
column]. Here, kernels are [rows, columns, inputs, filters] and [inputs, units],
and channels run fastest. A layer that sees only its own tower has that tower's
inputs. Names are `conv1.weight`, `conv1.bias` and so on.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from alexnet_jax import model, networks
from alexnet_jax.runs import states
from alexnet_jax.runtime import errors

# Marks the files that this package writes; their config lies beside them.
PRODUCER = "alexnet_jax"

Arrays = Mapping[str, np.ndarray]


class LoadedWeights(NamedTuple):
  """What a file of weights holds."""

  arrays: Arrays  # by name, in torch's layout
  steps: list[str] | None = None  # as from `caffe.steps`, if the file says
  is_ours: bool = False  # whether this package wrote it


def shapes(network: model.Network) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of a net's arrays in torch's layout, by name."""

  def draw():
    return to_torch(network, states.init_params(model.AlexNet(network), 0))

  return {name: x.shape for name, x in jax.eval_shape(draw).items()}


def to_torch(network: model.Network, params: Any) -> dict[str, Any]:
  """Returns a net's parameters in torch's layout, by name."""
  pixels = _pixels(network)
  layers = {**params["features"], **params["classifier"]}
  found = {}
  for name in networks.layer_names(network):
    kernel = layers[name]["kernel"]
    if kernel.ndim == 4:
      weight = kernel.transpose(3, 2, 0, 1)
    else:
      maps = kernel.reshape(pixels.get(name, 1), -1, kernel.shape[1])
      weight = maps.transpose(2, 1, 0).reshape(kernel.shape[::-1])
    found[f"{name}.weight"] = weight
    if "bias" in layers[name]:
      found[f"{name}.bias"] = layers[name]["bias"]
  return found


def from_torch(network: model.Network, arrays: Arrays) -> dict[str, Any]:
  """Returns a net's parameters, float32, from arrays as `shapes` has them."""
  pixels = _pixels(network)
  params: dict[str, Any] = {"features": {}, "classifier": {}}
  for name in networks.layer_names(network):
    weight = _to_float32(arrays, f"{name}.weight")
    if weight.ndim == 4:
      half, kernel = "features", weight.transpose(2, 3, 1, 0)
    else:
      maps = weight.reshape(len(weight), -1, pixels.get(name, 1))
      half = "classifier"
      kernel = maps.transpose(2, 1, 0).reshape(weight.shape[::-1])
    params[half][name] = {"kernel": np.ascontiguousarray(kernel)}
    if f"{name}.bias" in arrays:
      params[half][name]["bias"] = _to_float32(arrays, f"{name}.bias")
  return params


def _to_float32(arrays: Arrays, name: str) -> np.ndarray:
  values = arrays[name]
  if values.dtype.kind != "f" and values.dtype.name != "bfloat16":
    raise errors.InputError(
      f"{name} is {values.dtype}; weights must be floats: take a file that was"
      " not quantized."
    )
  values = values.astype(np.float32, copy=False)
  if not np.isfinite(values).all():
    raise errors.InputError(
      f"{name} has numbers that are not finite; take another file."
    )
  return values


def _pixels(network: model.Network) -> dict[str, int]:
  """Returns the size of the maps that the first fc layer takes, by its name."""
  shape = (network.input_size_px, network.input_size_px, 3)
  for row in networks.rows(network):
    if len(row.output_shape) == 3:
      shape = row.output_shape
  first: Any = network.classifier[0]
  return {first.name: shape[0] * shape[1]}
