"""LARS, for large batches: rates by the length of weights and updates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from alexnet_jax.parallel import collectives

Split = Callable[[Any], tuple[str, ...]]
"""From the path of an array to the mesh axes that it is split over."""


def scale_by_trust_ratio(
  coefficient: float, split: Split
) -> optax.GradientTransformation:
  """Returns `u * coefficient |w| / |u|` for updates u of kernels.

  As optax's, but lengths are those of whole arrays, however they are split
  over devices. The ratio is 1 where a length is 0; biases keep their updates.

  Args:
    coefficient: length of a step as a fraction of the length of the weights.
    split: how arrays are split.

  Source: optax.lars. You et al. 2017 (arXiv 1708.03888, algorithm 1) divide by
  the sum of the lengths of gradient and decay; here, and in optax, it is the
  length of their sum.
  """

  def scaled(path, u, w):
    if path[-1].key != "kernel":
      return u
    squares = jnp.sum(w * w), jnp.sum(u * u)
    own, wanted = map(jnp.sqrt, collectives.psum_if(squares, split(path)))
    no_ratio = (own == 0) | (wanted == 0)
    return u * jnp.where(no_ratio, 1.0, coefficient * own / wanted)

  return optax.stateless(
    lambda updates, params: jax.tree.map_with_path(scaled, updates, params)
  )
