"""ONNX files: any net written as one, and a file's weights with its steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_jax import networks
from alexnet_jax.runtime import errors
from alexnet_jax.tools.convert import layer_strings
from alexnet_jax.tools.convert.arrays import Arrays

_OPSET = 17
_IR_VERSION = 8  # That of this opset: older readers know it.
PRODUCER = "alexnet_jax"


def _onnx() -> Any:
  try:
    import onnx
  except ImportError as e:
    raise errors.InputError(
      "ONNX files need a package that is not installed; pip install onnx."
    ) from e
  return onnx


def read(path: Path) -> tuple[Any, ...]:
  """Returns what `files.Found` has, in its order.

  Layers are named in their order, or as they were if it was written here.

  Raises:
    InputError: onnx is not installed.
    ValueError, KeyError: it is no chain of layers.
  """
  onnx = _onnx()
  model = onnx.load(str(path))
  graph = model.graph
  held = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
  fed = next(x for x in graph.input if x.name not in held)
  size = fed.type.tensor_type.shape.dim[-1].dim_value or None
  if model.producer_name == PRODUCER:
    kinds = ("weight", "bias")
    own = {k: v for k, v in held.items() if k.rpartition(".")[2] in kinds}
    return own, None, size, None, True
  found: dict[str, np.ndarray] = {}
  steps: list[str] = []
  inside: list[bool] = []
  layers, last = 0, fed.name
  for node in graph.node:
    if node.op_type == "Constant":
      continue
    if node.input[0] != last:
      raise ValueError(f"it is no chain: {node.name or node.op_type} branches")
    last = node.output[0]
    settings = {
      x.name: onnx.helper.get_attribute_value(x) for x in node.attribute
    }
    ends = node is graph.node[-1] or last == graph.output[0].name
    steps += _steps(node.op_type, settings, ends)
    if node.op_type == "MaxPool":
      passes = settings.get("ceil_mode", 0) or any(settings.get("pads", ()))
      inside.append(not passes)
    if node.op_type in ("Conv", "Gemm"):
      weight, *bias = (held[name] for name in node.input[1:])
      layers += 1
      if node.op_type == "Conv":
        name = f"conv{layers}"
      else:
        name = f"fc{layers}"
        weight = weight if settings.get("transB") else weight.T
      found[f"{name}.weight"] = weight
      found[f"{name}.bias"] = (
        bias[0] if bias else np.zeros(len(weight), np.float32)
      )
  return found, steps, size, inside, False


def _steps(kind: str, settings: dict[str, Any], ends: bool) -> list[str]:
  """Returns what a node does in the lines of `layer_strings.py`: one, or none.

  Args:
    kind: of the node.
    settings: its attributes.
    ends: whether the net ends with it.
  """
  windows = settings.get("kernel_shape", [1])
  strides = settings.get("strides", [1])
  pads = settings.get("pads", [0])
  even = (
    len({*windows}) == len({*strides}) == 1
    and {*settings.get("dilations", [1])} == {1}
    and settings.get("auto_pad", b"NOTSET") == b"NOTSET"
  )
  odd = f"{kind} of settings that no net here has"
  match kind:
    case "Conv" if even and len({*pads}) == 1:
      groups = settings.get("group", 1)
      return [layer_strings.conv(windows[0], strides[0], pads[0], groups)]
    # A last window may pass both edges, by one.
    case "MaxPool" if even and pads in ([0], [0] * 4, [0, 0, 1, 1]):
      return [layer_strings.max_pool(windows[0], strides[0])]
    case "Gemm":
      factors = settings.get("alpha", 1.0), settings.get("beta", 1.0)
      plain = factors == (1, 1) and not settings.get("transA")
      return [layer_strings.DENSE if plain else odd]
    case "Relu" | "Tanh" | "Sigmoid":
      return [layer_strings.activation(kind.lower())]
    case "LRN":
      # It takes the mean of the squares, not their sum.
      size = settings["size"]
      alpha = settings.get("alpha", 1e-4) / size
      k, beta = settings.get("bias", 1.0), settings.get("beta", 0.75)
      return [layer_strings.lrn(size, k, alpha, beta)]
    # torch's AdaptiveAvgPool2d, where it has nothing to do.
    case "AveragePool" if {*windows} == {*strides} == {1} and not any(pads):
      return []
    case "Dropout" | "Flatten" | "Reshape" | "Identity":
      return []
    case "Softmax" if ends:  # It changes no order of the answers.
      return []
  return [odd]


class _Graph:
  """Nodes and constants, as they are added."""

  def __init__(self, onnx: Any, constants: Arrays):
    self.onnx = onnx
    self.nodes: list[Any] = []
    self.constants = dict(constants)

  def split(self, x: str, parts: int) -> list[str]:
    """Divides channels into blocks."""
    names = [f"{x}_{n}" for n in range(parts)]
    self.nodes.append(self.onnx.helper.make_node("Split", [x], names, axis=1))
    return names

  def add(self, kind: str, *inputs: str, **settings: Any) -> str:
    """Adds a node, and returns the name of its output."""
    name = f"{kind}_{len(self.nodes)}"
    node = self.onnx.helper.make_node(kind, inputs, [name], name, **settings)
    self.nodes.append(node)
    return name

  def constant(self, values: Any, dtype: Any = np.float32) -> str:
    """Adds numbers, and returns their name."""
    name = f"constant_{len(self.constants)}"
    self.constants[name] = np.asarray(values, dtype)
    return name


def _windows(
  shape: Sequence[int], out: Sequence[int], window: int, stride: int,
  before: int = 0,
) -> dict[str, list[int]]:  # fmt: skip
  """Returns the settings of windows that may pass the right and bottom edge."""
  after = [
    max(0, (outputs - 1) * stride + window - size - before)
    for size, outputs in zip(shape[:2], out[:2], strict=True)
  ]
  return {
    "kernel_shape": [window, window],
    "strides": [stride, stride],
    "pads": [before, before, *after],
  }


def _add_layer(
  graph: _Graph, x: str, row: networks.Row, shape: Sequence[int]
) -> str:
  """Adds a layer, and returns the name of its output.

  Args:
    graph: to add it to.
    x: name of its input.
    row: the layer, and the shape of its output.
    shape: of its input, [H, W, C] or [N].
  """
  add, constant = graph.add, graph.constant
  layer, out = row.layer, row.output_shape
  match layer:
    case networks.Conv():
      weights = (f"{layer.name}.weight", f"{layer.name}.bias")
      sides = _windows(shape, out, layer.kernel, layer.stride, layer.padding)
      return add("Conv", x, *weights, group=layer.towers, **sides)
    case networks.Dense(towers=1):
      weights = (f"{layer.name}.weight", f"{layer.name}.bias")
      return add("Gemm", x, *weights, transB=1)
    case networks.Dense():  # A convolution of one pixel has groups.
      pixel = constant([2, 3], np.int64)
      weight = add("Unsqueeze", f"{layer.name}.weight", pixel)
      x = add("Unsqueeze", x, pixel)
      x = add("Conv", x, weight, f"{layer.name}.bias", group=layer.towers)
      return add("Flatten", x)
    case networks.Activation("scaled_tanh"):
      x = add("Tanh", add("Mul", x, constant(2 / 3)))
      return add("Mul", x, constant(1.7159))
    case networks.Activation("none"):
      return x
    case networks.Activation():
      return add(layer.function.capitalize(), x)
    case networks.LocalResponseNorm():
      size = layer.window
      like = {"size": size, "alpha": size * layer.alpha}
      like |= {"beta": layer.beta, "bias": layer.k}
      if layer.towers == 1:
        return add("LRN", x, **like)
      blocks = [add("LRN", b, **like) for b in graph.split(x, layer.towers)]
      return add("Concat", *blocks, axis=1)
    case networks.MapNorm():
      around = {"kernel_shape": [layer.window] * 2}
      around |= {"pads": [layer.window // 2] * 4, "count_include_pad": 1}
      mean = add("AveragePool", add("Mul", x, x), **around)
      total = add("Mul", mean, constant(layer.alpha * layer.window**2))
      sum_ = add("Add", total, constant(layer.k))
      return add("Div", x, add("Pow", sum_, constant(layer.beta)))
    case networks.MaxPool():
      sides = _windows(shape, out, layer.window, layer.stride)
      return add("MaxPool", x, **sides)
    case networks.AveragePool():
      sides = _windows(shape, out, layer.window, layer.stride)
      return add("AveragePool", x, **sides)
    case networks.Dropout(rescaled=False):
      return add("Mul", x, constant(1 - layer.rate))
    case networks.Flatten():
      return add("Flatten", x)
  return x  # Join and what dropout leaves at test.


def write(
  path: Path,
  network: networks.Network,
  arrays: Arrays,
  mean_image: np.ndarray,
  scale: Sequence[float],
) -> None:
  """Writes a net at test, with the mean and the scale of its input.

  It makes of images, float32 [N, 3, H, W] in RGB of 0..255, logits, float32
  [N, K].

  Args:
    path: of the file.
    network: the table.
    arrays: from `arrays.to_torch`.
    mean_image: [H, W, 3] float32, of the centre view.
    scale: of R, G and B.

  Raises:
    InputError: onnx is not installed.
  """
  onnx = _onnx()
  graph = _Graph(onnx, arrays)
  mean = graph.constant(mean_image.transpose(2, 0, 1)[None])
  factor = graph.constant(np.reshape(scale, (1, 3, 1, 1)))
  x = graph.add("Mul", graph.add("Sub", "images", mean), factor)
  side = network.input_size_px
  shape: tuple[int, ...] = (side, side, 3)
  for row in networks.rows(network):
    x = _add_layer(graph, x, row, shape)
    shape = row.output_shape
  make, kind = onnx.helper, onnx.TensorProto.FLOAT
  model = make.make_model(
    make.make_graph(
      [*graph.nodes, make.make_node("Identity", [x], ["logits"])],
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
  onnx.checker.check_model(model)
  onnx.save(model, str(path))
