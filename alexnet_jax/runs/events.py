"""What happens after which step: log, save, validate, end."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Events:
  """The calendar of a run.

  Attributes:
    total_steps: of the whole run.
    steps_per_epoch: a fraction.
    log_every_steps: training metrics are recorded so often.
    save_every_steps: checkpoints, beside those by the clock.
    validate_every_epochs: None without a validation split.
  """

  total_steps: int
  steps_per_epoch: float
  log_every_steps: int
  save_every_steps: int
  validate_every_epochs: float | None

  def epoch(self, step: int) -> float:
    """Returns the passes over the training split after a step."""
    return step / self.steps_per_epoch

  def logs(self, step: int) -> bool:
    """Whether training metrics are recorded after a step."""
    return step % self.log_every_steps == 0

  def saves(self, step: int) -> bool:
    """Whether a step is saved, whatever the clock says."""
    return step % self.save_every_steps == 0

  def validates(self, step: int) -> bool:
    """Whether the validation split is evaluated after a step."""
    every = self.validate_every_epochs
    if every is None:
      return False
    passed, before = (
      n // (self.steps_per_epoch * every) for n in (step, step - 1)
    )
    return passed > before or step == self.total_steps

  def steps_until_next(self, step: int, most: int) -> int:
    """Returns how many steps, up to `most`, lead to the next event."""
    for count in range(1, most):
      after = step + count
      if (
        self.logs(after)
        or self.saves(after)
        or self.validates(after)
        or after == self.total_steps
      ):
        return count
    return most
