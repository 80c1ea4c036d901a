"""The nets as tables of layers: pure data, read from top to bottom.

A config lists its layers row by row, with the paper's names; `from_config`
makes the table of it, and the module in `model.py` runs any table.
`alexnet summary` prints one.
"""

import dataclasses
import math
from typing import Any

from alexnet_jax import ops
from alexnet_jax.runtime import errors


@dataclasses.dataclass(frozen=True)
class Conv:
  """Convolution; with `towers` > 1 a filter sees its own tower's channels.

  Attributes:
    name: the paper's, conv1 and so on.
    filters: in all towers together.
    kernel: side of a filter in pixels.
    stride: in pixels.
    padding: zeros before the first row and column, in pixels.
    ceil: whether a last window may pass the edge (see `ops.output_size`).
    towers: blocks of channels that do not see each other; 1 sees all.
    sigma: standard deviation of the initial weights.
    bias: initial bias.
  """

  name: str
  filters: int
  kernel: int
  stride: int = 1
  padding: int = 0
  ceil: bool = True
  towers: int = 1
  sigma: float = 0.01
  bias: float = 0.0


@dataclasses.dataclass(frozen=True)
class Dense:
  """Fully connected layer; with `towers` > 1 within each tower alone.

  Attributes:
    name: the paper's, fc6 and so on.
    units: in all towers together.
    towers: blocks of units that do not see each other; 1 sees all.
    sigma: standard deviation of the initial weights.
    bias: initial bias.
  """

  name: str
  units: int
  towers: int = 1
  sigma: float = 0.01
  bias: float = 0.0


@dataclasses.dataclass(frozen=True)
class Activation:
  """Pointwise nonlinearity: a name in `ops.ACTIVATIONS` (paper 3.1)."""

  function: str


@dataclasses.dataclass(frozen=True)
class LocalResponseNorm:
  """Response normalization across channels, within each tower (paper 3.3)."""

  towers: int
  k: float = 2.0
  alpha: float = 1e-4
  beta: float = 0.75
  window: int = 5


@dataclasses.dataclass(frozen=True)
class MapNorm:
  """Response normalization across the pixels of each map (run 145)."""

  k: float = 1.0
  alpha: float = 1e-3 / 25
  beta: float = 0.75
  window: int = 5


@dataclasses.dataclass(frozen=True)
class MaxPool:
  """Max pooling; overlapping where the window is wider than the stride.

  Attributes:
    window: side in pixels.
    stride: in pixels.
    ceil: whether a last window may pass the edge (see `ops.output_size`).
  """

  window: int
  stride: int
  ceil: bool = True


@dataclasses.dataclass(frozen=True)
class AveragePool:
  """Average pooling over the pixels that each window really holds."""

  window: int
  stride: int


@dataclasses.dataclass(frozen=True)
class Dropout:
  """Drops units in training (paper 4.2).

  Attributes:
    rate: probability that a unit is dropped.
    place: of the layer in the whole net, which names its random numbers.
    rescaled: divide by 1 - rate in training, instead of multiplying by it at
      test as the paper does.
    axis: of the mesh that the units are split over, if they are.
  """

  rate: float
  place: int
  rescaled: bool = False
  axis: str | None = None


@dataclasses.dataclass(frozen=True)
class Join:
  """The towers meet: what follows sees the channels of all of them.

  Attributes:
    axis: of the mesh that the channels are gathered over; None where they lie
      side by side already.
  """

  axis: str | None = None


@dataclasses.dataclass(frozen=True)
class Flatten:
  """Maps become units, those of a tower together; channels run fastest."""

  towers: int = 1


Layer = (
  Conv
  | Dense
  | Activation
  | LocalResponseNorm
  | MapNorm
  | MaxPool
  | AveragePool
  | Dropout
  | Join
  | Flatten
)


@dataclasses.dataclass(frozen=True)
class Network:
  """A whole net.

  Attributes:
    input_size_px: side of the square RGB image.
    towers: blocks that the channels of every layer are divided into.
    features: layers up to and with `Flatten`.
    classifier: fully connected layers and what stands between them.
  """

  input_size_px: int
  towers: int
  features: tuple[Layer, ...]
  classifier: tuple[Layer, ...]


