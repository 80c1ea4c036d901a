"""Layouts: where every array lives, and what one device computes.

Devices form a mesh with two axes, 'data' and 'model'. A layout says which of
them split the examples, the parameters and the units, and turns the table of a
net into the table that each device runs. All layouts compute the same numbers.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from alexnet_jax import networks
from alexnet_jax.model import Dense, Join, Layer, LocalResponseNorm, Network
from alexnet_jax.runtime import errors

HALVES = ("features", "classifier")
OWT = ("owt_a", "owt_b", "owt_c")
LAYOUTS = ("data", "towers", *OWT, "fsdp")


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a step is divided among devices; only numbers, no devices needed.

  data splits the batch. towers splits the net, a tower per device along
  'model', as on the two GPUs of 2012. owt_a, owt_b and owt_c split the batch in
  the conv layers and the units in the fc layers, which see all examples
  (parallel/one_weird_trick.py). fsdp splits the batch, and the stored fc
  kernels.
  """

  name: str  # one of LAYOUTS
  data: int  # devices along 'data'
  model: int  # devices along 'model'
  batch_size: int  # examples of a step, on all devices
  microbatches: int = 1  # parts that a device takes its examples in, one by one
  fc_updates: int = 1  # of the fc layers in a step, each from a part of a batch
  members: int = 1  # nets that are trained side by side, spread over 'model'

  @property
  def devices(self) -> int:
    """How many there are."""
    return self.data * self.model

  @property
  def shards(self) -> int:
    """Parts that the batch is split into over the devices."""
    return self.devices if self.name in OWT else self.data

  @property
  def passes(self) -> int:
    """Passes through the fc layers for each microbatch."""
    turns = self.name in ("owt_b", "owt_c") and self.fc_updates == 1
    return self.model if turns else self.fc_updates

  @property
  def data_axes(self) -> tuple[str, ...]:
    """('data',) if there is more than one device along it."""
    return ("data",) if self.data > 1 else ()

  @property
  def model_axes(self) -> tuple[str, ...]:
    """('model',) if the net itself is split over it."""
    return ("model",) if self.model > 1 and self.members == 1 else ()

  @property
  def example_axes(self) -> tuple[str, ...]:
    """Mesh axes that the examples of the conv layers are split over."""
    owt = self.name in OWT
    return self.data_axes + (self.model_axes if owt else ())

  @property
  def class_axes(self) -> tuple[str, ...]:
    """Mesh axes that the logits are split over."""
    return self.model_axes if self.name != "data" else ()

  @property
  def batch_spec(self) -> P:
    """Of images and labels: [B, ...], with members [members, B, ...]."""
    examples = self.example_axes
    return P("model", examples) if self.members > 1 else P(examples)

  @property
  def batch_shape(self) -> tuple[int, ...]:
    """Leading axes of a whole batch: [B], or [members, B]."""
    members = (self.members,) if self.members > 1 else ()
    return (*members, self.batch_size)

  @property
  def member_spec(self) -> P:
    """Of arrays that have one row for each member."""
    return P("model") if self.members > 1 else P()

  def is_fsdp(self, path: Any) -> bool:
    """Whether an array is stored split by rows, and gathered to be used."""
    kernel = path[-1] == jax.tree_util.DictKey("kernel")
    return self.name == "fsdp" and kernel and _half(path) == "classifier"

  def axes_of(self, path: Any) -> tuple[str, ...]:
    """Returns the mesh axes that the array of a path is split over."""
    if self.is_fsdp(path):
      return self.data_axes
    if self.name == "towers" and _half(path):
      return self.model_axes
    if self.name in OWT and _half(path) == "classifier":
      return self.model_axes
    return ()

  def axes_to_add(self, path: Any) -> tuple[str, ...]:
    """Returns the axes whose devices hold parts of an array's gradient."""
    return tuple(a for a in self.example_axes if a not in self.axes_of(path))

  def spec_of(self, path: Any, ndim: int) -> P:
    """Returns how an array of a `TrainState`, or of its params, is split."""
    if self.members > 1:
      is_step = len(path) == 1  # All others have a first axis for the members.
      return P() if is_step else P("model")
    axes = self.axes_of(path)
    if not axes or self.is_fsdp(path):
      return P(*axes)
    return P(*[None] * (ndim - 1), *axes)

  def local_network(self, network: Network) -> Network:
    """Returns the part of a net that each device runs."""
    if not self.model_axes or self.name == "data":
      return network
    (axis,) = self.model_axes

    def local(layers):
      return tuple(layer.local(self.model, axis) for layer in layers)

    if self.name == "towers":
      return dataclasses.replace(
        network,
        towers=network.towers // self.model,
        features=local(network.features),
        classifier=local(network.classifier),
      )
    # One Weird Trick: each fc layer sees the units of all devices.
    layers: list[Layer] = []
    for layer in local(network.classifier):
      if isinstance(layer, Dense) and layers:
        layers.append(Join(axis))
      if not isinstance(layer, Join):
        layers.append(layer)
    return dataclasses.replace(network, classifier=tuple(layers))

  def example_order(self) -> np.ndarray:
    """Returns int32 [B], the row of the batch at each place of the mesh.

    Rows keep their order, unless the fc layers are updated on one part of the
    batch after another: then each device holds its share of every part.
    """
    parts = 1 if self.name == "owt_b" else self.fc_updates
    rows = np.arange(self.batch_size, dtype=np.int32)
    return rows.reshape(parts, self.shards, -1).swapaxes(0, 1).reshape(-1)


