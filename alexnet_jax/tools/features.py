"""What a layer makes of every image of a split, in a file.

  alexnet features --workdir=RUN --split=test --output=FILE.npz

FILE.npz holds `features` float32 [N, ...], `labels` int64 [N], `class_names`
and `layer`; FILE.array_record an example each, as TFDS writes them, of
`features` (flat), `shape` and `label`. `alexnet probe` learns
from the .npz.
"""

import contextlib
import errno
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from array_record.python import (
  array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data import batches, records
from alexnet_jax.runs import opened
from alexnet_jax.runtime import cli, errors
from alexnet_jax.tools import inference

_BATCH = 64
_ExampleProto: Any = getattr(tf_example_pb2, "Example")  # noqa: B009


def check_single(model: inference.Model) -> None:
  """Raises InputError for an ensemble."""
  if len(model.members) > 1:
    raise errors.InputError(
      f"the run holds {len(model.members)} nets of an ensemble, whose features"
      " are not of one kind; take a run of a single net."
    )


def batches_of(
  model: inference.Model, examples: records.Examples
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields images uint8 [B, S, S, 3] and labels int [B] of a split, in order.

  Args:
    model: whose images they are to be.
    examples: from `opened.examples_of`.

  Raises:
    InputError: a damaged example, or no batch within `input_timeout_s`.
  """
  config = model.config
  stream = batches.eval_batches(
    examples,
    size_px=config.image_size_px,
    batch_size=_BATCH,
    threads=config.reader_threads,
  )
  with cli.progress("images", len(examples)) as advance:
    for batch in batches.WithTimeout(stream, config.input_timeout_s):
      real = batch["mask"] > 0
      yield batch["image"][real], batch["label"][real]
      advance(int(real.sum()))


def nearest(
  features_NxD: np.ndarray, queries_QxD: np.ndarray, count: int
) -> np.ndarray:
  """Returns which features are nearest to each query, int [Q, count].

  By Euclidean distance (paper 6.1), the nearest first.
  """
  # |f - q|^2 without |q|^2, which is the same for all; float32, as a product.
  squares_N = np.einsum("nd,nd->n", features_NxD, features_NxD)
  distances_QxN = squares_N[None] - 2 * (queries_QxD @ features_NxD.T)
  some = np.argpartition(distances_QxN, min(count, len(squares_N)) - 1, axis=1)
  some = some[:, :count]
  held = np.take_along_axis(distances_QxN, some, axis=1)
  return np.take_along_axis(some, held.argsort(axis=1, kind="stable"), axis=1)


def write(
  file: Path, model: inference.Model, examples: records.Examples, layer: str
) -> None:
  """Writes a layer's outputs for a split as they come, a batch in memory.

  Args:
    file: `.npz`, else of array records.
    model: of one net.
    examples: from `opened.examples_of`.
    layer: see `Model.features`.

  Raises:
    InputError: see `check_single`, `batches_of` and `Model.features`.
  """
  check_single(model)
  found = (
    (model.features(images, layer), labels.astype(np.int64))
    for images, labels in batches_of(model, examples)
  )
  if file.suffix == ".npz":
    about = {"layer": layer, "class_names": examples.dataset.class_names}
    _write_arrays(file, found, len(examples), about)
  else:
    _write_records(file, found)


def _write_arrays(
  file: Path,
  found: Iterator[tuple[np.ndarray, np.ndarray]],
  count: int,
  about: dict[str, Any],
) -> None:
  """Writes what np.savez would, which wants all features at once."""
  labels: list[np.ndarray] = []
  with zipfile.ZipFile(file, "w") as archive:
    with archive.open("features.npy", "w", force_zip64=True) as part:
      for features, own in found:
        if not labels:
          header = np.lib.format.header_data_from_array_1_0(features)
          header["shape"] = (count, *features.shape[1:])
          np.lib.format.write_array_header_1_0(part, header)
        part.write(features.tobytes())
        labels.append(own)
    about = {"labels": np.concatenate(labels), **about}
    for name, value in about.items():
      with archive.open(f"{name}.npy", "w") as part:
        np.lib.format.write_array(part, np.asarray(value), allow_pickle=False)


def _write_records(
  file: Path, found: Iterator[tuple[np.ndarray, np.ndarray]]
) -> None:
  with _telling_of_disks():
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
  for features, labels in found:
    for feature, label in zip(features, labels, strict=True):
      example = _ExampleProto()
      held = example.features.feature
      held["features"].float_list.value.extend(feature.ravel().tolist())
      held["shape"].int64_list.value.extend(feature.shape)
      held["label"].int64_list.value.append(int(label))
      with _telling_of_disks():
        writer.write(example.SerializeToString())
  with _telling_of_disks():
    writer.close()


@contextlib.contextmanager
def _telling_of_disks() -> Iterator[None]:
  """Raises OSError where ArrayRecord tells a full disk by a RuntimeError."""
  try:
    yield
  except RuntimeError as e:
    raise OSError(errno.EIO, str(e).partition(";")[0]) from e


def main(_: Any) -> None:
  """Runs the command."""
  options = flags.FLAGS
  output = Path(options.output)
  if output.suffix not in (".npz", ".array_record"):
    raise errors.InputError(
      f"--output={options.output!r} must end in .npz or .array_record."
    )
  cli.keep_memory()
  cli.keep_programs()
  model = inference.load(options.workdir, options.step)
  examples = opened.examples_of(model.config, options.data_dir, options.split)
  with cli.replacing(output) as new:
    write(new, model, examples, options.layer)
  shape = " x ".join(map(str, model.shapes[options.layer]))
  print(
    f"wrote {output}: {options.layer}, {shape}, of {len(examples):,} images,"
    f" {output.stat().st_size / 1e6:,.1f} MB"
  )


def _define_flags() -> None:
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_string("step", "newest", "Checkpoint: newest, best or a step.")
  flags.DEFINE_string("data_dir", "", "Data set; by default the run's.")
  flags.DEFINE_string("split", "", "Split; by default the run's test split.")
  flags.DEFINE_string("layer", "fc7", "conv1, norm1, pool1, ... or the last.")
  flags.DEFINE_string(
    "output", None, "FILE.npz or FILE.array_record to write.", required=True
  )


def command() -> None:
  """`alexnet features`."""
  cli.run(main, _define_flags)
