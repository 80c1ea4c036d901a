"""Mean image and principal colours of a training split, on the 0..255 scale."""

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np

from alexnet_jax.runtime import errors, files

FILES = ("mean_image.npy", "colour_pca.json")


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What preprocessing needs to know of the training split."""

  mean_image: np.ndarray  # float32 [S, S, 3], 0..255.
  colour_axes: np.ndarray  # float32 [3, 3], a principal axis in each column.
  colour_sds: np.ndarray  # float32 [3], along each axis, ascending.
  measured_of: str = ""  # Digest of the split, if a run has measured it.


@dataclasses.dataclass
class Sums:
  """Integer sums over pixels: exact in any order of the images."""

  count: int
  image: np.ndarray  # int64 [S, S, 3]
  products: np.ndarray  # int64 [3, 3]

  @classmethod
  def zero(cls, size_px: int) -> "Sums":
    """Returns the sums of no image."""
    image = np.zeros((size_px, size_px, 3), np.int64)
    return cls(0, image, np.zeros((3, 3), np.int64))

  def add_image(self, image: np.ndarray) -> None:
    """Adds one image, uint8 [S, S, 3]."""
    self.count += 1
    self.image += image
    # No BLAS, as its threads would slow the other workers.
    colours = image.reshape(-1, 3).T.astype(np.int64, order="C")
    self.products += np.einsum("ci,di->cd", colours, colours)

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


def read(directory: Path, size_px: int) -> Statistics:
  """Reads the statistics of a data set or a run.

  Raises InputError if they are damaged, or not of images of this size.
  """
  shape = (size_px, size_px, 3)
  try:
    data = files.read(directory / FILES[0], 4 * math.prod(shape) + 2**16)
    mean_image = np.lib.format.read_array(io.BytesIO(data))  # Never unpickled.
    pca = json.loads(files.read(directory / FILES[1], 2**16))
    axes = np.array(pca["axes_in_columns"], np.float32)
    sds = np.array(pca["standard_deviations"], np.float32)
    if (mean_image.dtype, mean_image.shape) != (np.float32, shape):
      raise ValueError(
        f"a mean image of {mean_image.dtype} {list(mean_image.shape)}, not of"
        f" float32 {list(shape)}"
      )
    if (axes.shape, sds.shape) != ((3, 3), (3,)):
      raise ValueError(f"axes {list(axes.shape)}, deviations {list(sds.shape)}")
    if not all(np.isfinite(x).all() for x in (mean_image, axes, sds)):
      raise ValueError("some values are not finite")
    return Statistics(mean_image, axes, sds, pca.get("measured_of", ""))
  except Exception as e:  # NumPy raises many kinds for a damaged header.
    raise errors.InputError(
      f"{str(directory)!r} has no usable mean_image.npy and colour_pca.json"
      f" for image_size_px={size_px} ({errors.reason(e)}); copy both from"
      " the data set, or remove both: the next start of training measures them."
    ) from e


def write(directory: Path, statistics: Statistics) -> None:
  """Writes the two files."""
  # So that the second, the last to be written, never belongs to another first.
  (directory / FILES[1]).unlink(missing_ok=True)
  # np.save(file) would not notice a full disk.
  image = io.BytesIO()
  np.save(image, statistics.mean_image)
  (directory / FILES[0]).write_bytes(image.getvalue())
  pca = {
    "axes_in_columns": statistics.colour_axes.tolist(),
    "standard_deviations": statistics.colour_sds.tolist(),
  }
  if statistics.measured_of:
    pca["measured_of"] = statistics.measured_of
  (directory / FILES[1]).write_text(json.dumps(pca, indent=2) + "\n")
