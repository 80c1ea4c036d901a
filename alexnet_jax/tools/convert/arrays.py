"""The same weights as torch lays them out, which ONNX and Caffe do too.

A convolution's weight is [filters, inputs, rows, columns], a fully connected
layer's [units, inputs], and what comes from maps runs [channel, row, column].
Here, kernels are [rows, columns, inputs, filters] and [inputs, units], and
channels run fastest. Inputs are those of a tower where a layer sees only that.
Names are `conv1.weight`, `conv1.bias` and so on.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from alexnet_jax.networks import Conv, Dense, Network, rows

Arrays = Mapping[str, np.ndarray]


def _kernels(network: Network) -> dict[str, tuple[int, int, int, int]]:
  """Returns rows, columns, inputs and outputs of each layer's kernel.

  Those of the first fully connected layer are of the maps it is given.
  """
  found = {}
  shape = (network.input_size_px, network.input_size_px, 3)
  maps = shape
  for row in rows(network):
    match row.layer:
      case Conv():
        side, towers = row.layer.kernel, row.layer.towers
        found[row.layer.name] = (
          side,
          side,
          shape[-1] // towers,
          row.layer.filters,
        )
      case Dense():
        *sides, inputs = maps
        found[row.layer.name] = (
          *sides,
          inputs // row.layer.towers,
          row.layer.units,
        )
        maps = (1, 1, row.layer.units)
    shape = row.output_shape
    if len(shape) == 3:
      maps = shape
  return found


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
  """Returns the shapes that a net's arrays have in torch's layout, by name."""
  found: dict[str, tuple[int, ...]] = {}
  convs = [layer.name for layer in network.features if isinstance(layer, Conv)]
  for name, (height, width, inputs, outputs) in _kernels(network).items():
    whole = (outputs, inputs, height, width)
    flat = (outputs, inputs * height * width)
    found[f"{name}.weight"] = whole if name in convs else flat
    found[f"{name}.bias"] = (outputs,)
  return found


def to_torch(network: Network, params: Any) -> dict[str, np.ndarray]:
  """Returns a net's parameters in torch's layout, by name."""
  wanted = shapes(network)
  layers = {**params["features"], **params["classifier"]}
  found = {}
  for name, sides in _kernels(network).items():
    weight = np.asarray(layers[name]["kernel"]).reshape(sides)
    weight = weight.transpose(3, 2, 0, 1).reshape(wanted[f"{name}.weight"])
    found[f"{name}.weight"] = np.ascontiguousarray(weight)
    found[f"{name}.bias"] = np.asarray(layers[name]["bias"])
  return found


def from_torch(network: Network, arrays: Arrays) -> dict[str, Any]:
  """Returns {"features": ..., "classifier": ...}, as the module has them.

  Args:
    network: the table.
    arrays: of the names and shapes of `shapes`.
  """
  params: dict[str, Any] = {"features": {}, "classifier": {}}
  for name, (height, width, inputs, outputs) in _kernels(network).items():
    weight = arrays[f"{name}.weight"]
    kernel = weight.reshape(outputs, inputs, height, width).transpose(
      2, 3, 1, 0
    )
    dense = weight.ndim == 2
    if dense:
      kernel = kernel.reshape(math.prod(weight.shape[1:]), outputs)
    params["classifier" if dense else "features"][name] = {
      "kernel": np.ascontiguousarray(kernel, np.float32),
      "bias": np.asarray(arrays[f"{name}.bias"], np.float32),
    }
  return params