def _half(path: Any) -> str | None:
  """Returns which half of the net an array belongs to, if to any."""
  names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
  return next((name for name in names if name in HALVES), None)


def from_config(config: Any, network: Network, num_devices: int) -> Layout:
  """Returns a config's layout on so many devices, those of all processes.

  Raises InputError if net, batch or devices cannot be divided so; the nearest
  that can are named.
  """
  name, model = config.layout, 1
  if name == "towers":
    model = network.towers
    _check_towers(network, num_devices)
  elif name in OWT:
    model = num_devices
    _check_units(name, network, num_devices)
  elif name == "fsdp":
    _check_inputs(network, num_devices)
  if config.ensemble > 1:
    if name != "data":
      raise errors.InputError(
        f"--config.ensemble={config.ensemble} trains whole nets side by side; "
        f"it needs --config.layout=data, not {name}."
      )
    model = math.gcd(config.ensemble, num_devices)
  size = config.batch_size
  updates = size // (config.fc_batch_size or size)
  layout = Layout(
    name=name,
    data=num_devices // model,
    model=model,
    batch_size=size,
    microbatches=config.microbatches,
    fc_updates=max(updates, 1),
    members=config.ensemble,
  )
  _check_batch(layout, config.fc_batch_size)
  return layout


def _check_towers(network: Network, num_devices: int) -> None:
  towers = network.towers
  if towers == 1:
    raise errors.InputError(
      "--config.layout=towers puts a tower on each device, but"
      " network.towers=1; use --config.layout=data, fsdp or owt_a, or a net of"
      " two towers."
    )
  if num_devices % towers:
    near = _nearest(num_devices, lambda n: n % towers == 0)
    raise errors.InputError(
      f"--config.layout=towers cannot share {towers} towers among"
      f" devices={num_devices}; {near}."
    )
  for layer in networks.flat((*network.features, *network.classifier)):
    if isinstance(layer, LocalResponseNorm) and layer.towers == 1:
      raise errors.InputError(
        "--config.layout=towers cannot hold network.lrn.across_towers=True,"
        " which sums over channels of both devices; use --config.layout=data."
      )
    count = getattr(layer, "units", 0) or getattr(layer, "filters", 0)
    if count % towers:
      near = _nearest(count, lambda n: n % towers == 0)
      raise errors.InputError(
        f"{layer.name} has {count} outputs, which --config.layout=towers cannot"
        f" divide by {towers} towers; {near}."
      )


def _check_units(name: str, network: Network, num_devices: int) -> None:
  layers = [x for x in network.classifier if isinstance(x, Dense)]
  units = math.gcd(*(layer.units for layer in layers))
  for layer in layers:
    if layer.towers > 1:
      raise errors.InputError(
        f"--config.layout={name} splits the units of {layer.name} over all"
        " devices, but it sees its own tower alone; use --config.layout=towers,"
        " fsdp or data."
      )
    if layer.units % num_devices:
      near = _nearest(layer.units, lambda n: n % num_devices == 0)
      fewer = _nearest(num_devices, lambda n: units % n == 0)
      raise errors.InputError(
        f"{layer.name} has {layer.units} units, which --config.layout={name}"
        f" cannot divide by {num_devices} devices; {near} units, or {fewer}"
        " devices."
      )


def _check_inputs(network: Network, num_devices: int) -> None:
  """Raises InputError if fsdp cannot divide the rows of the fc kernels."""
  inputs = [
    before.output_shape[0]
    for before, row in itertools.pairwise(networks.rows(network))
    if isinstance(row.layer, Dense)
  ]
  common = math.gcd(*inputs)
  if common % num_devices:
    near = _nearest(num_devices, lambda n: common % n == 0)
    raise errors.InputError(
      "--config.layout=fsdp cannot share the inputs of the fc layers,"
      f" {inputs}, among devices={num_devices}; {near}."
    )


def _nearest(value: int, holds: Callable[[int], bool]) -> str:
  """Returns "try A or B": the next lower and higher numbers that hold."""
  down = next((n for n in range(value, 0, -1) if holds(n)), 0)
  up = next((n for n in range(value, value + 2**20) if holds(n)), 0)
  return "try " + " or ".join(str(n) for n in (down, up) if n)


def _check_batch(layout: Layout, fc_batch_size: int | None) -> None:
  """Raises InputError if the batch cannot be divided evenly."""
  size, updates = layout.batch_size, layout.fc_updates
  if fc_batch_size and fc_batch_size * updates != size:
    near = _nearest(fc_batch_size, lambda n: size % n == 0)
    raise errors.InputError(
      f"--config.fc_batch_size={fc_batch_size} does not divide"
      f" batch_size={size}; {near}."
    )
  if updates > 1 and layout.microbatches > 1:
    raise errors.InputError(
      f"--config.microbatches={layout.microbatches} takes the batch in parts"
      f" before an update, --config.fc_batch_size={fc_batch_size} updates in"
      " between; leave one out."
    )
  if layout.name == "owt_b" and updates not in (1, layout.model):
    raise errors.InputError(
      "--config.layout=owt_b takes the batch of one device at a time, so"
      f" --config.fc_batch_size={fc_batch_size} must be"
      f" {size // layout.model} or {size}."
    )
  parts = layout.microbatches * (1 if layout.name == "owt_b" else layout.passes)
  unit = layout.shards * parts
  if size % unit:
    near = _nearest(size, lambda n: n % unit == 0)
    among = f"{layout.shards} devices" + f" in {parts} parts each" * (parts > 1)
    raise errors.InputError(
      f"--config.batch_size={size} is not divisible by {unit}, for {among};"
      f" {near}."
    )
