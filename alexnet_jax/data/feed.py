"""Training batches on the devices, streamed or drawn from a pool there."""

import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alexnet_jax.data import batches, records
from alexnet_jax.parallel import placement
from alexnet_jax.parallel.layouts import Layout
from alexnet_jax.runtime import hosts, machine


class Feed:
  """Endless training batches on the devices; `set_state` resumes exactly.

  A split that fits into `config.device_cache_fraction` of each device's memory
  is decoded once into `pool`; `draw` is then a pure function of the pool and
  the int32 [B] indices of a batch. Others are streamed, and both are None. The
  same state gives the same batches either way.
  """

  def __init__(
    self, examples: records.Examples, config: Any, layout: Layout, mesh: Mesh
  ):
    self._mesh, self._layout = mesh, layout
    spec, size = layout.batch_spec, config.image_size_px
    *members, places = placement.local_places(mesh, spec, layout.batch_shape)
    rows, count = layout.example_order()[places], len(examples)
    orders = [
      batches.ShuffledBatches(
        count, layout.batch_size, config.seed + int(member), rows
      )
      for member in (members[0] if members else [0])
    ]
    memory = min(hosts.gather(_device_memory(mesh)))  # All must choose alike.
    room = config.device_cache_fraction * memory
    if count * size * size * 3 > room:
      self.pool = self.draw = None
      self._streams = [
        batches.iterate(
          order,
          lambda indices: batches.load(examples, indices, size),
          threads=config.reader_threads,
        )
        for order in orders
      ]
    else:
      self.pool = _load_pool(examples, config, mesh)
      self.draw = draw = jax.shard_map(
        lambda pool, index: jax.tree.map(lambda values: values[index], pool),
        mesh=mesh,
        in_specs=(placement.REPLICATED, spec),
        out_specs=spec,
      )
      self._draw_row = jax.jit(lambda pool, index, row: draw(pool, index[row]))
      self._streams = [batches.iterate(order) for order in orders]
    self._iterators = [
      batches.with_timeout(stream, config.input_timeout_s)
      for stream in self._streams
    ]

  def __next__(self) -> dict[str, jax.Array]:
    """Returns {"image": uint8 [B, S, S, 3], "label": int32 [B]}, sharded.

    An ensemble's are [members, B, ...]. Raises errors.InputTimeoutError.
    """
    if self.draw:
      return self._draw_row(self.pool, self.indices(1, 1), 0)
    spec, shape = self._layout.batch_spec, self._layout.batch_shape
    return placement.put_batch(self._mesh, spec, shape, self._next())

  def indices(self, count: int, rows: int) -> jax.Array:
    """Returns int32 [rows, B], the examples of the next `count` batches.

    Later rows are 0. An ensemble's are [rows, members, B]. Needs a pool.
    """
    index = np.stack([self._next() for _ in range(count)]).astype(np.int32)
    padding = np.zeros((rows - count, *index.shape[1:]), np.int32)
    batch = {"index": np.concatenate([index, padding])}
    spec = P(None, *self._layout.batch_spec)
    shape = (rows, *self._layout.batch_shape)
    return placement.put_batch(self._mesh, spec, shape, batch)["index"]

  def _next(self) -> Any:
    values = [next(iterator) for iterator in self._iterators]
    if self._layout.members > 1:
      return jax.tree.map(lambda *members: np.stack(members), *values)
    (single,) = values
    return single

  def get_state(self) -> dict[str, Any]:
    """Returns the position, for JSON."""
    return self._streams[0].get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to a position that `get_state` returned."""
    for stream in self._streams:
      stream.set_state(state)


def _device_memory(mesh: Mesh) -> float:
  """Returns the bytes of the smallest device memory; CPUs share the host's."""
  stats = [device.memory_stats() for device in mesh.local_devices]
  nodes = hosts.gather(platform.node())
  host = machine.memory_bytes() / nodes.count(platform.node())
  return min(s["bytes_limit"] if s else host / len(stats) for s in stats)


def _load_pool(
  examples: records.Examples, config: Any, mesh: Mesh
) -> dict[str, jax.Array]:
  """Builds the pool on the devices, so that the host holds a part at a time."""
  size, count, start = config.image_size_px, len(examples), 0
  sharding = NamedSharding(mesh, placement.REPLICATED)

  def zeros() -> dict[str, jax.Array]:
    images = jnp.zeros((count, size, size, 3), jnp.uint8)
    return {"image": images, "label": jnp.zeros(count, jnp.int32)}

  def put(pool: Any, part: Any, start: jax.Array) -> Any:
    update = jax.lax.dynamic_update_slice_in_dim
    return jax.tree.map(lambda x, new: update(x, new, start, 0), pool, part)

  pool = jax.jit(zeros, out_shardings=sharding)()
  put_in_place = jax.jit(put, donate_argnums=0)
  for batch in batches.all_once(examples, config, "images into memory"):
    shape = batch["label"].shape
    part = placement.put_batch(mesh, placement.REPLICATED, shape, batch)
    # Otherwise parts that wait for the device would pile up.
    pool = jax.block_until_ready(put_in_place(pool, part, np.int32(start)))
    start += len(batch["label"])
  return pool
