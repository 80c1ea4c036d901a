"""The plan of a training step: what lives where, and what devices exchange.

python -m alexnet_jax.parallel --config=configs/alexnet.py --layout=owt_a \
  --devices=8 --config.batch_size=$((128*8))

`config.batch_size` is that of the whole step: multiply it, as above, to keep
128 examples on each device. Up to 8 devices the step is also compiled, for
virtual devices of the CPU, and what the program exchanges is set beside the
formulas. (XLA:CPU exchanges bfloat16 as float32, which shows as a difference.)
MB are 10^6 bytes.
"""

import collections
import dataclasses
import math
import re
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import PartitionSpec as P
from rich import box
from rich.console import Console
from rich.table import Table

from alexnet_jax import (
  augment,
  cli,
  errors,
  layouts,
  model,
  networks,
  optimizer,
  steps,
)

MAX_DEVICES = 1024
MAX_COMPILED = 8
"""Devices up to which a plan is compiled unless it is said otherwise."""

BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4} | {
  "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s8": 1, "u8": 1, "pred": 1,
}  # fmt: skip
"""Of one element, by XLA's name of its type."""

KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "collective-permute",
  "all-to-all",
  "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One array that devices exchange.

  Attributes:
    kind: of `KINDS`.
    dtype: XLA's name of its type, such as f32.
    elements: of the whole array: what each device brings to an all-reduce or a
      reduce-scatter, what an all-gather leaves, what a permutation hands on.
    parties: devices in a group; of a permutation, those that receive.
  """

  kind: str
  dtype: str
  elements: int
  parties: int

  @property
  def size(self) -> int:
    """Bytes of the whole array."""
    return self.elements * BYTES[self.dtype]

  def received(self, devices: int) -> float:
    """Returns the bytes that a device receives, on the mean over all devices.

    Arrays go around a ring of n devices: 2 (n - 1) / n of the array for an
    all-reduce, half of that for all others. In a collective-permute those that
    are targets receive the array, the others nothing.

    Args:
      devices: how many take part in the step.
    """
    if self.kind == "collective-permute":
      return self.size * self.parties / devices
    turns = 2 if self.kind == "all-reduce" else 1
    return turns * (self.parties - 1) / self.parties * self.size


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


# What the layout foresees.


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
  table = layout.table(network)
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
    if layout.is_gathered(path):
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

  Args:
    layout: of the step.
    network: the whole net.
    dtype: of the computation, in XLA's words.
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

  Args:
    layout: of the step.
    network: the whole net.
    dtype: of the computation, in XLA's words.
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


def step_sums(layout: layouts.Layout) -> list[Exchange]:
  """Returns what adds up loss, errors and examples, and shows all members'.

  The number of examples is the same for all members, so XLA adds it up once,
  and shows none where a device has several members and their whole batch.
  """
  what = "loss and errors"
  members = _members(layout)
  added = Collective("all-reduce", "f32", 1, layout.data)
  sums = [Exchange(what, added, 3 * members + 1)]
  if layout.members > 1:
    shown = Collective("all-gather", "f32", layout.members, layout.model)
    known = layout.data == 1 and members > 1
    sums.append(Exchange(what, shown, 3 if known else 4))
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
    *step_sums(layout),
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
  split = {"towers": layouts.STACKS}.get(layout.name, ())
  if layout.name in layouts.OWT:
    split = ("classifier",)
  return layout.model if stack in split else 1


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
    if layout.is_gathered(path) and layout.data > 1
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


# What the compiled program holds.


_INSTRUCTION = re.compile(
  rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(.*?\)(, .*)?$", re.MULTILINE
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$", re.MULTILINE)


def read_hlo(text: str) -> tuple[list[Collective], list[Collective]]:
  """Returns the arrays that a compiled program exchanges.

  One instruction may carry many arrays; each is an entry of its own. Groups of
  one device, which move nothing, are left out.

  Args:
    text: of the optimized HLO.

  Returns:
    All of them, and those among them that stand in a loop and are exchanged in
    each of its turns.
  """
  partitions = re.search(r"num_partitions=(\d+)", text)
  devices = int(partitions[1]) if partitions else 1
  bodies = _computations(text)
  looping = _looping(bodies)
  found, looped = [], []
  for name, body in bodies.items():
    for result, kind, start, rest in _INSTRUCTION.findall(body):
      parties = _parties(kind, rest, devices)
      outputs = _ARRAY.findall(result)
      if start and kind != "all-reduce":
        # Operands, results, and words of its own that hold no number of ours.
        outputs = [o for o in outputs if o != ("u32", "")]
        outputs = outputs[len(outputs) // 2 :]
      if parties == 1 and kind != "collective-permute":
        continue
      for dtype, shape in outputs:
        elements = math.prod(int(n) for n in shape.split(",") if n)
        if kind == "reduce-scatter":
          elements *= parties
        found.append(Collective(kind, dtype, elements, parties))
        if name in looping:
          looped.append(found[-1])
  return found, looped


def _computations(text: str) -> dict[str, str]:
  """Returns the body of each computation of a program, by name."""
  heads = list(_COMPUTATION.finditer(text))
  ends = [head.start() for head in heads[1:]] + [len(text)]
  return {
    head[1]: text[head.end() : end]
    for head, end in zip(heads, ends, strict=True)
  }


def _looping(bodies: dict[str, str]) -> set[str]:
  """Returns the computations that loops run, and what those call."""
  found: set[str] = set()
  waiting = re.findall(r"body=%?([\w.-]+)", "\n".join(bodies.values()))
  while waiting:
    name = waiting.pop()
    if name not in found:
      found.add(name)
      called = re.findall(r"%?([\w.-]+)", bodies.get(name, ""))
      waiting += [word for word in called if word in bodies]
  return found


def _parties(kind: str, attributes: str, devices: int) -> int:
  """Returns the devices of a group, or those that receive in a permutation.

  Args:
    kind: of the collective.
    attributes: what follows its operands.
    devices: of the program, all of which are in a group that is not listed.
  """
  if kind == "collective-permute":
    pairs = re.search(r"source_target_pairs=\{(.*?\})\}", attributes)
    return pairs[1].count("{") if pairs else 0
  if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
    return len(listed[1].split(","))
  if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
    return int(counted[1])
  if mesh := re.search(
    r"replica_groups=mesh\[(.*?)\].*?\{([^}]*)\}", attributes
  ):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"\w+", mesh[2]))
  return devices


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What a compiled step says of itself.

  Attributes:
    collectives: arrays that it exchanges.
    looped: those of them that stand in a loop.
    arguments: bytes per device of state and batch.
    temporaries: bytes per device of all else.
  """

  collectives: list[Collective]
  looped: list[Collective]
  arguments: int
  temporaries: int


