"""Crop, mirror, colour noise and mean, on the device (paper 4.1)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What is done to an image, and the data set's statistics that it needs.

  Attributes:
    crop_size_px: side of the crop; paper: 224 of 256.
    random_crop: crop anywhere; otherwise at the centre.
    mirror: flip left and right with probability 1/2.
    colour_noise: noise along each principal axis of colour, in standard
      deviations of the data along it (`convdata.py`: 0.1); 0 for none. The
      paper prints the eigenvalue there, the program takes its square root.
    mean_image: [S, S, 3] float32, of the training split, 0..255.
    colour_axes: [3, 3] float32, a principal axis of RGB in each column.
    colour_sds: [3] float32, standard deviation along each axis, 0..255.
  """

  crop_size_px: int
  random_crop: bool
  mirror: bool
  colour_noise: float
  mean_image: np.ndarray
  colour_axes: np.ndarray
  colour_sds: np.ndarray


def from_config(config: Any, statistics: Any) -> Augmentation:
  """Returns what a config asks for.

  Args:
    config: a whole config.
    statistics: has `mean_image`, `colour_axes` and `colour_sds`, as above.
  """
  return Augmentation(
    crop_size_px=config.crop_size_px,
    random_crop=config.random_crop,
    mirror=config.mirror,
    colour_noise=config.colour_noise,
    mean_image=statistics.mean_image,
    colour_axes=statistics.colour_axes,
    colour_sds=statistics.colour_sds,
  )


def _crop(image: jax.Array, corner: jax.Array, size: int) -> jax.Array:
  return lax.dynamic_slice(image, (corner[0], corner[1], 0), (size, size, 3))


def augment(
  images_BxHxWxC: jax.Array, keys_B: jax.Array, augmentation: Augmentation
) -> jax.Array:
  """Returns a random view of each image, for training.

  Args:
    images_BxHxWxC: uint8 [B, S, S, 3].
    keys_B: one random key per image; the view depends on nothing else.
    augmentation: what to do.

  Returns:
    float32 [B, crop, crop, 3], the mean image subtracted pixel by pixel.
  """
  a = augmentation
  margin = images_BxHxWxC.shape[1] - a.crop_size_px
  mean_image = jnp.asarray(a.mean_image)
  shifts = jnp.asarray(a.colour_axes * (a.colour_sds * a.colour_noise)[None])

  def view(image: jax.Array, key: jax.Array) -> jax.Array:
    crop_key, mirror_key, colour_key = jax.random.split(key, 3)
    corner = jnp.full((2,), margin // 2)
    if a.random_crop:
      corner = jax.random.randint(crop_key, (2,), 0, margin + 1)
    crop = _crop(image, corner, a.crop_size_px).astype(jnp.float32)
    crop = crop - _crop(mean_image, corner, a.crop_size_px)
    if a.mirror:
      crop = jnp.where(jax.random.bernoulli(mirror_key), crop[:, ::-1], crop)
    if a.colour_noise:
      shift = shifts @ jax.random.normal(colour_key, (3,))
      crop = crop + shift[None, None, :]
    return crop

  return jax.vmap(view)(images_BxHxWxC, keys_B)


def centre(images_BxHxWxC: jax.Array, augmentation: Augmentation) -> jax.Array:
  """Returns the central crop of each image, for evaluation.

  Args:
    images_BxHxWxC: uint8 [B, S, S, 3].
    augmentation: gives the crop's side and the mean image.

  Returns:
    float32 [B, crop, crop, 3], the mean image subtracted pixel by pixel.
  """
  size = augmentation.crop_size_px
  margin = (images_BxHxWxC.shape[1] - size) // 2
  inner = slice(margin, margin + size)
  crops = images_BxHxWxC[:, inner, inner].astype(jnp.float32)
  return crops - jnp.asarray(augmentation.mean_image)[None, inner, inner]
