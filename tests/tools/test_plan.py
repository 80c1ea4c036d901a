"""The plan of a step, its program, and hand arithmetic on the paper's net."""

import dataclasses
import functools

import pytest
from commands import assert_refused, run_command

from alexnet_jax.runtime import errors
from alexnet_jax.tools.plan import command as parallel
from alexnet_jax.tools.plan import hlo
from configs import alexnet

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Parameters of conv1 to conv5, and the kernels and biases of fc6 to fc8
# (weights and biases of the paper's net, as cuda-convnet counts them).
CONV = 34_944 + 307_456 + 885_120 + 663_936 + 442_624
KERNELS = 9216 * 4096 + 4096 * 4096 + 4096 * 1000
BIASES = 4096 + 4096 + 1000
TOTAL = 60_965_224
# Numbers per image that meet before conv3, fc6, fc7 and fc8.
TOWERS_MEET = 13 * 13 * 256 + 6 * 6 * 256 + 4096 + 4096


def config_of(layout, devices, **changes):
  """The paper, 128 examples on each device, or on each pair of towers."""
  config = alexnet.get_config()
  shards = devices // 2 if layout == "towers" else devices
  config.update({"layout": layout, "batch_size": 128 * shards, **changes})
  return config


@functools.cache
def compiled(layout, devices, **changes):
  return parallel.make_plan(
    config_of(layout, devices, **changes), devices, True
  )


def on_paper(layout, devices, **changes):
  config = config_of(layout, devices, **changes)
  return parallel.make_plan(config, devices, False)


def by_kind(plan):
  """{kind: (arrays, bytes received)} of the compiled program."""
  found = {}
  for c in plan.compiled.collectives:
    count, size = found.get(c.kind, (0, 0))
    found[c.kind] = (count + 1, size + c.received(plan.layout.devices))
  return found


def expect(plan, megabytes, expected):
  found = by_kind(plan)
  assert found.keys() == expected.keys()
  for kind, (arrays, size) in expected.items():
    assert found[kind] == (arrays, pytest.approx(size, rel=1e-12)), kind
  assert round(plan.received_as_compiled / 1e6) == megabytes
  assert plan.received == pytest.approx(plan.received_as_compiled, rel=1e-12)
  assert plan.agrees
  assert not plan.compiled.looped
  batch = plan.layout.batch_size
  own = batch // plan.layout.shards // plan.layout.microbatches
  for c in plan.compiled.collectives:
    assert c.dtype != "u8"
    for count in (batch, own):
      assert c.elements not in (count * 256 * 256 * 3, count * 224 * 224 * 3)


@pytest.mark.parametrize(("devices", "megabytes"), [(2, 244), (8, 427)])
def test_data_adds_up_each_gradient_once(devices, megabytes):
  # And loss, two errors and examples, four numbers.
  ring = 2 * (devices - 1) / devices
  expect(
    compiled("data", devices),
    megabytes,
    {"all-reduce": (16 + 4, ring * 4 * (TOTAL + 4))},
  )


@pytest.mark.parametrize(("devices", "megabytes"), [(2, 27), (8, 141)])
def test_owt_a_sends_examples_instead_of_fc_gradients(devices, megabytes):
  batch, share = 128 * devices, (devices - 1) / devices
  expect(
    compiled("owt_a", devices),
    megabytes,
    {
      # Label and row, the inputs of fc6, and of fc7 and fc8.
      "all-gather": (4, share * batch * 4 * (2 + 9216 + 4096 + 4096)),
      "reduce-scatter": (3, share * batch * 4 * (9216 + 4096 + 4096)),
      # conv1 to conv5, four numbers per example for the softmax, and which
      # of the 16 gradients are finite.
      "all-reduce": (10 + 4 + 1, 2 * share * 4 * (CONV + 4 * batch + 16)),
    },
  )


def test_towers_meet_as_on_the_two_gpus_of_2012():
  expect(
    compiled("towers", 2),
    31,
    {
      "all-gather": (4, 128 * 4 * TOWERS_MEET / 2),
      "reduce-scatter": (4, 128 * 4 * TOWERS_MEET / 2),
      "all-reduce": (4 + 1, 4 * 128 * 4 + 4 * 16),
    },
  )


def test_each_join_of_towers_has_its_line():
  lines = {}
  for line in parallel.compare(on_paper("towers", 2)):
    *_, name = line.what.split()
    lines[name] = lines.get(name, 0) + line.received / 1e6
  assert {name: round(size, 1) for name, size in lines.items()} == {
    "conv3": 22.2,
    "fc6": 4.7,
    "fc7": 2.1,
    "fc8": 2.1,
    "softmax": 0.0,
    "gradients": 0.0,
  }


