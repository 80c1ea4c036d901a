"""The nets as tables of layers: pure data, read from top to bottom.

A table is made by a function whose arguments are its ablations. The module in
`model.py` runs any table; `python -m alexnet_jax.summary` prints one.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from alexnet_jax import errors, ops


@dataclasses.dataclass(frozen=True)
class Conv:
  """Convolution: `filters` in all, over `towers` blocks of channels."""

  name: str
  filters: int
  kernel: int
  stride: int = 1
  padding: int = 0
  towers: int = 1
  sigma: float = 0.01
  bias: float = 0.0


@dataclasses.dataclass(frozen=True)
class Dense:
  """Fully connected layer; every unit sees every unit below."""

  name: str
  features: int
  sigma: float = 0.01
  bias: float = 0.0


@dataclasses.dataclass(frozen=True)
class Activation:
  """Pointwise nonlinearity: a name in `ops.ACTIVATIONS`."""

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
class MaxPool:
  """Max pooling; overlapping where the window is wider than the stride."""

  window: int
  stride: int


@dataclasses.dataclass(frozen=True)
class AveragePool:
  """Average pooling over the pixels that each window really holds."""

  window: int
  stride: int


@dataclasses.dataclass(frozen=True)
class Dropout:
  """Drops units in training; multiplies by 1 - rate at test (paper 4.2)."""

  rate: float


@dataclasses.dataclass(frozen=True)
class Join:
  """The towers meet: what follows sees the channels of all of them."""


Layer = (
  Conv
  | Dense
  | Activation
  | LocalResponseNorm
  | MaxPool
  | AveragePool
  | Dropout
  | Join
)


@dataclasses.dataclass(frozen=True)
class Network:
  """A whole net: an image's side in pixels and its two stacks of layers."""

  input_size_px: int
  features: tuple[Layer, ...]
  classifier: tuple[Layer, ...]


def alexnet(
  *,
  input_size_px: int,
  num_classes: int,
  activation: str = "relu",
  towers: int = 2,
  conv_filters: Sequence[int] = (96, 256, 384, 384, 256),
  fc_features: Sequence[int] = (4096, 4096),
  conv1_kernel: int = 11,
  conv1_stride: int = 4,
  pool_window: int = 3,
  lrn_layers: Collection[str] = ("conv1", "conv2"),
  dropout_layers: Collection[str] = ("fc6", "fc7"),
  dropout_rate: float = 0.5,
  sigma: float = 0.01,
) -> Network:
  """Returns the net of the paper (3.5), or one that differs where asked.

  Args:
    input_size_px: side of the crop; 224 in the paper.
    num_classes: number of labels; 1000 in the paper.
    activation: a name in `ops.ACTIVATIONS` (paper 3.1: relu).
    towers: 2 in the paper (3.2); 1 gives the 62.3 M textbook net.
    conv_filters: filters of conv1 to conv5, all towers together.
    fc_features: units of fc6 and fc7, all towers together.
    conv1_kernel: side of conv1's filters in pixels.
    conv1_stride: distance of conv1's filters in pixels.
    pool_window: 3 overlaps (paper 3.4); 2 does not.
    lrn_layers: layers that are normalized (paper 3.5: conv1 and conv2).
    dropout_layers: layers that are dropped out (paper 4.2: fc6 and fc7).
    dropout_rate: probability that a unit is dropped (paper 4.2: 0.5).
    sigma: standard deviation of every initial weight (paper 5: 0.01).

  Raises:
    InputError: an unknown activation or layer, or a number out of range.
  """
  convs = ("conv1", "conv2", "conv3", "conv4", "conv5")
  _check_names("network.lrn_layers", lrn_layers, convs)
  _check_names("network.dropout_layers", dropout_layers, ("fc6", "fc7"))
  _check_length("network.conv_filters", conv_filters, 5)
  _check_length("network.fc_features", fc_features, 2)
  for field, value in (
    ("towers", towers),
    ("conv1_kernel", conv1_kernel),
    ("conv1_stride", conv1_stride),
  ):
    if value < 1:
      raise errors.InputError(f"network.{field}={value} must be at least 1.")
  if not 2 <= pool_window <= 11:
    raise errors.InputError(
      f"network.pool_window={pool_window} is not from 2 to 11."
    )
  if not sigma > 0:
    raise errors.InputError(f"network.sigma={sigma} must be positive.")
  if not 0 <= dropout_rate < 1:
    raise errors.InputError(
      f"network.dropout_rate={dropout_rate} is not from 0 to under 1."
    )
  f1, f2, f3, f4, f5 = conv_filters
  f6, f7 = fc_features
  t, s = towers, sigma
  act = _activation(activation)
  pool = MaxPool(pool_window, stride=2)
  join = (Join(),) if t > 1 else ()

  def norm(name: str) -> tuple[Layer, ...]:
    return (LocalResponseNorm(towers=t),) if name in lrn_layers else ()

  def drop(name: str) -> tuple[Layer, ...]:
    return (Dropout(dropout_rate),) if name in dropout_layers else ()

  k1, s1 = conv1_kernel, conv1_stride
  # fmt: off
  return Network(
    input_size_px=input_size_px,
    features=(
      Conv("conv1", f1, k1, s1, padding=0, towers=1, sigma=s, bias=0.0), act,
      *norm("conv1"), pool,
      Conv("conv2", f2, 5, 1, padding=2, towers=t, sigma=s, bias=1.0), act,
      *norm("conv2"), pool,
      *join,
      Conv("conv3", f3, 3, 1, padding=1, towers=1, sigma=s, bias=0.0), act,
      *norm("conv3"),
      Conv("conv4", f4, 3, 1, padding=1, towers=t, sigma=s, bias=1.0), act,
      *norm("conv4"),
      Conv("conv5", f5, 3, 1, padding=1, towers=t, sigma=s, bias=1.0), act,
      *norm("conv5"), pool,
    ),
    classifier=(
      *join, Dense("fc6", f6, sigma=s, bias=1.0), act, *drop("fc6"),
      *join, Dense("fc7", f7, sigma=s, bias=1.0), act, *drop("fc7"),
      *join, Dense("fc8", num_classes, sigma=s, bias=0.0),
    ),
  )
  # fmt: on


