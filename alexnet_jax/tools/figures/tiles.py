"""Many small pictures side by side in one, without resampling."""

import numpy as np


def sheet(pictures_NxHxWx3: np.ndarray, across: int) -> np.ndarray:
  """Returns pictures row by row, with transparent lines between them.

  Args:
    pictures_NxHxWx3: uint8.
    across: pictures in a row.

  Returns:
    uint8 [..., ..., 4], RGB and opacity.
  """
  count, height, width, _ = pictures_NxHxWx3.shape
  down = -(-count // across)
  size = down * (height + 1) - 1, across * (width + 1) - 1
  pixels = np.zeros((*size, 4), np.uint8)
  for number, picture in enumerate(pictures_NxHxWx3):
    row, column = divmod(number, across)
    top, left = row * (height + 1), column * (width + 1)
    pixels[top : top + height, left : left + width, :3] = picture
    pixels[top : top + height, left : left + width, 3] = 255
  return pixels


def scaled(arrays_NxHxWxC: np.ndarray) -> np.ndarray:
  """Returns uint8 [N, H, W, 3]: each array from its lowest to its highest.

  Args:
    arrays_NxHxWxC: float, C of 1 or 3. A constant array becomes grey.
  """
  axes = (1, 2, 3)
  low = arrays_NxHxWxC.min(axis=axes, keepdims=True)
  high = arrays_NxHxWxC.max(axis=axes, keepdims=True)
  span = np.where(high > low, high - low, 1)
  shares = np.where(high > low, (arrays_NxHxWxC - low) / span, 0.5)
  shape = (*arrays_NxHxWxC.shape[:3], 3)
  return np.broadcast_to(np.round(255 * shares), shape).astype(np.uint8)


def filters(kernel_HxWxCxN: np.ndarray, towers: int) -> np.ndarray:
  """Returns a sheet of filters, each scaled on its own (paper, Fig. 3).

  Args:
    kernel_HxWxCxN: float, of one channel or three.
    towers: 1, or 2: the first half above a gap, the second below.
  """
  height, count = kernel_HxWxCxN.shape[0], kernel_HxWxCxN.shape[-1]
  across = min(16 if count >= 32 else 8, count // towers)
  pictures = scaled(np.moveaxis(kernel_HxWxCxN, -1, 0))
  blocks = [sheet(part, across) for part in np.split(pictures, towers)]
  gap = np.zeros((max(2, height // 2), blocks[0].shape[1], 4), np.uint8)
  parts = [part for block in blocks for part in (gap, block)]
  return np.concatenate(parts[1:])


def colourfulness(kernel_HxWx3xN: np.ndarray) -> np.ndarray:
  """Returns how much of each filter's energy is in colour, 0 to 1, [N].

  It is the share of its squared weights that is left when each pixel's mean
  over R, G and B is subtracted.
  """
  grey = kernel_HxWx3xN.mean(axis=2, keepdims=True)
  chroma = ((kernel_HxWx3xN - grey) ** 2).sum(axis=(0, 1, 2))
  energy = (kernel_HxWx3xN**2).sum(axis=(0, 1, 2))
  return chroma / np.maximum(energy, np.finfo(energy.dtype).tiny)
