"""The plan of a training step: what each device holds, and what they exchange.

alexnet plan --config=alexnet --config.layout=owt_a \
  --devices=8 --config.batch_size=$((128*8))

`config.batch_size` is that of the whole step: multiply it, as above, to keep
128 examples on each device. Up to 8 devices the step is also compiled, for
virtual devices of the CPU, and the program's exchanges are set beside the
formulas. (XLA:CPU exchanges bfloat16 as float32.) MB are 10^6 bytes.
"""

import collections
import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import NamedSharding
from rich import box
from rich.console import Console
from rich.table import Table

from alexnet_jax import augment, networks, optimizer, steps
from alexnet_jax.data import statistics
from alexnet_jax.model import AlexNet
from alexnet_jax.parallel import layouts, placement
from alexnet_jax.runs import config_files, states
from alexnet_jax.runtime import errors, platforms
from alexnet_jax.tools.plan import hlo
from alexnet_jax.tools.plan.costs import Costs

MAX_COMPILED = 8  # Devices up to which a step is compiled.


@dataclasses.dataclass
class Line:
  """The arrays of one kind that serve one purpose."""

  what: str  # the purpose, or 'not foreseen' by any formula
  kind: str  # of the collective
  arrays: int = 0  # by formula
  received: float = 0.0  # bytes per device and step by formula
  found: int = 0  # arrays in the program
  found_received: float = 0.0  # bytes per device and step of those
  agrees: bool = True  # whether each array has the same count in both


@dataclasses.dataclass(frozen=True)
class Plan:
  """A training step by formula, and as compiled for CPU if it was."""

  costs: Costs
  program: list[hlo.Collective] | None = None  # what it exchanges
  xla_memory: dict[str, int] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def lines(self) -> list[Line]:
    """What is exchanged by formula and in the program; the last is the total.

    Arrays are the same if kind, type, size and group are.
    """
    rows = []  # purpose, array, how many by formula and in the program
    left = collections.Counter(self.program or ())
    for exchange in self.costs.exchanges:
      found = min(left[exchange.collective], exchange.count)
      left[exchange.collective] -= found
      rows.append((exchange.what, exchange.collective, exchange.count, found))
    rows += [("not foreseen", array, 0, n) for array, n in (+left).items()]
    total = Line("total", "")
    lines: dict[tuple[str, str], Line] = {}
    for what, array, count, found in rows:
      size = array.received(self.costs.layout.devices)
      own = lines.setdefault((what, array.kind), Line(what, array.kind))
      for line in (own, total):
        line.arrays += count
        line.received += count * size
        line.found += found
        line.found_received += found * size
        line.agrees &= self.program is None or count == found
    return [*lines.values(), total]

  @property
  def total(self) -> Line:
    """All that is exchanged."""
    return self.lines[-1]


def make_plan(config: Any, devices: int, compiled: bool) -> Plan:
  """Returns the plan of a config's training step."""
  config_files.check(config)
  if config.ensemble > 1:
    raise errors.InputError(
      f"ensemble={config.ensemble} is not planned; plan one net with"
      " --config.ensemble=1."
    )
  net = networks.make_model(config)
  layout = layouts.from_config(config, net.network, devices)
  params = jax.eval_shape(lambda: states.init_params(net, 0))
  costs = Costs(config, layout, net.network, params)
  if not compiled:
    return Plan(costs)
  program = compile_step(config, net, layout)
  sizes: Any = program.memory_analysis()
  memory = {
    "state and batch": sizes.argument_size_in_bytes,
    "temporaries": sizes.temp_size_in_bytes,
  }
  return Plan(costs, hlo.read(program.as_text() or ""), memory)


def compile_step(
  config: Any, net: AlexNet, layout: layouts.Layout
) -> jax.stages.Compiled:
  """Returns the compiled training step, without making any of its arrays.

  It needs `layout.devices` devices.
  """
  mesh = placement.make_mesh(layout.devices, layout.model)
  size = config.image_size_px
  mean_image = np.zeros((size, size, 3), np.float32)
  axes, sds = np.eye(3, dtype=np.float32), np.ones(3, np.float32)
  known = statistics.Statistics(mean_image, axes, sds)
  examples = 100 * config.batch_size
  augmentation = augment.from_config(config, known, examples)
  tx, _ = optimizer.from_config(config, examples, 100, layout.axes_of)

  step = steps.make_step(config, net, tx, augmentation, layout, mesh)
  shape, sharding = layout.batch_shape, NamedSharding(mesh, layout.batch_spec)
  array = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
  batch = {
    "image": array((*shape, size, size, 3), jnp.uint8),
    "label": array(shape, jnp.int32),
  }
  state = states.abstract(net, tx, layout, mesh)
  return platforms.jit(step, donate_argnums=0).lower(state, batch).compile()


def verdict(plan: Plan) -> str:
  """Returns whether formulas and program agree, in a line."""
  if plan.program is None:
    return "On paper; the step was not compiled."
  outcome = "agree" if plan.total.agrees else "DIFFER"
  return f"Formulas and the program compiled for CPU {outcome}."


def tables(plan: Plan) -> list[Table]:
  """Returns what the command prints: arrays, memory and exchanges."""
  costs = plan.costs
  arrays = _table("array", "shape", "split over", "MB per device", words=3)
  for x in costs.arrays:
    shape = " x ".join(map(str, x.shape))
    split = ", ".join(str(axis or "-") for axis in x.spec) or "-"
    arrays.add_row(x.name, shape, split, _mb(x.size))
  arrays.add_section()
  arrays.add_row("total", "", "", _mb(costs.memory["parameters"]))
  memory = _table("memory", "MB per device", words=1)
  for what, size in costs.memory.items():
    memory.add_row(what, _mb(size))
  memory.add_section()
  memory.add_row("total", _mb(sum(costs.memory.values())))
  for what, size in plan.xla_memory.items():
    memory.add_row(f"XLA: {what}", _mb(size))
  headings = ["exchange", "kind", "arrays", "MB received"]
  if plan.program is not None:
    headings += ["compiled", "MB received", ""]
  exchanges = _table(*headings, words=2)
  for x in plan.lines:
    if x is plan.total:
      exchanges.add_section()
    cells = [x.what, x.kind, f"{x.arrays}", _mb(x.received)]
    cells += [f"{x.found}", _mb(x.found_received)]
    cells += ["" if x.agrees else "DIFFERS"]
    exchanges.add_row(*cells[: len(headings)])
  return [arrays, memory, exchanges]


def _table(*headings: str, words: int) -> Table:
  """Returns a table of so many columns of words, then columns of numbers."""
  table = Table(box=box.SIMPLE_HEAD)
  for number, heading in enumerate(headings):
    is_word = number < words
    justify = "left" if is_word else "right"
    table.add_column(heading, justify=justify, no_wrap=is_word)
  return table


def _mb(size: float) -> str:
  return f"{size / 1e6:,.3f}"


def main(_) -> None:
  config, name = config_files.config()
  devices = flags.FLAGS.devices
  compiled = devices <= MAX_COMPILED
  if compiled:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
  plan = make_plan(config, devices, compiled)
  console = Console(
    width=None if sys.stdout.isatty() else 110, highlight=False, markup=False
  )
  console.print(f"{name}, devices={devices}: {plan.costs.layout}")
  for table in tables(plan):
    console.print(table)
  console.print(verdict(plan))


def define_flags() -> None:
  flags.DEFINE_integer("devices", 1, "How many.", 1)
  config_files.define_config()
