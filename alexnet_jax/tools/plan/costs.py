"""What a training step exchanges and holds, by formula.

The formulas follow the layout and the tables of the nets, and know nothing of a
compiled program. A device's members count one by one, as they run on CPU.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from alexnet_jax import networks
from alexnet_jax.parallel import layouts
from alexnet_jax.tools.plan.hlo import BYTES, Collective


@dataclasses.dataclass(frozen=True)
class Exchange:
  """What a step exchanges by formula.

  Attributes:
    what: it is for.
    collective: one array.
    count: arrays of a step.
  """

  what: str
  collective: Collective
  count: int = 1


def examples_at_once(layout: layouts.Layout) -> dict[str, int]:
  """Returns how many examples a device's conv and fc layers see at a time."""
  parts = layout.batch_size // layout.microbatches
  return {
    "features": parts // layout.shards,
    "classifier": parts // (layout.data * layout.passes),
  }


def _turns(layout: layouts.Layout) -> dict[str, int]:
  """How often in a step a device runs its conv and its fc layers."""
  count = layout.microbatches
  return {"features": count, "classifier": count * layout.passes}


def _members(layout: layouts.Layout) -> int:
  """Nets on one device."""
  return layout.members // layout.model if layout.members > 1 else 1


def _places(layout: layouts.Layout, axes: Iterable[str | None]) -> int:
  """Devices along mesh axes together."""
  sizes = {"data": layout.data, "model": layout.model}
  return math.prod(sizes[axis] for axis in axes if axis)


def _split(layout: layouts.Layout, spec: P) -> int:
  """Parts that an array of this PartitionSpec lies in."""
  axes = [a for entry in spec for a in np.atleast_1d(entry or ())]
  return _places(layout, axes)


def _layers(
  layout: layouts.Layout, network: networks.Network
) -> Iterator[tuple[str, networks.Layer, tuple[int, ...], str]]:
  """Yields the layers that a device runs.

  Yields:
    The half of the net, the device's layer, the whole net's [H, W, C] or [N]
    there, and the name of the layer with parameters here or next.
  """
  table = layout.local_network(network)
  local = [(s, layer) for s in layouts.STACKS for layer in getattr(table, s)]
  whole = (r for r in networks.rows(network) if not _is_join(r.layer))
  shape: tuple[int, ...] = ()
  for place, (stack, layer) in enumerate(local):
    if not _is_join(layer):
      shape = next(whole).output_shape
    ahead = (after.name for _, after in local[place:] if hasattr(after, "name"))
    yield stack, layer, shape, next(ahead, "")


def _is_join(layer: networks.Layer) -> bool:
  return isinstance(layer, networks.Join)


def flat_size(network: networks.Network) -> int:
  """Returns the numbers per image that the fc layers get."""
  return networks.rows(network)[len(network.features) - 1].output_shape[0]


def gradients(layout: layouts.Layout, params: Any) -> list[Exchange]:
  """Returns what is added up in each update, and gathered before.

  A device adds up the gradients of its members one after another, as on CPU;
  accelerators take them at once, as one array.

  Args:
    layout: of the step.
    params: arrays, or their shapes, of the whole net.
  """
  found = []
  for path, leaf in jax.tree.leaves_with_path(params):
    stack = path[0].key
    updates = layout.fc_updates if stack == "classifier" else 1
    layers = "fc" if stack == "classifier" else "conv"
    axes = layout.axes_to_add(path)
    if layout.is_fsdp(path):
      axes = layout.data_axes
      kinds = {"all-gather": "kernels of", "reduce-scatter": "gradients of"}
      elements = leaf.size
    else:
      kinds = {"all-reduce": "gradients of"}
      parts = _split(layout, layout.spec_of(path, leaf.ndim))
      elements = leaf.size // parts // _members(layout)
    for kind, what in kinds.items():
      array = Collective(kind, "f32", elements, _places(layout, axes))
      count = updates * _members(layout)
      found.append(Exchange(f"{what} {layers} layers", array, count))
  return found


