"""The plan of a step against its program, and against hand arithmetic."""

import dataclasses

import pytest
from commands import run_command
from tiny_runs import QUICK

from alexnet_jax.configs import alexnet, quickstart
from alexnet_jax.runs import config_files
from alexnet_jax.runtime import errors
from alexnet_jax.tools.plan import command as plan_command
from alexnet_jax.tools.plan import hlo

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Parameters of conv1 to conv5, and the kernels and biases of fc6 to fc8
# (weights and biases of the paper's net, as cuda-convnet counts them).
CONV = 34_944 + 307_456 + 885_120 + 663_936 + 442_624
KERNELS = 9216 * 4096 + 4096 * 4096 + 4096 * 1000
BIASES = 4096 + 4096 + 1000
TOTAL = 60_965_224
# Numbers per image that meet before conv3, fc6, fc7 and fc8.
TOWERS_MEET = 13 * 13 * 256 + 6 * 6 * 256 + 4096 + 4096


def paper(layout, devices, compiled=False, **changes):
  """The paper's net, 128 examples on each device or pair of towers."""
  config = alexnet.get_config()
  shards = devices // 2 if layout == "towers" else devices
  config.update({"layout": layout, "batch_size": 128 * shards, **changes})
  return plan_command.make_plan(config, devices, compiled)


def memory(*arguments, **changes):
  return paper(*arguments, **changes).costs.memory


# The program.