def from_config(config: Any) -> Network:
  """Returns the net that a config describes, its shapes checked.

  Args:
    config: a whole config; `network.layers` names the rows of `network` from
      the image to the logits. See configs/alexnet.py for a row's fields.

  Raises:
    InputError: an unknown name, a number out of range, or shapes that cannot
      meet.
  """
  net = config.network
  _check(config)
  features: list[Layer] = []
  classifier: list[Layer] = []
  for name in net.layers:
    row = net[name]
    dense = "units" in row
    stack = classifier if dense else features
    first = name == net.layers[0]
    join = row.sees_all_towers and net.towers > 1 and not first
    towers = 1 if row.sees_all_towers or first else net.towers
    if dense and not classifier:
      features += [Join()] * join + [Flatten(towers)]
    elif join:
      stack.append(Join())
    if dense:
      stack.append(Dense(name, row.units, towers, row.sigma, row.bias))
    else:
      shape = (row.filters, row.kernel, row.stride, row.padding, row.ceil_mode)
      stack.append(Conv(name, *shape, towers, row.sigma, row.bias))
    for word in row.then:
      place = len(features) + len(classifier)
      stack.append(_follower(word, name, net, place))
  network = Network(
    config.crop_size_px, net.towers, tuple(features), tuple(classifier)
  )
  rows(network)
  return network


def names(network: Network) -> list[str]:
  """Returns the names of the layers that have parameters."""
  layers = (*network.features, *network.classifier)
  return [layer.name for layer in layers if isinstance(layer, Conv | Dense)]


def outputs(network: Network) -> dict[str, Network]:
  """Returns the net up to each place where one may look, in order.

  Names are Caffe's: norm1 and pool1 are of the norm and the pooling after
  conv1. An activation takes the place of what it is applied to, so conv1 and
  fc6 are after it; the last layer's are the logits. A join, flat maps and what
  dropout leaves at test are no places of their own.
  """
  found: dict[str, Network] = {}
  place = number = ""
  layers = (*network.features, *network.classifier)
  for count, layer in enumerate(layers, start=1):
    match layer:
      case Conv() | Dense():
        place = layer.name
        number = place.removeprefix("conv").removeprefix("fc")
      case LocalResponseNorm() | MapNorm():
        place = f"norm{number}"
      case MaxPool() | AveragePool():
        place = f"pool{number}"
      case Dropout() | Join() | Flatten():
        continue
    found[place] = dataclasses.replace(
      network,
      features=layers[:count][: len(network.features)],
      classifier=layers[len(network.features) : count],
    )
  return found


LAYERS = (
  "activation",
  "lrn",
  "map_norm",
  "max_pool",
  "max_pool_floor",
  "average_pool",
  "dropout",
)


def _follower(word: str, name: str, net: Any, place: int) -> Layer:
  """Returns the layer that a word in a row's `after` stands for.

  Args:
    word: of `LAYERS`.
    name: of the row.
    net: `config.network`.
    place: of the layer in the whole net.
  """
  match word:
    case "activation":
      return Activation(net.activation)
    case "lrn":
      lrn = net.lrn
      towers = 1 if lrn.across_towers else net.towers
      return LocalResponseNorm(towers, lrn.k, lrn.alpha, lrn.beta, lrn.window)
    case "map_norm":
      norm = net.map_norm
      return MapNorm(norm.k, norm.alpha, norm.beta, norm.window)
    case "max_pool":
      return MaxPool(net.pool_window, net.pool_stride)
    case "max_pool_floor":
      return MaxPool(net.pool_window, net.pool_stride, ceil=False)
    case "average_pool":
      return AveragePool(net.pool_window, net.pool_stride)
    case "dropout":
      return Dropout(net.dropout_rate, place, net.dropout_rescaled)
  raise errors.unknown(f"network.{name}.then", word, LAYERS)


def _check(config: Any) -> None:
  """Raises InputError for a name or a number that no table can have."""
  net = config.network
  if net.activation not in ops.ACTIVATIONS:
    raise errors.unknown("network.activation", net.activation, ops.ACTIVATIONS)
  known = [name for name in net if hasattr(net[name], "then")]
  for name in net.layers:
    if name not in known:
      raise errors.unknown("network.layers", name, known)
  if len(set(net.layers)) < len(net.layers):
    raise errors.InputError(
      f"network.layers={tuple(net.layers)} names a layer twice."
    )
  last = net[net.layers[-1]] if net.layers else {}
  if last.get("units") != config.num_classes:
    raise errors.InputError(
      f"network.layers={tuple(net.layers)} must end in a fully connected layer"
      f" of num_classes={config.num_classes} units."
    )
  rules = [
    ("towers", net.towers, 1, 2**20),
    ("pool_window", net.pool_window, 2, 11),
    ("pool_stride", net.pool_stride, 1, 11),
    ("dropout_rate", net.dropout_rate, 0, 0.999),
  ]
  for norm in ("lrn", "map_norm"):
    rules += [
      (f"{norm}.k", net[norm].k, 1e-6, 1e6),
      (f"{norm}.alpha", net[norm].alpha, 0, 1e6),
      (f"{norm}.beta", net[norm].beta, 0, 100),
      (f"{norm}.window", net[norm].window, 1, 99),
    ]
  for name in net.layers:
    lowest = {"filters": 1, "units": 1, "kernel": 1, "stride": 1, "padding": 0}
    rules += [
      (f"{name}.{field}", net[name][field], low, 2**20)
      for field, low in lowest.items()
      if field in net[name]
    ]
    rules.append((f"{name}.sigma", net[name].sigma, 1e-12, 1e6))
    rules.append((f"{name}.bias", net[name].bias, -1e6, 1e6))
  for field, value, low, high in rules:
    if not low <= value <= high:
      raise errors.InputError(
        f"network.{field}={value} must be at least {low:g}, at most {high:g}."
      )
  for norm in ("lrn", "map_norm"):
    if net[norm].window % 2 == 0:
      raise errors.InputError(
        f"network.{norm}.window={net[norm].window} must be odd: it is centred."
      )


