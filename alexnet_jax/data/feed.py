"""Training batches on the devices: streamed, or drawn from what lives there."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from alexnet_jax.data import batches, records
from alexnet_jax.parallel import layouts, placement
from alexnet_jax.runtime import cli


class Feed:
  """Endless batches on the devices, that resume exactly.

  Either kind gives the same batches for the same state.

  Attributes:
    pool: all examples, if they live on the devices, else None.
    draw: then from the pool and the index of a batch to the batch, pure.
  """

  def __init__(
    self,
    streams: Sequence[grain.DatasetIterator],
    put: Callable[[Any], Any],
    stacks: bool,
    timeout_s: float,
    pool: Any = None,
    draw: Callable[[Any, jax.Array], dict[str, jax.Array]] | None = None,
  ):
    """Takes what comes on the host, and how it gets to the devices.

    Args:
      streams: of arrays or trees of them; one, or one for each member whose
        devices this process has.
      put: places what came, of one batch or, with a pool, of several.
      stacks: whether there are members, perhaps one here; their arrays get a
        first axis.
      timeout_s: seconds to wait for a batch.
      pool: as above; the streams are then of indices.
      draw: as above.
    """
    self._streams = streams
    self._in_time = [
      batches.WithTimeout(stream, timeout_s) for stream in streams
    ]
    self._put = put
    self._stacks = stacks
    self.pool = pool
    self.draw = draw
    self._take = (
      jax.jit(lambda pool, index, turn: draw(pool, index[turn]))
      if draw
      else None
    )

  def __next__(self) -> dict[str, jax.Array]:
    """Returns {"image": uint8 [B, S, S, 3], "label": int32 [B]}, sharded.

    For several members, [members, B, ...]. Raises
    errors.InputTimeoutError if it does not come.
    """
    if self.draw:
      return self.batch_of(self.indices(1, 1), 0)
    return self._put(self._next())

  def batch_of(self, indices: jax.Array, turn: int) -> dict[str, jax.Array]:
    """Returns the batch of a row of `indices`."""
    assert self._take
    return self._take(self.pool, indices, turn)

  def indices(self, count: int, room: int) -> jax.Array:
    """Returns int32 [room, B], which examples the next `count` batches are.

    For several members, [room, members, B]. Only where there is a pool.
    """
    found = [self._next() for _ in range(count)]
    unused = [np.zeros_like(found[0])] * (room - count)
    return self._put(np.stack(found + unused).astype(np.int32))

  def _next(self) -> Any:
    found = [next(stream) for stream in self._in_time]
    if self._stacks:
      return jax.tree.map(lambda *rows: np.stack(rows), *found)
    (alone,) = found
    return alone

  def get_state(self) -> dict[str, Any]:
    """Returns where it stands, for JSON."""
    return self._streams[0].get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to where `get_state` stood."""
    for stream in self._streams:
      stream.set_state(state)


def open_feed(
  examples: records.Examples, config: Any, layout: layouts.Layout, mesh: Mesh
) -> Feed:
  """Returns the training batches of a config.

  A split that fits `config.device_cache_fraction` of the memory of each device
  is decoded once and lives there.

  Args:
    examples: the training split.
    config: a whole config.
    layout: of the training step.
    mesh: of the layout.
  """
  size = config.image_size_px
  spec, shape = layout.batch_spec, layout.batch_shape
  *members, places = placement.local_places(mesh, spec, shape)
  orders = [
    {
      "batch_size": layout.batch_size,
      "seed": config.seed + int(member),
      "rows": layout.example_order()[places],
    }
    for member in (members[0] if members else [0])
  ]
  room = config.device_cache_fraction * _device_memory(mesh)
  if len(examples) * size * size * 3 > room:
    return Feed(
      [
        batches.train_batches(
          examples, size_px=size, threads=config.reader_threads, **order
        )
        for order in orders
      ],
      lambda batch: placement.put_batch(mesh, spec, shape, batch),
      layout.members > 1,
      config.input_timeout_s,
    )
  draw = jax.shard_map(
    lambda pool, index: jax.tree.map(lambda values: values[index], pool),
    mesh=mesh,
    in_specs=(placement.REPLICATED, spec),
    out_specs=spec,
  )

  def put(indices: np.ndarray) -> jax.Array:
    steps_spec, steps_shape = P(None, *spec), (len(indices), *shape)
    sent = {"index": indices}
    return placement.put_batch(mesh, steps_spec, steps_shape, sent)["index"]

  streams = [batches.train_indices(len(examples), **order) for order in orders]
  pool = placement.replicate(mesh, _load_all(examples, config))
  stacks = layout.members > 1
  return Feed(streams, put, stacks, config.input_timeout_s, pool, draw)


def _device_memory(mesh: Mesh) -> float:
  """Returns the bytes of the smallest device's memory.

  Devices that report none, as CPUs, share that of the host.
  """
  stats = [device.memory_stats() for device in mesh.local_devices]
  host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return min(
    found["bytes_limit"] if found else host / len(stats) for found in stats
  )


def _load_all(examples: records.Examples, config: Any) -> batches.Batch:
  size = config.image_size_px
  count = len(examples)
  pool = {
    "image": np.empty((count, size, size, 3), np.uint8),
    "label": np.empty(count, np.int32),
  }
  stream = batches.eval_batches(
    examples, size_px=size, batch_size=64, threads=config.reader_threads
  )
  with cli.progress("images into memory", count) as advance:
    in_time = batches.WithTimeout(stream, config.input_timeout_s)
    for start, batch in zip(range(0, count, 64), in_time, strict=True):
      held = min(64, count - start)
      for name, values in pool.items():
        values[start : start + held] = batch[name][:held]
      advance(held)
  return pool
