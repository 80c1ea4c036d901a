"""What a training step exchanges and keeps in memory, by formula.

The formulas read the layout and the table of layers, never a compiled program.
Members of an ensemble that share a device count one by one, as they run on CPU.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from alexnet_jax import model, networks
from alexnet_jax.parallel import layouts
from alexnet_jax.tools.plan.hlo import Collective, itemsize


@dataclasses.dataclass(frozen=True)
class Exchange:
  """Equal arrays that devices exchange in a step."""

  what: str  # they are for
  collective: Collective  # one of them
  count: int


@dataclasses.dataclass(frozen=True)
class Array:
  """Where a parameter lives; its momentum lives in the same place."""

  name: str  # such as features/conv1/kernel
  shape: tuple[int, ...]  # of the whole array
  spec: P  # how it is split over the mesh
  size: int  # bytes on one device


@dataclasses.dataclass(frozen=True)
class Costs:
  """The costs of one training step."""

  layout: layouts.Layout
  network: model.Network  # the whole net
  params: Any  # the whole net's parameters, or their shapes
  dtype: str  # XLA's name of the compute type
  image_size_px: int  # side of an image before it is cropped
  lars: bool  # whether the optimizer is LARS

  @functools.cached_property
  def arrays(self) -> list[Array]:
    """Where every parameter lives."""
    found = []
    for path, leaf in self._leaves:
      spec = self.layout.spec_of(path, leaf.ndim)
      name = "/".join(key.key for key in path)
      size = leaf.size * 4 // self._devices_along(spec)
      found.append(Array(name, leaf.shape, spec, size))
    return found

  @functools.cached_property
  def exchanges(self) -> list[Exchange]:
    """All that the devices exchange in a step."""
    found = itertools.chain(
      self._passes(), self._joins(), self._softmax(), self._gradients(),
      self._lars_norms(), self._metrics(),
    )  # fmt: skip
    return [exchange for exchange in found if exchange.collective.is_sent]

  @functools.cached_property
  def memory(self) -> dict[str, int]:
    """Bytes on each device during a step, by what they hold.

    Gradients are those of its own examples, before the sum over devices; they
    and the gathered copies are whole where kernels are stored split.
    """
    layout = self.layout
    stored = sum(array.size for array in self.arrays)
    copies = sum(
      leaf.size * 4
      for path, leaf in self._leaves
      if layout.is_fsdp(path) and layout.data > 1
    )
    pixels = layout.batch_size // layout.shards * self.image_size_px**2 * 3
    return {
      "parameters": stored,
      "momentum": stored,
      "images": pixels * self._local_members,
      "gathered kernels": copies,
      "gradients": stored + copies - copies // layout.data,
      "activations": self._activations(),
    }

  @property
  def _leaves(self) -> list[tuple[Any, Any]]:
    return jax.tree.leaves_with_path(self.params)

  @property
  def _local_members(self) -> int:
    """Nets that one device trains."""
    layout = self.layout
    return layout.members // layout.model if layout.members > 1 else 1

  @property
  def _runs(self) -> dict[str, int]:
    """How often a device runs each half of the net in a step."""
    count = self.layout.microbatches
    return {"features": count, "classifier": count * self.layout.passes}

  @property
  def _examples(self) -> dict[str, int]:
    """Examples of a device in each run, by half of the net."""
    devices = {"features": self.layout.shards, "classifier": self.layout.data}
    batch_size = self.layout.batch_size
    return {
      half: batch_size // (count * devices[half])
      for half, count in self._runs.items()
    }

  @property
  def _flat_size(self) -> int:
    """Inputs of the fc layers for one image."""
    flat = (x for x in self._local_layers() if isinstance(x[0], model.Flatten))
    return next(flat)[2][0]

  def _devices_along(self, axes: Iterable[Any]) -> int:
    """Returns how many devices lie along the axes of a tuple or a spec."""
    sizes = {"data": self.layout.data, "model": self.layout.model}
    return math.prod(sizes[axis] for axis in jax.tree.leaves(tuple(axes)))

  def _updates(self, path: Any) -> int:
    """Returns how often a step updates the array of a path."""
    return self.layout.fc_updates if path[0].key == "classifier" else 1

  def _local_layers(self) -> Iterator[tuple[Any, str, tuple[int, ...], str]]:
    """Yields layer, half, output shape in the whole net, next named layer."""
    local = self.layout.local_network(self.network)
    layers = [
      (half, layer)
      for half in layouts.HALVES
      for layer in networks.flat(getattr(local, half))
    ]
    # A device may have joins that the whole net does without.
    rows = networks.rows(self.network)
    whole = (row for row in rows if not isinstance(row.layer, model.Join))
    shape: tuple[int, ...] = ()
    for number, (half, layer) in enumerate(layers):
      if not isinstance(layer, model.Join):
        shape = next(whole).output_shape
      names = (getattr(after, "name", None) for _, after in layers[number:])
      yield layer, half, shape, next(filter(None, names), "")

  def _gradients(self) -> Iterator[Exchange]:
    """Gradients are summed in each update, and split kernels gathered."""
    for path, leaf in self._leaves:
      layers = "fc layers" if path[0].key == "classifier" else "conv layers"
      if self.layout.is_fsdp(path):
        kinds = {"all-gather": "kernels of", "reduce-scatter": "gradients of"}
        axes, elements = self.layout.data_axes, leaf.size
      else:
        kinds = {"all-reduce": "gradients of"}
        axes = self.layout.axes_to_add(path)
        parts = self._devices_along(self.layout.spec_of(path, leaf.ndim))
        elements = leaf.size // parts // self._local_members
      for kind, what in kinds.items():
        array = Collective(kind, "f32", elements, self._devices_along(axes))
        count = self._updates(path) * self._local_members
        yield Exchange(f"{what} {layers}", array, count)

  def _joins(self) -> Iterator[Exchange]:
    """Channels of several devices are gathered, and their gradients split."""
    for layer, half, shape, name in self._local_layers():
      if isinstance(layer, model.Join) and layer.axis:
        elements = self._examples[half] * math.prod(shape)
        for kind, what in (
          ("all-gather", f"join before {name}"),
          ("reduce-scatter", f"its gradient, {name}"),
        ):
          array = Collective(kind, self.dtype, elements, self.layout.model)
          yield Exchange(what, array, self._runs[half])

  def _passes(self) -> Iterator[Exchange]:
    """One Weird Trick takes examples to the fc layers of all devices."""
    if self.layout.name not in layouts.OWT:
      return
    forward, backward = "all-gather", "reduce-scatter"
    groups = [self.layout.model]
    if self.layout.name == "owt_b":
      forward = backward = "collective-permute"
      # A broadcast by doubling: how many devices receive in each round.
      rounds = range(math.ceil(math.log2(self.layout.model)))
      groups = [min(2**n, self.layout.model - 2**n) for n in rounds]
    examples, runs = self._examples["classifier"], self._runs["classifier"]
    inputs = examples * self._flat_size
    for what, kind, dtype, elements in (
      ("labels and rows to fc layers", forward, "s32", 2 * examples),
      ("activities to fc layers", forward, self.dtype, inputs),
      ("their gradients back", backward, self.dtype, inputs),
    ):
      for group_size in groups:
        array = Collective(kind, dtype, elements, group_size)
        yield Exchange(what, array, runs)

  def _softmax(self) -> Iterator[Exchange]:
    """Devices that hold parts of the logits combine them."""
    examples, runs = self._examples["classifier"], self._runs["classifier"]
    group_size = self._devices_along(self.layout.class_axes)
    for dtype, count in (("f32", 3 * runs), ("s32", runs)):
      array = Collective("all-reduce", dtype, examples, group_size)
      yield Exchange("softmax", array, count)

  def _metrics(self) -> Iterator[Exchange]:
    """Loss, two errors, examples, and a flag per array: is it finite."""
    layout, members = self.layout, self._local_members
    leaves = len(self._leaves)
    # All members have as many examples, so XLA sums that number once.
    summed = Collective("all-reduce", "f32", 1, layout.data)
    yield Exchange("loss and errors", summed, 3 * members + 1)
    for axes in {layout.axes_of(path) for path, _ in self._leaves}:
      flags = Collective("all-reduce", "s32", leaves, self._devices_along(axes))
      yield Exchange("finite gradients", flags, 1)
    if layout.members > 1:
      shown = Collective("all-gather", "f32", layout.members, layout.model)
      # XLA gathers no number of examples that it knows when it compiles.
      known = layout.data == 1 and members > 1
      yield Exchange("loss and errors", shown, 3 if known else 4)
      elements = layout.members * leaves
      flags = Collective("all-gather", "s32", elements, layout.model)
      yield Exchange("finite gradients", flags, 1)

  def _lars_norms(self) -> Iterator[Exchange]:
    """LARS needs two norms of each kernel, also of one that is split."""
    for path, _ in self._leaves:
      if self.lars and path[-1].key == "kernel":
        group_size = self._devices_along(self.layout.axes_of(path))
        norm = Collective("all-reduce", "f32", 1, group_size)
        yield Exchange("lengths for LARS", norm, 2 * self._updates(path))

  def _activations(self) -> int:
    """Returns the bytes that a device keeps for its backward pass.

    These are the cropped images and each layer's output, of one microbatch and
    one pass. Scratch memory and gradients of activations are not counted.
    """
    width = itemsize(self.dtype)
    examples = self._examples
    total = examples["features"] * self.network.input_size_px**2 * 3 * width
    for layer, half, shape, _ in self._local_layers():
      bias = jax.tree_util.DictKey(half), jax.tree_util.DictKey("bias")
      parts = self._devices_along(self.layout.axes_of(bias))
      per_output = width
      match layer:
        case model.Activation() | model.Dropout() | model.Flatten():
          continue  # They work in place.
        case model.Join():  # Of several devices it keeps the gathered copy.
          parts, per_output = 1, width if layer.axis else 0
        case model.MaxPool():
          per_output += 1  # The place of the maximum.
      total += examples[half] * math.prod(shape) // parts * per_output
    if self.layout.name in layouts.OWT and self.layout.model > 1:
      # The gathered inputs of up to two passes.
      held = min(self.layout.passes, 2) * examples["classifier"]
      total += held * self._flat_size * width
    return total * self._local_members
