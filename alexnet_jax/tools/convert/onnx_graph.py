"""Writes a net as an ONNX file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax import model, networks
from alexnet_jax.layers.average_pool import AveragePool
from alexnet_jax.runs.torch_layout import PRODUCER, Arrays
from alexnet_jax.runtime import errors
from alexnet_jax.tools.convert import weight_files

_OPSET = 17
_IR_VERSION = 8  # The one of this opset; older readers know it.


class _Graph:
  """Nodes and constants of a graph that is being built."""

  def __init__(self, onnx: Any, constants: Arrays):
    self.onnx = onnx
    self.nodes: list[Any] = []
    self.constants = dict(constants)

  def add(self, kind: str, *inputs: Any, **settings: Any) -> str:
    """Adds a node, and returns its output's name.

    Inputs are names of outputs or constants, or numbers.
    """
    names = [x if isinstance(x, str) else self._constant(x) for x in inputs]
    output = f"{kind}_{len(self.nodes)}"
    node = self.onnx.helper.make_node(kind, names, [output], output, **settings)
    self.nodes.append(node)
    return output

  def _constant(self, value: np.ndarray | np.generic) -> str:
    name = f"constant_{len(self.constants)}"
    self.constants[name] = np.asarray(value)
    return name


def _window(
  shape: Sequence[int], out: Sequence[int], side: int, stride: int, pad: int = 0
) -> dict[str, list[int]]:
  """Returns the settings of windows that may pass the right and bottom edge."""
  after = [
    max(0, (outputs - 1) * stride + side - inputs - pad)
    for inputs, outputs in zip(shape[:2], out[:2], strict=True)
  ]
  return {
    "kernel_shape": [side, side],
    "strides": [stride, stride],
    "pads": [pad, pad, *after],
  }


def _add_layer(
  graph: _Graph, x: str, row: model.Row, shape: Sequence[int]
) -> str:
  """Adds a layer with input `x` of a shape, and returns its output's name."""
  add, layer, out = graph.add, row.layer, row.output_shape
  names = (f"{layer.name}.weight", f"{layer.name}.bias")
  weights = [name for name in names if name in graph.constants]
  match layer:
    case model.Conv():
      window = _window(shape, out, layer.kernel, layer.stride, layer.padding)
      return add("Conv", x, *weights, group=layer.towers, **window)
    case model.Dense(towers=1):
      return add("Gemm", x, *weights, transB=1)
    case model.Dense():  # Only a convolution has groups.
      pixel = np.array([2, 3])
      filters = add("Unsqueeze", weights[0], pixel)
      x = add("Unsqueeze", x, pixel)
      x = add("Conv", x, filters, *weights[1:], group=layer.towers)
      return add("Flatten", x)
    case model.Activation(function="scaled_tanh"):
      x = add("Tanh", add("Mul", x, np.float32(2 / 3)))
      return add("Mul", x, np.float32(1.7159))
    case model.Activation(function="none"):
      return x
    case model.Activation():
      return add(layer.function.capitalize(), x)
    case model.LocalResponseNorm():
      # ONNX has no groups here, so each tower becomes an example of its own.
      height, width, channels = out
      tower = np.array([-1, channels // layer.towers, height, width])
      x = add("Reshape", x, tower)
      alpha = layer.window * layer.alpha
      powers = {"alpha": alpha, "beta": layer.beta, "bias": layer.k}
      x = add("LRN", x, size=layer.window, **powers)
      return add("Reshape", x, np.array([-1, channels, height, width]))
    case model.MapNorm():
      side = layer.window
      window = _window(shape, shape, side, 1, pad=side // 2)
      squares = add("Mul", x, x)
      mean = add("AveragePool", squares, count_include_pad=1, **window)
      total = add("Mul", mean, np.float32(layer.alpha * side**2))
      base = add("Add", total, np.float32(layer.k))
      return add("Div", x, add("Pow", base, np.float32(layer.beta)))
    case model.MaxPool() | AveragePool():
      window = _window(shape, out, layer.window, layer.stride)
      return add(type(layer).__name__, x, **window)
    case model.Dropout(rescaled=False):
      return add("Mul", x, np.float32(1 - layer.rate))
    case model.Flatten():
      return add("Flatten", x)
    case model.Join() | model.Dropout():
      return x
  raise errors.InputError(
    f"{type(layer).__name__} of this net has no ONNX node here; write its"
    " weights, --to=safetensors, or all of it, --to=stablehlo."
  )


def write(
  path: Path,
  network: model.Network,
  arrays: Arrays,
  mean_image: np.ndarray,
  scale: Sequence[float],
) -> None:
  """Writes a net as it computes at test, with mean and scale of its input.

  It takes images, float32 [N, 3, H, W] in RGB of 0..255, and gives logits,
  float32 [N, K]. `arrays` are from `torch_layout.to_torch`; `mean_image`
  [H, W, 3] is of the centre view; `scale` is of R, G and B.
  """
  onnx = weight_files.optional_package("onnx")
  graph = _Graph(onnx, arrays)
  x = graph.add("Sub", "images", mean_image.transpose(2, 0, 1)[None])
  x = graph.add("Mul", x, np.array(scale, np.float32).reshape(1, 3, 1, 1))
  side = network.input_size_px
  shape: tuple[int, ...] = (side, side, 3)
  for row in networks.rows(network):
    x = _add_layer(graph, x, row, shape)
    shape = row.output_shape
  graph.nodes.append(onnx.helper.make_node("Identity", [x], ["logits"]))
  make, kind = onnx.helper, onnx.TensorProto.FLOAT
  constants = [
    onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)
    for name, values in graph.constants.items()
  ]
  file = make.make_model(
    make.make_graph(
      graph.nodes,
      "alexnet",
      [make.make_tensor_value_info("images", kind, ["N", 3, side, side])],
      [make.make_tensor_value_info("logits", kind, ["N", *shape])],
      constants,
    ),
    producer_name=PRODUCER,
    ir_version=_IR_VERSION,
    opset_imports=[make.make_opsetid("", _OPSET)],
  )
  onnx.checker.check_model(file)
  onnx.save(file, str(path))
