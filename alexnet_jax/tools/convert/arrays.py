"""Weights as torch, ONNX and Caffe lay them out, and as this package does.

There, a convolution's weight is [filters, inputs, rows, columns] and a fully
connected layer's [units, inputs]; inputs that were maps run [channel, row,
column]. Here, kernels are [rows, columns, inputs, filters] and [inputs, units],
and channels run fastest. A layer that sees only its own tower has that tower's
inputs. Names are `conv1.weight`, `conv1.bias` and so on.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from alexnet_jax import model, networks

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class LoadedWeights:
  """What a file of weights holds.

  Attributes:
    arrays: by name, in torch's layout.
    steps: what the net computes, in the lines of `layer_strings.py`; None if
      the file holds weights alone.
    input_size_px: side of the image, if the file says.
    floor_pools: for each max pool, whether all its windows lie inside its
      input; empty if the file does not say.
    is_ours: whether this package wrote the file; its config lies beside it.
  """

  arrays: Arrays
  steps: list[str] | None = None
  input_size_px: int | None = None
  floor_pools: tuple[bool, ...] = ()
  is_ours: bool = False


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


def to_torch(network: model.Network, params: Any) -> dict[str, np.ndarray]:
  """Returns a net's parameters in torch's layout, by name."""
  layers = {**params["features"], **params["classifier"]}
  sides = _sides(network)
  found = {}
  for name in networks.layer_names(network):
    kernel = np.asarray(layers[name]["kernel"])
    if kernel.ndim == 4:
      weight = kernel.transpose(3, 2, 0, 1)
    else:
      maps = kernel.reshape(*sides[name], -1, kernel.shape[1])
      weight = maps.transpose(3, 2, 0, 1).reshape(kernel.shape[::-1])
    found[f"{name}.weight"] = np.ascontiguousarray(weight)
    found[f"{name}.bias"] = np.asarray(layers[name]["bias"])
  return found


def from_torch(network: model.Network, arrays: Arrays) -> dict[str, Any]:
  """Returns a net's parameters as `model.AlexNet` has them.

  Args:
    network: the table.
    arrays: by the names and of the shapes of `shapes`.

  Returns:
    {"features": ..., "classifier": ...}, float32.
  """
  params: dict[str, Any] = {"features": {}, "classifier": {}}
  sides = _sides(network)
  for name in networks.layer_names(network):
    weight = arrays[f"{name}.weight"]
    if weight.ndim == 4:
      half, kernel = "features", weight.transpose(2, 3, 1, 0)
    else:
      half, maps = "classifier", weight.reshape(len(weight), -1, *sides[name])
      kernel = maps.transpose(2, 3, 1, 0).reshape(weight.shape[::-1])
    params[half][name] = {
      "kernel": np.ascontiguousarray(kernel, np.float32),
      "bias": np.asarray(arrays[f"{name}.bias"], np.float32),
    }
  return params


def _sides(network: model.Network) -> dict[Any, tuple[int, int]]:
  """Returns rows and columns of the maps that each layer's inputs were."""
  height = width = network.input_size_px
  for row in networks.rows(network):
    if len(row.output_shape) == 3:
      height, width, _ = row.output_shape
  sides = dict.fromkeys(networks.layer_names(network), (1, 1))
  return sides | {network.classifier[0].name: (height, width)}
