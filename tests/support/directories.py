"""Prepared directories for the tests of what reads them."""

import numpy as np

from alexnet_jax.data import batches
from alexnet_jax.data.prepare import shards


def write_shards(directory, splits, class_names, size_px, encoder, raw=False):
  """Writes splits of (item, label) in this process."""
  with shards.claim(directory) as work:
    shards.write(
      work,
      directory,
      splits,
      class_names=class_names,
      size_px=size_px,
      encoder=encoder,
      raw=raw,
      workers=0,
    )
  return directory


def encode_pixels(item):
  """Encodes an image that is given as nested lists, by its own pixels."""
  pixels = np.array(item, np.uint8)
  return pixels, pixels.tobytes()


def write_pictures(directory, class_names, **splits):
  """Writes raw images, uint8 [N, S, S, 3], of each split."""
  size_px = next(iter(splits.values())).shape[1]
  examples = {
    split: [(x.tolist(), i % len(class_names)) for i, x in enumerate(images)]
    for split, images in splits.items()
  }
  return write_shards(
    directory, examples, class_names, size_px, encode_pixels, raw=True
  )


def training_batches(
  examples, *, size_px, batch_size, seed=0, threads=1, rows=None
):
  """Iterates over training batches, as a feed that streams."""
  return batches.iterate(
    batches.ShuffledBatches(len(examples), batch_size, seed, rows),
    lambda indices: batches.load(examples, indices, size_px),
    threads=threads,
  )
