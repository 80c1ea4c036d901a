"""From a config to the table of a net, and from a table to its numbers."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from alexnet_jax import model
from alexnet_jax.model import Layer, Network, Row
from alexnet_jax.runtime import errors


def _lrn(net: Any, _: int) -> Layer:
  fields = net.lrn.to_dict()
  across_towers = fields.pop("across_towers")
  return model.LocalResponseNorm(
    towers=1 if across_towers else net.towers, **fields
  )


LAYERS: dict[str, Callable[[Any, int], Layer]] = {
  "activation": lambda net, _: model.Activation(net.activation),
  "lrn": _lrn,
  "map_norm": lambda net, _: model.MapNorm(**net.map_norm.to_dict()),
  "max_pool": lambda net, _: model.MaxPool(net.pool_window, net.pool_stride),
  "max_pool_floor": lambda net, _: model.MaxPool(
    net.pool_window, net.pool_stride, False
  ),
  "average_pool": lambda net, _: model.AveragePool(
    net.pool_window, net.pool_stride
  ),
  "dropout": lambda net, index: model.Dropout(
    net.dropout_rate, index, net.dropout_rescaled
  ),
}
"""By word of a row's `then`: (config.network, place in the table) -> layer."""


def from_config(config: Any) -> Network:
  """Returns the table that a config describes.

  `network.layers` names the rows of `network` from the image to the logits.

  Raises:
    InputError: the shapes of two layers do not fit together.
  """
  net = config.network
  features: list[Layer] = []
  classifier: list[Layer] = []
  for name in net.layers:
    fields = net[name].to_dict()
    then, sees_all = fields.pop("then"), fields.pop("sees_all_towers")
    is_first = name == net.layers[0]
    is_dense = "units" in fields
    half = classifier if is_dense else features
    towers = 1 if sees_all or is_first else net.towers
    join = [model.Join()] * (sees_all and net.towers > 1 and not is_first)
    if is_dense and not classifier:
      features += [*join, model.Flatten(towers)]
    else:
      half += join
    kind = model.Dense if is_dense else model.Conv
    half.append(kind(name=name, towers=towers, **fields))
    for word in then:
      half.append(LAYERS[word](net, len(features) + len(classifier)))
  network = Network(
    config.crop_size_px, net.towers, tuple(features), tuple(classifier)
  )
  rows(network)
  return network


def make_model(config: Any) -> model.AlexNet:
  """Returns the module that a config describes; raises as `from_config`."""
  return model.AlexNet(from_config(config), jnp.dtype(config.compute_dtype))


def rows(network: Network) -> list[Row]:
  """Returns a row per layer, from the image to the logits.

  Raises:
    InputError: the shapes of two layers do not fit together.
  """
  shape: model.Shape = (network.input_size_px, network.input_size_px, 3)
  found: list[Row] = []
  place = "the image"
  for layer in (*network.features, *network.classifier):
    try:
      found.append(layer.describe(shape))
    except ValueError as e:
      what = layer.name or f"{type(layer).__name__} after {place}"
      size = " x ".join(map(str, shape))
      raise errors.InputError(f"{what} with input {size}: {e}.") from e
    shape = found[-1].output_shape
    place = layer.name or place
  return found


def layer_names(network: Network) -> list[str]:
  """Returns the names of the layers that have parameters, in order."""
  layers = (*network.features, *network.classifier)
  return [layer.name for layer in layers if layer.name]
