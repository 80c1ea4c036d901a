"""Weights of other systems: an oracle independent of the importer.

Two families of AlexNet, each a flat dictionary {name: float32 array}:
torchvision's ("features.0.weight" ... "classifier.6.bias"), and Caffe's
`bvlc_alexnet` and `bvlc_reference_caffenet`, here the orders "alexnet" and
"caffenet" ("conv1.weight", "conv1.bias" ... "fc8.bias"; channels are BGR).
For each: shapes, logits by torch's plain operations, writers of the files.
"""

import argparse
import collections
import math
import os
import pathlib
import pickle
import shutil
import struct

import numpy as np
import onnx
import safetensors.numpy
import torch
from onnx import helper, numpy_helper
from torch.nn import functional

F64 = torch.float64
# Convolutions: number -> (stride, padding), (stride, padding, groups).
TORCH_CONVS = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}
CAFFE_CONVS = {
  1: (4, 0, 1), 2: (1, 2, 2), 3: (1, 1, 1), 4: (1, 1, 2), 5: (1, 1, 2)
}  # fmt: skip
# The pools that round up: all in Caffe, in the zoo's bvlcalexnet the last.
CAFFE_CEIL, ZOO_CEIL = "125", "5"


def draw(shapes, seed=0, bias=0.1):
  """{name: array} from {name: shape}: normal / sqrt(fan in), normal * bias."""
  rng = np.random.default_rng(seed)
  arrays = {}
  for name, shape in shapes.items():
    scale = bias if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
    arrays[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
  return arrays


def _flat(layers):
  """{"a.weight": (O, ...), "a.bias": (O,), ...} from {"a": (O, ...)}."""
  shapes = {}
  for name, shape in layers.items():
    shapes[f"{name}.weight"] = shape
    shapes[f"{name}.bias"] = shape[:1]
  return shapes


def _apply(function, x, arrays, name, **options):
  """A convolution or a linear map with the weights called `name`."""
  pair = (arrays[f"{name}.{part}"] for part in ("weight", "bias"))
  return function(x, *(torch.tensor(a, dtype=x.dtype) for a in pair), **options)


def torchvision_shapes(num_classes=1000, fc=4096):
  """{name: shape} of alexnet's state dict; fc units in the hidden layers."""
  convs = [
    (64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3),
    (256, 256, 3, 3),
  ]  # fmt: skip
  names = [f"features.{i}" for i in TORCH_CONVS]
  layers = dict(zip(names, convs, strict=True))
  layers |= {"classifier.1": (fc, 9216), "classifier.4": (fc, fc)}
  return _flat(layers | {"classifier.6": (num_classes, fc)})


def torchvision_input(images):
  """RGB uint8 [N, H, W, 3] -> normalised float64 [N, 3, H, W]."""
  x = (np.asarray(images) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  return x.transpose(0, 3, 1, 2)


@torch.no_grad()
def torchvision_logits(state, images, dtype=F64):
  """Logits [N, K] of RGB uint8 images [N, 224, 224, 3]."""
  x = torch.tensor(torchvision_input(images), dtype=dtype)
  for i, (stride, padding) in TORCH_CONVS.items():
    geometry = {"stride": stride, "padding": padding}
    x = _apply(functional.conv2d, x, state, f"features.{i}", **geometry).relu()
    if i in (0, 3, 10):
      x = functional.max_pool2d(x, 3, 2)
  x = functional.adaptive_avg_pool2d(x, 6).flatten(1)
  x = _apply(functional.linear, x, state, "classifier.1").relu()
  x = _apply(functional.linear, x, state, "classifier.4").relu()
  return _apply(functional.linear, x, state, "classifier.6").numpy()


def _tensors(state):
  """The state dict as torch saves it, its hidden _metadata included."""
  pairs = ((name, torch.tensor(array)) for name, array in state.items())
  tensors = collections.OrderedDict(pairs)
  tensors._metadata = collections.OrderedDict({"": {"version": 1}})
  return tensors


def write_pth(path, state):
  """Write the state dict in torch's zip format."""
  torch.save(_tensors(state), path)


def write_legacy_pth(path, state, parameters=False):
  """Write torch's format before 1.6; the oldest files hold Parameters."""
  tensors = _tensors(state)
  if parameters:
    tensors.update({k: torch.nn.Parameter(v) for k, v in tensors.items()})
  torch.save(tensors, path, _use_new_zipfile_serialization=False)


def write_checkpoint(path, state, wrapped="features"):
  """Write pytorch/examples' checkpoint, DataParallel on "features" or "all"."""
  part = "features." if wrapped == "features" else ""
  rename = {name: name.replace(part, f"{part}module.", 1) for name in state}
  tensors = _tensors({rename[name]: array for name, array in state.items()})
  momentum = {0: {"momentum_buffer": torch.zeros(64, 3, 11, 11)}}
  group = {"lr": 1e-4, "momentum": 0.9, "params": list(range(len(tensors)))}
  checkpoint = {"epoch": 90, "arch": "alexnet", "state_dict": tensors}
  checkpoint["best_acc1"] = torch.tensor(56.5)
  checkpoint["optimizer"] = {"state": momentum, "param_groups": [group]}
  torch.save(checkpoint, path)


def write_reference_checkpoint(path, state):
  """Write torchvision's references/classification checkpoint."""
  options = argparse.Namespace(model="alexnet", lr=0.01, world_size=8)
  checkpoint = {"model": _tensors(state), "optimizer": {}, "epoch": 89}
  torch.save(checkpoint | {"args": options}, path)


def write_safetensors(path, state):
  """Write the state dict as safetensors."""
  arrays = {name: np.ascontiguousarray(a) for name, a in state.items()}
  safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})


