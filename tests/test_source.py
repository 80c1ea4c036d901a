"""Batches of prepared shards: nothing lost, nothing twice, resumable."""

import io
import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import errors
from alexnet_jax.data import shards, source

SIZE_PX = 16
COUNT = 23  # Prime, so that no batch size divides it.
CLASSES = 3
SEED = 7


def encode(item, size_px):
  """An 8x8 grid of bits: its first row says split, the others which image."""
  bits = [item >> bit & 1 for bit in range(16)]
  rows = np.repeat(np.reshape(bits, (2, 8)), 8, axis=0)
  image = np.repeat(np.repeat(rows[::4], 4, axis=0), 2, axis=1)
  file = io.BytesIO()
  pixels = np.stack([image * 200 + 20] * 3, axis=-1).astype(np.uint8)
  Image.fromarray(pixels).resize((size_px, size_px), 0).save(file, "JPEG")
  return file.getvalue()