def compile_step(
  config: Any, net: model.AlexNet, layout: layouts.Layout
) -> jax.stages.Compiled:
  """Returns the compiled training step; no array is made for it.

  Args:
    config: a whole config.
    net: the config's.
    layout: the config's; so many devices are there.
  """
  mesh = layouts.make_mesh(layout.devices, layout.model)
  size = config.image_size_px
  statistics = types.SimpleNamespace(
    mean_image=np.zeros((size, size, 3), np.float32),
    colour_axes=np.eye(3, dtype=np.float32),
    colour_sds=np.ones(3, np.float32),
  )
  examples = 100 * config.batch_size
  augmentation = augment.from_config(config, statistics, examples)
  tx, _ = optimizer.from_config(config, examples, 100, layout.axes_of)

  def placed(tree: Any, specs: Any) -> Any:
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      tree,
      layouts.shardings(mesh, specs),
    )

  members = layout.members
  state = jax.eval_shape(
    lambda params: steps.init_state(params, tx, members),
    abstract_params(net, members),
  )
  leading = (*[members] * (members > 1), config.batch_size)
  batch = {
    "image": jax.ShapeDtypeStruct((*leading, size, size, 3), jnp.uint8),
    "label": jax.ShapeDtypeStruct(leading, jnp.int32),
  }
  step = steps.make_train_step(net, tx, augmentation, layout, mesh, config.seed)
  return step.lower(
    placed(state, layouts.specs(layout, state)),
    placed(batch, dict.fromkeys(batch, layout.batch_spec)),
  ).compile()


def abstract_params(net: model.AlexNet, members: int = 1) -> Any:
  """Returns the shapes of a net's parameters.

  Args:
    net: the net.
    members: nets one above the other, if there are several.
  """
  size = net.network.input_size_px
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  params = jax.eval_shape(net.init, jax.random.key(0), images)["params"]
  if members == 1:
    return params
  return jax.eval_shape(steps.stack_members, [params] * members)


# Both, side by side.


