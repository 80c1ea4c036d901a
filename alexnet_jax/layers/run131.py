"""The layers of runs 131 and 135 that no later run has (layers-131.cfg)."""

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import ops
from alexnet_jax.model import Layer


class ContrastNorm(Layer):
  """Normalizes each map by the contrast around each pixel."""

  output_name = "norm"
  input_ranks = (3,)
  k: float = 1.0
  alpha: float = 1e-3 / 25
  beta: float = 0.75
  window: int = 5  # side in pixels

  def __call__(self, x, keys_B=None):
    return contrast_norm(x, self.window, self.k, self.alpha, self.beta)


class Blur(Layer):
  """Blurs maps and keeps every `stride`-th pixel."""

  input_ranks = (3,)
  sigma: float = 4.0  # in pixels
  window: int = 9  # side in pixels
  stride: int = 4

  def __call__(self, x, keys_B=None):
    return blur(x, self.sigma, self.window, self.stride)


def contrast_norm(
  x_BxHxWxC: jax.Array, window: int, k: float, alpha: float, beta: float
) -> jax.Array:
  """Divides each activity by the deviations around it (`type=cnorm`).

  `x / (k + alpha * sum of (x - m)^2 over the window) ** beta`, where m is the
  mean of the window around each pixel; computed in float32. Windows end at the
  edges of the map. cuda-convnet computes it so; the kernels of 2012 are not
  public.
  """
  x = x_BxHxWxC.astype(jnp.float32)
  square = (window, window, 1)
  pixels = ops.window_sum(jnp.ones((1, *x.shape[1:3], 1)), 1, square)
  deviations = x - ops.window_sum(x, 1, square) / pixels
  s = k + alpha * ops.window_sum(deviations * deviations, 1, square)
  return (x * ops.inverse_power(s, beta)).astype(x_BxHxWxC.dtype)


def blur(
  x_BxHxWxC: jax.Array, sigma: float, window: int, stride: int
) -> jax.Array:
  """Blurs by a Gaussian (`type=blur`), then samples (`type=nailbed`).

  The Gaussian has `window` weights along an axis, which add up to 1; it reads
  zeros beyond the edges. The first pixel of each axis is kept.
  """
  reach = window // 2

  def weights(shifts):
    near = np.abs(shifts) <= reach
    return near * np.exp(-(shifts**2) / (2 * sigma**2))

  def matrix(size):  # [pixels that are kept, size]
    shifts = np.arange(size) - np.arange(0, size, stride)[:, None]
    total = weights(np.arange(-reach, reach + 1)).sum()
    return jnp.array(weights(shifts) / total, x_BxHxWxC.dtype)

  rows, cols = map(matrix, x_BxHxWxC.shape[1:3])
  return jnp.einsum("ih,bhwc,jw->bijc", rows, x_BxHxWxC, cols)
