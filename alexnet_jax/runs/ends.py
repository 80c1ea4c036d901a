"""When the rate of a net drops, and when its training ends."""

import dataclasses
import math

import jax

from alexnet_jax.runs.run import Figures, Run
from alexnet_jax.runtime import errors

CHANCE_TOLERANCE = 0.01  # A loss this near to that of chance is no better.


def update_plateau(run: Run, figures: Figures) -> None:
  """Lowers the rate, or ends a net, whose validation error no longer falls."""
  patience, max_drops = run.config.plateau_patience, run.config.plateau_drops
  plateau = run.plateau.after(run.errors(figures), patience, max_drops)
  why = f"no lower validation error in {patience} evaluations"
  run.set_plateau(jax.device_get(plateau), why)


def stop_at_train_error(run: Run, figures: Figures) -> None:
  """Ends a net whose training error is below `config.stop_at_train_error`."""
  target = run.config.stop_at_train_error
  if target:
    stopped = run.plateau.stopped | (run.errors(figures) < target)
    plateau = dataclasses.replace(run.plateau, stopped=stopped)
    run.set_plateau(plateau, f"training error below {target:g}")


def check_above_chance(run: Run, figures: Figures) -> None:
  """Raises NotLearningError if a loss is still that of equal chances."""
  config, step = run.config, run.step
  if not 0 < config.check_learning_after_steps <= step:
    return
  chance = math.log(config.num_classes)
  for loss in (each["loss"] for each in figures):
    if abs(loss / chance - 1) < CHANCE_TOLERANCE:
      raise errors.NotLearningError(
        f"the net learns nothing: at step {step} its loss is {loss:.4f}, and"
        f" ln(num_classes={config.num_classes}) is {chance:.4f}. Usual causes:"
        f" learning_rate={config.learning_rate:g} is too high or too low; sigma"
        " or bias of a layer, so that no unit is active; labels that have"
        " nothing to do with the images (alexnet show draws them). To train"
        " on, pass --config.check_learning_after_steps=0."
      )