def joins(
  layout: layouts.Layout, network: networks.Network, dtype: str
) -> list[Exchange]:
  """Returns where channels of several devices meet, and the way back.

  The arguments are those of `exchanges`.
  """
  found = []
  for stack, layer, shape, name in _layers(layout, network):
    if isinstance(layer, networks.Join) and layer.axis:
      elements = examples_at_once(layout)[stack] * math.prod(shape)
      for kind, what in (
        ("all-gather", f"join before {name}"),
        ("reduce-scatter", f"its gradient, {name}"),
      ):
        array = Collective(kind, dtype, elements, layout.model)
        found.append(Exchange(what, array, _turns(layout)[stack]))
  return found


def passes(
  layout: layouts.Layout, network: networks.Network, dtype: str
) -> list[Exchange]:
  """Returns what carries examples to the fc layers of all devices, and back.

  The arguments are those of `exchanges`.
  """
  if layout.name not in layouts.OWT:
    return []
  examples = examples_at_once(layout)["classifier"]
  turns = _turns(layout)["classifier"]
  there, back = "all-gather", "reduce-scatter"
  groups = [layout.model]
  if layout.name == "owt_b":
    there = back = "collective-permute"
    groups = _receivers(layout.model)
  inputs = examples * flat_size(network)
  return [
    Exchange(what, Collective(kind, word, elements, group), turns)
    for what, kind, word, elements in (
      ("labels and rows to fc layers", there, "s32", 2 * examples),
      ("activities to fc layers", there, dtype, inputs),
      ("their gradients back", back, dtype, inputs),
    )
    for group in groups
  ]


def _receivers(devices: int) -> list[int]:
  """Devices that receive in each round of a broadcast by doubling."""
  return [
    min(2**turn, devices - 2**turn)
    for turn in range(math.ceil(math.log2(devices)))
  ]


def softmax(layout: layouts.Layout) -> list[Exchange]:
  """Returns what is exchanged of logits that several devices hold parts of."""
  examples = examples_at_once(layout)["classifier"]
  turns = _turns(layout)["classifier"]
  return [
    Exchange("softmax", Collective("all-reduce", dtype, examples, parties), n)
    for parties in [_places(layout, layout.class_axes)]
    for dtype, n in (("f32", 3 * turns), ("s32", turns))
  ]


def step_sums(layout: layouts.Layout, params: Any) -> list[Exchange]:
  """Returns what adds up loss, errors and examples, and shows all members'.

  With them goes a count for each array: whether its gradient is finite.

  The number of examples is the same for all members, so XLA adds it up once,
  and shows none where a device has several members and their whole batch.
  """
  what = "loss and errors"
  members = _members(layout)
  added = Collective("all-reduce", "f32", 1, layout.data)
  sums = [Exchange(what, added, 3 * members + 1)]
  leaves = jax.tree.leaves_with_path(params)
  for axes in {layout.axes_of(path) for path, _ in leaves}:
    parties = _places(layout, axes)
    counts = Collective("all-reduce", "s32", len(leaves), parties)
    sums.append(Exchange("finite gradients", counts))
  if layout.members > 1:
    shown = Collective("all-gather", "f32", layout.members, layout.model)
    known = layout.data == 1 and members > 1
    sums.append(Exchange(what, shown, 3 if known else 4))
    counts = Collective(
      "all-gather", "s32", layout.members * len(leaves), layout.model
    )
    sums.append(Exchange("finite gradients", counts))
  return sums


def lengths(layout: layouts.Layout, params: Any) -> list[Exchange]:
  """Returns what LARS asks of kernels that several devices hold parts of."""
  found = []
  for path, _ in jax.tree.leaves_with_path(params):
    if path[-1].key == "kernel":
      updates = layout.fc_updates if path[0].key == "classifier" else 1
      parties = _places(layout, layout.axes_of(path))
      array = Collective("all-reduce", "f32", 1, parties)
      found.append(Exchange("lengths for LARS", array, 2 * updates))
  return found


def exchanges(
  layout: layouts.Layout,
  network: networks.Network,
  params: Any,
  dtype: str,
  lars: bool = False,
) -> list[Exchange]:
  """Returns all that the devices exchange in a step.

  Args:
    layout: of the step.
    network: the whole net.
    params: arrays, or their shapes, of the whole net.
    dtype: of the computation, in XLA's words.
    lars: whether the optimizer is LARS.
  """
  found = [
    *passes(layout, network, dtype),
    *joins(layout, network, dtype),
    *softmax(layout),
    *gradients(layout, params),
    *(lengths(layout, params) if lars else []),
    *step_sums(layout, params),
  ]
  # Of a group of one device nothing is left to do.
  return [
    e
    for e in found
    if e.collective.parties > 1 or e.collective.kind == "collective-permute"
  ]


