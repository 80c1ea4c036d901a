"""AlexNet as a table of layers, read from the image to the logits.

A layer is one class: its fields are its row of the table, `__call__` is its
mathematics (ops.py), and `describe` gives its output shape and its size. A new
kind of layer is a class here and a word in `networks.LAYERS`.

Shape letters, here and everywhere: B batch, H rows, W columns, C channels,
N units, K classes.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax import ops
from alexnet_jax.runtime import platforms

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
  """A layer, and what it makes of one image."""

  layer: "Layer"
  output_shape: Shape  # [H, W, C] or [N]
  parameters: int  # weights and biases
  macs: int  # multiply-accumulates


class Layer(nn.Module):
  """A row of the table."""

  # The output is called norm1 or pool1, or like the layer with weights before
  # it (""); None for an output that has no name.
  output_name: ClassVar[str | None] = None
  input_ranks: ClassVar[tuple[int, ...]] = (1, 3)  # of [N] and [H, W, C]

  def describe(self, shape: Shape) -> Row:
    """Returns the row for an image's input shape; raises ValueError if bad."""
    if len(shape) not in self.input_ranks:
      maps = "maps; put it before the fully connected layers"
      wanted = maps if self.input_ranks == (3,) else "units, after Flatten"
      raise ValueError(f"it needs {wanted}")
    towers = getattr(self, "towers", 1)
    outputs = getattr(self, "filters", 0) or getattr(self, "units", 0)
    for count, what in ((shape[-1], "inputs"), (outputs, "outputs")):
      if count % towers:
        raise ValueError(
          f"{count} {what} are not divisible by {towers} towers; change"
          " network.towers, or filters or units"
        )
    layer: Any = self
    y, arrays = _shapes(layer, shape)
    weights = sum(array.size for array in arrays if array.ndim > 1)
    macs = weights * math.prod(y.shape[1:-1])
    return Row(self, y.shape[1:], sum(array.size for array in arrays), macs)

  def local(self, parts: int, axis: str) -> "Layer":
    """Returns what one of `parts` devices along a mesh axis runs of it."""
    fields: dict[str, Any] = {}
    for name in ("filters", "units", "towers"):
      if hasattr(self, name):
        fields[name] = max(getattr(self, name) // parts, 1)
    if hasattr(self, "axis"):
      fields["axis"] = axis
    return self.clone(**fields)


@functools.cache  # Flax takes milliseconds for each layer.
def _shapes(layer: Any, shape: Shape) -> tuple[Any, list[Any]]:
  """Returns the shapes of a layer's output for one image, and of its arrays."""
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  y, variables = jax.eval_shape(layer.init_with_output, jax.random.key(0), x)
  return y, jax.tree.leaves(variables)


class Weighted(Layer):
  """A layer with a kernel and a bias, which are stored in float32."""

  output_name = ""
  towers: int = 1  # a unit sees its own tower alone; 1 where it sees all
  # Standard deviation of the initial weights; None for that of He et al.
  sigma: float | None = 0.01
  bias: float | None = 0.0  # initial bias; None for no bias

  def draw_params(self, dtype: Any, *shape: int) -> tuple[Any, Any]:
    """Returns the kernel in a dtype, and the bias in float32 or None."""
    sigma = self.sigma or math.sqrt(2 / math.prod(shape[:-1]))
    draw = nn.initializers.normal(sigma)
    kernel = self.param("kernel", draw, shape).astype(dtype)
    if self.bias is None:
      return kernel, None
    fill = nn.initializers.constant(self.bias)
    return kernel, self.param("bias", fill, shape[-1:])


class Conv(Weighted):
  """Convolution within each tower, or over all of them (paper 3.2)."""

  input_ranks = (3,)
  filters: int = 0  # in all towers together
  kernel: int = 1  # side of a filter in pixels
  stride: int = 1
  padding: int = 0
  ceil_mode: bool = True  # whether the last window may pass the edge

  @nn.compact
  def __call__(self, x, keys_B=None):
    shape = self.kernel, self.kernel, x.shape[-1] // self.towers, self.filters
    return ops.conv(
      x,
      *self.draw_params(x.dtype, *shape),
      stride=self.stride,
      padding=self.padding,
      ceil_mode=self.ceil_mode,
      towers=self.towers,
    )


class Dense(Weighted):
  """Fully connected layer, within each tower or over all of them."""

  input_ranks = (1,)
  units: int = 0  # in all towers together
  output_dtype: Any = None  # of sums and outputs; None: that of the inputs

  @nn.compact
  def __call__(self, x, keys_B=None):
    shape = x.shape[-1] // self.towers, self.units
    params = self.draw_params(x.dtype, *shape)
    return ops.dense(x, *params, towers=self.towers, dtype=self.output_dtype)


class Activation(Layer):
  """Nonlinearity: a name in `ops.ACTIVATIONS` (paper 3.1)."""

  output_name = ""
  function: str = "relu"

  def __call__(self, x, keys_B=None):
    return ops.ACTIVATIONS[self.function](x)


class LocalResponseNorm(Layer):
  """Response normalization over the channels of each tower (paper 3.3)."""

  output_name = "norm"
  input_ranks = (3,)
  towers: int = 1
  k: float = 2.0
  alpha: float = 1e-4  # weighs the sum of squares, not their mean
  beta: float = 0.75
  window: int = 5  # in channels

  def __call__(self, x, keys_B=None):
    window = (1, 1, self.window)
    return ops.response_norm(
      x, self.towers, window, self.k, self.alpha, self.beta
    )


class MapNorm(Layer):
  """Response normalization over the pixels of each map (layers-145.cfg)."""

  output_name = "norm"
  input_ranks = (3,)
  k: float = 1.0
  alpha: float = 1e-3 / 25
  beta: float = 0.75
  window: int = 5  # side in pixels

  def __call__(self, x, keys_B=None):
    window = (self.window, self.window, 1)
    return ops.response_norm(x, 1, window, self.k, self.alpha, self.beta)


class MaxPool(Layer):
  """Max pooling; overlapping if the window is wider than the stride (3.4)."""

  output_name = "pool"
  input_ranks = (3,)
  window: int = 3
  stride: int = 2
  ceil_mode: bool = True  # whether the last window may pass the edge

  def __call__(self, x, keys_B=None):
    return ops.max_pool(x, self.window, self.stride, self.ceil_mode)


class Dropout(Layer):
  """Drops units in training (paper 4.2)."""

  rate: float = 0.5  # probability that a unit is dropped
  dropout_index: int = 0  # place in the table; picks the random numbers
  # Divide by 1 - rate in training; the paper multiplies by it at test.
  rescaled: bool = False
  axis: str | None = None  # mesh axis that the units are split over

  def __call__(self, x, keys_B=None):
    keep = 1 - self.rate
    if keys_B is None:
      return x if self.rescaled else x * keep
    keys_B = ops.fold_in(keys_B, self.dropout_index)
    x = ops.dropout(x, keys_B, self.rate, self.axis)
    return x / keep if self.rescaled else x


class Join(Layer):
  """The towers meet: the next layer sees the channels of all (paper 3.2)."""

  axis: str | None = None  # mesh axis of the towers; None on one device

  def __call__(self, x, keys_B=None):
    if self.axis is None:
      return x
    return lax.all_gather(x, self.axis, axis=x.ndim - 1, tiled=True)


class Flatten(Layer):
  """Maps become units, those of a tower together; channels run fastest."""

  input_ranks = (3,)
  towers: int = 1

  def __call__(self, x, keys_B=None):
    return ops.flatten(x, self.towers)


@dataclasses.dataclass(frozen=True)
class Network:
  """A table: layers from the image to the logits, in two halves."""

  input_size_px: int  # side of the square RGB image
  towers: int  # blocks that the channels of every layer are divided into
  features: tuple[Layer, ...]  # up to and with Flatten
  classifier: tuple[Layer, ...]  # fully connected


class Half(nn.Module):
  """The layers of one half of a table, one after another."""

  network: Network
  half: str  # features or classifier
  precision: str

  @nn.compact
  def __call__(self, x, keys_B):
    with platforms.matmul_precision(self.precision):
      for layer in getattr(self.network, self.half):
        x = layer.clone(parent=self)(x, keys_B)
    return x


class AlexNet(nn.Module):
  """Runs a table; `features` and `classifier` share no parameters."""

  network: Network
  dtype: Any = jnp.float32  # of the computation; parameters are float32
  precision: str = "default"  # of products: `platforms.matmul_precision`

  def setup(self):
    self.features = Half(self.network, "features", self.precision)
    self.classifier = Half(self.network, "classifier", self.precision)

  def __call__(
    self, images_BxHxWxC: jax.Array, keys_B: jax.Array | None = None
  ) -> jax.Array:
    """Returns logits_BxK in float32.

    Args:
      images_BxHxWxC: RGB, on the 0..255 scale less the mean image.
      keys_B: one random key per example for dropout; None at test.
    """
    x = self.features(images_BxHxWxC.astype(self.dtype), keys_B)
    return self.classifier(x, keys_B)

  def extract(self, images_BxHxWxC: Any, keys_B: Any = None) -> Any:
    """Returns the flat output of the convolutional half, [B, N]."""
    return self.features(images_BxHxWxC.astype(self.dtype), keys_B)

  def classify(self, x_BxN: Any, keys_B: Any = None) -> Any:
    """Returns the logits of what `extract` returned."""
    return self.classifier(x_BxN, keys_B)
