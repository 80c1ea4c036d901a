"""ONNX files: reads those of known nets, and writes any net as one."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax import model, networks
from alexnet_jax.runtime import errors
from alexnet_jax.tools.convert import layer_strings
from alexnet_jax.tools.convert.arrays import Arrays, LoadedWeights

_OPSET = 17
_IR_VERSION = 8  # The one of this opset; older readers know it.
PRODUCER = "alexnet_jax"


def optional_package(name: str) -> Any:
  """Returns a package that only some files need, if it is installed."""
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise errors.InputError(
      f"this kind of file needs the package {name}; pip install {name}."
    ) from e


def read(path: Path) -> LoadedWeights:
  """Returns what an ONNX file holds; layers get the paper's names in order."""
  onnx = optional_package("onnx")
  file = onnx.load(str(path))
  graph = file.graph
  held = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
  image = next(x for x in graph.input if x.name not in held)
  size = image.type.tensor_type.shape.dim[-1].dim_value or None
  if file.producer_name == PRODUCER:
    kinds = ("weight", "bias")
    own = {k: v for k, v in held.items() if k.rpartition(".")[2] in kinds}
    return LoadedWeights(own, input_size_px=size, is_ours=True)
  found: dict[str, np.ndarray] = {}
  steps: list[str] = []
  floors: list[bool] = []
  last = image.name
  for node in graph.node:
    if node.op_type == "Constant":
      continue
    if node.input[0] != last:
      raise ValueError(f"it is no chain: {node.name or node.op_type} branches")
    last = node.output[0]
    settings = {
      x.name: onnx.helper.get_attribute_value(x) for x in node.attribute
    }
    is_output = node is graph.node[-1] or last == graph.output[0].name
    step = _step(node.op_type, settings, is_output)
    steps += [step] if step else []
    if node.op_type == "MaxPool":
      ceil = settings.get("ceil_mode", 0) or any(settings.get("pads", ()))
      floors.append(not ceil)
    if node.op_type in ("Conv", "Gemm"):
      weight, *bias = (held[name] for name in node.input[1:])
      if node.op_type == "Gemm" and not settings.get("transB"):
        weight = weight.T
      kind = {"Conv": "conv", "Gemm": "fc"}[node.op_type]
      name = f"{kind}{len(found) // 2 + 1}"
      found[f"{name}.weight"] = weight
      found[f"{name}.bias"] = bias[0] if bias else np.zeros(len(weight), "f4")
  return LoadedWeights(found, steps, size, tuple(floors))


def _step(kind: str, settings: dict[str, Any], is_output: bool) -> str:
  """Returns a node's line of `layer_strings.py`; "" if it changes nothing."""
  windows = settings.get("kernel_shape", [1])
  strides = settings.get("strides", [1])
  pads = settings.get("pads", [0])
  square = (
    len({*windows}) == len({*strides}) == 1
    and {*settings.get("dilations", [1])} == {1}
    and settings.get("auto_pad", b"NOTSET") == b"NOTSET"
  )
  match kind:
    case "Conv" if square and len({*pads}) == 1:
      groups = settings.get("group", 1)
      return layer_strings.CONV.format(windows[0], strides[0], pads[0], groups)
    # Pads of one pixel at the right and the bottom stand for rounding up.
    case "MaxPool" if square and pads in ([0], [0] * 4, [0, 0, 1, 1]):
      return layer_strings.MAX_POOL.format(windows[0], strides[0])
    case "Gemm":
      factors = settings.get("alpha", 1.0), settings.get("beta", 1.0)
      if factors == (1, 1) and not settings.get("transA"):
        return layer_strings.DENSE
    case "Relu" | "Tanh" | "Sigmoid":
      return kind.lower()
    case "LRN":
      # ONNX takes the mean of the squares, not their sum.
      size = settings["size"]
      alpha = settings.get("alpha", 1e-4) / size
      k, beta = settings.get("bias", 1.0), settings.get("beta", 0.75)
      return layer_strings.LRN.format(size, k, alpha, beta)
    # torch's AdaptiveAvgPool2d, if its input has the right size already.
    case "AveragePool" if {*windows} == {*strides} == {1} and not any(pads):
      return ""
    case "Dropout" | "Flatten" | "Reshape" | "Identity":
      return ""
    case "Softmax" if is_output:  # The logits before it have the same order.
      return ""
  return layer_strings.UNSUPPORTED.format(kind)


