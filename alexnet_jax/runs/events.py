"""What happens after which step: log, save, validate, end."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Events:
  """The calendar of a run."""

  config: Any
  total_steps: int
  steps_per_epoch: float
  has_validation: bool

  def epoch(self, step: int) -> float:
    """Returns the passes over the training split after a step."""
    return step / self.steps_per_epoch

  def logs(self, step: int) -> bool:
    """Whether training metrics are recorded after a step."""
    return step % self.config.log_every_steps == 0

  def saves(self, step: int) -> bool:
    """Whether a step is saved, whatever the clock says."""
    return step % self.config.checkpoint_every_steps == 0

  def validates(self, step: int) -> bool:
    """Whether the validation split is evaluated after a step."""
    period = self.steps_per_epoch * self.config.evaluate_every_epochs
    is_due = step // period > (step - 1) // period or step == self.total_steps
    return self.has_validation and is_due

  def steps_until_next(self, step: int, most: int) -> int:
    """Returns how many steps, up to `most`, lead to the next event."""
    for after in range(step + 1, step + most):
      happens = self.logs(after) or self.saves(after) or self.validates(after)
      if happens or after == self.total_steps:
        return after - step
    return most