@dataclasses.dataclass(frozen=True)
class Row:
  """One layer of a table with what it makes of one image.

  Attributes:
    layer: the record.
    output_shape: [H, W, C] or [N] of its output, without the batch.
    parameters: number of weights and biases.
    macs: multiply-accumulates for one image.
  """

  layer: Layer
  output_shape: tuple[int, ...]
  parameters: int = 0
  macs: int = 0


def rows(network: Network) -> list[Row]:
  """Returns the architecture table: a row per layer, from input to logits.

  Raises:
    InputError: shapes that cannot meet; the layer, its input and the rule.
  """
  shape: tuple[int, ...] = (network.input_size_px, network.input_size_px, 3)
  table: list[Row] = []
  place = "the image"
  sees_all = True  # The image, and what follows a join.
  for layer in (*network.features, *network.classifier):
    named = isinstance(layer, Conv | Dense)
    what = layer.name if named else f"{type(layer).__name__} after {place}"
    try:
      mixes = isinstance(layer, Conv | Dense | Flatten) and layer.towers == 1
      if mixes and not sees_all:
        raise _Mismatch(
          f"it sees all {network.towers} towers, which do not join before it"
        )
      table.append(_row(layer, shape, network.towers))
    except _Mismatch as e:
      size = " x ".join(map(str, shape))
      raise errors.InputError(f"{what} with input {size}: {e}.") from e
    shape = table[-1].output_shape
    if named:
      place, sees_all = layer.name, network.towers == 1
    elif isinstance(layer, Join):
      sees_all = True
  return table


class _Mismatch(Exception):
  """The rule that a layer and its input break."""


def _row(layer: Layer, shape: tuple[int, ...], towers: int) -> Row:
  """Returns the row of a layer that gets `shape` in a net of `towers`."""
  maps = len(shape) == 3
  channels = shape[-1]

  def divide(what: str, count: int, blocks: int) -> int:
    if blocks not in (1, towers):
      raise _Mismatch(f"it has {blocks} towers in a net of {towers}")
    if count % blocks:
      raise _Mismatch(f"{count} {what} are not divisible by {blocks} towers")
    return count // blocks

  def sides(
    window: int, stride: int, padding: int = 0, ceil: bool = True
  ) -> tuple[int, int]:
    if min(shape[:2]) + 2 * padding < window:
      raise _Mismatch(
        f"its window of {window} pixels is wider than that, its output would be"
        " below 1 x 1; enlarge crop_size_px or shrink the window"
      )
    height, width = (
      ops.output_size(side, window, stride, padding, ceil) for side in shape[:2]
    )
    return height, width

  match layer:
    case Activation() | Dropout():
      return Row(layer, shape)
    case Join():
      if towers == 1:
        raise _Mismatch("a net of one tower has none to join")
      return Row(layer, shape)
    case Dense():
      if maps:
        raise _Mismatch("a fully connected layer needs Flatten before it")
      divide("units", layer.units, layer.towers)
      weights = divide("inputs", channels, layer.towers) * layer.units
      return Row(layer, (layer.units,), weights + layer.units, weights)
  if not maps:
    raise _Mismatch("it needs maps, which Flatten has ended")
  match layer:
    case Conv():
      divide("filters", layer.filters, layer.towers)
      inputs = divide("channels", channels, layer.towers)
      out = sides(layer.kernel, layer.stride, layer.padding, layer.ceil)
      weights = layer.kernel**2 * inputs * layer.filters
      macs = weights * math.prod(out)
      return Row(layer, (*out, layer.filters), weights + layer.filters, macs)
    case MaxPool() | AveragePool():
      if layer.stride > layer.window:
        raise _Mismatch(
          f"its stride of {layer.stride} pixels is wider than its window of"
          f" {layer.window}, which would leave pixels out"
        )
      ceil = getattr(layer, "ceil", True)
      out = sides(layer.window, layer.stride, ceil=ceil)
      return Row(layer, (*out, channels))
    case LocalResponseNorm():
      divide("channels", channels, layer.towers)
      return Row(layer, shape)
    case MapNorm():
      return Row(layer, shape)
    case Flatten():
      divide("channels", channels, layer.towers)
      return Row(layer, (math.prod(shape),))
