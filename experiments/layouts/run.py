"""Plans a step of each layout on 1 to 1024 devices, and draws what it costs.

  python experiments/layouts/run.py          # plans: results.json
  python experiments/layouts/run.py --time   # adds times on these accelerators
  python experiments/layouts/run.py --draw   # tables and plot anew

Each command writes layouts.png and the tables in README.md. It fails if a
layout and a number of devices has neither a row nor a reason for its refusal.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib import pyplot as plt

from alexnet_jax import networks
from alexnet_jax.configs import alexnet
from alexnet_jax.parallel import layouts
from alexnet_jax.runtime import errors
from alexnet_jax.tools.plan import command as plan_command

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
DEVICES = [2**power for power in range(11)]
EXAMPLES = 128
"""On each device; with towers, on each pair of devices."""
CLASSES, EVEN_CLASSES = 1000, 1024
"""ImageNet's, and a number that so many devices can divide."""
STEPS = 20
"""Timed, of each layout."""
SPEED_UPS = {2: 1.95, 4: 3.74, 8: 6.25}
"""Of arXiv 1404.5997, as cited in our reference; not checked with its PDF."""

Row = dict[str, Any]


def config_of(layout: str, devices: int, classes: int) -> Any:
  """Returns the paper's net with a full batch for so many devices."""
  config: Any = alexnet.get_config()
  shards = max(devices // 2, 1) if layout == "towers" else devices
  config.batch_size = EXAMPLES * shards
  config.layout, config.num_classes = layout, classes
  return config


def plan_row(layout: str, devices: int, classes: int) -> Row:
  """Returns what a plan says, or why there is none."""
  row: Row = {"layout": layout, "devices": devices, "classes": classes}
  config = config_of(layout, devices, classes)
  compiled = devices <= plan_command.MAX_COMPILED
  try:
    plan = plan_command.make_plan(config, devices, compiled)
  except errors.InputError as e:
    return row | {"refused": str(e)}
  row |= {"received": plan.total.received, "memory": plan.costs.memory}
  if compiled:
    row |= {
      "received_as_compiled": plan.total.found_received,
      "agrees": plan.total.agrees,
      "xla_arguments": plan.xla_memory["state and batch"],
      "xla_temporaries": plan.xla_memory["temporaries"],
    }
  return row


def plans() -> list[Row]:
  """Returns a row for each layout and number of devices, and of refusals."""
  rows = []
  for layout in layouts.LAYOUTS:
    for devices in DEVICES:
      start = time.perf_counter()
      rows.append(plan_row(layout, devices, CLASSES))
      if "refused" in rows[-1] and layout in layouts.OWT:
        rows.append(plan_row(layout, devices, EVEN_CLASSES))
      seconds = time.perf_counter() - start
      print(f"{seconds:5.1f} s {rows[-1]}", flush=True)
  return rows


def time_row(layout: str, devices: int) -> Row:
  """Returns the seconds of a step of random numbers, or why there is none."""
  row: Row = {"layout": layout, "devices": devices}
  config = config_of(layout, devices, CLASSES)
  net = networks.make_model(config)
  try:
    plan = layouts.from_config(config, net.network, devices)
  except errors.InputError as e:
    return row | {"refused": str(e)}
  program: Any = plan_command.compile_step(config, net, plan)
  rng = np.random.default_rng(0)

  def random(about: Any, sharding: Any) -> Any:
    shape, dtype = about.shape, np.dtype(about.dtype)
    if dtype.kind == "f":
      values = 0.01 * rng.standard_normal(shape, np.float32)
    elif dtype.kind == "b":
      values = np.zeros(shape, dtype)
    else:
      values = rng.integers(0, 200, shape, dtype)
    return jax.device_put(values, sharding)

  (arguments, _), (places, _) = program.args_info, program.input_shardings
  state, batch = jax.tree.map(random, arguments, places)
  seconds = []
  for number in range(STEPS + 3):
    start = time.perf_counter()
    state, sums = program(state, batch)
    jax.block_until_ready((state, sums))
    if number >= 3:
      seconds.append(time.perf_counter() - start)
  return row | {
    "batch_size": config.batch_size,
    "steps": STEPS,
    "median_s": statistics.median(seconds),
    "least_s": min(seconds),
    "most_s": max(seconds),
  }


def times() -> list[Row]:
  """Returns a row for each layout on 1, 2, 4, ... of the devices here."""
  rows = []
  for layout in layouts.LAYOUTS:
    for devices in DEVICES:
      if devices <= jax.device_count():
        rows.append(time_row(layout, devices))
        print(rows[-1], flush=True)
  return rows


def commit() -> str:
  """Returns the commit, with -dirty after it if there are changes."""
  words = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
  run = subprocess.run(
    [*words, "--exclude=*"], cwd=HERE, capture_output=True, check=True
  )
  return run.stdout.decode().strip()


def about() -> dict[str, Any]:
  """Returns what the results depend on beside the code."""
  return {
    "commit": commit(),
    "jax": jax.__version__,
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "machine": f"{os.cpu_count()} cores, {platform.machine()}",
  }


def final_rows(rows: list[Row]) -> dict[tuple[str, int], Row]:
  """Returns the row that stands for each layout and number of devices.

  Raises:
    SystemExit: one is missing, or formula and program differ.
  """
  found = {(row["layout"], row["devices"]): row for row in rows}
  for layout in layouts.LAYOUTS:
    for devices in DEVICES:
      row = found.get((layout, devices))
      if row is None:
        raise SystemExit(f"no row for {layout} on {devices} devices")
      if "refused" not in row and devices <= plan_command.MAX_COMPILED:
        if not row["agrees"]:
          raise SystemExit(f"formula and program differ: {row}")
  return found


def table(
  found: dict[tuple[str, int], Row], cell: Callable[[Row], str]
) -> list[str]:
  """Returns a table in Markdown: a line for each number of devices."""
  names = [f"`{name}`" for name in layouts.LAYOUTS]
  lines = [f"| devices | {' | '.join(names)} |", "|---" * 7 + "|"]
  for devices in DEVICES:
    rows = [found[name, devices] for name in layouts.LAYOUTS]
    cells = ["refused" if "refused" in row else cell(row) for row in rows]
    lines.append(f"| {devices} | {' | '.join(cells)} |")
  return lines


def tables(results: dict[str, Any]) -> str:
  """Returns the tables of README.md."""
  found = final_rows(results["plans"])

  def mb(size: float) -> str:
    return f"{size / 1e6:,.1f}" if size < 1e7 else f"{size / 1e6:,.0f}"

  def received(row: Row) -> str:
    words = mb(row["received"]) + "*" * (row["classes"] != CLASSES)
    compiled = row.get("received_as_compiled")
    return words if compiled is None else f"{words} / {mb(compiled)}"

  def kept(row: Row) -> str:
    memory = row["memory"]
    state = memory["parameters"] + memory["momentum"]
    return f"{mb(state)} + {mb(memory['activations'])}"

  def total(row: Row) -> str:
    words = mb(sum(row["memory"].values()))
    if "xla_arguments" not in row:
      return words
    return f"{words} / {mb(row['xla_arguments'] + row['xla_temporaries'])}"

  parts = []
  for heading, cell in (
    ("MB that a device receives in a step, by formula / in the HLO:", received),
    (
      "MB on a device: parameters and momentum + activations, by formula:",
      kept,
    ),
    (
      "MB on a device in all: those, images, gradients, gathered kernels /"
      " state, batch and temporaries of XLA:",
      total,
    ),
  ):
    parts += [heading, "", *table(found, cell), ""]
  parts += refusals(results["plans"])
  if results["times"]:
    parts += ["", *time_table(results)]
  return "\n".join(parts)


def refusals(rows: list[Row]) -> list[str]:
  """Returns lines that say what was refused and why, alike ones together."""
  alike: dict[str, list[Row]] = {}
  for row in rows:
    if "refused" in row:
      kind = re.sub(r"owt_.|\d+|try.*", "", row["refused"])
      alike.setdefault(kind, []).append(row)
  lines = ["Refused:", ""]
  for group in alike.values():
    names = ", ".join(dict.fromkeys(f"`{row['layout']}`" for row in group))
    devices = ", ".join(dict.fromkeys(f"{row['devices']}" for row in group))
    first = group[0]
    lines.append(
      f"- {names} on {devices} devices, {first['classes']} classes:"
      f" {first['refused']}"
    )
  return lines


def time_table(results: dict[str, Any]) -> list[str]:
  """Returns the table of the times of steps, in Markdown."""
  timed = results["timed"]
  lines = [
    f"Milliseconds of a step on {timed['device']}, commit {timed['commit']}:",
    "",
    "| layout | devices | batch | median | range |",
    "|---" * 5 + "|",
  ]
  for row in results["times"]:
    words = [f"`{row['layout']}`", f"{row['devices']}"]
    if "refused" in row:
      words += ["", "refused", ""]
    else:
      median, least, most = (
        f"{1000 * row[f'{name}_s']:.2f}" for name in ("median", "least", "most")
      )
      words += [f"{row['batch_size']}", median, f"{least} to {most}"]
    lines.append(f"| {' | '.join(words)} |")
  return lines


STYLES: dict[str, dict[str, Any]] = {
  "data": {"color": "#444444"},
  "fsdp": {"color": "#cc6677", "ls": (0, (4, 3))},
  "towers": {"color": "#ddaa33"},
  "owt_a": {"color": "#117733", "lw": 3, "alpha": 0.5},
  "owt_b": {"color": "#3366bb"},
  "owt_c": {"color": "#aa44bb", "ls": (0, (2, 2))},
}


def draw(results: dict[str, Any]) -> None:
  """Writes layouts.png."""
  found = final_rows(results["plans"])
  figure, axes = plt.subplots(1, 3, figsize=(13, 4.6))
  traffic, memory, speed = axes
  for layout, style in STYLES.items():
    rows = [found[layout, devices] for devices in DEVICES]
    rows = [row for row in rows if "refused" not in row]
    moved = [row for row in rows if row["received"]]
    traffic.plot(
      [row["devices"] for row in moved],
      [row["received"] / 1e6 for row in moved],
      **style,
    )
    compiled = [row for row in moved if "received_as_compiled" in row]
    traffic.plot(
      [row["devices"] for row in compiled],
      [row["received_as_compiled"] / 1e6 for row in compiled],
      "o",
      mfc="none",
      ms=6,
      color=style["color"],
    )
    memory.plot(
      [row["devices"] for row in rows],
      [sum(row["memory"].values()) / 1e6 for row in rows],
      **style,
      label=layout,
    )
  (compiled_mark,) = traffic.plot([], [], "o", mfc="none", color="grey")
  traffic.set(
    ylabel="MB received per device and step",
    title="Traffic (owt_a, b and c alike)",
  )
  memory.set(ylabel="MB per device", title="Memory of all kinds, by formula")
  speed.plot([1, 8], [1, 8], color="grey", lw=1, ls=":")
  speed.annotate("ideal", (5, 5.1), ha="right", va="bottom", color="grey")
  speed.plot([1, *SPEED_UPS], [1, *SPEED_UPS.values()], "o-", color="#117733")
  for devices, factor in SPEED_UPS.items():
    speed.annotate(
      f"{factor}",
      (devices, factor),
      (6, -5),
      textcoords="offset points",
      va="top",
    )
  speed.set(
    ylabel="times as fast as one GPU",
    title="Speed-up of One Weird Trick on\nK20s, as cited (arXiv 1404.5997)",
    xlim=(0.9, 11),
    ylim=(0.9, 11),
  )
  for axis, ticks in (
    (traffic, DEVICES[::2]),
    (memory, DEVICES[::2]),
    (speed, DEVICES[:4]),
  ):
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2 if axis is speed else 10)
    axis.set_xticks(ticks, [f"{tick}" for tick in ticks])
    axis.set_xlabel("devices")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
  speed.set_yticks(DEVICES[:4], [f"{tick}" for tick in DEVICES[:4]])
  memory.legend(frameon=False)
  traffic.legend([compiled_mark], ["as compiled"], frameon=False)
  figure.suptitle(
    f"AlexNet, {EXAMPLES} examples per device (towers: per pair);"
    f" One Weird Trick past 8 devices with {EVEN_CLASSES} classes"
  )
  figure.tight_layout()
  figure.savefig(HERE / "layouts.png", dpi=120)


def write_readme(results: dict[str, Any]) -> None:
  """Puts the tables between their marks in README.md."""
  path = HERE / "README.md"
  begin, end = "<!-- tables -->\n", "<!-- end -->"
  text, count = re.subn(
    f"{begin}.*{end}",
    lambda _: f"{begin}\n{tables(results)}\n\n{end}",
    path.read_text(),
    flags=re.DOTALL,
  )
  if not count:
    raise SystemExit(f"{path} has no {begin.strip()}")
  path.write_text(text)


def main() -> None:
  """Plans or times, and draws."""
  parser = argparse.ArgumentParser()
  what = parser.add_mutually_exclusive_group()
  what.add_argument("--time", action="store_true")
  what.add_argument("--draw", action="store_true")
  args = parser.parse_args()
  if args.time or args.draw:
    results = json.loads(RESULTS.read_text())
  else:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", plan_command.MAX_COMPILED)
    results = {"planned": about(), "plans": plans(), "times": []}
  if args.time:
    results |= {"timed": about(), "times": times()}
  RESULTS.write_text(json.dumps(results, indent=1) + "\n")
  write_readme(results)
  draw(results)


if __name__ == "__main__":
  main()
