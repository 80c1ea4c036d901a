"""Every layout against one device; who may use which; who sends to whom."""

import functools

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
  run145,
  run150,
)
from alexnet_jax.parallel import collectives, layouts, placement
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
  """Two towers that join at conv3 and at the fc layers, quick to compile."""
  config = small_config(**{"batch_size": 64, "num_classes": 16} | changes)
  with config.unlocked():
    config.image_size_px = 32
    net = config.network
    net.layers = ("conv1", "conv3", "conv5", "fc6", "fc7", "fc8")
    net.conv1.kernel, net.conv1.stride = 5, 2
  return config


def one_tower_config(**changes):
  config = two_towers(**changes)
  config.network.towers = 1
  return config


def lars(**changes):
  return two_towers(
    optimizer="lars", lars_trust=0.01, learning_rate=0.1, **changes
  )


def scaled(**changes):
  """Rates that grow with the batch of an update, as LARS's do not."""
  return two_towers(
    batch_scaling="linear", batch_scaling_base=64, learning_rate=0.02, **changes
  )


NETS = {
  "two towers": two_towers,
  "one tower": one_tower_config,
  "cifar": cifar_config,
  "lars": lars,
  "scaled": scaled,
}


@functools.cache
def on_one_device(net, fc_batch_size=None):
  """Returns losses and parameters after five steps of a net."""
  config = NETS[net](fc_batch_size=fc_batch_size)
  trainer = Trainer(config)
  return trainer.train(batches(config, STEPS)), trainer.params


def assert_equal_runs(found, expected):
  losses, params = found
  expected_losses, expected_params = expected
  np.testing.assert_allclose(losses, expected_losses, rtol=0, atol=5e-6)
  for (path, ours), theirs in zip(
    jax.tree.leaves_with_path(params),
    jax.tree.leaves(expected_params),
    strict=True,
  ):
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error <= 1e-6, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
  ("net", "layout", "devices", "changes"),
  [
    ("two towers", "data", 2, {}),
    ("two towers", "data", 8, {}),
    ("two towers", "towers", 2, {}),
    ("two towers", "towers", 8, {}),
    *(
      ("two towers", layout, devices, {})
      for layout in layouts.OWT
      for devices in (2, 4)
    ),
    ("two towers", "owt_c", 8, {}),
    ("two towers", "fsdp", 8, {}),
    ("two towers", "data", 1, {"microbatches": 4}),
    ("two towers", "data", 8, {"microbatches": 4}),
    ("two towers", "towers", 2, {"microbatches": 4}),
    ("two towers", "owt_c", 2, {"microbatches": 4}),
    ("two towers", "fsdp", 8, {"microbatches": 4}),
    ("two towers", "data", 4, {"fc_batch_size": 16}),
    ("two towers", "owt_b", 4, {"fc_batch_size": 16}),
    ("two towers", "owt_c", 2, {"fc_batch_size": 16}),
    ("two towers", "fsdp", 4, {"fc_batch_size": 16}),
    ("scaled", "owt_c", 4, {"fc_batch_size": 16}),
    ("one tower", "owt_a", 8, {}),
    ("one tower", "fsdp", 8, {}),
    ("cifar", "data", 8, {}),
    ("cifar", "owt_b", 4, {}),
    ("cifar", "fsdp", 8, {}),
    ("lars", "towers", 2, {}),
    ("lars", "fsdp", 4, {}),
  ],
)
def test_layouts_compute_the_numbers_of_one_device(
  net, layout, devices, changes
):
  """Five steps with dropout, noise, decay and momentum.

  Catches gradients K times too large, one dropout mask on all shards, towers
  that miss a join, and lengths of parts where those of wholes are meant.
  """
  config = NETS[net](layout=layout, **changes)
  trainer = Trainer(config, devices)
  found = trainer.train(batches(config, STEPS)), trainer.params
  fc_batch_size = changes.get("fc_batch_size")
  assert_equal_runs(found, on_one_device(net, fc_batch_size))


def test_fc_layers_learn_part_by_part():
  """Catches parts that are summed into one update, or never used."""
  whole, _ = on_one_device("two towers")
  parts, _ = on_one_device("two towers", 16)
  assert whole[0] != parts[0]
  assert np.abs(whole - parts).max() > 1e-4


