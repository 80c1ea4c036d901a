"""Writes a layer's output for every image of a split into a file.

  alexnet features --workdir=RUN --split=test --output=FILE.npz

The file holds `features` float32 [N, ...], `labels` int64 [N], `class_names`
and `layer`. Without --workdir the net is the one that ships with the package.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from alexnet_jax.data import batches, records
from alexnet_jax.runs import trained
from alexnet_jax.runtime import cli, errors
from alexnet_jax.tools import inference


def nearest(
  features_NxD: np.ndarray, queries_QxD: np.ndarray, count: int
) -> np.ndarray:
  """Returns the features nearest to each query (paper 6.1), int [Q, count]."""
  # |f - q|^2 less |q|^2, which is the same for all f.
  squares_N = np.einsum("nd,nd->n", features_NxD, features_NxD)
  distances_QxN = squares_N[None] - 2 * (queries_QxD @ features_NxD.T)
  return distances_QxN.argsort(axis=1, kind="stable")[:, :count]


def write(
  file: Path, model: inference.Model, examples: records.Examples, layer: str
) -> None:
  """Writes an .npz file as np.savez would, batch after batch."""
  empty = model.features([], layer)
  header = np.lib.format.header_data_from_array_1_0(empty)
  header["shape"] = (len(examples), *empty.shape[1:])
  labels = [np.zeros(0, np.int64)]
  with zipfile.ZipFile(file, "w") as archive:
    with archive.open("features.npy", "w", force_zip64=True) as part:
      np.lib.format.write_array_header_1_0(part, header)
      for batch in batches.all_once(examples, model.config, "images"):
        part.write(model.features(batch["image"], layer).tobytes())
        labels.append(batch["label"].astype(np.int64))
    rest = {
      "labels": np.concatenate(labels),
      "layer": np.array(layer),
      "class_names": np.array(examples.dataset.class_names),
    }
    for name, value in rest.items():
      with archive.open(f"{name}.npy", "w") as part:
        np.lib.format.write_array(part, value, allow_pickle=False)


def main(_: Any) -> None:
  options = flags.FLAGS
  output = Path(options.output)
  if output.suffix != ".npz":
    raise errors.InputError(f"--output={options.output!r} must end in .npz.")
  cli.configure_process()
  model = inference.load_single(options.workdir, options.step)
  examples = trained.examples_of(model.config, options.data_dir, options.split)
  with cli.replacing(output) as new:
    write(new, model, examples, options.layer)
  shape = " x ".join(map(str, model.shapes[options.layer]))
  cli.echo(
    f"wrote {output}: {options.layer}, {shape}, of {len(examples):,} images,"
    f" {output.stat().st_size / 1e6:,.1f} MB"
  )


def define_flags() -> None:
  flags.DEFINE_string("workdir", "pretrained", "Folder of the run.")
  flags.DEFINE_string("step", "newest", "Checkpoint: newest, best or a step.")
  flags.DEFINE_string("data_dir", "", "Data set; by default the run's.")
  flags.DEFINE_string("split", "", "Split; by default the run's of test.")
  flags.DEFINE_string("layer", "fc7", "conv1, norm1, pool1, ... or the last.")
  flags.DEFINE_string("output", None, "FILE.npz to write.", required=True)