def test_microbatches_of_data_x_towers_share_one_sum_of_gradients():
  """4 x 2 devices, twice 64 examples; catches a sum in every microbatch."""
  softmax = 2 * 4 * 64 * 4
  sums = 2 * 3 / 4 * 4 * 4
  gradients = 2 * 3 / 4 * 4 * TOTAL / 2
  expect(
    compiled("towers", 8, microbatches=2),
    214,
    {
      "all-gather": (2 * 4, 128 * 4 * TOWERS_MEET / 2),
      "reduce-scatter": (2 * 4, 128 * 4 * TOWERS_MEET / 2),
      "all-reduce": (
        16 + 4 + 2 * 4 + 1,
        gradients + sums + softmax + 4 * 16,
      ),
    },
  )


def test_owt_b_passes_each_batch_on_so_that_it_arrives_once():
  """With an update of the fc layers for each: 4 passes in 2 rounds each."""
  expect(
    compiled("owt_b", 4, fc_batch_size=128),
    67,
    {
      # A broadcast reaches 3 of 4 devices, and so many send on the way back.
      "collective-permute": (
        4 * 2 * 3,
        4 * 3 / 4 * 128 * 4 * (2 + 9216 + 9216),
      ),
      "all-gather": (4 * 2, 4 * 3 / 4 * 128 * 4 * 2 * 4096),
      "reduce-scatter": (4 * 2, 4 * 3 / 4 * 128 * 4 * 2 * 4096),
      "all-reduce": (
        10 + 4 * 4 + 1,
        2 * 3 / 4 * 4 * (CONV + 4 * 4 * 128 + 16),
      ),
    },
  )


def test_owt_c_sends_half_of_everyones_examples_at_a_time():
  """Catches passes that each gather the whole batch."""
  expect(
    compiled("owt_c", 2),
    27,
    {
      "all-gather": (2 * 4, 2 / 2 * 128 * 4 * (2 + 9216 + 2 * 4096)),
      "reduce-scatter": (2 * 3, 2 / 2 * 128 * 4 * (9216 + 2 * 4096)),
      "all-reduce": (10 + 2 * 4 + 1, 4 * (CONV + 2 * 4 * 128 + 16)),
    },
  )


