"""Every config: its net, its docstring, one step of it, and the ablations."""

import dataclasses
import fnmatch
import importlib
import math
import re
import signal
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax import augment, model, networks, optimizer, steps
from alexnet_jax.networks import (
  Activation,
  AveragePool,
  Conv,
  Dropout,
  LocalResponseNorm,
  MaxPool,
)
from alexnet_jax.parallel import layouts, placement
from alexnet_jax.runs import config_files
from alexnet_jax.runtime import cli
from configs import ablations

ROOT = Path(__file__).parents[1]
NAMES = sorted(
  {path.stem for path in (ROOT / "configs").glob("*.py")}
  - {"__init__", "ablations"}
)
RUNS = [name for name in NAMES if name.startswith("run")]

every_config = pytest.mark.parametrize("name", NAMES)


def load(name):
  """Returns a config: NAME, or ABLATIONS@BASE."""
  if name in NAMES:
    return importlib.import_module(f"configs.{name}").get_config()
  return ablations.get_config(name)


def net_of(name):
  return networks.from_config(load(name))


def layers_of(name):
  net = net_of(name)
  return [*net.features, *net.classifier]


# Kernel, channels that a filter sees, filters, output side; a fully connected
# layer is a 1 x 1 kernel on one pixel.
FC = [(1, 9216, 4096, 1), (1, 4096, 4096, 1), (1, 4096, 1000, 1)]
TWO_TOWERS = [
  (11, 3, 96, 55), (5, 48, 256, 27), (3, 256, 384, 13), (3, 192, 384, 13),
  (3, 192, 256, 13), *FC,
]  # fmt: skip
CIFAR = [(5, 3, 32, 32), (5, 32, 32, 16), (5, 32, 64, 8), (1, 1024, 10, 1)]
OTHERS = {
  "cifar10": [
    (5, 3, 32, 28), (5, 32, 32, 14), (5, 32, 64, 7), (1, 576, 10, 1),
  ],
  "alexnet_cifar10": [
    (5, 3, 64, 15), (5, 32, 128, 7), (3, 128, 192, 3), (3, 96, 192, 3),
    (3, 96, 128, 3), (1, 128, 512, 1), (1, 512, 512, 1), (1, 512, 10, 1),
  ],
  "cifar_18pct": CIFAR,
  "cifar_19pct": CIFAR,
  "cifar_80sec": [*CIFAR[:3], (1, 1024, 64, 1), (1, 64, 10, 1)],
  "one_tower": [
    (11, 3, 96, 55), (5, 96, 256, 27), (3, 256, 384, 13), (3, 384, 384, 13),
    (3, 384, 256, 13), *FC,
  ],
  "one_weird_trick": [
    (11, 3, 64, 55), (5, 64, 192, 27), (3, 192, 384, 13), (3, 384, 256, 13),
    (3, 256, 256, 13), *FC,
  ],
  "quickstart": [
    (7, 3, 32, 18), (5, 16, 64, 9), (3, 64, 96, 4), (3, 48, 96, 4),
    (3, 48, 96, 4), (1, 384, 256, 1), (1, 256, 256, 1), (1, 256, 10, 1),
  ],
  "run145_half": [
    (11, 3, 48, 55), (5, 48, 128, 27), (3, 128, 192, 13), (3, 192, 192, 13),
    (3, 192, 256, 13), *FC,
  ],
  "run146": [*TWO_TOWERS[:5], (3, 256, 256, 6), *FC],
  "run147": [
    (11, 3, 96, 55), (5, 48, 256, 26), (3, 256, 384, 13), (3, 192, 384, 13),
    (3, 192, 256, 11), *FC,
  ],
  "run150": [
    (11, 3, 96, 55), (5, 48, 320, 27), (3, 160, 384, 13), (3, 192, 384, 13),
    (3, 192, 256, 13), (1, 4608, 8192, 1), (1, 4096, 8192, 1),
    (1, 8192, 1000, 1),
  ],
}  # fmt: skip
TOTALS = {
  "alexnet": (60_965_224, 724_406_816),
  "alexnet_cifar10": (939_402, 10_909_376),
  "bvlc_alexnet": (60_965_224, 724_406_816),
  "caffenet": (60_965_224, 724_406_816),
  "cifar10": (85_098, 9_413_760),
  "cifar_18pct": (89_578, 12_298_240),
  "cifar_19pct": (89_578, 12_298_240),
  "cifar_80sec": (145_578, 12_354_176),
  "finetune": (60_965_224, 724_406_816),
  "one_tower": (62_378_344, 1_135_256_096),
  "one_weird_trick": (61_100_840, 714_188_480),
  "quickstart": (335_850, 5_975_936),
  "run131": (60_965_224, 724_406_816),
  "run135": (60_965_224, 724_406_816),
  "run145": (60_965_224, 724_406_816),
  "run145_2010": (60_965_224, 724_406_816),
  "run145_half": (59_798_312, 391_514_384),
  "run146": (61_555_304, 745_640_480),
  "run147": (60_965_224, 686_891_552),
  "run148": (60_965_224, 724_406_816),
  "run150": (81_591_720, 745_197_088),
  "run166": (60_965_224, 724_406_816),
  "run170": (60_965_224, 724_406_816),
  "run177": (60_965_224, 724_406_816),
}
ABLATED = {
  "no_conv1": [(11, 3, 256, 55), *TWO_TOWERS[2:]],
  "no_conv2": [TWO_TOWERS[0], (3, 96, 384, 13), *TWO_TOWERS[3:]],
  "no_conv3": [*TWO_TOWERS[:2], (3, 256, 384, 13), *TWO_TOWERS[4:]],
  "no_conv4": [*TWO_TOWERS[:3], *TWO_TOWERS[4:]],
  "no_conv5": [*TWO_TOWERS[:4], (1, 13824, 4096, 1), *FC[1:]],
  "no_links": [
    *TWO_TOWERS[:2], (3, 128, 384, 13), *TWO_TOWERS[3:5], (1, 4608, 4096, 1),
    (1, 2048, 4096, 1), FC[2],
  ],
}  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, *ABLATED])
def test_counts_are_those_of_the_original_or_by_hand(name):
  rows = [row for row in networks.rows(net_of(name)) if row.parameters]
  by_hand = [
    (k * k * seen * filters + filters, k * k * seen * filters * side**2)
    for k, seen, filters, side in (OTHERS | ABLATED).get(name, TWO_TOWERS)
  ]
  assert [(row.parameters, row.macs) for row in rows] == by_hand
  if name in NAMES:
    assert tuple(map(sum, zip(*by_hand, strict=True))) == TOTALS[name]


