"""What a training step exchanges and keeps in memory, by formula.

The formulas read the layout and the table of layers, never a compiled program.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from alexnet_jax import metrics, model, networks
from alexnet_jax.parallel import layouts
from alexnet_jax.tools.plan.hlo import Collective, itemsize


class Exchange(NamedTuple):
  """Equal arrays that devices exchange in a step."""

  what: str  # they are for
  count: int
  collective: Collective  # one of them


class Array(NamedTuple):
  """Where a parameter lives; its momentum lives in the same place."""

  name: str  # such as features/conv1/kernel
  shape: tuple[int, ...]  # of the whole array
  spec: P  # how it is split over the mesh
  size: int  # bytes on one device


@dataclasses.dataclass(frozen=True)
class Costs:
  """The costs of one training step."""

  config: Any
  layout: layouts.Layout
  network: model.Network  # the whole net
  params: Any  # the whole net's parameters, or their shapes

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
      self._passes(), self._joins(), self._gradients(), self._metrics()
    )
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
    images = layout.batch_size // layout.shards
    return {
      "parameters": stored,
      "momentum": stored,
      "images": images * self.config.image_size_px**2 * 3,
      "gathered kernels": copies,
      "gradients": stored + copies - copies // layout.data,
      "activations": self._activations(),
    }

  @property
  def _dtype(self) -> str:
    """XLA's name of the compute type."""
    return {"float32": "f32", "bfloat16": "bf16"}[self.config.compute_dtype]

  @property
  def _leaves(self) -> list[tuple[Any, Any]]:
    return jax.tree.leaves_with_path(self.params)

  @property
  def _flat_size(self) -> int:
    """Inputs of the fc layers for one image."""
    rows = networks.rows(self.network)
    flattened = (x for x in rows if isinstance(x.layer, model.Flatten))
    return next(flattened).output_shape[0]

  def _runs(self, half: str) -> tuple[int, int]:
    """Returns how often a device runs a half, and on how many examples."""
    layout = self.layout
    runs, devices = layout.microbatches, layout.shards
    if half == "classifier":
      runs, devices = runs * layout.passes, layout.data
    return runs, layout.batch_size // (runs * devices)

  def _devices_along(self, axes: Iterable[Any]) -> int:
    """Returns how many devices lie along the axes of a tuple or a spec."""
    sizes = {"data": self.layout.data, "model": self.layout.model}
    return math.prod(sizes[axis] for axis in jax.tree.leaves(tuple(axes)))

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
    runs, examples = self._runs("classifier")
    inputs = examples * self._flat_size
    for what, kind, dtype, elements in (
      ("labels and rows to fc layers", forward, "s32", 2 * examples),
      ("activities to fc layers", forward, self._dtype, inputs),
      ("their gradients back", backward, self._dtype, inputs),
    ):
      for group_size in groups:
        array = Collective(kind, dtype, elements, group_size)
        yield Exchange(what, runs, array)

  def _joins(self) -> Iterator[Exchange]:
    """Channels of several devices are gathered, and their gradients split."""
    for layer, half, shape, name in self._local_layers():
      if isinstance(layer, model.Join) and layer.axis:
        runs, examples = self._runs(half)
        elements = examples * math.prod(shape)
        for kind, what in (
          ("all-gather", f"join before {name}"),
          ("reduce-scatter", f"its gradient, {name}"),
        ):
          array = Collective(kind, self._dtype, elements, self.layout.model)
          yield Exchange(what, runs, array)

  def _gradients(self) -> Iterator[Exchange]:
    """Gradients are summed in each update, and split kernels gathered."""
    layout = self.layout
    for path, leaf in self._leaves:
      half = path[0].key
      updates = layout.fc_updates if half == "classifier" else 1
      if layout.is_fsdp(path):
        gathered = Collective("all-gather", "f32", leaf.size, layout.data)
        yield Exchange(f"kernels of {half}", updates, gathered)
        summed = Collective("reduce-scatter", "f32", leaf.size, layout.data)
      else:
        parts = self._devices_along(layout.spec_of(path, leaf.ndim))
        group_size = self._devices_along(layout.axes_to_add(path))
        summed = Collective("all-reduce", "f32", leaf.size // parts, group_size)
      yield Exchange(f"gradients of {half}", updates, summed)
      if self.config.optimizer == "lars" and path[-1].key == "kernel":
        # Of weights and of updates.
        group_size = self._devices_along(layout.axes_of(path))
        length = Collective("all-reduce", "f32", 1, group_size)
        yield Exchange("lengths for LARS", 2 * updates, length)

  def _metrics(self) -> Iterator[Exchange]:
    """Softmax, loss, errors, examples, and whether gradients are finite."""
    layout = self.layout
    runs, examples = self._runs("classifier")
    leaves = len(self._leaves)
    group_size = self._devices_along(layout.class_axes)
    for dtype, count in (("f32", 3 * runs), ("s32", runs)):
      array = Collective("all-reduce", dtype, examples, group_size)
      yield Exchange("softmax", count, array)
    summed = Collective("all-reduce", "f32", 1, layout.data)
    logits_1xK = jnp.zeros((1, self.config.num_classes))
    label_1 = jnp.zeros(1, jnp.int32)
    sums = jax.eval_shape(metrics.sums, logits_1xK, label_1, jnp.ones(1))
    yield Exchange("loss and errors", len(sums), summed)
    for axes in {layout.axes_of(path) for path, _ in self._leaves}:
      flags = Collective("all-reduce", "s32", leaves, self._devices_along(axes))
      yield Exchange("finite gradients", 1, flags)

  def _activations(self) -> int:
    """Returns the bytes that a device keeps for its backward pass.

    These are the cropped images and each layer's output, of one microbatch and
    one pass. Scratch memory and gradients of activations are not counted.
    """
    width = itemsize(self._dtype)
    examples = {half: self._runs(half)[1] for half in layouts.HALVES}
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
    return total
