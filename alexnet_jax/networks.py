"""From a config to the table of a net, and from a table to its numbers."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from alexnet_jax import model
from alexnet_jax.layers.average_pool import AveragePool
from alexnet_jax.layers.branches import Branch, Sum
from alexnet_jax.layers.run131 import Blur, ContrastNorm
from alexnet_jax.model import Layer, Network, Row, Shape
from alexnet_jax.runtime import errors


def _lrn(net: Any, row: str, place: int) -> Layer:
  fields = net.lrn.to_dict()
  across_towers = fields.pop("across_towers")
  return model.LocalResponseNorm(
    towers=1 if across_towers else net.towers, **fields
  )


def _max_pool(net: Any, row: str, place: int, ceil_mode: bool = True) -> Layer:
  return model.MaxPool(net.pool_window, net.pool_stride, ceil_mode)


def _dropout(net: Any, row: str, place: int) -> Layer:
  rate = dict(net.dropout_rate_of_layers).get(row, net.dropout_rate)
  return model.Dropout(rate, place, net.dropout_rescaled)


LAYERS: dict[str, Callable[[Any, str, int], Layer]] = {
  "activation": lambda net, *_: model.Activation(net.activation),
  "lrn": _lrn,
  "map_norm": lambda net, *_: model.MapNorm(**net.map_norm.to_dict()),
  "contrast_norm": lambda net, *_: ContrastNorm(**net.map_norm.to_dict()),
  "blur": lambda net, *_: Blur(**net.blur.to_dict()),
  "max_pool": _max_pool,
  "max_pool_floor": functools.partial(_max_pool, ceil_mode=False),
  "average_pool": lambda net, *_: AveragePool(net.pool_window, net.pool_stride),
  "dropout": _dropout,
}
"""By word of a row's `then`: (config.network, row, place) -> layer."""


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
    is_first_dense = "units" in net[name] and not classifier
    before = list(flat((*features, *classifier)))
    sees_image = not any(layer.name for layer in before)
    layers = _row(net, name, sees_image, len(before) + is_first_dense)
    if is_first_dense:
      *join, first = layers[: len(layers) - len(net[name].then)]
      features += [*join, model.Flatten(first.towers)]
      layers = layers[len(join) :]
    half = classifier if classifier or is_first_dense else features
    half += layers
  if classifier:  # Of logits in bfloat16, many would be equal.
    at = max(i for i, x in enumerate(classifier) if x.name)
    classifier[at] = classifier[at].clone(output_dtype=jnp.float32)
  network = Network(
    config.crop_size_px, net.towers, tuple(features), tuple(classifier)
  )
  rows(network)
  return network


def _row(net: Any, name: str, sees_image: bool, place: int) -> list[Layer]:
  """Returns the layers of a row of a config, those of branches inside a Sum."""
  fields = net[name].to_dict()
  then = fields.pop("then")
  sees_all = fields.pop("sees_all_towers", False)
  layers: list[Layer] = []
  if sees_all and net.towers > 1 and not sees_image:
    layers.append(model.Join())
  if "branches" in fields:
    branches: list[Branch] = []
    for names in fields["branches"]:
      branch: list[Layer] = []
      for each in names:
        first = sees_image and not any(layer.name for layer in branch)
        before = flat([*layers, Sum(tuple(branches)), *branch])
        branch += _row(net, each, first, place + len(list(before)))
      branches.append(Branch(tuple(branch)))
    layers.append(Sum(tuple(branches)))
  elif fields:
    if net.initialization == "he":
      fields["sigma"] = None
    kind = model.Dense if "units" in fields else model.Conv
    towers = 1 if sees_all or sees_image else net.towers
    layers.append(kind(name=name, towers=towers, **fields))
  for word in then:
    layers.append(LAYERS[word](net, name, place + len(list(flat(layers)))))
  return layers


def make_model(config: Any) -> model.AlexNet:
  """Returns the module that a config describes; raises as `from_config`."""
  return model.AlexNet(
    from_config(config),
    jnp.dtype(config.compute_dtype),
    config.matmul_precision,
  )


def flat(layers: Sequence[Layer]) -> Iterator[Layer]:
  """Yields layers, those of branches before their sum."""
  for layer in layers:
    for branch in getattr(layer, "branches", ()):
      yield from flat(branch.layers)
    yield layer


def rows(network: Network) -> list[Row]:
  """Returns a row per layer, in the order of `flat`.

  Raises:
    InputError: the shapes of two layers do not fit together.
  """
  shape = (network.input_size_px, network.input_size_px, 3)
  layers = (*network.features, *network.classifier)
  return _rows(layers, shape, "the image")


def _rows(layers: Sequence[Layer], shape: Shape, after: str) -> list[Row]:
  found: list[Row] = []
  for layer in layers:
    for branch in getattr(layer, "branches", ()):
      found += _rows(branch.layers, shape, after)
    try:
      found.append(layer.describe(shape))
    except ValueError as e:
      what = layer.name or f"{type(layer).__name__} after {after}"
      size = " x ".join(map(str, shape))
      raise errors.InputError(f"{what} with input {size}: {e}.") from e
    shape = found[-1].output_shape
    after = layer.name or after
  return found


def layer_names(network: Network) -> list[str]:
  """Returns the names of the layers that have parameters, in order."""
  layers = flat((*network.features, *network.classifier))
  return [layer.name for layer in layers if layer.name]
