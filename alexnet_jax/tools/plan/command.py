"""The plan of a training step: what lives where, and what devices exchange.

alexnet plan --config=configs/alexnet.py --layout=owt_a \
  --devices=8 --config.batch_size=$((128*8))

`config.batch_size` is that of the whole step: multiply it, as above, to keep
128 examples on each device. Up to 8 devices the step is also compiled, for
virtual devices of the CPU, and what the program exchanges is set beside the
formulas. (XLA:CPU exchanges bfloat16 as float32, which shows as a difference.)
MB are 10^6 bytes.
"""

import collections
import dataclasses
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import PartitionSpec as P
from rich import box
from rich.console import Console
from rich.table import Table

from alexnet_jax import augment, model, networks, optimizer, steps
from alexnet_jax.parallel import layouts, placement
from alexnet_jax.runs import config_files
from alexnet_jax.runtime import cli, errors
from alexnet_jax.tools.plan import costs, hlo

MAX_DEVICES = 1024
MAX_COMPILED = 8
"""Devices up to which a plan is compiled unless it is said otherwise."""


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What a compiled step says of itself.

  Attributes:
    collectives: arrays that it exchanges.
    looped: those of them that stand in a loop.
    arguments: bytes per device of state and batch.
    temporaries: bytes per device of all else.
  """

  collectives: list[hlo.Collective]
  looped: list[hlo.Collective]
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
  mesh = placement.make_mesh(layout.devices, layout.model)
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
      placement.shardings(mesh, specs),
    )

  members = layout.members
  state = jax.eval_shape(
    lambda params: steps.init_state(params, tx, members),
    abstract_params(net, members),
  )
  leading = layout.batch_shape
  batch = {
    "image": jax.ShapeDtypeStruct((*leading, size, size, 3), jnp.uint8),
    "label": jax.ShapeDtypeStruct(leading, jnp.int32),
  }
  step = steps.make_train_step(net, tx, augmentation, layout, mesh, config.seed)
  return step.lower(
    placed(state, placement.specs(layout, state)),
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
  arrays: list[costs.Array]
  memory: dict[str, int]
  exchanges: list[costs.Exchange]
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

  def add(what: str, array: hlo.Collective, foreseen: int, found: int) -> None:
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
      *hlo.read(program.as_text() or ""),
      sizes.argument_size_in_bytes,
      sizes.temp_size_in_bytes,
    )
  network, lars = net.network, config.optimizer == "lars"
  return Plan(
    layout,
    costs.arrays(layout, params),
    costs.memory(layout, network, params, dtype, config.image_size_px),
    costs.exchanges(layout, network, params, dtype, lars),
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
  rounded = any(e.collective.dtype == "bf16" for e in plan.exchanges)
  if rounded and not plan.agrees:
    words += " XLA:CPU exchanges bfloat16 as float32."
  if count := len(plan.compiled.looped):
    words += f" {count} of its arrays stand in loops and count once."
  return words


def _start_devices(count: int) -> None:
  """Makes so many virtual devices of the CPU, and no others."""
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", count)


def main(_) -> None:
  """Runs the command."""
  config, name = config_files.config()
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
  config_files.define_config()


def command() -> None:
  """`alexnet plan`."""
  cli.run(main, _define_flags)
