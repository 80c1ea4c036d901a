"""The linen module that runs any table of `networks.py`.

Shape letters, here and everywhere: B batch, H rows, W columns, C channels,
N units, K classes.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax import networks, ops
from alexnet_jax.runtime import errors


def _kernel_and_bias(
  module: Any, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  """Draws or finds a layer's parameters, in the dtype of the computation."""
  layer = module.layer
  kernel = module.param("kernel", nn.initializers.normal(layer.sigma), shape)
  bias = module.param("bias", nn.initializers.constant(layer.bias), shape[-1:])
  return kernel.astype(module.dtype), bias.astype(module.dtype)


class ConvLayer(nn.Module):
  """A `networks.Conv` with its parameters, held in float32."""

  layer: networks.Conv
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
    """Returns [B, H', W', filters]."""
    layer = self.layer
    inputs = x_BxHxWxC.shape[-1] // layer.towers
    shape = (layer.kernel, layer.kernel, inputs, layer.filters)
    return ops.conv(
      x_BxHxWxC,
      *_kernel_and_bias(self, shape),
      stride=layer.stride,
      padding=layer.padding,
      ceil=layer.ceil,
      towers=layer.towers,
    )


class DenseLayer(nn.Module):
  """A `networks.Dense` with its parameters, held in float32."""

  layer: networks.Dense
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BxN: jax.Array) -> jax.Array:
    """Returns [B, units]."""
    towers = self.layer.towers
    shape = (x_BxN.shape[-1] // towers, self.layer.units)
    return ops.dense(x_BxN, *_kernel_and_bias(self, shape), towers=towers)


class Stack(nn.Module):
  """Layers one after another.

  Attributes:
    layers: the records.
    dtype: of the computation.
  """

  layers: tuple[networks.Layer, ...]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, keys_B: jax.Array | None) -> jax.Array:
    """Runs the layers; `keys_B` as in `AlexNet.__call__`."""
    for layer in self.layers:
      match layer:
        case networks.Conv():
          x = ConvLayer(layer, self.dtype, name=layer.name)(x)
        case networks.Dense():
          x = DenseLayer(layer, self.dtype, name=layer.name)(x)
        case networks.Activation():
          x = ops.ACTIVATIONS[layer.function](x)
        case networks.LocalResponseNorm():
          x = ops.local_response_norm(
            x, layer.towers, layer.k, layer.alpha, layer.beta, layer.window
          )
        case networks.MapNorm():
          x = ops.map_norm(x, layer.k, layer.alpha, layer.beta, layer.window)
        case networks.MaxPool():
          x = ops.max_pool(x, layer.window, layer.stride, layer.ceil)
        case networks.AveragePool():
          x = ops.average_pool(x, layer.window, layer.stride)
        case networks.Dropout():
          keep = 1 - layer.rate
          if keys_B is not None:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, layer.place)
            x = ops.dropout(x, keys, layer.rate, layer.axis)
            x = x / keep if layer.rescaled else x
          elif not layer.rescaled:
            x = x * keep
        case networks.Join():
          if layer.axis:  # The towers of 2012 talk here.
            x = lax.all_gather(x, layer.axis, axis=x.ndim - 1, tiled=True)
        case networks.Flatten():
          x = ops.flatten(x, layer.towers)
    return x


class AlexNet(nn.Module):
  """A net of `networks.py`; `features` and `classifier` share no parameters.

  Attributes:
    network: the table.
    dtype: of the computation; parameters and logits are float32.
  """

  network: networks.Network
  dtype: jnp.dtype = jnp.dtype("float32")

  def setup(self):
    """Makes the two halves."""
    self.features = Stack(self.network.features, self.dtype)
    self.classifier = Stack(self.network.classifier, self.dtype)

  def extract(
    self, images_BxHxWxC: jax.Array, keys_B: jax.Array | None = None
  ) -> jax.Array:
    """Returns what the convolutional layers make of images, flat: [B, N]."""
    return self.features(images_BxHxWxC.astype(self.dtype), keys_B)

  def classify(
    self, x_BxN: jax.Array, keys_B: jax.Array | None = None
  ) -> jax.Array:
    """Returns the logits of what `extract` returned: float32 [B, K]."""
    return self.classifier(x_BxN, keys_B).astype(jnp.float32)

  def __call__(
    self, images_BxHxWxC: jax.Array, keys_B: jax.Array | None = None
  ) -> jax.Array:
    """Returns the logits of a batch of images.

    Args:
      images_BxHxWxC: float, on the 0..255 scale less the mean image, RGB.
      keys_B: one random key per example for dropout in training; None at test,
        where every unit stays, scaled by its chance to stay unless training
        was rescaled.

    Returns:
      logits_BxK in float32.
    """
    return self.classify(self.extract(images_BxHxWxC, keys_B), keys_B)


def from_config(config: Any) -> AlexNet:
  """Returns the module that a config describes, its shapes checked.

  Raises:
    InputError: see `networks.from_config`; an unknown `compute_dtype`.
  """
  dtypes = ("float32", "bfloat16")
  if config.compute_dtype not in dtypes:
    raise errors.unknown("compute_dtype", config.compute_dtype, dtypes)
  network = networks.from_config(config)
  return AlexNet(network, jnp.dtype(config.compute_dtype))
