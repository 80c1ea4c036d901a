"""Every layout against one device; who may use which; who sends to whom."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from training import Trainer, batches, small_config

from alexnet_jax import model, networks
from alexnet_jax.configs import (
  alexnet,
  cifar_18pct,
  one_tower,
  quickstart,
  run131,
  run145,
  run150,
)
from alexnet_jax.parallel import collectives, ensemble, layouts, placement
from alexnet_jax.runtime import platforms
from alexnet_jax.runtime.errors import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")
STEPS = 5


def cifar_config(**changes):
  """The family of 18pct, narrow, with all that is random."""
  config = cifar_18pct.get_config()
  with config.unlocked():
    for name in ("conv1", "conv2", "conv3"):
      config.network[name].filters = 8
    config.num_classes = 16
    config.batch_size = 64
    config.update(changes)
  return config


def two_towers(**changes):
  return small_config(**{"batch_size": 64, "num_classes": 16} | changes)


def one_tower_config(**changes):
  config = two_towers(**changes)
  config.network.towers = 1
  return config


def run131_config(**changes):
  """A narrow run 131, whose conv2 adds a branch over the blurred image."""
  config = run131.get_config()
  with config.unlocked():
    net = config.network
    for name in ("conv1", "conv2", "conv2_image", "conv3", "conv4", "conv5"):
      net[name].filters = 8
    net.fc6.units = net.fc7.units = 32
    config.num_classes = 16
    config.image_size_px = 72
    config.crop_size_px = 64
    config.batch_size = 64
    config.update(changes)
  return config


def lars(**changes):
  return two_towers(
    optimizer="lars", lars_trust=0.01, learning_rate=0.1, **changes
  )


NETS = {
  "two towers": two_towers,
  "one tower": one_tower_config,
  "cifar": cifar_config,
  "lars": lars,
  "run 131": run131_config,
}


class Trained(NamedTuple):
  """A net after five steps, its losses, and its parameters after the first."""

  trainer: Trainer
  losses: np.ndarray
  params: dict
  first_params: dict


@functools.cache
def trained(net, layout="data", devices=1, **changes):
  """Compiles and takes five steps of a net; tests share what comes out."""
  config = NETS[net](layout=layout, **changes)
  trainer = Trainer(config, devices)
  first, *others = batches(config, STEPS)
  losses = trainer.train([first])
  first_params = trainer.params
  losses = np.concatenate([losses, trainer.train(others)])
  return Trained(trainer, losses, trainer.params, first_params)


def assert_equal_runs(losses, params, expected):
  np.testing.assert_allclose(losses, expected.losses, rtol=0, atol=5e-6)
  assert_equal_params(params, expected.params, 1e-6)


def assert_equal_params(found, expected, tolerance):
  for (path, ours), theirs in zip(
    jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
  ):
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error <= tolerance, jax.tree_util.keystr(path)


QUICK = [
  ("two towers", "data", 2, {}),
  ("two towers", "towers", 2, {}),
  ("two towers", "owt_c", 2, {}),
]
OTHERS = [
  ("two towers", "data", 8, {}),
  ("two towers", "fsdp", 8, {}),
  ("two towers", "owt_b", 4, {}),
  ("two towers", "data", 1, {"microbatches": 4}),
  ("two towers", "towers", 8, {}),
  ("two towers", "owt_a", 4, {}),
  ("two towers", "owt_c", 8, {}),
  ("two towers", "towers", 2, {"microbatches": 4}),
  ("two towers", "owt_c", 2, {"microbatches": 4}),
  ("two towers", "data", 4, {"fc_batch_size": 16}),
  ("two towers", "owt_b", 4, {"fc_batch_size": 16}),
  ("two towers", "owt_c", 2, {"fc_batch_size": 16}),
  ("two towers", "fsdp", 4, {"fc_batch_size": 16}),
  ("one tower", "owt_a", 8, {}),
  ("cifar", "owt_b", 4, {}),
  ("run 131", "towers", 2, {}),
  ("run 131", "owt_c", 2, {}),
  ("lars", "towers", 2, {}),
  ("lars", "fsdp", 4, {}),
]


@pytest.mark.parametrize(
  ("net", "layout", "devices", "changes"),
  QUICK + [pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS],
)
def test_layouts_compute_the_numbers_of_one_device(
  net, layout, devices, changes
):
  """Five steps with dropout, noise, decay and momentum.

  Catches gradients K times too large, one dropout mask on all shards, towers
  that miss a join, and lengths of parts where those of wholes are meant.
  """
  found = trained(net, layout, devices, **changes)
  updates = {k: v for k, v in changes.items() if k == "fc_batch_size"}
  expected = trained(net, **updates)
  assert_equal_runs(found.losses, found.params, expected)


@pytest.mark.slow
def test_fc_layers_learn_part_by_part():
  """Catches parts that are summed into one update, or never used."""
  whole = trained("two towers").losses
  parts = trained("two towers", fc_batch_size=16).losses
  assert whole[0] != parts[0]
  assert np.abs(whole - parts).max() > 1e-4


def frozen(*names):
  return {"learning_rate_of_layers": tuple((0.0, name, 0.0) for name in names)}


@pytest.mark.slow
def test_frozen_layers_cost_no_backward_pass():
  """Beside layers that stand still now and learn a million epochs later."""
  names = "conv1", "conv3", "conv5"
  rests = frozen(*names)["learning_rate_of_layers"]
  thaw = tuple((1e6, name, 0.01) for name in names)
  found = []
  for rates in (rests, rests + thaw):
    trainer = Trainer(two_towers(learning_rate_of_layers=rates))
    data = list(batches(trainer.config, 2))
    batch = trainer.put(data[0])
    trainer.step = trainer.step.lower(trainer.state, batch).compile()
    losses = trainer.train(data)
    flops = trainer.step.cost_analysis()["flops"]
    found.append((losses, trainer.params, flops))
  (losses, params, flops), (losses_2, params_2, flops_2) = found
  np.testing.assert_array_equal(losses, losses_2)
  for ours, theirs in zip(
    *map(jax.tree.leaves, (params, params_2)), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
  # By weights of all three, and by inputs of all but the first and of fc6.
  macs = {
    row.layer.name: row.macs for row in networks.rows(trainer.net.network)
  }
  saved = 2 * sum(macs[x] for x in names) - macs["conv1"] + macs["fc6"]
  assert flops_2 - flops > 2 * trainer.config.batch_size * saved


@pytest.mark.slow
def test_fc_updates_are_those_of_separate_steps():
  """On one device, where conv layers stand still and nothing is random.

  Then a step with fc batches of 16 is four steps of 16.
  """
  plain = frozen("conv1", "conv3", "conv5") | {
    "random_crop": False,
    "mirror": False,
    "colour_noise": 0.0,
  }
  config = two_towers(fc_batch_size=16, **plain)
  config.network.dropout_rate = 0.0
  (batch,) = batches(config, 1)
  trainer = Trainer(config)
  trainer.train([batch])
  config = two_towers(**plain | {"batch_size": 16})
  config.network.dropout_rate = 0.0
  separate = Trainer(config)
  separate.train(
    {name: rows[i : i + 16] for name, rows in batch.items()}
    for i in range(0, 64, 16)
  )
  for ours, theirs in zip(
    jax.tree.leaves(trainer.params["classifier"]),
    jax.tree.leaves(separate.params["classifier"]),
    strict=True,
  ):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_conv_layers_learn_from_the_mean_over_the_fc_updates():
  """Where fc layers stand still, their updates make no difference.

  Catches gradients of the conv layers that are as many times too large.
  """
  config = two_towers(fc_batch_size=16, **frozen("fc6", "fc7", "fc8"))
  trainer = Trainer(config)
  trainer.train(batches(config, 1))
  found, expected = trainer.params, trained("two towers").first_params
  assert_equal_params(found["features"], expected["features"], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_members_of_an_ensemble_are_the_single_runs(devices):
  """Both on one device, or each on two."""
  found = trained("two towers", "data", devices, ensemble=2)
  for member in range(2):
    params = jax.tree.map(lambda w, m=member: w[m], found.params)
    expected = trained("two towers", **({"seed": member} if member else {}))
    assert_equal_runs(found.losses[:, member], params, expected)


@pytest.mark.slow
@pytest.mark.parametrize("fc_batch_size", [None, 16])
def test_member_that_has_ended_waits_for_the_other(fc_batch_size):
  trainer = trained(
    "two towers", ensemble=2, fc_batch_size=fc_batch_size
  ).trainer
  before = trainer.params
  stopped = np.array([True, False])
  plateau = trainer.state.plateau.replace(stopped=stopped)
  trainer.state = trainer.state.replace(plateau=plateau)
  trainer.train(batches(trainer.config, 1))
  for old, new in zip(
    jax.tree.leaves(before), jax.tree.leaves(trainer.params), strict=True
  ):
    np.testing.assert_array_equal(old[0], new[0])
    assert (old[1] != new[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 2])
def test_loops_of_accelerators_compute_the_same(monkeypatch, members):
  """What is unrolled on CPU is a loop, and members are vmapped, elsewhere.

  Convolutions then round otherwise, so that with one seed in a few a near tie
  in a pool sends its gradient elsewhere: not with these.
  """
  monkeypatch.setattr(platforms, "UNROLLING", ())
  config = two_towers(ensemble=members, microbatches=4)
  trainer = Trainer(config)
  losses = trainer.train(batches(config, STEPS)).reshape(STEPS, members)
  for member, params in enumerate(ensemble.unstack(trainer.params, members)):
    expected = trained("two towers", **({"seed": member} if member else {}))
    assert_equal_runs(losses[:, member], params, expected)


# Where arrays live.


@pytest.mark.parametrize(
  ("layout", "devices", "conv", "fc", "bias", "images"),
  [
    pytest.param(
      *("data", 8, P(), P(), P(), P("data")), marks=pytest.mark.slow
    ),
    ("towers", 2, P(*[None] * 3, "model"), P(None, "model"), P("model"), P()),
    pytest.param(
      *("towers", 8, P(*[None] * 3, "model")),
      *(P(None, "model"), P("model"), P("data")),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      *("owt_b", 4, P(), P(None, "model"), P("model"), P("model")),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      *("fsdp", 8, P(), P("data"), P(), P("data")), marks=pytest.mark.slow
    ),
  ],
)
def test_arrays_live_where_the_layout_says(
  layout, devices, conv, fc, bias, images
):
  trainer = trained("two towers", layout, devices).trainer
  placed = trainer.put(next(batches(trainer.config, 1)))
  state = trainer.state
  velocity = [state.opt_state[stack][-1].trace[stack] for stack in state.params]
  for tree in (state.params, dict(zip(state.params, velocity, strict=True))):
    for spec, array in (
      (conv, tree["features"]["conv3"]["kernel"]),
      (fc, tree["classifier"]["fc6"]["kernel"]),
      (bias, tree["classifier"]["fc6"]["bias"]),
    ):
      wanted = jax.sharding.NamedSharding(trainer.mesh, spec)
      assert array.sharding.is_equivalent_to(wanted, array.ndim)
  wanted = jax.sharding.NamedSharding(trainer.mesh, images)
  assert placed["image"].sharding.is_equivalent_to(wanted, 4)


def test_towers_talk_at_conv3_fc6_fc7_and_fc8_alone():
  """Paper 3.2 and figure 2."""
  network = networks.from_config(alexnet.get_config())
  table = layouts.Layout("towers", 1, 2, 128).local_network(network)
  layers = (*table.features, *table.classifier)
  talk = [i for i, layer in enumerate(layers) if layer == model.Join("model")]
  named = model.Conv | model.Dense
  after = [
    next(layer.name for layer in layers[i:] if isinstance(layer, named))
    for i in talk
  ]
  assert after == ["conv3", "fc6", "fc7", "fc8"]
  widths = [
    getattr(layer, "filters", None) or getattr(layer, "units", None)
    for layer in layers
    if isinstance(layer, named)
  ]
  assert widths == [48, 128, 192, 192, 128, 2048, 2048, 500]


def test_rows_of_a_part_are_spread_over_all_devices():
  layout = layouts.Layout("owt_c", 1, 2, 8, fc_updates=2)
  assert layout.example_order().tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
  for other in (
    layouts.Layout("owt_c", 1, 2, 8),
    layouts.Layout("owt_b", 1, 2, 8, fc_updates=2),
  ):
    assert other.example_order().tolist() == list(range(8))


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_broadcast_reaches_all_and_its_way_back_adds_up(count):
  mesh = placement.make_mesh(count, count)
  values = np.arange(3.0 * count).reshape(count, 3)

  def there_and_back(x):
    return [
      (
        collectives.broadcast(x, "model", one),
        collectives.add_up_to(x, "model", one),
      )
      for one in range(count)
    ]

  found = jax.jit(
    jax.shard_map(
      there_and_back, mesh=mesh, in_specs=P("model"), out_specs=P("model")
    )
  )(values)
  for one, (there, back) in enumerate(found):
    np.testing.assert_array_equal(there, values[[one] * count])
    expected = np.zeros_like(values)
    expected[one] = values.sum(0)
    np.testing.assert_array_equal(back, expected)


# Who may use which.


def changed(module, **changes):
  config = module.get_config()
  with config.unlocked():
    config.update(changes)
  return config


@pytest.mark.parametrize(
  ("config", "devices", "words"),
  [
    (changed(alexnet, batch_size=100), 8, "try 96 or 104"),
    (changed(alexnet, batch_size=3), 8, "try 8"),
    (changed(alexnet, layout="towers"), 3, "devices=3; try 2 or 4"),
    (changed(alexnet, layout="towers"), 1, "2 towers .* try 2"),
    (changed(one_tower, layout="towers"), 2, "network.towers=1"),
    (changed(cifar_18pct, layout="towers"), 2, "network.towers=1"),
    (
      changed(quickstart, layout="towers", num_classes=5),
      2,
      "fc8 has 5 outputs, which --config.layout=towers cannot divide by 2"
      " towers; try 4"
      " or 6",
    ),
    (
      changed(alexnet, layout="owt_a"),
      3,
      "fc6 has 4096 units.* by 3 devices; try 4095 or 4098 .* 2 or 4 devices",
    ),
    (
      changed(alexnet, layout="owt_b", num_classes=10),
      4,
      "fc8 has 10 units.* try 8 or 12 units, .* try 2 devices",
    ),
    (changed(run150, layout="owt_a"), 2, "fc6 .* its own tower alone"),
    (changed(alexnet, layout="fsdp"), 7, "devices=7; try 4 or 8"),
    (changed(alexnet, layout="owt_c", batch_size=96), 8, "try 64 or 128"),
    (changed(alexnet, layout="owt_c", batch_size=100), 4, "try 96 or 112"),
    (changed(alexnet, microbatches=3), 1, "try 126 or 129"),
    (changed(alexnet, fc_batch_size=100), 1, "try 64 or 128"),
    (changed(alexnet, fc_batch_size=64, microbatches=2), 1, "leave one"),
    (
      changed(alexnet, fc_batch_size=32, layout="owt_b"),
      2,
      "must be 64 or 128",
    ),
    (
      changed(alexnet, ensemble=2, layout="fsdp"),
      2,
      "needs --config.layout=data",
    ),
  ],
)
def test_what_cannot_be_divided_is_refused_with_what_can(
  config, devices, words
):
  network = networks.from_config(config)
  with pytest.raises(InputError, match=words) as error:
    layouts.from_config(config, network, devices)
  assert "\n" not in str(error.value)


def test_norm_across_towers_is_refused_in_towers():
  config = changed(run145, layout="towers")
  config.network.lrn.across_towers = True
  with pytest.raises(InputError, match="across_towers"):
    layouts.from_config(config, networks.make_model(config).network, 2)
