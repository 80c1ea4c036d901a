"""The error of a run on a whole split, every example counted once.

python -m alexnet_jax.evaluate --workdir=DIR
"""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh

from alexnet_jax import (
  augment,
  checkpoint,
  cli,
  logs,
  metrics,
  model,
  parallel,
  steps,
)
from alexnet_jax.data import source


def evaluate_split(
  eval_step: Any, params: Any, examples: Any, config: Any, mesh: Mesh
) -> dict[str, float]:
  """Returns loss, top-1 and top-5 error (fractions) and images per second.

  Args:
    eval_step: from `steps.make_eval_step`.
    params: of the net, on the mesh.
    examples: from `source.open_split`.
    config: a whole config.
    mesh: where to compute.
  """
  start = time.perf_counter()
  totals = dict.fromkeys(
    ("loss", "top1_errors", "top5_errors", "examples"), 0.0
  )
  # Any number of devices will do: rows that are too many are padding.
  batch_size = -(-config.batch_size // mesh.size) * mesh.size
  batches = source.eval_batches(
    examples, batch_size=batch_size, threads=config.reader_threads
  )
  for batch in batches:
    sums = eval_step(params, parallel.put_batch(mesh, batch))
    totals = {name: total + float(sums[name]) for name, total in totals.items()}
  seconds = time.perf_counter() - start
  return metrics.means(totals) | {
    "images_per_second": totals["examples"] / seconds
  }


def evaluate_run(workdir: Path) -> tuple[int, str, int, dict[str, float]]:
  """Evaluates the newest checkpoint of a run on its test split.

  Returns:
    The step, the split's name, its number of images and `evaluate_split`'s
    figures.

  Raises:
    InputError: no run, no checkpoint, no data or no test split.
  """
  config = logs.read_config(workdir)
  dataset = source.open_dataset(Path(config.data_dir))
  examples = source.open_split(dataset, "test_split", config.test_split)
  net = model.from_config(config)
  size = net.network.input_size_px
  shapes = jax.eval_shape(
    net.init, jax.random.key(0), jnp.zeros((1, size, size, 3))
  )
  mesh = parallel.make_mesh()
  step, params = checkpoint.restore_params(workdir, shapes["params"], mesh)
  augmentation = augment.from_config(config, dataset.statistics)
  eval_step = steps.make_eval_step(net, augmentation, mesh)
  figures = evaluate_split(eval_step, params, examples, config, mesh)
  return step, config.test_split, len(examples), figures


def main(_) -> None:
  """Runs the command."""
  step, split, count, figures = evaluate_run(Path(flags.FLAGS.workdir))
  print(
    f"{split}, {count:,} images, one central view, step {step}:"
    f" top-1 error {figures['top1_error']:.2%},"
    f" top-5 error {figures['top5_error']:.2%}, loss {figures['loss']:.4f}"
  )


def _define_flags() -> None:
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)


if __name__ == "__main__":
  cli.run(main, _define_flags)