def test_fsdp_moves_what_data_moves_and_stores_an_eighth():
  plan = compiled("fsdp", 8)
  share = 7 / 8
  expect(
    plan,
    427,
    {
      "all-gather": (3, share * 4 * KERNELS),
      "reduce-scatter": (3, share * 4 * KERNELS),
      "all-reduce": (
        10 + 3 + 4 + 1,
        2 * share * 4 * (CONV + BIASES + 4 + 16),
      ),
    },
  )
  state = plan.memory["parameters"] + plan.memory["momentum"]
  assert state == 2 * 4 * (CONV + BIASES + KERNELS // 8)
  assert round(state / 1e6) == 77
  whole = on_paper("data", 8).memory
  assert round((whole["parameters"] + whole["momentum"]) / 1e6) == 488


def test_members_side_by_side_exchange_their_figures_alone():
  """Two nets on two devices: four numbers and 16 counts of each, at the end."""
  plan = compiled("data", 2, ensemble=2)
  expect(plan, 0, {"all-gather": (4 + 1, (4 + 16) * 2 * 4 / 2)})
  assert plan.memory["parameters"] == 4 * TOTAL
  assert on_paper("data", 2, ensemble=4).memory["parameters"] == 8 * TOTAL


@pytest.mark.parametrize(
  ("layout", "devices", "megabytes"),
  [("data", 4, 366), ("owt_a", 4, 67), ("owt_c", 4, 67), ("owt_b", 8, 141)],
)
def test_figures_on_paper(layout, devices, megabytes):
  assert round(on_paper(layout, devices).received / 1e6) == megabytes


def test_members_on_several_devices_add_up_their_gradients():
  """Two members, on two or on three devices each."""
  for devices, ring, members in ((4, 2 * 1 / 2, 1), (3, 2 * 2 / 3, 2)):
    plan = on_paper("data", devices, ensemble=2)
    shown = (4 + 16) * 2 * 4 / 2 if devices == 4 else 0
    assert plan.received == pytest.approx(
      ring * 4 * (members * (TOTAL + 3) + 1) + shown, rel=1e-12
    )


def test_owt_b_reaches_devices_that_are_no_power_of_two():
  config = config_of("owt_b", 5)
  config.network.fc6.units = config.network.fc7.units = 4100
  lines = parallel.compare(parallel.make_plan(config, 5, False))
  (sent,) = (x for x in lines if x.what == "activities to fc layers")
  # Five broadcasts, to one, two and one more, each to four of five devices.
  assert sent.arrays == 5 * 3
  assert sent.received == pytest.approx(5 * 4 / 5 * 128 * 9216 * 4)


def test_every_update_of_fc_layers_gathers_and_adds_anew():
  ring = 2 * 3 / 4
  assert on_paper("fsdp", 4, fc_batch_size=256).received == pytest.approx(
    ring * 4 * (CONV + 4 + 16 + 2 * (BIASES + KERNELS))
  )


def test_lars_asks_for_two_lengths_of_each_kernel_in_parts():
  for layout, devices, kernels in (("towers", 2, 8), ("data", 2, 0)):
    plain = on_paper(layout, devices).received
    lars = on_paper(layout, devices, optimizer="lars").received
    assert lars - plain == kernels * 2 * 4


@pytest.mark.parametrize(
  ("layout", "devices"), [("owt_a", 1), ("owt_b", 1), ("fsdp", 1), ("data", 1)]
)
def test_one_device_exchanges_nothing(layout, devices):
  assert on_paper(layout, devices).received == 0


def test_activations_are_those_of_the_table():
  # The view; conv, norm and pool 1; conv, norm and pool 2; conv3 to 5, pool 5.
  view = 224 * 224 * 3
  maps = 55 * 55 * 96 * 2 + 27 * 27 * (96 + 256 * 2) + 13 * 13 * 256
  maps += 13 * 13 * (384 + 384 + 256) + 6 * 6 * 256
  pooled = 27 * 27 * 96 + 13 * 13 * 256 + 6 * 6 * 256
  units = 4096 + 4096 + 1000
  features = 4 * (view + maps) + pooled
  assert on_paper("data", 2).memory["activations"] == 128 * (
    features + 4 * units
  )
  assert on_paper("data", 2, microbatches=4).memory["activations"] == 32 * (
    features + 4 * units
  )
  halves = (4 * (maps + units) + pooled) // 2
  assert on_paper("towers", 2).memory["activations"] == 128 * (
    4 * view + halves + 4 * TOWERS_MEET
  )
  fc = 4 * (units // 2 + 2 * 4096)
  inputs = 4 * 9216
  for layout, examples, held in (("owt_a", 256, 1), ("owt_b", 128, 2)):
    found = on_paper(layout, 2).memory["activations"]
    assert found == 128 * features + examples * (fc + held * inputs)
  half = on_paper("data", 2, compute_dtype="bfloat16").memory["activations"]
  assert half == 128 * (2 * (view + maps + units) + pooled)


@pytest.mark.parametrize(
  ("layout", "devices"), [("data", 2), ("towers", 2), ("owt_a", 8), ("fsdp", 8)]
)
def test_xla_needs_the_memory_of_the_plan(layout, devices):
  """State and batch to the byte; the rest within a factor, scratch included."""
  plan = compiled(layout, devices)
  labels = 4 * 128
  step_and_plateau = 4 + 4 + 4 + 4 + 1
  assert plan.compiled.arguments == (
    plan.memory["parameters"] + plan.memory["momentum"]
    + 128 * 256 * 256 * 3 + labels + step_and_plateau
  )  # fmt: skip
  assert plan.memory["images"] == 128 * 256 * 256 * 3
  foreseen = sum(plan.memory[what] for what in ("activations", "gradients"))
  assert foreseen < plan.compiled.temporaries < 2 * foreseen


HLO = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: f32[4]) -> f32[4] {
  ROOT %r = f32[4]{0} all-reduce(%p), replica_groups={}, to_apply=%add
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %c = f32[4]{0} call(%x), to_apply=%inner
}

%condition (p: (s32[], f32[4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p0: f32[96]) -> f32[96] {
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
  %start = (f32[2]{0}, f32[8]{0}) all-gather-start(%p0), \
replica_groups={{0,1,2,3}}, dimensions={0}
  %done = f32[8]{0} all-gather-done(%start)
  %sent = (f32[7]{0}, f32[7]{0}, u32[], u32[]) collective-permute-start(%p0), \
source_target_pairs={{0,1}}
  %w = (s32[], f32[4]{0}) while(%tuple), condition=%condition, body=%body
  ROOT %not = f32[96]{0} fusion(%all-reduce.1), calls=%inner
}
"""


def test_every_notation_of_the_program_is_read():
  found, looped = hlo.read(HLO)
  in_loop = hlo.Collective("all-reduce", "f32", 4, 8)
  assert found == [
    in_loop,
    hlo.Collective("all-reduce", "f32", 96, 2),
    hlo.Collective("all-reduce", "f32", 11 * 11 * 3 * 96, 2),
    hlo.Collective("all-reduce", "f32", 1, 2),
    hlo.Collective("all-gather", "bf16", 256 * 9216, 4),
    hlo.Collective("all-gather", "s32", 6, 2),
    hlo.Collective("reduce-scatter", "f32", 128 * 2048 * 4, 4),
    hlo.Collective("all-gather", "f32", 3, 4),
    hlo.Collective("collective-permute", "u8", 5, 3),
    hlo.Collective("all-gather", "f32", 8, 4),
    hlo.Collective("collective-permute", "f32", 7, 1),
  ]
  assert looped == [in_loop]


@pytest.mark.parametrize(
  ("kind", "parties", "received"),
  [
    ("all-reduce", 4, 600),
    ("all-gather", 4, 300),
    ("reduce-scatter", 4, 300),
    ("collective-permute", 2, 100),
    ("collective-permute", 1, 50),
  ],
)
def test_bytes_received_of_an_array_of_400(kind, parties, received):
  """On eight devices, in groups of four or so many targets."""
  array = hlo.Collective(kind, "f32", 100, parties)
  assert array.received(8) == received


def test_a_program_with_an_array_more_or_less_differs():
  plan = on_paper("towers", 2)
  exact = [e.collective for e in plan.exchanges for _ in range(e.count)]
  stray = hlo.Collective("all-gather", "u8", 256, 2)

  def against(collectives):
    program = parallel.Compiled(collectives, [], 0, 0)
    return dataclasses.replace(plan, compiled=program)

  assert against(exact).agrees
  assert parallel.verdict(against(exact)).endswith("agree.")
  for collectives in (exact[1:], [*exact, exact[0]], [*exact, stray]):
    assert not against(collectives).agrees
    assert parallel.verdict(against(collectives)).endswith("DIFFER.")
  *_, last = parallel.compare(against([*exact, stray]))
  assert (last.what, last.kind, last.arrays, last.found) == (
    "",
    "all-gather",
    0,
    1,
  )


def test_command_sets_formula_and_program_side_by_side(monkeypatch):
  monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
  result = run_command("plan", "--layout=towers", "--devices=2")
  assert result.returncode == 0, result.stderr
  lines = result.stdout.splitlines()
  assert lines[0].startswith("quickstart, layout towers on 2 devices")
  joins = [line.split() for line in lines if "join before" in line]
  assert [words[2] for words in joins] == ["conv3", "fc6", "fc7", "fc8"]
  for words in joins:
    assert words[3:5] == ["all-gather", "1"]
    assert words[5:] == [words[5], "1", words[5]]
  assert "Formulas and the program compiled for CPU agree." in lines


def test_command_plans_1024_devices_on_paper():
  result = run_command(
    "plan",
    "--config=configs/alexnet.py",
    "--layout=owt_a",
    "--devices=1024",
    f"--config.batch_size={128 * 1024}",
    "--config.num_classes=1024",
  )
  assert result.returncode == 0, result.stderr
  lines = [line.split() for line in result.stdout.splitlines()]
  # A row of 9216 inputs from 1023 other devices of 128 examples each.
  megabytes = f"{1023 * 128 * 9216 * 4 / 1e6:,.3f}"
  activities = "activities to fc layers all-gather 1"
  assert [*activities.split(), megabytes] in lines
  assert "On paper; the step was not compiled.".split() in lines
  # A 1024th of the units: four and one of them, with their biases.
  fc6 = ["classifier/fc6/kernel", "9216", "x", "4096", "-,", "model"]
  assert [*fc6, "0.147", "0.147"] in lines


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--devices=1025"], ["devices=1025", "from 1 to 1024"]),
    (["--layout=owt_d"], ["layout='owt_d'", "owt_a"]),
    (["--devices=3", "--layout=towers"], ["devices=3", "try 2 or 4"]),
  ],
)
def test_bad_input_of_the_command(arguments, words):
  assert_refused(run_command("plan", *arguments), *words)


def test_classes_that_devices_cannot_divide_are_refused():
  with pytest.raises(
    errors.InputError, match=r"fc8 has 1000 units.* 16 devices"
  ):
    on_paper("owt_a", 16)