def caffe_shapes(num_classes=1000, fc=4096):
  """{"conv1.weight": (96, 3, 11, 11), ...}: [O, I / groups, H, W] and [O, I].

  fc6 takes 9216 = channel, row, column.  Both orders share the shapes.
  """
  convs = [(96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3)]
  convs += [(384, 192, 3, 3), (256, 192, 3, 3)]
  layers = {f"conv{i}": shape for i, shape in enumerate(convs, 1)}
  layers |= {"fc6": (fc, 9216), "fc7": (fc, fc), "fc8": (num_classes, fc)}
  return _flat(layers)


def caffe_layers(order):
  """The names of a net's layers, from conv1 to fc8."""
  between = {"alexnet": ["norm", "pool"], "caffenet": ["pool", "norm"]}[order]
  start = [k + i for i in "12" for k in ["conv", "relu", *between]]
  middle = "conv3 relu3 conv4 relu4 conv5 relu5 pool5".split()
  return start + middle + "fc6 relu6 drop6 fc7 relu7 drop7 fc8".split()


def caffe_input(images, mean_bgr):
  """RGB uint8 [N, H, W, 3] -> BGR [N, 3, H, W] less (B, G, R) or [3, H, W]."""
  mean = np.asarray(mean_bgr, np.float64)
  x = np.asarray(images, np.float64)[..., ::-1].transpose(0, 3, 1, 2)
  return x - (mean.reshape(3, 1, 1) if mean.ndim == 1 else mean)