def test_fc_updates_are_those_of_separate_steps():
  """On one device, where conv layers stand still and nothing is random.

  Then a step with fc batches of 16 is four steps of 16.
  """
  rates = tuple((0.0, f"conv{n}", 0.0) for n in (1, 3, 5))
  plain = {
    "learning_rate_of_layers": rates,
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


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_members_of_an_ensemble_are_the_single_runs(devices):
  config = two_towers(ensemble=3, seed=5, batch_size=48)
  trainer = Trainer(config, devices)
  losses = trainer.train(batches(config, STEPS))
  for member in range(3):
    params = jax.tree.map(lambda w, m=member: w[m], trainer.params)
    assert_equal_runs((losses[:, member], params), single_run(5 + member))


@functools.cache
def single_run(seed):
  config = two_towers(seed=seed, batch_size=48)
  trainer = Trainer(config)
  return trainer.train(batches(config, STEPS)), trainer.params


@pytest.mark.parametrize("ensemble", [1, 3])
def test_loops_of_accelerators_compute_the_same(monkeypatch, ensemble):
  """What is unrolled on CPU is a loop, and members are vmapped, elsewhere.

  Convolutions then round otherwise, so that with one seed in a few a near tie
  in a pool sends its gradient elsewhere: not with these.
  """
  monkeypatch.setattr(platforms, "UNROLLING", ())
  config = two_towers(ensemble=ensemble, batch_size=48, microbatches=3)
  trainer = Trainer(config)
  losses = trainer.train(batches(config, STEPS)).reshape(STEPS, ensemble)
  members = ensemble.unstack(trainer.params, ensemble)
  for member, params in enumerate(members):
    assert_equal_runs((losses[:, member], params), single_run(member))


def test_member_that_has_ended_waits_for_the_others():
  config = two_towers(ensemble=2)
  trainer = Trainer(config)
  (batch,) = batches(config, 1)
  trainer.train([batch])
  before = trainer.params
  stopped = np.array([True, False])
  plateau = trainer.state.plateau.replace(stopped=stopped)
  trainer.state = trainer.state.replace(plateau=plateau)
  trainer.train([batch])
  for old, new in zip(
    jax.tree.leaves(before), jax.tree.leaves(trainer.params), strict=True
  ):
    np.testing.assert_array_equal(old[0], new[0])
    assert (old[1] != new[1]).any()


# Where arrays live.


@pytest.mark.parametrize(
  ("layout", "devices", "conv", "fc", "bias", "images"),
  [
    ("data", 8, P(), P(), P(), P("data")),
    ("towers", 2, P(*[None] * 3, "model"), P(None, "model"), P("model"), P()),
    (
      *("towers", 8, P(*[None] * 3, "model")),
      *(P(None, "model"), P("model"), P("data")),
    ),
    ("owt_b", 8, P(), P(None, "model"), P("model"), P("model")),
    ("fsdp", 8, P(), P("data"), P(), P("data")),
  ],
)
def test_arrays_live_where_the_layout_says(
  layout, devices, conv, fc, bias, images
):
  config = two_towers(layout=layout)
  trainer = Trainer(config, devices)
  (batch,) = batches(config, 1)
  placed = trainer.put(batch)
  trainer.train([batch])
  state = trainer.state
  velocity = [
    state.opt_state[stack][-1].velocity[stack] for stack in state.params
  ]
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
  table = layouts.Layout("towers", 1, 2, 128).table(network)
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
    assert other.rows().tolist() == list(range(8))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_broadcast_reaches_all_and_its_way_back_adds_up(count):
  mesh = placement.make_mesh(count, count)
  values = np.arange(3.0 * count).reshape(count, 3)
  for one in range(count):

    def there_and_back(x, one=one):
      return (
        collectives.broadcast(x, "model", one),
        collectives.add_up_to(x, "model", one),
      )

    there, back = jax.jit(
      jax.shard_map(
        there_and_back, mesh=mesh, in_specs=P("model"), out_specs=P("model")
      )
    )(values)
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
    (changed(alexnet, layout="ring"), 1, "layout='ring'"),
    (changed(alexnet, batch_size=100), 8, "try 96 or 104"),
    (changed(alexnet, batch_size=3), 8, "try 8"),
    (changed(alexnet, batch_size=0), 8, "batch_size=0 must be at least 1"),
    (changed(alexnet, layout="towers"), 3, "devices=3; try 2 or 4"),
    (changed(alexnet, layout="towers"), 1, "2 towers .* try 2"),
    (changed(one_tower, layout="towers"), 2, "network.towers=1"),
    (changed(cifar_18pct, layout="towers"), 2, "network.towers=1"),
    (
      changed(quickstart, layout="towers", num_classes=5),
      2,
      "fc8 has 5 outputs, which layout=towers cannot divide by 2 towers; try 4"
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
    (changed(alexnet, microbatches=0), 1, "microbatches=0 must be"),
    (changed(alexnet, fc_batch_size=100), 1, "try 64 or 128"),
    (changed(alexnet, fc_batch_size=64, microbatches=2), 1, "leave one"),
    (
      changed(alexnet, fc_batch_size=32, layout="owt_b"),
      2,
      "must be 64 or 128",
    ),
    (changed(alexnet, ensemble=2, layout="fsdp"), 2, "needs layout=data"),
    (changed(alexnet, ensemble=0), 2, "ensemble=0 must be"),
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
