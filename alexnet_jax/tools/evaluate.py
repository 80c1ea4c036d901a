"""The error of one run, or of several together, on a split.

alexnet evaluate --workdir=DIR[,DIR...]
"""

import math
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from alexnet_jax import augment, evaluate, steps
from alexnet_jax.parallel import placement
from alexnet_jax.runs import opened, run_files
from alexnet_jax.runtime import cli, errors


def evaluate_runs(
  workdirs: Sequence[Path],
  *,
  weights: Sequence[float] | None = None,
  views: int | None = None,
  step: str = "newest",
  data_dir: str = "",
  split: str = "",
) -> tuple[list[opened.Run], int, dict[str, float]]:
  """Evaluates runs together on a split.

  Args:
    workdirs: of the runs.
    weights: of the runs in the mean of their softmaxes; equal by default.
    views: 1 or 10 for all of them; by default what each config says.
    step: of each run, `newest`, `best` or a number.
    data_dir: of a data set of their classes; by default the first run's.
    split: of it, in TFDS's words; by default the first run's test split.

  Returns:
    The runs, the number of images and `evaluate_split`'s figures.

  Raises:
    InputError: no run, no checkpoint, no data, no such split, runs of other
      images or classes than the first, or bad weights or views.
  """
  if views is not None and views not in evaluate.VIEWS:
    raise errors.InputError(f"--views={views} must be 1 or 10.")
  weights = list(weights or [1.0] * len(workdirs))
  if not workdirs:
    raise errors.InputError("--workdir names no run; write --workdir=DIR.")
  if (
    len(weights) != len(workdirs)
    or not all(weight > 0 for weight in weights)
    or not math.isfinite(sum(weights))
  ):
    raise errors.InputError(
      f"--weights={','.join(f'{w:g}' for w in weights)} must be one positive"
      f" number for each of the {len(workdirs)} runs."
    )
  mesh = placement.make_mesh()
  runs = [opened.open_run(workdir, mesh, step) for workdir in workdirs]
  config = runs[0].config
  examples = opened.examples_of(config, data_dir, split)
  dataset = examples.dataset
  members = []
  for workdir, run, weight in zip(workdirs, runs, weights, strict=True):
    class_names, statistics = run_files.read_run_metadata(workdir)
    size = run.config.image_size_px
    if (size, class_names) != (config.image_size_px, dataset.class_names):
      raise errors.InputError(
        f"workdir={str(workdir)!r} was trained on images of another size or on"
        f" other classes than {str(dataset.directory)!r} has; evaluate it on"
        " its own data."
      )
    augmentation = augment.from_config(run.config, statistics)
    seen = augment.views(
      views or run.config.test_views, size, run.config.crop_size_px
    )
    view_step = steps.make_view_step(run.net, augmentation, mesh)
    members += [
      evaluate.Net(view_step, params, seen, weight / len(run.members))
      for params in run.members
    ]
  figures = evaluate.evaluate_split(members, examples, config, mesh)
  return runs, len(examples), figures


def main(_) -> None:
  """Runs the command."""
  options = flags.FLAGS
  cli.keep_memory()
  cli.keep_programs()
  try:
    weights = [float(weight) for weight in options.weights]
  except ValueError as e:
    raise errors.InputError(
      f"--weights={','.join(options.weights)} must be numbers."
    ) from e
  workdirs = [Path(workdir) for workdir in options.workdir]
  runs, count, figures = evaluate_runs(
    workdirs,
    weights=weights,
    views=options.views,
    step=options.step,
    data_dir=options.data_dir,
    split=options.split,
  )
  views = [options.views or run.config.test_views for run in runs]
  words = {1: "one central view", 10: "ten views"}
  seen = " and ".join(words[count] for count in sorted(set(views)))
  count_nets = sum(len(run.members) for run in runs)
  nets = f"{count_nets} nets, " if count_nets > 1 else ""
  about = f"step {', '.join(str(run.step) for run in runs)}"
  print(
    f"{options.split or runs[0].config.test_split}, {count:,} images,"
    f" {nets}{seen}, {about}:"
    f" top-1 error {figures['top1_error']:.2%},"
    f" top-5 error {figures['top5_error']:.2%}, loss {figures['loss']:.4f}"
  )


def _define_flags() -> None:
  flags.DEFINE_list(
    "workdir", None, "Folder of the run; several make an ensemble.",
    required=True,
  )  # fmt: skip
  flags.DEFINE_list(
    "weights", [], "Weight of each run in the ensemble; equal by default."
  )
  flags.DEFINE_integer(
    "views", None, "1 or 10 views of each image; by default the config's."
  )
  flags.DEFINE_string(
    "step", "newest", "Checkpoint: newest, best (by validation) or a step."
  )
  flags.DEFINE_string("data_dir", "", "Data set; by default the run's.")
  flags.DEFINE_string("split", "", "Split; by default the run's test split.")


def command() -> None:
  """`alexnet evaluate`."""
  cli.run(main, _define_flags)
