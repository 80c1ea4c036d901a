"""Arrays on devices: the mesh, and what of an array each device holds."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax.parallel import layouts

BATCH = P("data")
REPLICATED = P()


def devices() -> list[Any]:
  """Returns all devices, or only that of `jax.default_device`."""
  config: Any = jax.config
  chosen = config.jax_default_device
  if isinstance(chosen, str):  # A platform.
    return jax.local_devices(backend=chosen)[:1]
  return [chosen] if chosen else jax.devices()


def make_mesh(num_devices: int | None = None, model: int = 1) -> Mesh:
  """Returns a mesh with the axes 'data' and 'model', by default of `devices()`.

  Devices along 'model' are neighbours.
  """
  found = devices()[:num_devices]
  return jax.make_mesh(
    (len(found) // model, model),
    ("data", "model"),
    axis_types=(AxisType.Auto, AxisType.Auto),
    devices=found,
  )


def specs(layout: layouts.Layout, tree: Any) -> Any:
  """Returns the PartitionSpec of each array of a `TrainState` or its params."""
  return jax.tree.map_with_path(
    lambda path, leaf: layout.spec_of(path, leaf.ndim), tree
  )


def shardings(mesh: Mesh, specs: Any) -> Any:
  """Returns the sharding on a mesh that belongs to each PartitionSpec."""
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def local_places(
  mesh: Mesh, spec: P, shape: tuple[int, ...]
) -> tuple[np.ndarray, ...]:
  """Returns the indices that this process's devices need, along each axis.

  `shape` is that of the whole array, [B] or [members, B].
  """
  sharding = NamedSharding(mesh, spec)
  indices: Any = sharding.addressable_devices_indices_map(shape).values()
  return tuple(
    np.unique(np.concatenate([np.arange(n)[i[axis]] for i in indices]))
    for axis, n in enumerate(shape)
  )


def put_batch(
  mesh: Mesh, spec: P, shape: tuple[int, ...], batch: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
  """Places a batch on the mesh.

  Args:
    mesh: of the layout.
    spec: of the leading axes.
    shape: of the leading axes of the whole batch, [B] or [members, B].
    batch: this process's part, which `local_places` names.
  """
  sharding = NamedSharding(mesh, spec)
  return {
    name: jax.make_array_from_process_local_data(
      sharding, values, (*shape, *values.shape[len(shape) :])
    )
    for name, values in batch.items()
  }


def replicate(mesh: Mesh, tree: Any) -> Any:
  """Places a whole copy of every array of a tree on each device."""
  return jax.device_put(tree, NamedSharding(mesh, REPLICATED))
