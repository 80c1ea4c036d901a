"""What rows become, and which are refused before anything compiles."""

import jax.numpy as jnp
import pytest

from alexnet_jax import networks
from alexnet_jax.configs import alexnet, run131
from alexnet_jax.layers.average_pool import AveragePool
from alexnet_jax.layers.branches import Branch, Sum
from alexnet_jax.layers.run131 import Blur, ContrastNorm
from alexnet_jax.model import (
  Activation,
  Conv,
  Dense,
  Dropout,
  Flatten,
  Join,
  LocalResponseNorm,
  MapNorm,
  MaxPool,
  Network,
)
from alexnet_jax.runtime.errors import InputError


def conv(name, filters, kernel, **fields):
  return Conv(name=name, filters=filters, kernel=kernel, **fields)


def dense(name, units, **fields):
  return Dense(name=name, units=units, **fields)


def test_rows_of_the_paper_become_its_layers():
  """Paper 3.5, in the order in which an image passes."""
  relu, pool, lrn = Activation("relu"), MaxPool(3, 2), LocalResponseNorm(2)
  net = networks.from_config(alexnet.get_config())
  assert net == Network(
    224,
    2,
    (
      conv("conv1", 96, 11, stride=4), relu, lrn, pool,
      conv("conv2", 256, 5, padding=2, towers=2, bias=1.0), relu, lrn, pool,
      Join(), conv("conv3", 384, 3, padding=1), relu,
      conv("conv4", 384, 3, padding=1, towers=2, bias=1.0), relu,
      conv("conv5", 256, 3, padding=1, towers=2, bias=1.0), relu, pool,
      Join(), Flatten(),
    ),
    (
      dense("fc6", 4096, bias=1.0), relu, Dropout(0.5, 20), Join(),
      dense("fc7", 4096, bias=1.0), relu, Dropout(0.5, 24), Join(),
      dense("fc8", 1000, output_dtype=jnp.float32),
    ),
  )  # fmt: skip


def test_every_word_of_a_row_becomes_its_layer():
  config = changed({
    "layers": ("conv1", "fc8"), "conv1.then": tuple(networks.LAYERS),
    "dropout_rate": 0.3, "dropout_rescaled": True, "pool_window": 5,
    "pool_stride": 3, "activation": "tanh", "lrn.k": 1.0, "lrn.alpha": 0.1,
    "lrn.beta": 0.2, "lrn.window": 3, "lrn.across_towers": True,
    "map_norm.k": 2.0, "map_norm.alpha": 0.3, "map_norm.beta": 0.4,
    "map_norm.window": 7, "blur.sigma": 2.0, "blur.window": 5,
    "blur.stride": 1, "dropout_rate_of_layers": (("conv2", 0.1),),
  })  # fmt: skip
  conv1, *after = networks.from_config(config).features[:10]
  assert conv1.name == "conv1"
  assert dict(zip(networks.LAYERS, after, strict=True)) == {
    "activation": Activation("tanh"),
    "lrn": LocalResponseNorm(1, 1.0, 0.1, 0.2, 3),
    "map_norm": MapNorm(2.0, 0.3, 0.4, 7),
    "contrast_norm": ContrastNorm(2.0, 0.3, 0.4, 7),
    "blur": Blur(2.0, 5, 1),
    "max_pool": MaxPool(5, 3),
    "max_pool_floor": MaxPool(5, 3, ceil_mode=False),
    "average_pool": AveragePool(5, 3),
    "dropout": Dropout(0.3, 9, rescaled=True),
  }


def test_branches_from_the_image_become_a_sum():
  """conv2 of run 131 sees pool1 of its own tower, and the whole image."""
  net = networks.from_config(run131.get_config())
  assert net.features[0] == Sum((
    Branch((Blur(4.0, 9, 4), conv("conv2_image", 256, 5, stride=2, bias=None))),
    Branch((
      conv("conv1", 64, 11, stride=4), LocalResponseNorm(2, 1.0, 2e-5),
      MaxPool(3, 2), Activation("relu"),
      conv("conv2", 256, 5, padding=2, towers=2, bias=1.0),
    )),
  ))  # fmt: skip


