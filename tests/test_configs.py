"""Every config: its net, its docstring, its rates, and the ablations."""

import fnmatch
import importlib
import itertools
import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from alexnet_jax import networks, optimizer
from alexnet_jax.configs import ablations
from alexnet_jax.layers.average_pool import AveragePool
from alexnet_jax.model import (
  Activation,
  Conv,
  Dropout,
  Flatten,
  LocalResponseNorm,
  MaxPool,
)
from alexnet_jax.runs import config_files
from alexnet_jax.runtime import errors

ROOT = Path(__file__).parents[1]
NAMES = sorted(
  {path.stem for path in (ROOT / "configs").glob("*.py")}
  - {"__init__", "ablations"}
)

every_config = pytest.mark.parametrize("name", NAMES)


def load(name):
  """Returns a config: NAME, or ABLATIONS@BASE."""
  return config_files.load_config(
    name if name in NAMES else f"ablations:{name}"
  )


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
EARLY = [(11, 3, 64, 55), (5, 32, 256, 27), *TWO_TOWERS[2:]]
CIFAR = [(5, 3, 32, 32), (5, 32, 32, 16), (5, 32, 64, 8), (1, 1024, 10, 1)]
SMALL = [
  (5, 3, 48, 27), (5, 24, 128, 13), (3, 128, 192, 6), (3, 96, 192, 6),
  (3, 96, 128, 6), (1, 1152, 1024, 1), (1, 1024, 1024, 1),
]  # fmt: skip
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
  "small": [*SMALL, (1, 1024, 1000, 1)],
  "tiny_imagenet": [*SMALL, (1, 1024, 185, 1)],
  "run131": EARLY, "run135": EARLY,
  "run145_half": [
    (11, 3, 48, 55), (5, 48, 128, 27), (3, 128, 192, 13), (3, 192, 192, 13),
    (3, 192, 256, 13), *FC,
  ],
  "run146": [*TWO_TOWERS[:5], (3, 256, 256, 6), *FC],
  "run146_2009": [
    *TWO_TOWERS[:5], (3, 256, 256, 6), *FC[:2], (1, 4096, 10184, 1),
  ],
  "run146_2011": [
    *TWO_TOWERS[:5], (3, 256, 256, 6), *FC[:2], (1, 4096, 2048, 1),
    (1, 2048, 21843, 1),
  ],
  "run147": [
    (11, 3, 96, 55), (5, 48, 256, 26), (3, 256, 384, 13), (3, 192, 384, 13),
    (3, 192, 256, 11), *FC,
  ],
  "run150": [
    (11, 3, 96, 55), (5, 48, 320, 27), (3, 160, 384, 13), (3, 192, 384, 13),
    (3, 192, 256, 13), (1, 4608, 8192, 1), (1, 4096, 4096, 1),
    (1, 4096, 1000, 1),
  ],
}  # fmt: skip
TOTALS = dict.fromkeys(
  "alexnet bvlc_alexnet caffenet finetune run145 run145_2010"
  " run148 run166 run167 run170 run177".split(),
  (60_965_224, 724_406_816),
) | {
  "alexnet_cifar10": (939_402, 10_909_376),
  "cifar10": (85_098, 9_413_760),
  "cifar_18pct": (89_578, 12_298_240),
  "cifar_19pct": (89_578, 12_298_240),
  "cifar_80sec": (145_578, 12_354_176),
  "one_tower": (62_378_344, 1_135_256_096),
  "one_weird_trick": (61_100_840, 714_188_480),
  "quickstart": (335_850, 5_975_936),
  "small": (3_834_024, 36_771_728),
  "tiny_imagenet": (2_998_649, 35_937_168),
  "run145_half": (59_798_312, 391_514_384),
  "run146": (61_555_304, 745_640_480),
  "run147": (60_965_224, 686_891_552),
  "run146_2009": (99_182_152, 783_258_144),
  "run146_2011": (110_605_267, 794_667_552),
  "run150": (60_714_408, 724_323_872),
  "run131": (60_870_376, 628_615_616),
  "run135": (60_870_376, 628_615_616),
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
  if name in ("run131", "run135"):
    # A convolution over the blurred image, without a bias, adds to conv2.
    weights = 5 * 5 * 3 * 256
    by_hand.insert(0, (weights, weights * 27**2))
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
    ("run146", [224, 55, 27, 27, 13, 13, 13, 13, 6, 6]),
    ("run147", [224, 55, 28, 26, 13, 13, 13, 11, 6]),
    ("no_conv1", [224, 55, 27, 13, 13, 13, 13, 6]),
    ("no_conv5", [224, 55, 27, 27, 13, 13, 13, 6]),
  ],
)
def test_grids_have_the_sides_of_the_original(name, sides):
  net = net_of(name)
  grids = (Conv, MaxPool, AveragePool)
  assert sides == [net.input_size_px] + [
    row.output_shape[0]
    for row in networks.rows(net)
    if isinstance(row.layer, grids)
  ]


