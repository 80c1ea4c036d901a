"""The tables against the counts of the paper and of the original program."""

import pytest

from alexnet_jax import networks
from alexnet_jax.errors import InputError
from configs import alexnet, cifar10, one_tower, quickstart


def rows_of(config):
  return networks.rows(networks.from_config(config.get_config()))


def by_name(rows):
  return {r.layer.name: r for r in rows if hasattr(r.layer, "name")}


def test_two_tower_net_has_the_counts_of_the_original():
  rows = rows_of(alexnet)
  assert sum(row.parameters for row in rows) == 60_965_224
  assert sum(row.macs for row in rows) == 724_406_816
  assert {name: row.parameters for name, row in by_name(rows).items()} == {
    "conv1": 34_944,
    "conv2": 307_456,
    "conv3": 885_120,
    "conv4": 663_936,
    "conv5": 442_624,
    "fc6": 37_752_832,
    "fc7": 16_781_312,
    "fc8": 4_097_000,
  }


def test_one_tower_net_has_the_counts_of_the_textbooks():
  rows = rows_of(one_tower)
  assert sum(row.parameters for row in rows) == 62_378_344
  assert sum(row.macs for row in rows) == 1_135_256_096


def test_sides_follow_the_ceil_geometry():
  sides = [row.output_shape[0] for row in rows_of(alexnet)]
  convs = [
    row.output_shape
    for name, row in by_name(rows_of(alexnet)).items()
    if name.startswith("conv")
  ]
  assert convs == [
    (55, 55, 96),
    (27, 27, 256),
    (13, 13, 384),
    (13, 13, 384),
    (13, 13, 256),
  ]
  assert 6 in sides


def test_224_and_227_pixels_give_the_same_table():
  config = alexnet.get_config()
  with config.unlocked():
    config.crop_size_px = 227
  wide = networks.rows(networks.from_config(config))
  assert [r.output_shape for r in wide] == [
    r.output_shape for r in rows_of(alexnet)
  ]


def test_four_layer_net_has_three_convs_of_32_32_64():
  layers = by_name(rows_of(cifar10))
  shapes = [layers[f"conv{i}"].output_shape for i in (1, 2, 3)]
  assert shapes == [(28, 28, 32), (14, 14, 32), (7, 7, 64)]
  assert layers["fc4"].output_shape == (10,)


def test_quickstart_net_is_a_two_tower_alexnet():
  layers = by_name(rows_of(quickstart))
  assert list(layers) == list(by_name(rows_of(alexnet)))
  assert layers["conv2"].layer.towers == 2


def changed(**network):
  config = alexnet.get_config()
  with config.unlocked():
    config.network.update(network)
  return config


@pytest.mark.parametrize(
  ("network", "words"),
  [
    ({"activation": "rleu"}, ["network.activation='rleu'", "'relu'"]),
    ({"table": "alexnt"}, ["network.table='alexnt'", "'alexnet'"]),
    ({"lrn_layers": ("conv9",)}, ["network.lrn_layers='conv9'", "conv1"]),
    ({"dropout_layers": ("fc5",)}, ["network.dropout_layers='fc5'", "fc6"]),
    ({"conv_filters": (96, 256)}, ["network.conv_filters=(96, 256)", "5"]),
    ({"conv_filters": (95, 256, 384, 384, 256)}, ["95", "towers", "95 chan"]),
    ({"towers": 0}, ["network.towers=0", "at least 1"]),
    ({"pool_window": 12}, ["network.pool_window=12", "2 to 11"]),
    ({"pool_window": 1}, ["network.pool_window=1", "2 to 11"]),
    ({"sigma": 0.0}, ["network.sigma=0.0", "positive"]),
    ({"fc_features": (32.5, 32)}, ["network.fc_features=(32.5, 32)", "whole"]),
    ({"conv1_stride": 0}, ["network.conv1_stride=0", "at least 1"]),
    ({"dropout_rate": 1.5}, ["network.dropout_rate=1.5"]),
  ],
)
def test_bad_network_is_refused_by_name(network, words):
  with pytest.raises(InputError) as error:
    networks.from_config(changed(**network))
  for word in words:
    assert word in str(error.value)


def test_image_too_small_for_a_layer_names_the_layer_and_its_input():
  config = alexnet.get_config()
  config.crop_size_px = 32
  with pytest.raises(InputError, match=r"MaxPool.*1x1"):
    networks.from_config(config)