@dataclasses.dataclass(frozen=True)
class Plan:
  """A training step on paper, and as it was compiled, if it was.

  Attributes:
    layout: of the step.
    arrays: where each parameter lives.
    memory: bytes per device by what they are, see `memory`.
    exchanges: what devices exchange, by formula.
    compiled: what the program says.
  """

  layout: layouts.Layout
  arrays: list[Array]
  memory: dict[str, int]
  exchanges: list[Exchange]
  compiled: Compiled | None

  @property
  def received(self) -> float:
    """Bytes that a device receives in a step, by formula."""
    devices = self.layout.devices
    return sum(e.collective.received(devices) * e.count for e in self.exchanges)

  @property
  def received_as_compiled(self) -> float | None:
    """The same of the compiled program."""
    if self.compiled is None:
      return None
    devices = self.layout.devices
    return sum(c.received(devices) for c in self.compiled.collectives)

  @property
  def agrees(self) -> bool:
    """Whether the program exchanges the arrays of the formulas and no others.

    Their kind, type, size, group and number are compared. True if it was not
    compiled.
    """
    return all(line.agrees for line in compare(self))


@dataclasses.dataclass
class Line:
  """Arrays of one kind for one end.

  Attributes:
    what: they are for; empty if no formula foresees them.
    kind: of the collective.
    arrays: how many, by formula.
    received: bytes per device and step, by formula.
    found: how many the program has.
    found_received: bytes of those.
    agrees: whether both are the same, array by array.
  """

  what: str
  kind: str
  arrays: int = 0
  received: float = 0.0
  found: int = 0
  found_received: float = 0.0
  agrees: bool = True


def compare(plan: Plan) -> list[Line]:
  """Returns what is exchanged, by formula and in the program, line by line."""
  lines: dict[tuple[str, str], Line] = {}
  devices = plan.layout.devices
  compiled = plan.compiled
  left = collections.Counter(compiled.collectives if compiled else ())

  def add(what: str, array: Collective, foreseen: int, found: int) -> None:
    key = (what, array.kind)
    line = lines.setdefault(key, Line(what, array.kind))
    line.arrays += foreseen
    line.received += foreseen * array.received(devices)
    line.found += found
    line.found_received += found * array.received(devices)
    line.agrees &= compiled is None or foreseen == found

  for exchange in plan.exchanges:
    array = exchange.collective
    found = min(left[array], exchange.count)
    left[array] -= found
    add(exchange.what, array, exchange.count, found)
  for array, count in left.items():
    if count:
      add("", array, 0, count)
  return list(lines.values())


def make_plan(config: Any, devices: int, compiled: bool) -> Plan:
  """Returns the plan of a config's training step.

  Args:
    config: a whole config.
    devices: how many.
    compiled: whether to compile the step too; so many devices are needed.

  Raises:
    InputError: a config that cannot be divided so, see `layouts.from_config`.
  """
  net = model.from_config(config)
  optimizer.check(config, networks.names(net.network))
  layout = layouts.from_config(config, net.network, devices)
  params = abstract_params(net, layout.members)
  dtype = {"float32": "f32", "bfloat16": "bf16"}[config.compute_dtype]
  found = None
  if compiled:
    program = compile_step(config, net, layout)
    sizes: Any = program.memory_analysis()
    found = Compiled(
      *read_hlo(program.as_text() or ""),
      sizes.argument_size_in_bytes,
      sizes.temp_size_in_bytes,
    )
  network, lars = net.network, config.optimizer == "lars"
  return Plan(
    layout,
    arrays(layout, params),
    memory(layout, network, params, dtype, config.image_size_px),
    exchanges(layout, network, params, dtype, lars),
    found,
  )


def _mb(size: float) -> str:
  return f"{size / 1e6:,.3f}"


def tables(plan: Plan) -> list[Table]:
  """Returns what the command prints: arrays, memory and exchanges."""
  return [_array_table(plan), _memory_table(plan), _exchange_table(plan)]


def _grid(*headings: str, words: int) -> Table:
  """Returns an empty table whose first columns are words, the rest numbers."""
  grid = Table(box=box.SIMPLE_HEAD)
  for number, heading in enumerate(headings):
    justify = "left" if number < words else "right"
    grid.add_column(heading, justify=justify, no_wrap=number < words)
  return grid