def test_every_config_and_no_other_has_its_counts_here():
  assert sorted(TOTALS) == NAMES
  assert set(OTHERS) <= set(NAMES)


@pytest.mark.parametrize(
  ("name", "sides"),
  [
    ("alexnet", [224, 55, 27, 27, 13, 13, 13, 13, 6]),
    ("run145", [224, 55, 27, 27, 13, 13, 13, 13, 6]),
    ("run146", [224, 55, 27, 27, 13, 13, 13, 13, 6, 6]),
    ("run147", [224, 55, 28, 26, 13, 13, 13, 11, 6]),
    ("no_overlap", [224, 55, 28, 26, 13, 13, 13, 11, 6]),
    ("no_conv1", [224, 55, 27, 13, 13, 13, 13, 6]),
    ("no_conv2", [224, 55, 27, 13, 13, 13, 13, 6]),
    ("no_conv3", [224, 55, 27, 27, 13, 13, 13, 6]),
    ("no_conv4", [224, 55, 27, 27, 13, 13, 13, 6]),
    ("no_conv5", [224, 55, 27, 27, 13, 13, 13, 6]),
  ],
)
def test_grids_have_the_sides_of_the_original(name, sides):
  assert sides_of(name) == sides


def sides_of(name):
  net = net_of(name)
  grids = (Conv, MaxPool, AveragePool)
  return [net.input_size_px] + [
    row.output_shape[0]
    for row in networks.rows(net)
    if isinstance(row.layer, grids)
  ]


def docstring(name):
  return importlib.import_module(f"configs.{name}").__doc__


