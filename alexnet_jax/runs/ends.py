"""When the rate of a net drops, and when its training ends."""

import dataclasses
import math

import jax
import numpy as np

from alexnet_jax.runs.run import Figures, Run
from alexnet_jax.runtime import errors

# A loss this near to that of chance, as a fraction of it, is no better.
CHANCE_TOLERANCE = 0.01


def update_plateau(run: Run, figures: Figures) -> None:
  """Lowers the rate, or ends a net, whose validation error no longer falls."""
  config, old = run.config, run.plateau
  new = jax.device_get(
    old.after(
      run.errors(figures), config.plateau_patience, config.plateau_drops
    )
  )
  why = f"no lower validation error in {config.plateau_patience} evaluations"
  for member, (ends, before, after) in enumerate(
    np.broadcast(new.stopped & ~old.stopped, old.drops, new.drops)
  ):
    who = f"member {member}: " if new.drops.ndim else ""
    if ends:
      run.log.print(f"{who}{why} after {int(after)} drops of the rate: the end")
    elif after > before:
      run.log.print(f"{who}{why}: the rate drops")
  run.set_plateau(new)


def stop_at_train_error(run: Run, figures: Figures) -> None:
  """Ends a net whose training error is below `config.stop_at_train_error`."""
  target, old = run.config.stop_at_train_error, run.plateau.stopped
  if not target:
    return
  stopped = old | (run.errors(figures) < target)
  for member in np.flatnonzero(stopped & ~old):
    who = f"member {member}: " if stopped.ndim else ""
    run.log.print(f"{who}training error below {target:g}: the end")
  run.set_plateau(dataclasses.replace(run.plateau, stopped=stopped))


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
