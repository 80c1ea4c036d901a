"""The training loop; runs/setup.py opens a run, new or resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from alexnet_jax import augment, evaluate
from alexnet_jax.parallel import ensemble, placement
from alexnet_jax.runs import ends, setup
from alexnet_jax.runs.run import Figures, Run


@jax.enable_x64(False)  # Whatever the program around it has set.
def train_and_evaluate(
  config: Any,
  workdir: Path,
  should_stop: Callable[[], bool] = lambda: False,
  accept_data: bool = False,
) -> None:
  """Trains as a config says, resuming what the workdir holds, then tests.

  Args:
    config: a complete config; configs/alexnet.py lists its fields.
    workdir: gets config.json, metrics.jsonl, tensorboard/ and checkpoints/.
    should_stop: called between steps; once true, the run saves and stops.
    accept_data: whether to resume on a data set that has changed.

  Raises:
    InputError: a bad config, data set or workdir, found before the first step.
    DivergedError: training diverged or learned nothing.
  """
  opened = setup.open_run(config, workdir, should_stop, accept_data)
  with opened as run, ends.save_on_data_error(run, finish_steps):
    if train(run) and test(run):
      run.log.print(ends.describe_end(run))
    else:
      run.log.print(f"stopped after step {run.step}; the same command resumes")


def train(run: Run) -> bool:
  """Trains to the end; returns False if it was stopped before."""
  while True:
    improved = not run.progress.evaluated and validate(run)
    stop = run.should_stop()
    done = run.step >= run.total_steps or bool(run.plateau.stopped.all())
    if done:
      finish_steps(run)
    record_training(run, nets=run.plateau.stopped | done)
    if not run.saved and (stop or done or improved or run.save_is_due()):
      finish_steps(run)
      run.save(wait=stop or done)
    if stop or done:
      return not stop
    take_steps(run)


def take_steps(run: Run) -> None:
  """Starts the next step, or those up to the next event as one program."""
  count = run.steps_until_event()
  with run.meter.waiting():
    batches = run.next_batches(count)
  run.state, sums = run.step_fn(run.state, *batches)  # steps.train_step
  run.progress.batches = run.feed.get_state()
  finish_steps(run)  # The metrics of step n - 1 are read while step n runs.
  run.advance(count, sums)
  run.progress.evaluated = not run.validates_after(run.step)
  if run.config.stop_at_train_error and run.ends_period(run.step):
    finish_steps(run)  # A net that ends here must not take the next step.


def finish_steps(run: Run) -> None:
  """Waits for the steps in flight, if there are any, and adds up their sums."""
  if run.in_flight is None:
    return
  in_flight, run.in_flight = run.in_flight, None
  finite = []
  for step, sums in in_flight.sums_of_steps():
    if ends.is_finite(run, step, sums):
      finite.append(sums)
    run.log.advance(step, run.epoch(step))
  for meter in (run.meter, run.period):
    meter.add(finite, ~run.plateau.stopped)
  if run.logs_after(run.step):
    record_training(run)
  elif run.log.is_quiet():
    run.show_training()
  if run.ends_period(run.step):
    ends.stop_at_train_error(run)


def record_training(run: Run, nets: Any = True) -> None:
  """Records the means of some nets, by default of all, since their last."""
  if figures := run.meter.take(nets):
    run.record("train", figures)
    ends.check_learning(run, figures)


def validate(run: Run) -> bool:
  """Evaluates the validation split; returns if its error is a new lowest.

  If the run has to stop meanwhile, nothing changes.
  """
  finish_steps(run)
  figures = evaluate_split(run, "validation", views=1)
  run.meter.restart_clock()
  if figures is None:
    return False
  run.record("validation", figures)
  # The end of a run may be in a period, and a longer run would not know of it.
  if run.config.schedule == "plateau" and run.ends_period(run.step):
    ends.update_plateau(run, figures)
  run.progress.evaluated, run.saved = True, False
  error, best = figures[-1]["top1_error"], run.progress.best_error
  if best is not None and error >= best:
    return False
  run.progress.best_step, run.progress.best_error = run.step, error
  return True


def test(run: Run) -> bool:
  """Evaluates the test split, if that is due; returns False if it stopped."""
  if "test" not in run.splits or run.log.has(run.step, "test"):
    return True
  figures = evaluate_split(run, "test", run.config.test_views)
  if figures:
    run.record("test", figures)
  return bool(figures)


def evaluate_split(run: Run, split: str, views: int) -> Figures | None:
  """Returns loss and errors on a split; None if it had to stop."""
  crops = augment.views(
    views, run.config.image_size_px, run.config.crop_size_px
  )
  params = placement.replicate(run.eval_mesh, run.state.params)
  members = ensemble.unstack(params, run.config.ensemble)
  nets = [evaluate.Net(run.view_step, member, crops) for member in members]
  return evaluate.evaluate_nets(
    nets, run.splits[split], run.config, run.eval_mesh, run.should_stop
  )
