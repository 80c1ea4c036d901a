"""Prepared directories for the tests of what reads them."""

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
      description="",
      raw=raw,
      workers=0,
    )
  return directory
