"""Average pooling, of cuda-convnet's CIFAR-10 nets (layers-19pct.cfg)."""

import functools

import jax
import jax.numpy as jnp

from alexnet_jax import ops
from alexnet_jax.model import Layer


class AveragePool(Layer):
  """Average pooling over the pixels that each window really holds."""

  output_name = "pool"
  input_ranks = (3,)
  window: int = 3
  stride: int = 2

  def __call__(self, x, keys_B=None):
    return average_pool(x, self.window, self.stride)


def _window_total(x: jax.Array, window: int, stride: int) -> jax.Array:
  padded = ops.pad(x, ops.window_pads(x, window, stride, 0, True))
  return functools.reduce(jnp.add, ops.slices(padded, window, stride))


def _pixel_counts(x: jax.Array, window: int, stride: int) -> jax.Array:
  """Counts the pixels in each window, without padding: [1, H', W', 1]."""
  return _window_total(jnp.ones((1, *x.shape[1:3], 1), x.dtype), window, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def average_pool(x_BxHxWxC: jax.Array, window: int, stride: int) -> jax.Array:
  """Averages the pixels of each window, without padding (layers-19pct.cfg)."""
  total = _window_total(x_BxHxWxC, window, stride)
  return total / _pixel_counts(x_BxHxWxC, window, stride)


def _average_pool_forward(x, window, stride):
  counts = _pixel_counts(x, window, stride)
  return average_pool(x, window, stride), (counts, x.shape[1:3])


def _average_pool_backward(window, stride, residuals, dy):
  counts, sides = residuals
  return (ops.unpool(dy / counts, None, sides, window, stride),)


average_pool.defvjp(_average_pool_forward, _average_pool_backward)