def test_rows_after_the_first_dense_row_stay_behind_it():
  config = changed({"layers": ("conv1", "fc6", "extra", "fc8")}).unlock()
  config.network.extra = alexnet.words("dropout")
  net = networks.from_config(config)
  kinds = [type(layer).__name__ for layer in net.classifier]
  assert kinds.index("Dense") < kinds.index("Dropout")
  assert kinds.count("Dropout") == 2


def test_each_dropout_of_branches_has_a_place_of_its_own():
  config = run131.get_config().unlock()
  for name in ("conv2_image", "conv2", "conv2_sum"):
    row = config.network[name]
    row.then = (*row.then, "dropout")
  net = networks.from_config(config)
  places = [
    layer.dropout_index
    for layer in networks.flat((*net.features, *net.classifier))
    if isinstance(layer, Dropout)
  ]
  assert len(places) == len(set(places)) == 5


def test_a_row_of_words_before_the_first_convolution_changes_nothing_else():
  config = changed({"layers": ("first", "conv1", "conv2", "fc8")}).unlock()
  config.network.first = alexnet.words("blur")
  blur, conv1, *_ = networks.from_config(config).features
  assert (type(blur).__name__, conv1.name, conv1.towers) == ("Blur", "conv1", 1)


def test_first_layer_sees_the_image_whether_joined_or_not():
  config = changed({"conv1.sees_all_towers": True})
  assert networks.from_config(config) == networks.from_config(changed({}))


def test_224_and_227_pixels_give_the_same_table():
  config = alexnet.get_config()
  config.crop_size_px = 227
  assert shapes(config) == shapes(alexnet.get_config())


def shapes(config):
  rows = networks.rows(networks.from_config(config))
  return [row.output_shape for row in rows]


CONV1 = conv("conv1", 4, 3, padding=1)
TABLES = {
  # Towers, layers after a 9 x 9 image, what is said of which layer and input.
  "window wider than its input": (
    1, [CONV1, MaxPool(3, 3), MaxPool(4, 1)],
    ["MaxPool after conv1 with input 3 x 3 x 4", "window of 4", "wider than"],
  ),
  "kernel wider than padded input": (
    1, [conv("conv1", 4, 12, padding=1)],
    ["conv1 with input 9 x 9 x 3", "window of 12", "wider than"],
  ),
  "filters that towers do not divide": (
    2, [CONV1, conv("conv2", 5, 3, towers=2)],
    ["conv2 with input 9 x 9 x 4", "5 outputs", "not divisible by 2 towers",
     "change network.towers"],
  ),
  "channels that towers do not divide": (
    2, [conv("conv1", 5, 3), conv("conv2", 4, 3, towers=2)],
    ["conv2 with input 7 x 7 x 5", "5 inputs", "not divisible by 2 towers"],
  ),
  "an image that towers do not divide": (
    2, [conv("conv1", 4, 3, towers=2)],
    ["conv1 with input 9 x 9 x 3", "3 inputs", "not divisible by 2 towers"],
  ),
  "channels that the norm's towers do not divide": (
    2, [conv("conv1", 5, 3), LocalResponseNorm(2)],
    ["LocalResponseNorm after conv1 with input 7 x 7 x 5", "5 inputs",
     "not divisible by 2 towers"],
  ),
  "units that towers do not divide": (
    2, [CONV1, Flatten(2), dense("fc2", 5, towers=2)],
    ["fc2 with input 324", "5 outputs", "not divisible by 2 towers"],
  ),
  "inputs that towers do not divide": (
    2, [CONV1, Join(), Flatten(), dense("fc2", 5),
        dense("fc3", 4, towers=2)],
    ["fc3 with input 5", "5 inputs", "not divisible by 2 towers"],
  ),
  "channels that flattening does not divide": (
    2, [conv("conv1", 5, 3), Flatten(2)],
    ["Flatten after conv1 with input 7 x 7 x 5", "5 inputs",
     "not divisible by 2 towers"],
  ),
  "units before flattening": (
    1, [CONV1, dense("fc2", 4)],
    ["fc2 with input 9 x 9 x 4", "needs units, after Flatten"],
  ),
  "a convolution after flattening": (
    1, [CONV1, Flatten(), conv("conv2", 4, 3)],
    ["conv2 with input 324", "needs maps", "before the fully connected"],
  ),
  "pooling after flattening": (
    1, [CONV1, Flatten(), AveragePool(3, 2)],
    ["AveragePool after conv1 with input 324", "needs maps"],
  ),
  "a norm after flattening": (
    1, [CONV1, Flatten(), MapNorm()],
    ["MapNorm after conv1 with input 324", "needs maps"],
  ),
  "flattening twice": (
    1, [CONV1, Flatten(), Flatten()],
    ["Flatten after conv1 with input 324", "needs maps"],
  ),
  "branches that end in other shapes": (
    1, [Sum((Branch((CONV1,)), Branch((conv("conv2", 5, 3),))))],
    ["Sum after the image with input 9 x 9 x 3", "(7, 7, 5), (9, 9, 4)",
     "filters, strides and padding"],
  ),
  "pooling of the image itself": (
    1, [MaxPool(10, 1)],
    ["MaxPool after the image with input 9 x 9 x 3", "window of 10"],
  ),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES)
