"""Caffe's .caffemodel files, in both versions of their format.

Fields and their numbers are those of src/caffe/proto/caffe.proto (BVLC/caffe).
Such a file says what its net computes. That becomes one line of text a step, to
compare with a net of ours. Steps that change no number at test are left out.
"""

import re
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from alexnet_jax import model
from alexnet_jax.runs.torch_layout import LoadedWeights

# NAME:NUMBER:TYPE, with * if it is repeated, =X for a default other than 0.
# Packed numbers are read as bytes, not as millions of Python objects.
_MESSAGES = {
  "Net": "layers:2:V1Layer* layer:100:Layer*",
  "Layer": "name:1:string kind:2:string blobs:7:Blob* conv:106:Conv"
  " dense:117:Dense lrn:118:Lrn pool:121:Pool relu:123:Relu",
  "V1Layer": "name:4:string number:5:int32 blobs:6:Blob* conv:10:Conv"
  " dense:17:Dense lrn:18:Lrn pool:19:Pool relu:30:Relu",
  "Blob": "num:1:int32 channels:2:int32 height:3:int32 width:4:int32"
  " data:5:bytes shape:7:Shape",
  "Shape": "side:1:int64*",
  "Conv": "pad:3:uint32* kernel:4:uint32* group:5:uint32=1 stride:6:uint32*"
  " pad_h:9:uint32 pad_w:10:uint32 kernel_h:11:uint32 kernel_w:12:uint32"
  " stride_h:13:uint32 stride_w:14:uint32 dilation:18:uint32*",
  "Dense": "transpose:6:bool",
  "Relu": "slope:1:float",
  "Lrn": "window:1:uint32=5 alpha:2:float=1 beta:3:float=0.75 k:5:float=1"
  " region:4:int32",
  "Pool": "kind:1:int32 window:2:uint32 stride:3:uint32=1 pad:4:uint32"
  " window_h:5:uint32 window_w:6:uint32 stride_h:7:uint32 stride_w:8:uint32"
  " pad_h:9:uint32 pad_w:10:uint32 everywhere:12:bool",
}
# V1Layer numbers the kinds of layers.
_KINDS = {
  1: "Accuracy", 4: "Convolution", 5: "Data", 6: "Dropout", 12: "ImageData",
  14: "InnerProduct", 15: "LRN", 17: "Pooling", 18: "ReLU", 20: "Softmax",
  21: "SoftmaxWithLoss", 22: "Split",
}  # fmt: skip
# Layers before and after the net, and those that do nothing at test.
_IGNORED = {
  "Accuracy", "Data", "Dropout", "ImageData", "Input", "Softmax",
  "SoftmaxWithLoss", "Split",
}  # fmt: skip

_DENSE = "fully connected"
_CONV = "convolution {0} x {0}, stride {1}, padding {2}, groups {3}"
_MAX_POOL = "max pool {0} x {0}, stride {1}"
_LRN = "norm over {}, k {:.4g}, alpha {:.4g}, beta {:.4g}"  # alpha of the sum


def read(data: bytes) -> LoadedWeights:
  """Returns what a .caffemodel holds."""
  net = _new_net()
  net.ParseFromString(data)
  if len(net.layers) + len(net.layer) > 1000:  # Each takes two bytes or more.
    raise ValueError("it has more than 1,000 layers")
  layers = [(_KINDS.get(x.number, f"kind {x.number}"), x) for x in net.layers]
  layers += [(x.kind, x) for x in net.layer]
  arrays, steps = {}, []
  for kind, layer in layers:
    if kind not in _IGNORED:
      steps.append(_step(kind, layer))
    axes = {"weight": 2 if kind == "InnerProduct" else 4, "bias": 1}
    for (name, count), blob in zip(axes.items(), layer.blobs, strict=False):
      four_axes = (blob.num, blob.channels, blob.height, blob.width)
      shape = tuple(blob.shape.side) or four_axes
      values = np.frombuffer(blob.data, "<f4").reshape(shape[-count:])
      arrays[f"{layer.name}.{name}"] = values
  if not arrays:
    raise ValueError("none of its layers has weights")
  return LoadedWeights(arrays, steps)


def _new_net() -> Any:
  """Returns an empty message of type Net."""
  field = descriptor_pb2.FieldDescriptorProto
  file = descriptor_pb2.FileDescriptorProto(name="caffe", syntax="proto2")
  for title, fields in _MESSAGES.items():
    described = file.message_type.add(name=title)
    for word in fields.split():
      match = re.fullmatch(r"(\w+):(\d+):(\w+)(\*?)(?:=(.+))?", word)
      assert match, word
      name, number, kind, many, default = match.groups()
      added = described.field.add(name=name, number=int(number))
      added.label = field.LABEL_REPEATED if many else field.LABEL_OPTIONAL
      if kind in _MESSAGES:
        added.type, added.type_name = field.TYPE_MESSAGE, kind
      else:
        added.type = getattr(field, f"TYPE_{kind.upper()}")
      if default:
        added.default_value = default
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName("Net"))()


def _step(kind: str, layer: Any) -> str:
  """Returns what a layer computes, in a line."""
  match kind:
    case "Convolution":
      conv = layer.conv
      sides = (conv.kernel or [0], conv.stride or [1], conv.pad or [0])
      others = [
        conv.pad_h, conv.pad_w, conv.kernel_h, conv.kernel_w, conv.stride_h,
        conv.stride_w, {*conv.dilation} - {1},
      ]  # fmt: skip
      if not any(others) and all(len({*side}) == 1 for side in sides):
        kernel, stride, pad = (side[0] for side in sides)
        return _CONV.format(kernel, stride, pad, conv.group)
    case "InnerProduct":
      if not layer.dense.transpose:
        return _DENSE
    case "ReLU":
      if not layer.relu.slope:
        return "relu"
    case "LRN":
      lrn = layer.lrn
      if not lrn.region:
        # lrn_layer.cpp takes the mean of the squares, not their sum.
        alpha = lrn.alpha / lrn.window
        return _LRN.format(lrn.window, lrn.k, alpha, lrn.beta)
    case "Pooling":
      pool = layer.pool
      others = [
        pool.kind, pool.pad, pool.window_h, pool.window_w, pool.stride_h,
        pool.stride_w, pool.pad_h, pool.pad_w, pool.everywhere,
      ]  # fmt: skip
      if not any(others):
        return _MAX_POOL.format(pool.window, pool.stride)
  return f"an unsupported {kind}"


def steps(network: model.Network) -> list[str]:
  """Returns the lines of a net of ours, from the image to the logits.

  They lack the factor of dropout, which no file of another program holds.
  """
  lines = []
  for layer in (*network.features, *network.classifier):
    match layer:
      case model.Conv():
        window = (layer.kernel, layer.stride, layer.padding)
        lines.append(_CONV.format(*window, layer.towers))
      case model.Dense(towers=1):
        lines.append(_DENSE)
      case model.Activation():
        lines.append(layer.function)
      case model.LocalResponseNorm(towers=1):
        settings = (layer.window, layer.k, layer.alpha, layer.beta)
        lines.append(_LRN.format(*settings))
      case model.Dropout() | model.Join() | model.Flatten():
        pass
      case model.MaxPool():
        lines.append(_MAX_POOL.format(layer.window, layer.stride))
      case _:  # None of the known nets has it.
        lines.append(f"{type(layer).__name__} of this package")
  return lines
