"""The error of one run, or of several as an ensemble, on a split.

alexnet evaluate --workdir=DIR[,DIR...]
"""

from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from alexnet_jax import augment, evaluate, steps
from alexnet_jax.data import records
from alexnet_jax.parallel import placement
from alexnet_jax.runs import trained
from alexnet_jax.runtime import cli, errors


@jax.enable_x64(False)
def evaluate_runs(
  workdirs: Sequence[str | Path],
  *,
  views: int | None = None,
  step: str = "newest",
  data_dir: str = "",
  split: str = "",
) -> tuple[list[trained.TrainedRun], records.Examples, dict[str, float]]:
  """Evaluates runs, several as an ensemble; the arguments are the flags.

  Returns the runs, the examples, and what `metrics.means` returns.
  """
  if views is not None and views not in augment.VIEWS:
    raise errors.InputError(f"--views={views} must be 1 or 10.")
  if not workdirs:
    raise errors.InputError("--workdir names no run; write --workdir=DIR.")
  mesh = placement.make_mesh()
  runs = [trained.load_run(workdir, mesh, step) for workdir in workdirs]
  config = runs[0].config
  examples = trained.examples_of(config, data_dir, split)
  wanted = config.image_size_px, examples.dataset.class_names
  nets = []
  for workdir, run in zip(workdirs, runs, strict=True):
    size_px = run.config.image_size_px
    if (size_px, run.class_names) != wanted:
      raise errors.InputError(
        f"workdir={str(workdir)!r} was trained on images of another size or on"
        f" other classes than {str(examples.dataset.directory)!r} has; evaluate"
        " it on its own data."
      )
    augmentation = augment.from_config(run.config, run.statistics)
    view_step = steps.make_view_step(run.net, augmentation, mesh)
    count = views or run.config.test_views
    offsets = augment.views(count, size_px, run.config.crop_size_px)
    nets += [
      evaluate.Net(view_step, params, offsets, 1 / len(run.members))
      for params in run.members
    ]
  figures = evaluate.evaluate_nets(nets, examples, config, mesh)
  assert figures  # None is for who can stop it.
  return runs, examples, figures[-1]


def main(_) -> None:
  options = flags.FLAGS
  cli.configure_process()
  runs, examples, figures = evaluate_runs(
    options.workdir,
    views=options.views,
    step=options.step,
    data_dir=options.data_dir,
    split=options.split,
  )
  words = {1: "one central view", 10: "ten views"}
  views = {words[options.views or run.config.test_views] for run in runs}
  nets = sum(len(run.members) for run in runs)
  about = [examples.split, f"{len(examples):,} images"]
  if nets > 1:
    about.append(f"{nets} nets")
  about.append(" and ".join(sorted(views)))
  cli.echo(
    f"{', '.join(about)}, step {', '.join(str(run.step) for run in runs)}: "
    + "".join(
      f"top-{k} error {figures[name]:.2%}, "
      for k in (1, 5)
      if (name := f"top{k}_error") in figures
    )
    + f"loss {figures['loss']:.4f}"
  )


def define_flags() -> None:
  flags.DEFINE_list("workdir", None, "Folder of each run.", required=True)
  flags.DEFINE_integer("views", None, "1 or 10; by default the config's.")
  flags.DEFINE_string("step", "newest", "Checkpoint: newest, best or a step.")
  flags.DEFINE_string("data_dir", "", "Data set; by default the run's.")
  flags.DEFINE_string("split", "", "Split; by default the run's test split.")