def differing(a, b):
  a, b = (config_files.flatten(config.to_dict()) for config in (a, b))
  return {f for f in a | b if f not in a or f not in b or a[f] != b[f]}


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"alexnet"}))
def test_docstring_names_each_field_that_differs_and_no_other(name):
  base, fields = re.search(
    r"Changes from configs/(\w+)\.py:\s(.*?)\.\n\n", docstring(name), re.DOTALL
  ).groups()
  patterns = re.split(r",\s+", fields)
  matches = {
    (field, pattern)
    for field in differing(load(base), load(name))
    for pattern in patterns
    if fnmatch.fnmatchcase(field, pattern)
  }
  assert {field for field, _ in matches} == differing(load(base), load(name))
  assert sorted({pattern for _, pattern in matches}) == sorted(patterns)


@pytest.mark.parametrize("name", [*NAMES, "ablations"])
def test_commands_of_a_docstring_exist_and_keep_apart(name):
  commands = re.findall(
    r"^  python -m alexnet_jax\.main.*", docstring(name), re.MULTILINE
  )
  assert commands
  workdirs = []
  for command in commands:
    given = dict(re.findall(r"--([\w.]+)=(\S+)", command))
    path = given.pop("config", "configs/quickstart.py")
    default = re.sub(r"configs/(\w+)\.py", r"runs/\1", path)
    workdirs.append(given.pop("workdir", default))
    if not path.endswith(":list"):
      fields = config_files.flatten(config_files.load_config(path).to_dict())
      assert set(given) <= {f"config.{field}" for field in fields}
  assert len(set(workdirs)) == len(workdirs)


# Top-1 and top-5 error of the originals, by their logs.
FIGURES = {
  "run131": ["40.934", "18.574"],
  "run135": ["41.070", "18.416"],
  "run145": ["40.664", "18.210"],
  "run145_2010": ["37.473", "16.999"],
  "run145_half": ["39.168", "18.229"],
  "run146": ["38.990", "16.622"],
  "run147": ["41.058", "18.510"],
  "run148": ["42.034", "19.362"],
  "run150": ["41.828", "19.330"],
  "run166": ["41.096", "18.674"],
  "run170": ["40.528"],
  "run177": ["40.690", "18.304"],
  "alexnet": ["40.7", "18.2"],
  "bvlc_alexnet": ["42.9", "19.8"],
  "caffenet": ["42.6", "19.6"],
  "one_weird_trick": ["43.478", "20.934"],
  "cifar_18pct": ["18"],
  "cifar_19pct": ["19"],
  "cifar_80sec": ["26"],
}


@every_config
def test_docstring_gives_the_original_figures_or_none(name):
  if name not in FIGURES:
    assert "No original" in docstring(name)
    return
  [original] = re.findall(r"^Original.*?\.\s", docstring(name), re.M | re.S)
  found = re.findall(r"\d+(?:\.\d+)?(?= %)", original)
  assert found[: len(FIGURES[name])] == FIGURES[name]


@every_config
def test_readme_of_configs_gives_counts_and_figures(name):
  readme = (ROOT / "configs" / "README.md").read_text()
  [line] = re.findall(rf"^\| `{name}` \|.*$", readme, re.MULTILINE)
  for count in TOTALS[name]:
    assert f"| {count:,} |" in line
  assert f"| {' / '.join(FIGURES.get(name, ['none']))}" in line


# Rate of the weights in the last epoch; 1e-5 where it is not here. No
# validation error is told, so `plateau` never drops.
LAST_RATES = {
  "alexnet": 0.01,
  # The last but one point of the line to a 250th, of 14 times 100 steps.
  "alexnet_cifar10": 0.03 * (1 + 1399 / 250) / 1400,
  "bvlc_alexnet": 1e-6,
  "caffenet": 1e-6,
  "cifar_80sec": 1e-4,
  "finetune": 1e-4,
  "one_tower": 0.01,
  "one_weird_trick": 0.01,
  "quickstart": 1e-4,
  "run170": 0.01 / 250,
  "run177": 0.01 / 250,
}
# Of conv1's weights in the first step and in the last.
CONV1_RATES = {"alexnet_cifar10": (0.00075, 0.0001)}
CONV1_STANDS_STILL = set(RUNS) - {"run145_half", "run146", "run170", "run177"}

BATCH_SIZE = 4
STEPS_PER_EPOCH = 100
QUICK = {
  "xla_backend_optimization_level": 0,
  "xla_cpu_use_fusion_emitters": False,
  "xla_llvm_disable_expensive_passes": True,
}


