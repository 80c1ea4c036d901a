"""Weights as torch, ONNX and Caffe lay them out, and as this package does.

There, a convolution's weight is [filters, inputs, rows, columns] and a fully
connected layer's [units, inputs]; inputs that were maps run [channel, row,
column]. Here, kernels are [rows, columns, inputs, filters] and [inputs, units],
and channels run fastest. A layer that sees only its own tower has that tower's
inputs. Names are `conv1.weight`, `conv1.bias` and so on.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from alexnet_jax import model, networks

Arrays = Mapping[str, np.ndarray]


class LoadedWeights(NamedTuple):
  """What a file of weights holds."""

  arrays: Arrays  # by name, in torch's layout
  steps: list[str] | None = None  # of `layer_strings.py`, if the file says
  input_size_px: int | None = None  # side of the image, if the file says
  # For each max pool, whether all its windows lie inside its input.
  floor_pools: tuple[bool, ...] = ()
  is_ours: bool = False  # this package wrote it; its config lies beside it


def shapes(network: model.Network) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of a net's arrays in torch's layout, by name."""
  found: dict[str, tuple[int, ...]] = {}
  for row in networks.rows(network):
    layer = row.layer
    if isinstance(layer, model.Conv):
      outputs, window = layer.filters, (layer.kernel, layer.kernel)
    elif isinstance(layer, model.Dense):
      outputs, window = layer.units, ()
    else:
      continue
    inputs = (row.parameters // outputs - 1) // math.prod(window)
    found[f"{layer.name}.weight"] = (outputs, inputs, *window)
    found[f"{layer.name}.bias"] = (outputs,)
  return found


def weight_of(kernel: np.ndarray, pixels: int) -> np.ndarray:
  """Returns a kernel of ours in torch's layout; its inputs had `pixels`."""
  if kernel.ndim == 4:
    return kernel.transpose(3, 2, 0, 1)
  maps = kernel.reshape(pixels, -1, kernel.shape[1])
  return maps.transpose(2, 1, 0).reshape(kernel.shape[::-1])


def to_torch(network: model.Network, params: Any) -> dict[str, np.ndarray]:
  """Returns a net's parameters in torch's layout, by name."""
  layers = {**params["features"], **params["classifier"]}
  found = {}
  for name, pixels in _pixels(network).items():
    kernel = np.asarray(layers[name]["kernel"])
    found[f"{name}.weight"] = np.ascontiguousarray(weight_of(kernel, pixels))
    found[f"{name}.bias"] = np.asarray(layers[name]["bias"])
  return found


def from_torch(network: model.Network, arrays: Arrays) -> dict[str, Any]:
  """Returns a net's parameters, float32, from arrays as `shapes` has them."""
  params: dict[str, Any] = {"features": {}, "classifier": {}}
  for name, pixels in _pixels(network).items():
    weight = arrays[f"{name}.weight"]
    if weight.ndim == 4:
      half, kernel = "features", weight.transpose(2, 3, 1, 0)
    else:
      maps = weight.reshape(len(weight), -1, pixels)
      half = "classifier"
      kernel = maps.transpose(2, 1, 0).reshape(weight.shape[::-1])
    params[half][name] = {
      "kernel": np.ascontiguousarray(kernel, np.float32),
      "bias": np.asarray(arrays[f"{name}.bias"], np.float32),
    }
  return params


def _pixels(network: model.Network) -> dict[str, int]:
  """Returns the size of the maps that fc layers take, 1 for other layers."""
  pixels = network.input_size_px**2
  for row in networks.rows(network):
    if len(row.output_shape) == 3:
      pixels = math.prod(row.output_shape[:2])
  first: Any = network.classifier[0]
  names = networks.layer_names(network)
  return {name: pixels if name == first.name else 1 for name in names}