def activations(
  layout: layouts.Layout, network: networks.Network, dtype: str
) -> int:
  """Returns the bytes of activities that a device keeps for its backward pass.

  Counted, for one microbatch: its images as cropped, and the output of every
  layer that the device runs, in the type of the computation. Nonlinearities,
  dropout and flattening work in place and count nothing; max pooling counts a
  byte more per output, for the place of the maximum. Joins of towers on several
  devices count the gathered copy. The fc layers count one pass. With One Weird
  Trick the gathered inputs of two passes are held, or of one if that is all.
  Several members of a device count all at once. Not counted: scratch memory,
  and gradients of activities.

  Args:
    layout: of the step.
    network: the whole net.
    dtype: of the computation, in XLA's words.
  """
  examples = examples_at_once(layout)
  width = BYTES[dtype]
  total = examples["features"] * network.input_size_px**2 * 3 * width
  for stack, layer, shape, _ in _layers(layout, network):
    match layer:
      case networks.Join():
        parts, per_output = 1, width if layer.axis else 0
      case networks.Activation() | networks.Dropout() | networks.Flatten():
        continue
      case networks.MaxPool():
        parts, per_output = _parts(layout, stack), width + 1
      case _:
        parts, per_output = _parts(layout, stack), width
    total += examples[stack] * math.prod(shape) // parts * per_output
  if layout.name in layouts.OWT and layout.model > 1:
    held = min(layout.passes, 2) * examples["classifier"]
    total += held * flat_size(network) * width
  return total * _members(layout)


def _parts(layout: layouts.Layout, stack: str) -> int:
  """Devices that the channels or units of half a net are split over."""
  path = (jax.tree_util.DictKey(stack), jax.tree_util.DictKey("bias"))
  return _places(layout, layout.axes_of(path))


@dataclasses.dataclass(frozen=True)
class Array:
  """Where a parameter lives; its momentum lives likewise.

  Attributes:
    name: such as features/conv1/kernel.
    shape: of the whole array.
    spec: how it is split over the mesh.
    size: bytes on one device.
  """

  name: str
  shape: tuple[int, ...]
  spec: P
  size: int


def arrays(layout: layouts.Layout, params: Any) -> list[Array]:
  """Returns where every parameter lives.

  Args:
    layout: of the step.
    params: arrays, or their shapes, of the whole net.
  """
  found = []
  for path, leaf in jax.tree.leaves_with_path(params):
    spec = layout.spec_of(path, leaf.ndim)
    name = "/".join(key.key for key in path)
    size = leaf.size * 4 // _split(layout, spec)
    found.append(Array(name, leaf.shape, spec, size))
  return found


def memory(
  layout: layouts.Layout,
  network: networks.Network,
  params: Any,
  dtype: str,
  image_size_px: int,
) -> dict[str, int]:
  """Returns the bytes that live on each device during a step, by what they are.

  Gradients are those of this device's examples, before they are added up: of
  kernels that are stored split they are whole, as are the gathered copies.

  Args:
    layout: of the step.
    network: the whole net.
    params: arrays, or their shapes, of the whole net.
    dtype: of the computation, in XLA's words.
    image_size_px: side of an image before it is cropped.
  """
  stored = sum(array.size for array in arrays(layout, params))
  gathered = [
    (leaf.size * 4, leaf.size * 4 // layout.data)
    for path, leaf in jax.tree.leaves_with_path(params)
    if layout.is_fsdp(path) and layout.data > 1
  ]
  copies = sum(whole for whole, _ in gathered)
  images = layout.batch_size // layout.shards * image_size_px**2 * 3
  return {
    "parameters": stored,
    "momentum": stored,
    "images": images * _members(layout),
    "gathered kernels": copies,
    "gradients": stored + copies - sum(part for _, part in gathered),
    "activations": activations(layout, network, dtype),
  }