@pytest.mark.parametrize("size", [32, 33, 47, 64, 100, 128, 180, 224, 256])
def test_small_net_has_maps_of_like_sizes_for_all_images(size):
  """So a step takes about as long, and no map is too small to pool."""
  config = config_files.load_config(f"small:{size}")
  config_files.check(config)
  assert config.image_size_px == size
  assert config.crop_size_px == size * 7 // 8
  conv1, *_, flat = (
    row
    for row in networks.rows(networks.from_config(config))
    if isinstance(row.layer, Conv | Flatten)
  )
  assert 20 <= conv1.output_shape[0] <= 37
  assert flat.output_shape[0] in (2 * 2 * 128, 3 * 3 * 128, 4 * 4 * 128)


@pytest.mark.parametrize("size", ["31", "257", "-64", "64px", "³²"])
def test_small_net_is_refused_at_other_sizes(size):
  with pytest.raises(errors.InputError, match="32 to 256 px"):
    config_files.load_config(f"small:{size}")


def docstring(name):
  return importlib.import_module(f"alexnet_jax.configs.{name}").__doc__


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
  commands = re.findall(r"^  alexnet train.*", docstring(name), re.MULTILINE)
  assert commands
  workdirs = []
  for command in commands:
    given = dict(re.findall(r"--([\w.]+)=(\S+)", command))
    config = given.pop("config", "quickstart")
    workdirs.append(given.pop("workdir", config))
    if config != "ablations:list":
      fields = config_files.flatten(config_files.load_config(config).to_dict())
      assert set(given) <= {f"config.{field}" for field in fields}
  assert len(set(workdirs)) == len(workdirs)


# Top-1 and top-5 error of the originals, by their logs.
FIGURES = {
  "run131": ["40.934", "18.574"], "run135": ["41.070", "18.416"],
  "run145": ["40.664", "18.210"], "run145_2010": ["37.473", "16.999"],
  "run145_half": ["39.168", "18.229"], "run146": ["38.990", "16.622"],
  "run147": ["41.058", "18.510"], "run148": ["42.034", "19.362"],
  "run150": ["41.828", "19.330"], "run166": ["41.096", "18.674"],
  "run167": ["40.488", "18.118"], "run170": ["40.528", "18.048"],
  "run177": ["40.690", "18.304"],
  "alexnet": ["40.7", "18.2"], "bvlc_alexnet": ["42.9", "19.8"],
  "caffenet": ["42.6", "19.6"], "one_weird_trick": ["43.478", "20.934"],
  "cifar_18pct": ["18"], "cifar_19pct": ["19"], "cifar_80sec": ["26"],
}  # fmt: skip


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


STEPS_PER_EPOCH = 100
# Rate of the weights in the last step; 1e-5 where it is not here. No validation
# error comes, so `plateau` never drops.
LAST_RATES = {
  "alexnet": 0.01,
  # The last but one point of the line to a 250th, of 14 times 100 steps.
  "alexnet_cifar10": 0.03 * (1 + 1399 / 250) / 1400,
  "bvlc_alexnet": 1e-6, "caffenet": 1e-6, "cifar_80sec": 1e-4,
  "finetune": 0.001 * (1 + 1499 / 1000) / 1500,
  "one_tower": 0.01, "one_weird_trick": 0.01, "quickstart": 1e-4,
  "small": 0.01 * (1 + 2999 / 1000) / 3000, "tiny_imagenet": 0.01,
}  # fmt: skip
# Rates of arrays that have their own, in the first step and in the last.
OWN_RATES = {
  "alexnet_cifar10": {"conv1/kernel": (0.00075, 0.0001)},
}


