"""The error of runs on a whole split, every example counted once."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alexnet_jax import metrics, steps
from alexnet_jax.data import batches
from alexnet_jax.parallel import placement

VIEWS = (1, 10)


@dataclasses.dataclass(frozen=True)
class Net:
  """One net that takes part in an evaluation.

  Attributes:
    view_step: from `steps.make_view_step`.
    params: of the net, on the mesh.
    views: int32 [V, 3], from `augment.views`; their softmaxes are averaged.
    weight: of the net beside the others.
  """

  view_step: Callable[..., jax.Array]
  params: Any
  views: np.ndarray
  weight: float = 1.0


@jax.jit
def log_mean_exp(
  total_BxK: jax.Array, log_probabilities_BxK: jax.Array, weight: Any
):
  """Adds a weighted softmax to a sum of them, all as logarithms."""
  return jnp.logaddexp(total_BxK, log_probabilities_BxK + jnp.log(weight))


_sums = jax.jit(metrics.sums)


def _mean(parts: Iterable[tuple[float, jax.Array]]) -> Any:
  """Returns the mean of softmaxes, of (share, logarithm) of each."""
  total: Any = -math.inf
  for share, seen in parts:
    total = seen if share == 1 else log_mean_exp(total, seen, np.float32(share))
  return total


def evaluate_members(
  members: Sequence[Net],
  examples: Any,
  config: Any,
  mesh: Mesh,
  should_stop: Callable[[], bool] = lambda: False,
  on_batch: Callable[[steps.Batch, list[jax.Array]], Any] | None = None,
) -> list[dict[str, float]] | None:
  """Returns loss, top-1 and top-5 error (fractions) and images per second.

  The prediction of a member is the mean of the softmaxes of its views, that of
  all together the weighted mean of theirs (paper 4.1 and 6).

  Args:
    members: the nets.
    examples: from `records.open_split`.
    config: a whole config.
    mesh: where to compute.
    should_stop: asked before each batch.
    on_batch: called with each batch on the mesh, padding included (its `mask`
      tells), and the log probabilities [B, K] by each member and then, if there
      are several, by all together.

  Returns:
    The figures of each member, and then, if there are several, of all together;
    None if it was told to stop.

  Raises:
    InputError: a damaged example, or no batch within `input_timeout_s`.
  """
  start = time.perf_counter()
  whole = sum(member.weight for member in members)
  count = len(members) + (len(members) > 1)
  totals: list[metrics.Totals] = [{} for _ in range(count)]
  # Any number of devices will do: rows that are too many are padding.
  batch_size = -(-config.batch_size // mesh.size) * mesh.size
  shape = (batch_size,)
  (rows,) = placement.local_places(mesh, placement.BATCH, shape)
  stream = batches.eval_batches(
    examples,
    size_px=config.image_size_px,
    batch_size=batch_size,
    threads=config.reader_threads,
    rows=rows,
  )
  for found in batches.WithTimeout(stream, config.input_timeout_s):
    if should_stop():
      return None
    batch = placement.put_batch(mesh, placement.BATCH, shape, found)
    each = [
      _mean(
        (1 / len(member.views), member.view_step(member.params, batch, view))
        for view in member.views[:, None]  # One by one: a batch is large.
      )
      for member in members
    ]
    if len(members) > 1:
      shares = (member.weight / whole for member in members)
      each.append(_mean(zip(shares, each, strict=False)))
    if on_batch:
      on_batch(batch, each)
    for total, seen in zip(totals, each, strict=True):
      metrics.add(total, _sums(seen, batch["label"], batch["mask"]))
  seconds = time.perf_counter() - start
  return [
    metrics.means(total) | {"images_per_second": total["examples"] / seconds}
    for total in totals
  ]


def predictions(
  batch: steps.Batch, log_probabilities_BxK: jax.Array, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the label and the likeliest class of each image, without padding.

  In every process those of all. The arguments are `on_batch`'s.
  """
  best_B = jnp.argmax(log_probabilities_BxK, axis=1)
  labels, mask, best = jax.device_get(
    placement.replicate(mesh, (batch["label"], batch["mask"], best_B))
  )
  return labels[mask > 0], best[mask > 0]


def evaluate_split(
  members: Sequence[Net], examples: Any, config: Any, mesh: Mesh
) -> dict[str, float]:
  """Returns the figures of all members together; see `evaluate_members`."""
  each = evaluate_members(members, examples, config, mesh)
  assert each
  return each[-1]
