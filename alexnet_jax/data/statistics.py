"""Mean image and principal colours of a training split, on the 0..255 scale.

They lie beside the shards, and in the workdir of a run: `mean_image.npy`
([S, S, 3] float32) and `colour_pca.json`, the principal axes of RGB and the
standard deviations along them.
"""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np

from alexnet_jax.runtime import errors

FILES = ("mean_image.npy", "colour_pca.json")


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What the net's input needs to know of the training split.

  Attributes:
    mean_image: [S, S, 3] float32, 0..255.
    colour_axes: [3, 3] float32, a principal axis of RGB in each column.
    colour_sds: [3] float32, standard deviation along each, ascending.
  """

  mean_image: np.ndarray
  colour_axes: np.ndarray
  colour_sds: np.ndarray


@dataclasses.dataclass
class Sums:
  """Integer sums over pixels: exact, whatever the order of the images."""

  count: int
  image: np.ndarray  # [S, S, 3] int64
  products: np.ndarray  # [3, 3] int64

  @classmethod
  def zero(cls, size_px: int) -> "Sums":
    """Returns the sums of no image."""
    image = np.zeros((size_px, size_px, 3), np.int64)
    return cls(0, image, np.zeros((3, 3), np.int64))

  def add_image(self, image: np.ndarray) -> None:
    """Adds one image, uint8 [S, S, 3]."""
    self.count += 1
    self.image += image
    colours = image.reshape(-1, 3).T.astype(np.uint32, order="C")
    for start in range(0, colours.shape[1], 2**16):
      # So many products of bytes add up below 2**32. Not by BLAS, whose threads
      # would be in the way of other workers.
      part = colours[:, start : start + 2**16]
      self.products += np.einsum("ci,di->cd", part, part)

  def add(self, other: "Sums") -> None:
    """Adds the sums of other images."""
    self.count += other.count
    self.image += other.image
    self.products += other.products

  def statistics(self) -> Statistics:
    """Returns mean and principal axes, computed in float64."""
    pixels = self.count * self.image.shape[0] * self.image.shape[1]
    mean = self.image.sum((0, 1)) / pixels
    covariance = self.products / pixels - np.outer(mean, mean)
    variances, axes = np.linalg.eigh(covariance)
    return Statistics(
      mean_image=(self.image / self.count).astype(np.float32),
      colour_axes=axes.astype(np.float32),
      colour_sds=np.sqrt(np.maximum(variances, 0)).astype(np.float32),
    )


def read(directory: Path) -> Statistics:
  """Returns the statistics beside the shards, or of a run in its workdir.

  Raises:
    InputError: a file is missing or damaged.
  """
  try:
    pca = json.loads((directory / "colour_pca.json").read_text())
    # Mapped, as a header can ask for more than there is of either; no pickle
    # and no archive can be.
    mean_image = np.lib.format.open_memmap(
      directory / "mean_image.npy", mode="r"
    )
    held = Statistics(
      mean_image=np.array(mean_image),
      colour_axes=np.array(pca["axes_in_columns"], np.float32),
      colour_sds=np.array(pca["standard_deviations"], np.float32),
    )
    for values, shape in (
      (held.mean_image, (len(held.mean_image),) * 2 + (3,)),
      (held.colour_axes, (3, 3)),
      (held.colour_sds, (3,)),
    ):
      if values.shape != shape:
        raise ValueError(f"{values.shape} numbers where {shape} are due")
      if not np.isfinite(values).all():
        raise ValueError("numbers that are not finite")
    return held
  # NumPy's errors on a damaged header are of many kinds.
  except Exception as e:
    reason = " ".join(str(e).split())
    raise errors.InputError(
      f"{str(directory)!r} has no usable mean_image.npy and colour_pca.json"
      f" ({reason}); make the directory with python -m"
      " alexnet_jax.data.prepare.command."
    ) from e


def write(directory: Path, statistics: Statistics) -> None:
  """Writes what `read` reads."""
  # Into a file itself, numpy does not notice that a disk is full.
  image = io.BytesIO()
  np.save(image, statistics.mean_image)
  (directory / "mean_image.npy").write_bytes(image.getvalue())
  pca = {
    "axes_in_columns": statistics.colour_axes.tolist(),
    "standard_deviations": statistics.colour_sds.tolist(),
  }
  (directory / "colour_pca.json").write_text(json.dumps(pca, indent=2) + "\n")
