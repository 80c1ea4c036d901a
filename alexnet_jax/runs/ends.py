"""When a step is skipped, a rate drops, and a net or a run ends."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from alexnet_jax import networks
from alexnet_jax.runs.run import Figures, Run
from alexnet_jax.runtime import errors

CHANCE_TOLERANCE = 0.01  # A loss this near to that of chance is no better.


@contextlib.contextmanager
def save_on_data_error(
  run: Run, finish: Callable[[Run], None]
) -> Iterator[None]:
  """Saves a run before a bad example ends it, for the step to be taken again.

  Not of several processes: they would have to agree. Their last save holds.
  """
  try:
    yield
  except errors.DataError:
    if jax.process_count() == 1 and not run.saved:
      finish(run)
      run.log.print(f"saving step {run.step}, to resume from with mended data")
      run.save(wait=False)
    raise


def update_plateau(run: Run, figures: Figures) -> None:
  """Lowers the rate, or ends a net, whose validation error no longer falls.

  While its loss is that of chance, a net has not begun to learn.
  """
  patience, max_drops = run.config.plateau_patience, run.config.plateau_drops
  plateau = run.plateau.after(run.errors(figures), patience, max_drops)
  members = figures[: run.config.ensemble]
  learns = np.reshape(~_at_chance(run, members), run.plateau.stale.shape)
  plateau = jax.tree.map(
    lambda new, old: np.where(learns, new, old), plateau, run.plateau
  )
  why = f"no lower validation error in {patience} evaluations"
  run.set_plateau(jax.device_get(plateau), why)


def stop_at_train_error(run: Run) -> None:
  """Ends a net whose error of this period is below the target, if any."""
  target, figures = run.config.stop_at_train_error, run.period.take()
  if target and figures:
    stopped = run.plateau.stopped | (run.errors(figures) < target)
    plateau = dataclasses.replace(run.plateau, stopped=stopped)
    run.set_plateau(plateau, f"training error below {target:g}")


def check_learning(run: Run, figures: Figures) -> None:
  """Warns of a net whose loss is that of chance; ends it if that goes on.

  Raises NotLearningError after `check_learning_after_steps`. Warns after a
  tenth of a shorter run, and at its end.
  """
  config, last = run.config, run.config.check_learning_after_steps
  at_chance = _at_chance(run, figures)
  is_early = run.step < min(last, run.total_steps / 10)
  if not last or is_early or not at_chance.any():
    return
  what = (
    f"at step {run.step} of {run.total_steps} its loss is"
    f" {figures[np.argmax(at_chance)]['loss']:.4f}, and"
    f" ln(num_classes={config.num_classes}) is"
    f" {math.log(config.num_classes):.4f}. Start anew, in another --workdir,"
    " with --config=small or --config.network.initialization=he, a layer's"
    f" larger sigma or another --config.learning_rate={config.learning_rate:g};"
    " look at the labels (alexnet show)"
  )
  if run.step >= last:
    raise errors.NotLearningError(
      f"the net learns nothing: {what}, or train on with"
      " --config.check_learning_after_steps=0."
    )
  if not run.warned_of_chance or run.step >= run.total_steps:
    run.log.print(f"WARNING: the net may not learn: {what}.")
  run.warned_of_chance = True


def _at_chance(run: Run, figures: Figures) -> np.ndarray:
  """Returns of which figures the loss is that of equal chances."""
  losses = np.array([each["loss"] if each else math.nan for each in figures])
  chance = math.log(run.config.num_classes)
  return abs(losses / chance - 1) < CHANCE_TOLERANCE


def describe_end(run: Run) -> str:
  """Returns a sentence that says that a run is finished."""
  why = f" for good at step {run.step}, by its plateau or stop_at_train_error"
  early = why if run.step < run.total_steps else ""
  return (
    f"the run in {run.workdir} is finished{early}; alexnet evaluate tests it"
  )


def is_finite(run: Run, step: int, sums: dict[str, Any]) -> bool:
  """Returns whether loss and gradients are finite; if not, the step is skipped.

  Members of an ensemble that have ended do not count. Takes "nonfinite" out of
  the sums of `steps.make_step`. Raises DivergedError after more than
  `skip_nonfinite_steps`.
  """
  nonfinite = np.atleast_2d(sums.pop("nonfinite"))  # By member and array.
  losses = np.atleast_1d(sums["loss"] / sums["examples"])
  bad = nonfinite.any(axis=1) | ~np.isfinite(losses)
  bad &= ~np.atleast_1d(run.plateau.stopped)
  if not bad.any():
    return True
  member = int(np.argmax(bad))
  whose = f" of member {member}" if len(losses) > 1 else ""
  loss = f"the loss{whose} is {losses[member]:g} at step {step}"
  allowed = run.config.skip_nonfinite_steps
  if run.progress.skipped >= allowed:
    arrays = _nonfinite_arrays(run, nonfinite[member])
    raise errors.DivergedError(
      f"{loss} (gradients that are not finite: {arrays}), with"
      f" a learning rate of {run.rates()[member]:g}; lower"
      " --config.learning_rate, or skip such steps with"
      f" --config.skip_nonfinite_steps=N. {run.describe_latest()}"
    )
  run.progress.skipped += 1
  run.log.print(
    f"WARNING: {loss}, or a gradient is not finite; the step is skipped"
    f" ({run.progress.skipped} of skip_nonfinite_steps={allowed})"
  )
  return False


def _nonfinite_arrays(run: Run, counts: np.ndarray) -> str:
  """Returns the arrays whose gradients are not finite, last layer first."""
  layers = networks.layer_names(run.net.network)
  paths = [path[1:] for path, _ in jax.tree.leaves_with_path(run.state.params)]
  bad = [
    (layer.key, array.key)
    for (layer, array), count in zip(paths, counts, strict=True)
    if count
  ]
  bad.sort(key=lambda path: layers.index(path[0]), reverse=True)
  return errors.first_few(map("/".join, bad)) or "none"