class _Graph:
  """Nodes and constants of a graph that is being built."""

  def __init__(self, onnx: Any, constants: Arrays):
    self.onnx = onnx
    self.nodes: list[Any] = []
    self.constants = dict(constants)

  def add(self, kind: str, *inputs: str, **settings: Any) -> str:
    """Adds a node, and returns the name of its output."""
    name = f"{kind}_{len(self.nodes)}"
    node = self.onnx.helper.make_node(kind, inputs, [name], name, **settings)
    self.nodes.append(node)
    return name

  def constant(self, values: Any, dtype: Any = np.float32) -> str:
    """Adds a constant, and returns its name."""
    name = f"constant_{len(self.constants)}"
    self.constants[name] = np.asarray(values, dtype)
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
  add, constant = graph.add, graph.constant
  layer, out = row.layer, row.output_shape
  match layer:
    case model.Conv():
      weights = (f"{layer.name}.weight", f"{layer.name}.bias")
      window = _window(shape, out, layer.kernel, layer.stride, layer.padding)
      return add("Conv", x, *weights, group=layer.towers, **window)
    case model.Dense(towers=1):
      weights = (f"{layer.name}.weight", f"{layer.name}.bias")
      return add("Gemm", x, *weights, transB=1)
    case model.Dense():  # Only a convolution has groups.
      pixel = constant([2, 3], np.int64)
      weight = add("Unsqueeze", f"{layer.name}.weight", pixel)
      x = add("Unsqueeze", x, pixel)
      x = add("Conv", x, weight, f"{layer.name}.bias", group=layer.towers)
      return add("Flatten", x)
    case model.Activation(function="scaled_tanh"):
      x = add("Tanh", add("Mul", x, constant(2 / 3)))
      return add("Mul", x, constant(1.7159))
    case model.Activation(function="none"):
      return x
    case model.Activation():
      return add(layer.function.capitalize(), x)
    case model.LocalResponseNorm():
      # ONNX has no groups here, so each tower becomes an example of its own.
      height, width, channels = out
      tower = [-1, channels // layer.towers, height, width]
      x = add("Reshape", x, constant(tower, np.int64))
      alpha = layer.window * layer.alpha
      powers = {"alpha": alpha, "beta": layer.beta, "bias": layer.k}
      x = add("LRN", x, size=layer.window, **powers)
      return add(
        "Reshape", x, constant([-1, channels, height, width], np.int64)
      )
    case model.MapNorm():
      side = layer.window
      window = _window(shape, shape, side, 1, pad=side // 2)
      squares = add("Mul", x, x)
      mean = add("AveragePool", squares, count_include_pad=1, **window)
      total = add("Mul", mean, constant(layer.alpha * side**2))
      sum_ = add("Add", total, constant(layer.k))
      return add("Div", x, add("Pow", sum_, constant(layer.beta)))
    case model.MaxPool() | model.AveragePool():
      window = _window(shape, out, layer.window, layer.stride)
      return add(type(layer).__name__, x, **window)
    case model.Dropout(rescaled=False):
      return add("Mul", x, constant(1 - layer.rate))
    case model.Flatten():
      return add("Flatten", x)
    case model.Join() | model.Dropout():
      return x
  raise TypeError(f"no ONNX node is known for {layer}")


def write(
  path: Path,
  network: model.Network,
  arrays: Arrays,
  mean_image: np.ndarray,
  scale: Sequence[float],
) -> None:
  """Writes a net as it computes at test, with mean and scale of its input.

  It takes images, float32 [N, 3, H, W] in RGB of 0..255, and gives logits,
  float32 [N, K].

  Args:
    path: of the file.
    network: the table.
    arrays: from `arrays.to_torch`.
    mean_image: [H, W, 3] float32, of the centre view.
    scale: of R, G and B.
  """
  onnx = optional_package("onnx")
  graph = _Graph(onnx, arrays)
  mean = graph.constant(mean_image.transpose(2, 0, 1)[None])
  factor = graph.constant(np.reshape(scale, (1, 3, 1, 1)))
  x = graph.add("Mul", graph.add("Sub", "images", mean), factor)
  side = network.input_size_px
  shape: tuple[int, ...] = (side, side, 3)
  for row in networks.rows(network):
    x = _add_layer(graph, x, row, shape)
    shape = row.output_shape
  graph.nodes.append(onnx.helper.make_node("Identity", [x], ["logits"]))
  make, kind = onnx.helper, onnx.TensorProto.FLOAT
  file = make.make_model(
    make.make_graph(
      graph.nodes,
      "alexnet",
      [make.make_tensor_value_info("images", kind, ["N", 3, side, side])],
      [make.make_tensor_value_info("logits", kind, ["N", *shape])],
      [
        onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)
        for name, values in graph.constants.items()
      ],
    ),
    producer_name=PRODUCER,
    ir_version=_IR_VERSION,
    opset_imports=[make.make_opsetid("", _OPSET)],
  )
  onnx.checker.check_model(file)
  onnx.save(file, str(path))