class Trainer:
  """Takes steps with a config at a sixteenth of its width."""

  def __init__(self, name):
    self.config = config = load(name)
    net = config.network
    with config.unlocked():
      config.num_classes = 10
      config.batch_size = BATCH_SIZE
      for layer in net.layers[:-1]:
        net[layer]["units" if "units" in net[layer] else "filters"] //= 16
    self.last = net.layers[-1]
    self.total_steps = round(config.total_epochs * STEPS_PER_EPOCH)
    num_examples = BATCH_SIZE * STEPS_PER_EPOCH
    rng = np.random.default_rng(0)
    side = config.image_size_px
    statistics = types.SimpleNamespace(
      mean_image=np.full((side, side, 3), 127.5, np.float32),
      colour_axes=np.eye(3, dtype=np.float32),
      colour_sds=np.full(3, 50, np.float32),
    )
    self.labels = rng.integers(0, 10, BATCH_SIZE).astype(np.int32)
    self.mesh = placement.make_mesh(1)
    module = model.from_config(config)
    layout = layouts.from_config(config, module.network, 1)
    images = rng.integers(0, 256, (BATCH_SIZE, side, side, 3), dtype=np.uint8)
    self.batch = placement.put_batch(
      self.mesh,
      layout.batch_spec,
      (BATCH_SIZE,),
      {"image": images, "label": self.labels},
    )

    def draw(path, leaf):
      row = net[path[-2].key]
      kernel = path[-1].key == "kernel"
      loc, scale = (0, row.sigma) if kernel else (row.bias, 0)
      return rng.normal(loc, scale, leaf.shape).astype(np.float32)

    image = jnp.zeros((1, *[config.crop_size_px] * 2, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    self.params = jax.tree.map_with_path(draw, shapes)
    self.tx, _ = optimizer.from_config(config, num_examples, self.total_steps)
    augmentation = augment.from_config(config, statistics, num_examples)
    step = steps.make_train_step(
      module, self.tx, augmentation, layout, self.mesh, 0
    )
    step = step.lower(self.state(0), self.batch)
    self.step = step.compile(compiler_options=QUICK)

  def state(self, count):
    """Returns the state that stands before step `count`, at rest."""
    state = steps.init_state(self.params, self.tx)
    state = dataclasses.replace(state, step=jnp.int32(count))
    return placement.replicate(self.mesh, state)

  def take(self, count):
    """Returns loss, parameters and velocity after step `count`."""
    state, sums = jax.device_get(self.step(self.state(count), self.batch))
    velocity = {
      stack: optax.tree.get(held, "velocity")[stack]
      for stack, held in state.opt_state.items()
    }
    return sums["loss"] / BATCH_SIZE, state.params, velocity


def arrays(tree):
  """Yields layer, kernel or bias, and the array."""
  for path, array in jax.tree.leaves_with_path(tree):
    yield path[-2].key, path[-1].key, array


@every_config
def test_steps_move_the_net_as_the_config_says(name):
  trainer = Trainer(name)
  config = trainer.config
  loss, params, velocity = trainer.take(0)
  assert loss == pytest.approx(math.log(10), rel=0.1)
  # XLA may round the sum of a product once where numpy rounds twice.
  jax.tree.map(
    np.testing.assert_array_max_ulp,
    params,
    optax.tree.add(trainer.params, velocity),
  )
  assert all(array.any() for _, _, array in arrays(velocity))

  # Nothing comes down through a last kernel of 0: what moves the layers below
  # is the decay alone, and the last bias p - y with p = 1 / 10.
  trainer.params["classifier"][trainer.last]["kernel"][:] = 0
  counts = np.bincount(trainer.labels, minlength=10)
  first = config.learning_rate
  decays = dict(config.weight_decay_of_layers)
  for step, rate in (
    (0, first),
    (trainer.total_steps - 1, LAST_RATES.get(name, 1e-5)),
  ):
    bias_rate = config.learning_rate_of_biases * (
      rate if config.biases_follow_schedule else first
    )
    _, params, velocity = trainer.take(step)
    for (layer, part, v), (*_, w) in zip(
      arrays(velocity), arrays(trainer.params), strict=True
    ):
      decay = decays.get(layer, config.weight_decay)
      of_conv1 = CONV1_RATES.get(name) if layer == "conv1" else None
      expected = -(of_conv1[step > 0] if of_conv1 else rate) * decay * w
      if part == "bias":
        expected = -bias_rate * decay * config.weight_decay_of_biases * w
      if layer == trainer.last:
        if part == "kernel":
          continue
        expected = -bias_rate * (0.1 - counts / BATCH_SIZE)
      if layer == "conv1" and step and name in CONV1_STANDS_STILL:
        expected = 0 * w
      np.testing.assert_allclose(v, expected, rtol=1e-4, err_msg=layer)


# What takes the place of the records of a kind in the paper's net.
SWAPS = {
  "tanh": (Activation, [Activation("tanh")]),
  "scaled_tanh": (Activation, [Activation("scaled_tanh")]),
  "sigmoid": (Activation, [Activation("sigmoid")]),
  "linear": (Activation, [Activation("none")]),
  "average_pool": (MaxPool, [AveragePool(3, 2)]),
  "no_dropout": (Dropout, []),
  "inverted_dropout": (Dropout, [Dropout(0.5, 0, rescaled=True)]),
  "no_lrn": (LocalResponseNorm, []),
  "caffe_lrn": (LocalResponseNorm, [LocalResponseNorm(1, 1.0, 2e-5)]),
}


@pytest.mark.parametrize("name", SWAPS)
def test_ablation_swaps_records_and_no_others(name):
  kind, new = SWAPS[name]
  layers = layers_of("alexnet")
  swapped = [
    other
    for layer in layers
    for other in (new if isinstance(layer, kind) else [layer])
  ]
  found = layers_of(name)
  assert found != layers
  # A record that comes or goes moves the places of the dropouts after it.
  assert list(map(without_place, found)) == list(map(without_place, swapped))


def without_place(layer):
  if isinstance(layer, Dropout):
    return dataclasses.replace(layer, place=0)
  return layer


SAME_NET = {
  "no_overlap@run145": "run147",
  "no_lrn@run145": "run148",
  "run_lrn@run148": "run145",
  "half_tower@run145": "run145_half",
  "no_conv6@run146": "run145",
  "one_tower": "one_tower",
  "two_towers@one_tower": "alexnet",
}


@pytest.mark.parametrize("name", SAME_NET)
def test_ablation_makes_the_net_of_the_run(name):
  assert net_of(name) == net_of(SAME_NET[name])


BACK_AND_FORTH = [
  "tanh,relu",
  "no_dropout,dropout",
  "no_lrn,paper_lrn",
  "run_lrn,paper_lrn",
  "caffe_lrn,paper_lrn",
  "one_tower,two_towers",
  "no_colour_noise,colour_noise",
  "no_crops,crops",
  "no_mirror,mirror",
  "one_view,ten_views",
]


@pytest.mark.parametrize("names", BACK_AND_FORTH)
def test_ablation_is_taken_back_by_its_opposite(names):
  assert load(names).to_dict() == load("alexnet").to_dict()


FIELDS = {
  "overlap@run147": {
    "network.pool_window": 3,
    "network.conv2.padding": 2,
    "network.conv5.padding": 1,
  },
  "no_overlap": {
    "network.pool_window": 2,
    "network.conv2.padding": 1,
    "network.conv5.padding": 0,
  },
  "dropout@one_weird_trick": {
    "network.fc7.then": ("activation", "dropout"),
  },
  "lrn_conv1": {"network.conv2.then": ("activation", "max_pool")},
  "lrn_conv2": {"network.conv1.then": ("activation", "max_pool")},
  "lrn_conv1@run145": {"network.conv2.then": ("activation", "max_pool")},
  "lrn_conv2@run145": {"network.conv1.then": ("max_pool", "activation")},
  "no_links": {
    "network.conv3.sees_all_towers": False,
    "network.fc6.sees_all_towers": False,
    "network.fc7.sees_all_towers": False,
  },
  "colour_noise@caffenet": {"colour_noise": 0.1},
  "no_colour_noise": {"colour_noise": 0.0},
  "crops@cifar_19pct": {"random_crop": True, "crop_size_px": 28},
  "no_crops": {"random_crop": False},
  "mirror@cifar_19pct": {"mirror": True},
  "no_mirror": {"mirror": False},
  "one_view": {"test_views": 1},
  "ten_views@cifar10": {"test_views": 10},
  "tanh,no_lrn@cifar_18pct": {
    "network.activation": "tanh",
    "network.conv1.then": ("max_pool", "activation"),
    "network.conv2.then": ("activation", "average_pool"),
  },
}


@pytest.mark.parametrize("name", FIELDS)
def test_ablation_changes_its_fields_and_no_other(name):
  config, base = load(name), load(name.partition("@")[2] or "alexnet")
  fields = config_files.flatten(config.to_dict())
  assert {f: fields[f] for f in differing(config, base)} == FIELDS[name]


def test_every_ablation_is_tested_here():
  tables = [*ABLATED, *SWAPS, *SAME_NET, *BACK_AND_FORTH, *FIELDS]
  tested = {n for names in tables for n in names.partition("@")[0].split(",")}
  assert tested == set(ablations.ABLATIONS)


# The others build.
REFUSED = {
  "run145": "relu overlap dropout run_lrn two_towers colour_noise crops mirror"
  " no_conv6 ten_views",
  "cifar10": "relu overlap dropout no_dropout inverted_dropout no_lrn lrn_conv1"
  " lrn_conv2 one_tower no_links no_colour_noise crops mirror no_conv4 no_conv5"
  " no_conv6 one_view",
  "one_weird_trick": "relu overlap inverted_dropout no_lrn lrn_conv1 lrn_conv2"
  " one_tower no_links colour_noise crops mirror no_conv6 ten_views",
  "quickstart": "relu overlap dropout paper_lrn two_towers colour_noise crops"
  " mirror no_conv6 one_view",
}


@pytest.mark.parametrize("base", REFUSED)
def test_every_ablation_of_a_base_builds_or_is_refused_in_a_line(base):
  refusals = {}
  for name in ablations.ABLATIONS:
    try:
      config = load(f"{name}@{base}")
      network = model.from_config(config).network
      optimizer.check(config, networks.names(network))
    except ValueError as e:
      refusals[name] = str(e)
  assert sorted(refusals) == sorted(REFUSED[base].split())
  assert "\n" not in "".join(refusals.values())


@pytest.mark.parametrize(
  ("names", "words"),
  [
    ("tahn", "there is no ablation 'tahn'"),
    ("tanh,tahn@cifar10", "there is no ablation 'tahn'"),
    ("", "there is no ablation ''"),
    ("tanh@nosuch", "there is no base configs/nosuch.py"),
    ("tanh@ablations", "there is no base configs/ablations.py"),
    ("relu", "relu changes nothing in alexnet"),
    ("tanh,tanh", "tanh changes nothing in alexnet"),
    ("no_lrn@cifar10", "no_lrn changes nothing in cifar10"),
    ("no_conv3,no_conv3", "the base has no conv3"),
    ("no_conv3,no_conv2,lrn_conv2@cifar10", "needs more layers than are left"),
    ("no_conv3,no_conv2,run_lrn@cifar10", "needs more layers than are left"),
    ("no_conv3,no_conv2,no_conv1@cifar10", "conv1 is the only convolution"),
    ("no_links@one_tower", "no_links needs a base of two towers"),
    ("inverted_dropout@cifar10", "inverted_dropout needs a base with dropout"),
  ],
)
def test_ablation_that_is_none_is_refused(names, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    ablations.get_config(names)


def exit_code(monkeypatch, config):
  """Gives a command its --config and returns what it ends with."""
  monkeypatch.setattr(signal, "signal", lambda *_: None)
  monkeypatch.setattr(sys, "argv", ["summary", f"--config={config}"])
  with pytest.raises(SystemExit) as end:
    cli.run(lambda _: None, config_files.define_config)
  return end.value.code


@pytest.mark.parametrize(
  "config",
  [
    "configs/ablations.py:tahn",
    "configs/ablations.py:",
    "configs/ablations.py",
    "configs/alexnet.py:x",
  ],
)
def test_bad_argument_of_a_config_ends_in_one_line(monkeypatch, capsys, config):
  assert exit_code(monkeypatch, config) == 1
  [line] = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ")
  assert config in line


def test_list_prints_each_ablation_and_ends_well(monkeypatch, capsys):
  assert not exit_code(monkeypatch, "configs/ablations.py:list")
  printed = capsys.readouterr().out
  for name, ablation in ablations.ABLATIONS.items():
    assert re.search(rf"^{name} +{re.escape(ablation.change)}$", printed, re.M)
    assert ablation.effect in printed
