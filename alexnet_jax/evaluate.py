"""The error of runs on a whole split, every example counted once."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alexnet_jax import metrics, steps
from alexnet_jax.data import batches
from alexnet_jax.parallel import placement
from alexnet_jax.runtime import platforms


@dataclasses.dataclass(frozen=True)
class Net:
  """A net to evaluate."""

  view_step: Callable[..., jax.Array]  # from `steps.make_view_step`
  params: Any  # on the mesh
  views: np.ndarray  # int32 [V, 3], from `augment.views`
  weight: float = 1.0  # of the net beside the others


@jax.jit
def _add(total_BxK: jax.Array, log_probabilities_BxK: jax.Array, share: Any):
  return jnp.logaddexp(total_BxK, log_probabilities_BxK + jnp.log(share))


def log_mean_exp(parts: Iterable[tuple[float, jax.Array]]) -> Any:
  """Returns the log of a mean of probabilities, from (share, log of each)."""
  total: Any = -math.inf
  for share, seen_BxK in parts:
    total = seen_BxK if share == 1 else _add(total, seen_BxK, np.float32(share))
  return total


_sums = jax.jit(metrics.sums)


def evaluate_nets(
  nets: Sequence[Net],
  examples: Any,
  config: Any,
  mesh: Mesh,
  should_stop: Callable[[], bool] = lambda: False,
  on_batch: Callable[[steps.Batch, list[jax.Array]], Any] | None = None,
) -> list[dict[str, float]] | None:
  """Returns loss, top-1 and top-5 error (fractions) and images per second.

  Of each net and, of several, of all together; None if it had to stop. A net
  predicts the mean of the softmaxes of its views, and several nets the weighted
  mean of theirs (paper 4.1 and 6).

  Args:
    nets: one or several.
    examples: from `records.open_split`.
    config: a complete config.
    mesh: where to compute.
    should_stop: called before each batch.
    on_batch: called with each batch, in which a row of `mask` 0 is padding, and
      the log probabilities [B, K] of each net and, of several, of all together.

  Raises:
    InputError: a damaged example, or no batch within `input_timeout_s`.
  """
  start = platforms.clock()
  weight = sum(net.weight for net in nets)
  totals: list[metrics.Totals] = [
    {} for _ in range(len(nets) + (len(nets) > 1))
  ]
  # Rounded up to fit any number of devices; extra rows are padding.
  most = min(config.batch_size, len(examples))
  batch_size = -(-most // mesh.size) * mesh.size
  shape = (batch_size,)
  (rows,) = placement.local_places(mesh, placement.BATCH, shape)
  stream = batches.eval_batches(
    examples,
    size_px=config.image_size_px,
    batch_size=batch_size,
    threads=config.reader_threads,
    rows=rows,
  )
  for found in batches.with_timeout(stream, config.input_timeout_s):
    if should_stop():
      return None
    batch = placement.put_batch(mesh, placement.BATCH, shape, found)
    each = [
      log_mean_exp(
        (1 / len(net.views), net.view_step(net.params, batch, view))
        for view in net.views[:, None]  # One by one: a batch is large.
      )
      for net in nets
    ]
    if len(nets) > 1:
      shares = [net.weight / weight for net in nets]
      each.append(log_mean_exp(zip(shares, each, strict=True)))
    if on_batch:
      on_batch(batch, each)
    for total, seen in zip(totals, each, strict=True):
      metrics.add(total, _sums(seen, batch["label"], batch["mask"]))
  seconds = platforms.clock() - start
  return [
    metrics.means(total) | {"images_per_second": total["examples"] / seconds}
    for total in totals
  ]