def _array_table(plan: Plan) -> Table:
  grid = _grid(
    "array", "shape", "split over", "MB per device", "and of momentum", words=3
  )
  for array in plan.arrays:
    shape = " x ".join(map(str, array.shape))
    size = _mb(array.size)
    grid.add_row(array.name, shape, _spec(array.spec), size, size)
  grid.add_section()
  total = _mb(plan.memory["parameters"])
  grid.add_row("total", "", "", total, total)
  return grid


def _spec(spec: P) -> str:
  return ", ".join(str(axis or "-") for axis in spec) or "-"


def _memory_table(plan: Plan) -> Table:
  grid = _grid("memory", "MB per device", words=1)
  for what, size in plan.memory.items():
    grid.add_row(what, _mb(size))
  grid.add_section()
  grid.add_row("total", _mb(sum(plan.memory.values())))
  if plan.compiled:
    grid.add_section()
    grid.add_row("XLA: state and batch", _mb(plan.compiled.arguments))
    grid.add_row("XLA: temporaries", _mb(plan.compiled.temporaries))
  return grid


def _exchange_table(plan: Plan) -> Table:
  headings = ["exchange", "kind", "arrays", "MB received"]
  if plan.compiled:
    headings += ["compiled", "MB received", ""]
  grid = _grid(*headings, words=2)
  lines = compare(plan)

  def add(what: str, kind: str, rows: list[Line]) -> None:
    words = [
      f"{sum(line.arrays for line in rows)}",
      _mb(sum(line.received for line in rows)),
    ]
    if plan.compiled:
      agrees = all(line.agrees for line in rows)
      words += [
        f"{sum(line.found for line in rows)}",
        _mb(sum(line.found_received for line in rows)),
        "" if agrees else "DIFFERS",
      ]
    grid.add_row(what, kind, *words)

  for line in lines:
    add(line.what or "not foreseen", line.kind, [line])
  grid.add_section()
  add("total", "", lines)
  return grid


def headline(plan: Plan) -> str:
  """Returns the layout in words."""
  layout = plan.layout
  own = layout.batch_size // layout.shards
  words = [
    f"layout {layout.name} on {layout.devices} devices, data {layout.data} x"
    f" model {layout.model}: a step of {layout.batch_size} examples, {own} on"
    " each device"
  ]
  if layout.microbatches > 1:
    words.append(f"in {layout.microbatches} microbatches")
  if layout.passes > 1:
    words.append(f"{layout.passes} passes through the fc layers for each")
  if layout.fc_updates > 1:
    words.append(f"{layout.fc_updates} updates of the fc layers")
  if layout.members > 1:
    words.append(f"for each of {layout.members} members")
  return ", ".join(words)


def verdict(plan: Plan) -> str:
  """Returns whether formulas and program agree, in a line."""
  if plan.compiled is None:
    return "On paper; the step was not compiled."
  agree = "agree" if plan.agrees else "DIFFER"
  words = f"Formulas and the program compiled for CPU {agree}."
  if count := len(plan.compiled.looped):
    words += f" {count} of its arrays stand in loops and count once."
  return words


def _start_devices(count: int) -> None:
  """Makes so many virtual devices of the CPU, and no others."""
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", count)


def main(_) -> None:
  """Runs the command."""
  config, name = cli.config()
  devices = flags.FLAGS.devices
  if flags.FLAGS.layout:
    config.layout = flags.FLAGS.layout
  if not 1 <= devices <= MAX_DEVICES:
    raise errors.InputError(
      f"devices={devices} must be from 1 to {MAX_DEVICES}."
    )
  compiled = flags.FLAGS.compiled
  if compiled is None:
    compiled = devices <= MAX_COMPILED
  if compiled:
    _start_devices(devices)
  plan = make_plan(config, devices, compiled)
  console = Console(width=None if sys.stdout.isatty() else 110)
  console.print(f"{name}, {headline(plan)}", highlight=False)
  for table in tables(plan):
    console.print(table, highlight=False)
  console.print(verdict(plan), highlight=False)


def _define_flags() -> None:
  flags.DEFINE_integer("devices", 1, f"How many, 1 to {MAX_DEVICES}.")
  flags.DEFINE_string("layout", None, "In place of config.layout.")
  flags.DEFINE_bool(
    "compiled",
    None,
    f"Compile the step too; by default up to {MAX_COMPILED} devices.",
  )
  cli.define_config()


if __name__ == "__main__":
  cli.run(main, _define_flags)