def test_table_that_cannot_be_names_layer_input_and_rule(case):
  towers, layers, words = TABLES[case]
  # Where a table is cut in two is of no concern to its shapes.
  for cut in (1, len(layers)):
    network = Network(9, towers, tuple(layers[:cut]), tuple(layers[cut:]))
    line = refusal(lambda network=network: networks.rows(network))
    assert all(word in line for word in words), line


def refusal(build):
  """Returns the one line in which an input error says what is wrong."""
  with pytest.raises(InputError) as error:
    build()
  assert "\n" not in str(error.value)
  return str(error.value)


def changed(fields):
  """Returns the paper's config with other fields of its network."""
  config = alexnet.get_config()
  config.update_from_flattened_dict(
    {f"network.{name}": value for name, value in fields.items()}
  )
  return config


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    (
      {"layers": ("conv1", "fc6", "conv3", "fc8")},
      ["conv3 with input", "maps"],
    ),
    ({"layers": ("fc6", "conv1", "fc8")}, ["conv1 with input", "maps"]),
    ({"conv2.filters": 255}, ["conv2", "255 outputs", "2 towers"]),
    ({"conv1.filters": 95}, ["after conv1", "95 inputs", "2 towers"]),
    (
      {"fc7.sees_all_towers": False, "fc7.units": 81},
      ["fc7", "81 outputs", "2 towers"],
    ),
    ({"towers": 5}, ["with input", "not divisible by 5 towers"]),
    ({"fc6.then": ("lrn",)}, ["LocalResponseNorm after fc6", "maps"]),
    ({"fc6.then": ("max_pool",)}, ["MaxPool after fc6", "maps"]),
    (
      {"conv1.stride": 300},
      ["MaxPool after conv1", "2 x 2 x 96", "wider than"],
    ),
  ],
)
def test_bad_row_is_refused_by_name(fields, words):
  config = changed(fields)
  line = refusal(lambda: networks.from_config(config))
  assert all(word in line for word in words), line


def test_classes_and_last_layer_are_one_number():
  config = alexnet.get_config()
  config.num_classes = 7
  assert shapes(config)[-1] == (7,)


@pytest.mark.parametrize("size", [10, 32, 50])
def test_image_too_small_for_a_layer_names_the_layer(size):
  config = alexnet.get_config()
  config.crop_size_px = size
  line = refusal(lambda: networks.from_config(config))
  assert " with input " in line
  assert "enlarge crop_size_px" in line


@pytest.mark.parametrize(
  "fields",
  [
    {"conv1.filters": "96"},
    {"conv1.filters": 9.5},
    {"lrn.k": "2"},
    {"layers": "conv1"},
    {"conv1": 3},
  ],
)
def test_value_of_another_kind_is_refused_where_it_is_set(fields):
  with pytest.raises((TypeError, ValueError)):
    changed(fields)
