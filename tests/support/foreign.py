"""Weights of other systems: an oracle independent of the importer.

Two families of AlexNet, each a flat dictionary {name: float32 array}:
torchvision's ("features.0.weight" ... "classifier.6.bias"), and Caffe's
`bvlc_alexnet` and `bvlc_reference_caffenet`, here the orders "alexnet" and
"caffenet" ("conv1.weight", "conv1.bias" ... "fc8.bias"; channels are BGR).
For each: shapes, logits by torch's plain operations, writers of the files.
"""

import collections
import math
import os
import pathlib
import shutil
import struct

import numpy as np
import safetensors.numpy
import torch
from torch.nn import functional

F64 = torch.float64
# Convolutions: number -> (stride, padding), (stride, padding, groups).
TORCH_CONVS = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}
CAFFE_CONVS = {
  1: (4, 0, 1), 2: (1, 2, 2), 3: (1, 1, 1), 4: (1, 1, 2), 5: (1, 1, 2)
}  # fmt: skip


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
def caffe_logits(weights, images, mean_bgr, order, dtype=F64):
  """fc8's logits [N, K] of RGB uint8 images [N, S, S, 3], S 227 or 224.

  The mean is (B, G, R) or [3, S, S]; the order "alexnet" (conv, relu, norm,
  pool) or "caffenet" (pool, norm). All pools round up.
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