def four_layer(
  *,
  input_size_px: int,
  num_classes: int,
  activation: str = "relu",
) -> Network:
  """Returns the four-layer CIFAR-10 net (paper Fig. 1, `layers-19pct.cfg`).

  Args:
    input_size_px: side of the crop; 32 in the original.
    num_classes: number of labels; 10 in the original.
    activation: a name in `ops.ACTIVATIONS` (paper Fig. 1: relu against tanh).

  Raises:
    InputError: an unknown activation.
  """
  act = _activation(activation)
  # fmt: off
  return Network(
    input_size_px=input_size_px,
    features=(
      Conv("conv1", 32, 5, padding=2, sigma=1e-4), MaxPool(3, 2), act,
      Conv("conv2", 32, 5, padding=2, sigma=1e-2), act, AveragePool(3, 2),
      Conv("conv3", 64, 5, padding=2, sigma=1e-2), act, AveragePool(3, 2),
    ),
    classifier=(Dense("fc4", num_classes, sigma=1e-2),),
  )
  # fmt: on


_TABLES: dict[str, Callable[..., Network]] = {
  "alexnet": alexnet,
  "four_layer": four_layer,
}


def from_config(config: Any) -> Network:
  """Returns the net that a config describes, its shapes checked.

  Args:
    config: a whole config; `network.table` names a function of this file and
      the other fields of `network` are its arguments.

  Raises:
    InputError: an unknown table, activation or layer, or shapes that cannot
      meet.
  """
  arguments = dict(config.network)
  table = arguments.pop("table")
  if table not in _TABLES:
    raise errors.unknown("network.table", table, _TABLES)
  for field in arguments:
    if field not in inspect.signature(_TABLES[table]).parameters:
      raise errors.InputError(
        f"network.table={table!r} has no field network.{field}; start from a"
        " config of that table."
      )
  network = _TABLES[table](
    input_size_px=config.crop_size_px,
    num_classes=config.num_classes,
    **arguments,
  )
  rows(network)
  return network


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
  table = []
  for layer in network.features:
    table.append(_feature_row(layer, shape))
    shape = table[-1].output_shape
  shape = (math.prod(shape),)
  for layer in network.classifier:
    table.append(_classifier_row(layer, shape))
    shape = table[-1].output_shape
  return table


def _feature_row(layer: Layer, shape: tuple[int, ...]) -> Row:
  height, width, channels = shape

  def sides(window: int, stride: int, padding: int = 0) -> tuple[int, int]:
    if min(height, width) + 2 * padding < window:
      raise errors.InputError(
        f"{_name(layer)} is wider than its input of {height}x{width} pixels;"
        " enlarge crop_size_px or shrink the window."
      )
    return (
      ops.output_size(height, window, stride, padding),
      ops.output_size(width, window, stride, padding),
    )

  match layer:
    case Conv():
      for what, count in (("channels", channels), ("filters", layer.filters)):
        if count % layer.towers:
          raise errors.InputError(
            f"{layer.name} has {count} {what}, which {layer.towers} towers do"
            " not divide; change network.conv_filters or network.towers."
          )
      out = (*sides(layer.kernel, layer.stride, layer.padding), layer.filters)
      weights = layer.kernel**2 * (channels // layer.towers) * layer.filters
      macs = weights * out[0] * out[1]
      return Row(layer, out, weights + layer.filters, macs)
    case MaxPool() | AveragePool():
      return Row(layer, (*sides(layer.window, layer.stride), channels))
    case LocalResponseNorm():
      if channels % layer.towers:
        raise errors.InputError(
          f"{layer} gets {channels} channels, which its towers do not divide."
        )
      return Row(layer, shape)
    case Activation() | Join():
      return Row(layer, shape)
    case Dense() | Dropout():
      raise errors.InputError(f"{layer} belongs in the classifier stack.")


def _classifier_row(layer: Layer, shape: tuple[int, ...]) -> Row:
  match layer:
    case Dense():
      macs = shape[0] * layer.features
      return Row(layer, (layer.features,), macs + layer.features, macs)
    case Activation() | Dropout() | Join():
      return Row(layer, shape)
    case _:
      raise errors.InputError(f"{layer} belongs in the features stack.")


def _name(layer: Layer) -> str:
  return getattr(layer, "name", type(layer).__name__)


def _activation(name: str) -> Activation:
  if name not in ops.ACTIVATIONS:
    raise errors.unknown("network.activation", name, ops.ACTIVATIONS)
  return Activation(name)


def _check_names(
  field: str, names: Collection[str], known: Sequence[str]
) -> None:
  for name in names:
    if name not in known:
      raise errors.unknown(field, name, known)


def _check_length(field: str, values: Sequence[int], length: int) -> None:
  if len(values) != length or not all(
    isinstance(value, int) and value > 0 for value in values
  ):
    raise errors.InputError(
      f"{field}={tuple(values)} must be {length} positive whole numbers."
    )
