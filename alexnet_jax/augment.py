"""Crop, mirror, colour noise and mean, on the device (paper 4.1)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from alexnet_jax import schedules
from alexnet_jax.ops import fold_in


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What is done to an image, and the statistics that it needs.

  Colour noise moves an image along each principal axis of colour by
  N(0, colour_noise) standard deviations of the data. The paper prints the
  eigenvalue there; the original program takes its square root (convdata.py).
  """

  crop_size_px: int  # paper: 224 of 256
  random_crop: bool  # anywhere; else at the centre
  mirror: bool  # flip left and right with probability 1/2
  images_per_view: int  # neighbours in a batch that share crop and mirror
  colour_noise: float  # convdata.py: 0.1; 0 for none
  colour_noise_steps: int  # steps with colour noise
  colour_noise_divisor: float  # of a noisy image; convdata.py: 1.1
  mean_image: np.ndarray  # [S, S, 3] float32, of the training split, 0..255
  colour_axes: np.ndarray  # [3, 3] float32, an axis in RGB per column
  colour_sds: np.ndarray  # [3] float32, deviation along each axis, 0..255
  input_scale: tuple[float, ...] = (1.0, 1.0, 1.0)  # of R, G and B, at the end
  mean_crop: str = "own place"  # of the crop; or "centre" (convdata.py)


def from_config(
  config: Any, statistics: Any, num_examples: int | None = None
) -> Augmentation:
  """Returns the augmentation that a config describes.

  Args:
    config: a complete config.
    statistics: of the data set, from `data.statistics`.
    num_examples: size of the training split; needed to train, not to test.
  """
  epochs, steps = config.colour_noise_epochs, 2**31 - 1
  if num_examples is not None and epochs is not None:
    steps = schedules.step_of_epoch(epochs, num_examples, config.batch_size)
  own = {
    field.name: config[field.name]
    for field in dataclasses.fields(Augmentation)
    if field.name in config
  }
  own |= {"colour_noise_steps": steps, "input_scale": tuple(config.input_scale)}
  return Augmentation(
    **own,
    mean_image=statistics.mean_image,
    colour_axes=statistics.colour_axes,
    colour_sds=statistics.colour_sds,
  )


def example_keys(seed: Any, step: Any, example_index_B: jax.Array) -> jax.Array:
  """Returns a random key per example, in every layout the same."""
  step_key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(jax.random.fold_in, (None, 0))(step_key, example_index_B)


def dropout_keys(seed: Any, step: Any, example_index_B: jax.Array) -> jax.Array:
  """Returns the keys that `AlexNet` draws dropout from."""
  return fold_in(example_keys(seed, step, example_index_B), 1)


def training_views(
  images_BxHxWxC: jax.Array,
  example_index_B: jax.Array,
  step: Any,
  seed: Any,
  augmentation: Augmentation,
) -> jax.Array:
  """Returns what the net sees of images in a step; see `augment`."""
  # Images that share a view take it from the first of them.
  firsts = example_index_B - example_index_B % augmentation.images_per_view
  return augment(
    images_BxHxWxC,
    fold_in(example_keys(seed, step, firsts), 0),
    fold_in(example_keys(seed, step, example_index_B), 2),
    step,
    augmentation,
  )


def _view(image: Any, corner: Any, mirrored: Any, a: Augmentation) -> jax.Array:
  """Returns a view of an image less the mean image, in float32."""
  size = a.crop_size_px

  def crop(pixels, corner):
    start = (corner[0], corner[1], 0)
    return lax.dynamic_slice(pixels, start, (size, size, 3))

  def mirror(pixels):
    return jnp.where(mirrored, pixels[:, ::-1], pixels)

  view = crop(image, corner).astype(jnp.float32)
  mean_image = jnp.asarray(a.mean_image)
  if a.mean_crop == "centre":
    margin = (len(mean_image) - size) // 2
    return mirror(view) - crop(mean_image, (margin, margin))
  return mirror(view - crop(mean_image, corner))


def _scaled(images: jax.Array, scale: tuple[float, ...]) -> jax.Array:
  factors = np.array(scale, np.float32).reshape((1,) * (images.ndim - 1) + (3,))
  return images if scale == (1, 1, 1) else images * factors


def augment(
  images_BxHxWxC: jax.Array,
  view_keys_B: jax.Array,
  colour_keys_B: jax.Array,
  step: Any,
  augmentation: Augmentation,
) -> jax.Array:
  """Returns a random view of each image less the mean image, for training.

  Args:
    images_BxHxWxC: uint8 [B, S, S, 3].
    view_keys_B: random keys of crop and mirroring; equal keys, equal views.
    colour_keys_B: random keys of the colour noise.
    step: steps done before.
    augmentation: what to do.

  Returns:
    float32 [B, crop, crop, 3].
  """
  a = augmentation
  margin = images_BxHxWxC.shape[1] - a.crop_size_px
  noisy = jnp.asarray(step) < a.colour_noise_steps
  shifts = jnp.asarray(a.colour_axes * (a.colour_sds * a.colour_noise)[None])
  shifts = jnp.where(noisy, shifts, 0.0)
  divisor = jnp.where(noisy, a.colour_noise_divisor, 1.0)

  def view(image, view_key, colour_key):
    crop_key, mirror_key = jax.random.split(view_key)
    corner = jnp.full((2,), margin // 2)
    if a.random_crop:
      corner = jax.random.randint(crop_key, (2,), 0, margin + 1)
    mirrored = jax.random.bernoulli(mirror_key) if a.mirror else False
    pixels = _view(image, corner, mirrored, a)
    if a.colour_noise:
      shift = shifts @ jax.random.normal(colour_key, (3,))
      pixels = (pixels + shift[None, None, :]) / divisor
    return _scaled(pixels, a.input_scale)

  return jax.vmap(view)(images_BxHxWxC, view_keys_B, colour_keys_B)


VIEWS = (1, 10)  # numbers of views to test with


def views(count: int, image_size_px: int, crop_size_px: int) -> np.ndarray:
  """Returns where the views of a test image lie (paper 4.1).

  One view is the centre; ten are the corners, the centre and their mirrors.
  Of an image without a margin the ten are two, of which each is given once.

  Returns:
    int32 [V, 3]: first row, first column, 1 where mirrored.
  """
  margin = image_size_px - crop_size_px
  centre = (margin // 2, margin // 2)
  if count == 1:
    return np.array([(*centre, 0)], np.int32)
  ends = (0, margin) if margin else ()
  corners = [(row, col) for row in ends for col in ends]
  return np.array(
    [(*at, mirrored) for mirrored in (0, 1) for at in (*corners, centre)],
    np.int32,
  )


def test_view(
  images_BxHxWxC: jax.Array, view: jax.Array, augmentation: Augmentation
) -> jax.Array:
  """Returns one view of each image less the mean image, for evaluation.

  From uint8 [B, S, S, 3] and a row of `views` to float32 [B, crop, crop, 3].
  """
  a = augmentation
  views = jax.vmap(_view, (0, None, None, None))(
    images_BxHxWxC, view[:2], view[2] > 0, a
  )
  return _scaled(views, a.input_scale)