@pytest.mark.parametrize(
  "name", [name for name in NAMES if not name.startswith("run")]
)
def test_first_and_last_step_have_the_rates_and_decays_of_the_original(name):
  """A first step, without velocity, is -rate * (decay * weight + gradient)."""
  config = load(name)
  total = round(config.total_epochs * STEPS_PER_EPOCH)
  num_examples = STEPS_PER_EPOCH * config.batch_size
  tx, _ = optimizer.from_config(config, num_examples, total)
  net = networks.from_config(config)
  ones = {"kernel": np.float32([1]), "bias": np.float32([1])}
  halves = {"features": net.features, "classifier": net.classifier}
  params = {
    half: {layer.name: ones for layer in layers if layer.name}
    for half, layers in halves.items()
  }
  warmup_steps = max(config.warmup_epochs * STEPS_PER_EPOCH, 1)
  first = config.learning_rate / warmup_steps
  last = LAST_RATES.get(name, 1e-5)
  biases = config.learning_rate_of_biases
  decays = dict(config.weight_decay_of_layers)
  for gradient, is_last in itertools.product((0, 1), (False, True)):
    step = total - 1 if is_last else 0
    grads = optax.tree.full_like(params, gradient)
    moves, _ = tx.update(grads, tx.init(params), params, step=step, drops=0)
    for path, move in jax.tree.leaves_with_path(moves):
      layer, part = path[-2].key, path[-1].key
      rates, decay = (first, last), decays.get(layer, config.weight_decay)
      if part == "bias":
        rates = first * biases, last * biases
        decay *= config.weight_decay_of_biases
      rates = OWN_RATES.get(name, {}).get(f"{layer}/{part}", rates)
      expected = -rates[is_last] * (decay + gradient)
      np.testing.assert_allclose(move, expected, rtol=1e-4, err_msg=str(path))


# What takes the place of the records of a kind in the paper's net.
SWAPS = {
  "tanh": (Activation, [Activation("tanh")]),
  "scaled_tanh": (Activation, [Activation("scaled_tanh")]),
  "sigmoid": (Activation, [Activation("sigmoid")]),
  "linear": (Activation, [Activation("none")]),
  "average_pool": (MaxPool, [AveragePool(3, 2)]),
  "no_dropout": (Dropout, []),
  "inverted_dropout": (Dropout, [Dropout(rescaled=True)]),
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
  # A layer that comes or goes moves the places of the dropouts after it.
  assert list(map(without_place, found)) == list(map(without_place, swapped))


def without_place(layer):
  return layer.copy(dropout_index=0) if isinstance(layer, Dropout) else layer


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


BACK_AND_FORTH = (
  "tanh,relu no_dropout,dropout no_lrn,paper_lrn run_lrn,paper_lrn"
  " caffe_lrn,paper_lrn one_tower,two_towers no_colour_noise,colour_noise"
  " no_crops,crops no_mirror,mirror one_view,ten_views".split()
)


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
}


@pytest.mark.parametrize("base", REFUSED)
def test_every_ablation_of_a_base_builds_or_is_refused_in_a_line(base):
  refusals = {}
  for name in ablations.ABLATIONS:
    try:
      config = load(f"{name}@{base}")
      config_files.check(config)
      networks.from_config(config)
    except ValueError as e:
      refusals[name] = str(e)
  assert sorted(refusals) == sorted(REFUSED[base].split())
  assert "\n" not in "".join(refusals.values())


@pytest.mark.parametrize(
  ("names", "words"),
  [
    ("tahn", "there is no ablation 'tahn'"),
    ("", "there is no ablation ''"),
    ("tanh@nosuch", "there is no base 'nosuch'"),
    ("tanh@ablations", "there is no base 'ablations'"),
    ("relu", "relu changes nothing in alexnet"),
    ("no_conv3,no_conv3", "the base has no conv3"),
    ("no_conv3,no_conv2,lrn_conv2@cifar10", "needs more layers than are left"),
    ("no_conv3,no_conv2,no_conv1@cifar10", "conv1 is the only convolution"),
    ("no_links@one_tower", "no_links needs a base of two towers"),
    ("inverted_dropout@cifar10", "inverted_dropout needs a base with dropout"),
  ],
)
def test_ablation_that_is_none_is_refused(names, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    ablations.get_config(names)


def test_ablations_take_the_rate_of_a_dropout_along():
  config = load("no_conv4@run177")
  assert dict(config.network.dropout_rate_of_layers) == {"conv3": 0.2}
  assert load("no_dropout@run177").network.dropout_rate_of_layers == ()
  config_files.check(config)


def test_ablations_of_a_net_with_branches_are_refused():
  with pytest.raises(errors.InputError, match="run131 has branches"):
    load("no_lrn@run131")
