"""Where every array lives: the mesh and the axis that splits each array."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax import errors

BATCH = P("data")
REPLICATED = P()


def make_mesh(num_devices: int | None = None) -> Mesh:
  """Returns the ('data', 'model') mesh; one device is a mesh of 1 x 1.

  Args:
    num_devices: how many of the visible devices to take; all by default.
  """
  devices = jax.devices()[:num_devices]
  return jax.make_mesh(
    (len(devices), 1),
    ("data", "model"),
    axis_types=(AxisType.Auto, AxisType.Auto),
    devices=devices,
  )


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
  """Raises InputError if the devices cannot share a batch evenly."""
  if batch_size < 1:
    raise errors.InputError(f"batch_size={batch_size} must be at least 1.")
  down = batch_size // mesh.size * mesh.size
  if down != batch_size:
    near = " or ".join(str(n) for n in (down, down + mesh.size) if n)
    raise errors.InputError(
      f"batch_size={batch_size} is not divisible by {mesh.size} devices; try"
      f" {near}."
    )


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """Returns the rows of a batch that this process's devices need, ascending.

  Args:
    mesh: from `make_mesh`.
    batch_size: rows of all processes.
  """
  split = NamedSharding(mesh, BATCH).addressable_devices_indices_map(
    (batch_size,)
  )
  rows = [np.arange(batch_size)[index] for index in split.values()]
  return np.unique(np.concatenate(rows))


def put_batch(
  mesh: Mesh, batch: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
  """Places a batch on the mesh, its examples split over 'data'.

  Args:
    mesh: from `make_mesh`.
    batch: this process's rows, the leading axis being the batch.
  """
  sharding = NamedSharding(mesh, BATCH)
  return {
    name: jax.make_array_from_process_local_data(sharding, rows)
    for name, rows in batch.items()
  }


def replicate(mesh: Mesh, tree):
  """Places a whole copy of every array of a tree on each device."""
  return jax.device_put(tree, NamedSharding(mesh, REPLICATED))