def _normalise(x, size=5, alpha=1e-4, beta=0.75, k=1.0):
  """Caffe's LRN across channels: alpha weighs the mean of size squares."""
  squares = functional.pad(x * x, (0, 0, 0, 0, size // 2, size // 2))
  total = sum(squares[:, i : i + x.shape[1]] for i in range(size))
  return x / (k + alpha / size * total) ** beta


@torch.no_grad()
def caffe_logits(weights, images, mean_bgr, order, ceil=CAFFE_CEIL, dtype=F64):
  """fc8's logits [N, K] of RGB uint8 images [N, S, S, 3], S 227 or 224.

  The mean is (B, G, R) or [3, S, S]; the order "alexnet" (conv, relu, norm,
  pool) or "caffenet" (pool, norm); `ceil` the pools that round up.
  """
  x = torch.tensor(caffe_input(images, mean_bgr), dtype=dtype)
  for name in caffe_layers(order):
    kind, number = name[:-1], name[-1]
    if kind == "conv":
      stride, padding, groups = CAFFE_CONVS[int(number)]
      geometry = {"stride": stride, "padding": padding, "groups": groups}
      x = _apply(functional.conv2d, x, weights, name, **geometry)
    elif kind == "relu":
      x = x.clamp(min=0)
    elif kind == "norm":
      x = _normalise(x)
    elif kind == "pool":
      if number in ceil:
        end = (x.shape[2] - 3) % 2  # what the last window lacks
        x = functional.pad(x, (0, end, 0, end), value=-math.inf)
      x = functional.max_pool2d(x, 3, 2)
    elif kind == "fc":
      x = _apply(functional.linear, x.flatten(1), weights, name)
  return x.numpy()


def _varint(number):
  if number < 128:
    return bytes([number])
  return bytes([number & 127 | 128]) + _varint(number >> 7)


def _field(number, value):
  """One field: an int as varint, a float as fixed32, the rest by length."""
  if isinstance(value, int):
    return _varint(number << 3) + _varint(value)
  if isinstance(value, float):
    return _varint(number << 3 | 5) + struct.pack("<f", value)
  data = value.encode() if isinstance(value, str) else value
  return _varint(number << 3 | 2) + _varint(len(data)) + data


def _message(*fields):
  """A message of (number, value), by ascending number as C++ writes it."""
  ordered = sorted(fields, key=lambda field: field[0])
  return b"".join(_field(number, value) for number, value in ordered)


def _blob(array, version):
  """A BlobProto: four legacy axes (version 1) or a BlobShape (version 2)."""
  data = (5, np.ascontiguousarray(array, "<f4").tobytes())
  if version == 1:
    axes = (1,) * (4 - array.ndim) + array.shape
    return _message(*enumerate(axes, 1), data)
  shape = _message((1, b"".join(map(_varint, array.shape))))
  return _message(data, (7, shape))


# Kind of layer -> its type and the number of its parameters, by version.
LAYER_TYPES = {
  "data": {1: (5, 11), 2: ("Data", 107)},
  "conv": {1: (4, 10), 2: ("Convolution", 106)},
  "relu": {1: (18, 30), 2: ("ReLU", 123)},
  "norm": {1: (15, 18), 2: ("LRN", 118)},
  "pool": {1: (17, 19), 2: ("Pooling", 121)},
  "fc": {1: (14, 17), 2: ("InnerProduct", 117)},
  "drop": {1: (6, 12), 2: ("Dropout", 108)},
  "loss": {1: (21, 42), 2: ("SoftmaxWithLoss", 101)},
}


def _parameter(name, kind, weights):
  """The message ConvolutionParameter, LRNParameter, ... of a layer."""
  filler = _message((1, "gaussian"), (6, 0.01))  # type, std
  if kind == "conv":
    stride, padding, groups = CAFFE_CONVS[int(name[-1])]
    out, _, kernel, _ = weights[f"{name}.weight"].shape
    fields = [(1, out), (4, kernel), (7, filler)]
    fields += [(3, padding)] * (padding > 0) + [(5, groups)] * (groups > 1)
    return _message(*fields, *[(6, stride)] * (stride > 1))
  if kind == "fc":
    return _message((1, len(weights[f"{name}.bias"])), (3, filler))
  return {
    "data": _message((1, "ilsvrc12_train_lmdb"), (4, 256), (8, 1)),
    "norm": _message((1, 5), (2, 1e-4), (3, 0.75)),  # size, alpha, beta
    "pool": _message((1, 0), (2, 3), (3, 2)),  # MAX, kernel, stride
    "drop": _message((1, 0.5)),
  }.get(kind, b"")


def _layer(name, bottoms, tops, weights, version):
  """A V1LayerParameter or a LayerParameter, with its blobs."""
  kind = name.rstrip("0123456789")
  parts = [f"{name}.{part}" for part in ("weight", "bias")]
  blobs = [_blob(weights[p], version) for p in parts if p in weights]
  title, bottom, top, blob = {1: (4, 2, 3, 6), 2: (1, 3, 4, 7)}[version]
  fields = [(title, name), *((bottom, b) for b in bottoms)]
  fields += [(top, t) for t in tops] + [(blob, b) for b in blobs]
  if kind == "data":
    transform = _message((2, 1), (3, 227), (4, "imagenet_mean.binaryproto"))
    fields += [({1: 32, 2: 8}[version], _message((1, 0)))]  # phase: TRAIN
    fields += [({1: 36, 2: 100}[version], transform)]
  if blobs and version == 1:  # blobs_lr, weight_decay
    fields += [(7, 1.0), (7, 2.0), (8, 1.0), (8, 0.0)]
  elif blobs:  # ParamSpec: lr_mult, decay_mult
    fields += [(6, _message((3, r), (4, 2 - r))) for r in (1.0, 2.0)]
  layer_type, number = LAYER_TYPES[kind][version]
  fields += [(5, layer_type)] if version == 1 else [(2, layer_type), (10, 0)]
  parameter = _parameter(name, kind, weights)
  return _message(*fields, *([(number, parameter)] if parameter else []))


def write_caffemodel(path, weights, order, version):
  """Write a trained net, data to loss: V1 `layers` (1) or `layer` (2)."""
  links, top = [("data", [], ["data", "label"])], "data"
  for name in caffe_layers(order):
    below, top = top, top if name[:-1] in ("relu", "drop") else name
    links.append((name, [below], [top]))
  links.append(("loss", ["fc8", "label"], ["loss"]))
  layers = [_layer(*link, weights, version) for link in links]
  title = {"alexnet": "AlexNet", "caffenet": "CaffeNet"}[order]
  fields = [({1: 2, 2: 100}[version], layer) for layer in layers]
  pathlib.Path(path).write_bytes(_message((1, title), *fields))


def add_caffe_layer(path, version, number, kind):
  """Put one more layer without weights at a net's end, after its loss."""
  layer = {1: [(4, "more"), (5, number)], 2: [(1, "more"), (2, kind)]}[version]
  with pathlib.Path(path).open("ab") as file:
    file.write(_message(({1: 2, 2: 100}[version], _message(*layer))))


def write_binaryproto(path, mean_bgr):
  """Write a mean image [3, S, S] as compute_image_mean does (a BlobProto)."""
  pathlib.Path(path).write_bytes(_blob(np.asarray(mean_bgr)[None], 1))


def _tensorflow(weights, named=False):
  """{"conv1": [W [H, W, I / groups, O], b], "fc6": [W [I, O], b], ...}.

  fc6 takes row, column, channel; fc7 and fc8 are views in Fortran order.
  """
  layers = {}
  for name in dict.fromkeys(key.split(".")[0] for key in weights):
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    if name == "fc6":
      weight = weight.reshape(-1, 256, 6, 6)
    weight = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
    if name == "fc6":
      weight = weight.reshape(9216, -1)
    layers[name] = [weight, bias]
    if named:
      layers[name] = {"weights": weight, "biases": bias}
  return layers


def write_npy(path, weights, named=False):
  """Write bvlc_alexnet.npy; `named` {"weights": W, "biases": b} for [W, b]."""
  with open(path, "wb") as file:
    np.save(file, np.array(_tensorflow(weights, named), dtype=object))


class _Python2Pickler(pickle._Pickler):
  """Pickles as Python 2 with an old numpy: byte strings, numpy.core."""

  dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012
  unicode = frozenset()

  def save_string(self, obj):
    if obj in self.unicode:
      return self.save_str(obj)
    data = obj.encode("latin1") if isinstance(obj, str) else obj
    code, size = (b"U", "<B") if len(data) < 256 else (b"T", "<i")
    self.write(code + struct.pack(size, len(data)) + data)
    self.memoize(obj)

  def save_global(self, obj, name=None):
    module = obj.__module__.replace("numpy._core", "numpy.core")
    self.write(f"c{module}\n{obj.__name__}\n".encode())
    self.memoize(obj)

  dispatch[str] = dispatch[bytes] = save_string


def write_python2_npy(path, weights, named=False, unicode_keys=False):
  """Write bvlc_alexnet.npy as Python 2 did; its keys `str` or `unicode`."""
  array = np.array(_tensorflow(weights, named), dtype=object)
  with open(path, "wb") as file:
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, header)
    pickler = _Python2Pickler(file, 2)
    pickler.unicode = frozenset(array.item() if unicode_keys else ())
    pickler.dump(array)


def _save_onnx(path, nodes, source, target, tensors, opset, ir):
  """Save a graph from source to target, both (name, shape)."""
  value, single = helper.make_tensor_value_info, onnx.TensorProto.FLOAT
  inputs = [value(source[0], single, source[1])]
  if ir < 4:  # initializers had to be inputs too
    inputs += [value(t.name, t.data_type, t.dims) for t in tensors]
  outputs = [value(target[0], single, target[1])]
  graph = helper.make_graph(nodes, "alexnet", inputs, outputs, tensors)
  opsets = [helper.make_opsetid("", opset)]
  model = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
  onnx.checker.check_model(model)
  onnx.save(model, path)


def _node(nodes, kind, inputs, output, *others, **attributes):
  """Append a node; return the name of its (first) output."""
  outputs = [output, *others]
  nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
  return output


def write_bvlcalexnet_onnx(
  path, weights, order="alexnet", ceil=CAFFE_CEIL, size=224, raw=True
):
  """Write the ONNX zoo's bvlcalexnet-9 (or caffenet-9): data_0 -> prob_1.

  The input is [1, 3, size, size], BGR less the mean; the output a softmax.
  Pools round up by pads [0, 0, 1, 1]; ZOO_CEIL makes the zoo's own sizes 54,
  26, 12, 6.  The tensors are in raw_data or float_data.
  """
  arrays, nodes, x, side = {}, [], "data_0", size
  for name in caffe_layers(order):
    kind, number = name[:-1], name[-1]
    if kind in ("conv", "fc"):
      names = [f"{name}_w_0", f"{name}_b_0"]
      arrays[names[0]] = weights[f"{name}.weight"]
      arrays[names[1]] = weights[f"{name}.bias"]
    if kind == "conv":
      stride, padding, groups = CAFFE_CONVS[int(number)]
      kernel = weights[f"{name}.weight"].shape[2]
      side = (side + 2 * padding - kernel) // stride + 1
      shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
      shape |= {"pads": [padding] * 4, "group": groups}
      x = _node(nodes, "Conv", [x, *names], f"{name}_1", **shape)
    elif kind == "relu":
      x = _node(nodes, "Relu", [x], x.replace("_1", "_2"))
    elif kind == "norm":
      shape = {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1.0}
      x = _node(nodes, "LRN", [x], f"{name}_1", **shape)
    elif kind == "pool":
      end = (side - 3) % 2 if number in ceil else 0
      side = (side + end - 3) // 2 + 1
      shape = {"kernel_shape": [3, 3], "strides": [2, 2]}
      shape |= {"pads": [0, 0, end, end]}
      x = _node(nodes, "MaxPool", [x], f"{name}_1", **shape)
    elif kind == "fc":
      if name == "fc6":
        arrays["OC2_DUMMY_1"] = np.array([1, 9216], np.int64)
        x = _node(nodes, "Reshape", [x, "OC2_DUMMY_1"], "OC2_DUMMY_0")
      x = _node(nodes, "Gemm", [x, *names], f"{name}_1", transB=1)
    else:
      outputs = [f"fc{number}_3", f"_fc{number}_mask_1"]
      x = _node(nodes, "Dropout", [x], *outputs, ratio=0.5)
  _node(nodes, "Softmax", [x], "prob_1", axis=1)
  tensors = []
  for name, array in arrays.items():
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    values = array.tobytes() if raw else array.ravel()
    tensors.append(helper.make_tensor(name, dtype, array.shape, values, raw))
  target = ("prob_1", [1, len(weights["fc8.bias"])])
  _save_onnx(path, nodes, ("data_0", [1, 3, size, size]), target, tensors, 9, 3)


def write_torchvision_onnx(path, state):
  """Write alexnet as torch.onnx.export: RGB [batch_size, 3, 224, 224]."""
  nodes, x = [], "input"

  def add(kind, name, **attributes):
    names = [n for n in (f"{name}.weight", f"{name}.bias") if n in state]
    out = f"/{name.split('.')[0]}/{name}/{kind}_output_0"
    return _node(nodes, kind, [x, *names], out, **attributes)

  for i, (stride, padding) in TORCH_CONVS.items():
    kernel = state[f"features.{i}.weight"].shape[2]
    shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
    shape |= {"pads": [padding] * 4, "dilations": [1, 1]}
    x = add("Conv", f"features.{i}", group=1, **shape)
    x = add("Relu", f"features.{i + 1}")
    if i in (0, 3, 10):
      shape |= {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0] * 4}
      x = add("MaxPool", f"features.{i + 2}", ceil_mode=0, **shape)
  x = add("AveragePool", "avgpool", kernel_shape=[1, 1], strides=[1, 1])
  x = add("Flatten", "flatten", axis=1)
  gemm = {"alpha": 1.0, "beta": 1.0, "transB": 1}
  x = add("Gemm", "classifier.1", **gemm)
  x = add("Relu", "classifier.2")
  x = add("Gemm", "classifier.4", **gemm)
  x = add("Relu", "classifier.5")
  add("Gemm", "classifier.6", **gemm)
  nodes[-1].output[0] = "output"
  tensors = [numpy_helper.from_array(a, name) for name, a in state.items()]
  source = ("input", ["batch_size", 3, 224, 224])
  target = ("output", ["batch_size", len(state["classifier.6.bias"])])
  _save_onnx(path, nodes, source, target, tensors, 17, 8)


class Evil:
  """Unpickled without care, it makes an empty file at `marker`."""

  def __init__(self, marker):
    self.marker = str(marker)

  def __reduce__(self):
    return shutil.copyfile, (os.devnull, self.marker)


def write_evil_pth(path, marker, legacy=False, protocol=2):
  """Write a state dict that makes the file `marker`."""
  torch.save(
    {"conv1.weight": torch.ones(3), "conv1.bias": Evil(marker)}, path,
    pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy,
  )  # fmt: skip


def write_evil_npy(path, marker, weights):
  """Write a dictionary of layers that makes the file `marker`."""
  layers = _tensorflow(weights) | {"fc9": Evil(marker)}
  with open(path, "wb") as file:
    np.save(file, np.array(layers, dtype=object))