@pytest.mark.parametrize(
  ("layout", "devices", "changes"),
  [
    ("data", 2, {}),
    ("data", 3, {"batch_size": 12}),
    ("towers", 2, {"optimizer": "lars"}),
    ("towers", 8, {"microbatches": 2}),
    ("owt_a", 8, {"num_classes": 16}),
    (
      "owt_b",  # no power of two, and an update of the fc layers for each
      5,
      {"batch_size": 10, "fc_batch_size": 2, "network.fc6.units": 40},
    ),
    ("owt_c", 2, {}),
    ("fsdp", 4, {"fc_batch_size": 8}),
  ],
)
def test_program_exchanges_what_the_formulas_foresee(layout, devices, changes):
  """Array by array: kind, type, size, group and number."""
  config = quickstart.get_config()
  fields = QUICK | {"layout": layout, **changes}
  config.update_from_flattened_dict(fields)
  plan = plan_command.make_plan(config, devices, True)
  assert plan.total.agrees, plan_command.verdict(plan)
  assert plan.total.received == pytest.approx(plan.total.found_received)
  assert plan.total.received > 0
  # No images travel.
  batch, size = config.batch_size, config.image_size_px
  pixels = {n * size * size * 3 for n in (batch, batch // devices)}
  for array in plan.program:
    assert array.dtype != "u8"
    assert array.elements not in pixels


def test_xla_needs_the_memory_of_the_plan():
  """State and batch to the byte; the rest within a factor, scratch included."""
  plan = paper("towers", 2, compiled=True)
  assert plan.total.agrees
  held = plan.costs.memory
  labels = 4 * 128
  step_and_plateau = 4 + 4 + 4 + 4 + 1
  assert held["images"] == 128 * 256 * 256 * 3
  assert plan.xla_memory["state and batch"] == (
    held["parameters"] + held["momentum"] + held["images"]
    + labels + step_and_plateau
  )  # fmt: skip
  foreseen = held["activations"] + held["gradients"]
  assert foreseen < plan.xla_memory["temporaries"] < 2 * foreseen


# The formulas, for the paper's net: {kind: (arrays, bytes received)}. Each
# `all-reduce` ends with four numbers (loss, two errors, examples) or a flag
# for each of the 16 gradients, or with four numbers an example of the softmax.

SHARE = 7 / 8  # of a ring of eight
EXAMPLES = 128 * 8


@pytest.mark.parametrize(
  ("layout", "devices", "changes", "megabytes", "expected"),
  [
    ("data", 8, {}, 427, {"all-reduce": (20, 2 * SHARE * 4 * (TOTAL + 4))}),
    (
      "owt_a",  # examples travel in place of fc gradients
      8,
      {},
      141,
      {
        # Label and row, the inputs of fc6, and of fc7 and fc8.
        "all-gather": (4, SHARE * EXAMPLES * 4 * (2 + 9216 + 2 * 4096)),
        "reduce-scatter": (3, SHARE * EXAMPLES * 4 * (9216 + 2 * 4096)),
        "all-reduce": (15, 2 * SHARE * 4 * (CONV + 4 * EXAMPLES + 16)),
      },
    ),
    (
      "owt_b",  # four passes in two rounds each, with an update after each
      4,
      {"fc_batch_size": 128},
      67,
      {
        # A broadcast reaches 3 of 4 devices, and so many send on the way back.
        "collective-permute": (4 * 2 * 3, 3 * 128 * 4 * (2 + 9216 + 9216)),
        "all-gather": (4 * 2, 3 * 128 * 4 * 2 * 4096),
        "reduce-scatter": (4 * 2, 3 * 128 * 4 * 2 * 4096),
        "all-reduce": (27, 2 * 3 / 4 * 4 * (CONV + 4 * 4 * 128 + 16)),
      },
    ),
    (
      "owt_c",  # half of everyone's examples at a time
      2,
      {},
      27,
      {
        "all-gather": (2 * 4, 128 * 4 * (2 + 9216 + 2 * 4096)),
        "reduce-scatter": (2 * 3, 128 * 4 * (9216 + 2 * 4096)),
        "all-reduce": (19, 4 * (CONV + 2 * 4 * 128 + 16)),
      },
    ),
    (
      "towers",  # as on the two GPUs of 2012
      2,
      {},
      31,
      {
        "all-gather": (4, 128 * 4 * TOWERS_MEET / 2),
        "reduce-scatter": (4, 128 * 4 * TOWERS_MEET / 2),
        "all-reduce": (5, 4 * 128 * 4 + 4 * 16),
      },
    ),
    (
      "towers",  # on 4 x 2 devices; one sum of gradients for both microbatches
      8,
      {"microbatches": 2},
      214,
      {
        "all-gather": (2 * 4, 128 * 4 * TOWERS_MEET / 2),
        "reduce-scatter": (2 * 4, 128 * 4 * TOWERS_MEET / 2),
        "all-reduce": (
          29,
          2 * 3 / 4 * 4 * (TOTAL / 2 + 4) + 2 * 4 * 64 * 4 + 4 * 16,
        ),
      },
    ),
    (
      "fsdp",
      8,
      {},
      427,
      {
        "all-gather": (3, SHARE * 4 * KERNELS),
        "reduce-scatter": (3, SHARE * 4 * KERNELS),
        "all-reduce": (18, 2 * SHARE * 4 * (CONV + BIASES + 4 + 16)),
      },
    ),
  ],
)
def test_exchanges_by_hand(layout, devices, changes, megabytes, expected):
  plan = paper(layout, devices, **changes)
  found = {}
  for line in plan.lines[:-1]:
    count, size = found.get(line.kind, (0, 0))
    found[line.kind] = (count + line.arrays, size + line.received)
  assert found.keys() == expected.keys()
  for kind, (arrays, size) in expected.items():
    assert found[kind] == (arrays, pytest.approx(size, rel=1e-12)), kind
  assert round(plan.total.received / 1e6) == megabytes


def test_each_join_of_towers_has_its_line():
  at = {x.what: round(x.received / 1e6, 1) for x in paper("towers", 2).lines}
  joins = [at[f"join before {name}"] for name in ("conv3", "fc6", "fc7", "fc8")]
  assert joins == [11.1, 2.4, 1.0, 1.0]


def test_parameters_of_a_device():
  assert memory("data", 8)["parameters"] == 4 * TOTAL
  split = 4 * (CONV + BIASES + KERNELS // 8)
  assert memory("fsdp", 8)["parameters"] == split


@pytest.mark.parametrize("layout", ["owt_a", "owt_b", "fsdp", "data"])
def test_one_device_exchanges_nothing(layout):
  assert paper(layout, 1).total.received == 0


def test_activations_are_those_of_the_table():
  # The view; conv, norm and pool 1; conv, norm and pool 2; conv3 to 5, pool 5.
  view = 224 * 224 * 3
  maps = 55 * 55 * 96 * 2 + 27 * 27 * (96 + 256 * 2) + 13 * 13 * 256
  maps += 13 * 13 * (384 + 384 + 256) + 6 * 6 * 256
  pooled = 27 * 27 * 96 + 13 * 13 * 256 + 6 * 6 * 256
  units = 4096 + 4096 + 1000
  features = 4 * (view + maps) + pooled
  whole = features + 4 * units
  assert memory("data", 2)["activations"] == 128 * whole
  assert memory("data", 2, microbatches=4)["activations"] == 32 * whole
  halves = (4 * (maps + units) + pooled) // 2
  assert memory("towers", 2)["activations"] == 128 * (
    4 * view + halves + 4 * TOWERS_MEET
  )
  fc = 4 * (units // 2 + 2 * 4096)
  for layout, examples, held in (("owt_a", 256, 1), ("owt_b", 128, 2)):
    assert memory(layout, 2)["activations"] == 128 * features + examples * (
      fc + held * 4 * 9216
    )
  half = memory("data", 2, compute_dtype="bfloat16")["activations"]
  assert half == 128 * (2 * (view + maps + units) + pooled)
  # The mean of a window has no place of its maximum.
  config = config_files.load_config("ablations:average_pool@alexnet")
  average = plan_command.make_plan(config, 1, False).costs.memory
  assert average["activations"] == 128 * (whole - pooled)


# Reading HLO.

HLO = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (p0: f32[96]) -> f32[96] {
  %r = f32[4]{0} all-reduce(%p), replica_groups={}, to_apply=%add
  %all-reduce.1 = (f32[96]{0}, f32[11,11,3,96]{3,2,1,0}, /*index=2*/f32[]) \
all-reduce(%a.1, %b, /*index=2*/%c), channel_id=1, \
replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add, \
metadata={op_name="jit(step)/psum" source_file="x.py"}
  %g = bf16[256,9216]{1,0} all-gather(%p0), replica_groups=[2,4]<=[8], \
dimensions={0}
  %t = s32[6]{0} all-gather(%p0), replica_groups=[4,2]<=[2,4]T(1,0), \
dimensions={0}
  %s = f32[128,2048]{0,1} reduce-scatter(%g2), replica_groups={{0,1,2,3}}, \
dimensions={1}, to_apply=%add
  %m = f32[3]{0} all-gather(%e), replica_groups=mesh['axis_0'=4,'axis_1'=2], \
device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}
  %one = f32[77]{0} all-reduce(%p0), replica_groups={{0},{1},{2},{3}}
  %p = u8[5]{0} collective-permute(%p0), source_target_pairs={{0,2},{1,3},{4,5}}
  ROOT %not = f32[96]{0} fusion(%all-reduce.1), calls=%add
}
"""


def test_every_notation_of_the_program_is_read():
  assert hlo.read(HLO) == [
    hlo.Collective("all-reduce", "f32", 4, 8),
    hlo.Collective("all-reduce", "f32", 96, 2),
    hlo.Collective("all-reduce", "f32", 11 * 11 * 3 * 96, 2),
    hlo.Collective("all-reduce", "f32", 1, 2),
    hlo.Collective("all-gather", "bf16", 256 * 9216, 4),
    hlo.Collective("all-gather", "s32", 6, 2),
    hlo.Collective("reduce-scatter", "f32", 128 * 2048 * 4, 4),
    hlo.Collective("all-gather", "f32", 3, 4),
    hlo.Collective("collective-permute", "u8", 5, 3),
  ]


@pytest.mark.parametrize(
  ("kind", "group_size", "received"),
  [
    ("all-reduce", 4, 600),
    ("all-gather", 4, 300),
    ("reduce-scatter", 4, 300),
    ("collective-permute", 2, 100),
    ("collective-permute", 1, 50),
  ],
)
def test_bytes_received_of_an_array_of_400(kind, group_size, received):
  """On eight devices, in groups of four or with so many receivers."""
  array = hlo.Collective(kind, "f32", 100, group_size)
  assert array.received(8) == received


@pytest.mark.parametrize(
  ("dtype", "size"), [("bf16", 2), ("f64", 8), ("s32", 4), ("pred", 1)]
)
def test_itemsize(dtype, size):
  assert hlo.itemsize(dtype) == size


def test_a_program_with_an_array_more_or_less_differs():
  plan = paper("towers", 2)
  exact = [e.collective for e in plan.costs.exchanges for _ in range(e.count)]
  stray = hlo.Collective("all-gather", "u8", 256, 2)

  def against(program):
    return dataclasses.replace(plan, program=program)

  assert against(exact).total.agrees
  assert plan_command.verdict(against(exact)).endswith("agree.")
  for program in ([], exact[1:], [*exact, exact[0]], [*exact, stray]):
    assert not against(program).total.agrees
    assert plan_command.verdict(against(program)).endswith("DIFFER.")
  *_, last, _ = against([*exact, stray]).lines
  assert (last.what, last.arrays, last.found) == ("not foreseen", 0, 1)


# The command.


def test_command_sets_formula_and_program_side_by_side(monkeypatch):
  monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
  layers = ("conv1", "conv3", "fc6", "fc8")
  result = run_command(
    "plan",
    "--config.layout=towers",
    "--devices=2",
    f"--config.network.layers={layers}",
  )
  assert result.returncode == 0, result.stderr
  lines = result.stdout.splitlines()
  assert lines[0].startswith("quickstart, devices=2: Layout(name='towers'")
  joins = [line.split() for line in lines if "join before" in line]
  assert [words[2] for words in joins] == ["conv3", "fc6", "fc8"]
  for words in joins:
    assert words[3:5] == ["all-gather", "1"]
    assert words[5:] == [words[5], "1", words[5]]
  assert "Formulas and the program compiled for CPU agree." in lines


def test_1024_devices_are_planned_on_paper():
  plan = paper("owt_a", 1024, num_classes=1024)
  # A row of 9216 inputs from 1023 other devices of 128 examples each.
  (activities,) = (x for x in plan.lines if x.what == "activities to fc layers")
  assert activities.received == 1023 * 128 * 9216 * 4
  # A 1024th of the units: four and one of them, with their biases.
  sizes = {array.name: array.size for array in plan.costs.arrays}
  assert sizes["classifier/fc6/kernel"] == 9216 * 4 * 4
  assert plan_command.verdict(plan).startswith("On paper")


@pytest.mark.parametrize(
  ("layout", "devices", "words"),
  [
    ("owt_d", 2, "layout='owt_d'"),
    ("towers", 3, "devices=3.*try 2 or 4"),
    ("owt_a", 16, "fc8 has 1000 units.* 16 devices"),
  ],
)
def test_what_a_layout_cannot_divide_is_refused(layout, devices, words):
  with pytest.raises(errors.InputError, match=words):
    paper(layout, devices)


def test_layers_inside_branches_are_planned():
  config = config_files.load_config("run131").unlock()
  config.update(learning_rate_of_layers=(), layout="owt_a", batch_size=4)
  plan = plan_command.make_plan(config, 2, False)
  (activities,) = (x for x in plan.lines if x.what == "activities to fc layers")
  assert activities.received == 4 * 9216 * 4 / 2
  assert "features/conv2_image/kernel" in {x.name for x in plan.costs.arrays}


def test_an_ensemble_is_refused():
  with pytest.raises(errors.InputError, match=r"ensemble=2 is not planned"):
    paper("data", 2, ensemble=2)
