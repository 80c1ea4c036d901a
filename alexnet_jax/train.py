"""The training loop: take steps, record, validate, save; then test.

What a run is made of, and how it is resumed, is in runs/setup.py.
"""

import collections
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alexnet_jax import augment, evaluate
from alexnet_jax.parallel import ensemble, placement
from alexnet_jax.runs import diagnose, setup
from alexnet_jax.runs.run import InFlight, Run

Figures = list[dict[str, float]]
"""Loss and errors of each net, and then, of several, of all together."""


def train_and_evaluate(
  config: Any,
  workdir: Path,
  should_stop: Callable[[], bool] = lambda: False,
) -> None:
  """Trains as a config says, resuming what the workdir holds, then tests.

  Args:
    config: a whole config; configs/alexnet.py lists its fields.
    workdir: gets config.json, metrics.jsonl, tensorboard/ and checkpoints/.
    should_stop: asked between steps and between the batches of an evaluation;
      once it is true, the run is saved and can be resumed.

  Raises:
    InputError: a bad config, data set or workdir, found before the first step.
    DivergedError: training came to nothing; the last checkpoint is kept.
  """
  with setup.open_run(config, workdir, should_stop) as run:
    if not train(run):
      run.log.print(run.stop_message())
    elif "test" in run.splits and not run.log.has(run.step, "test"):
      test(run)
    elif run.step == run.start_step:
      run.log.print(f"the run in {workdir} is finished; nothing to do")


def train(run: Run) -> bool:
  """Trains to the end; returns False if it has to stop before."""
  while True:
    stop, improved = run.should_stop(), False
    if not run.progress.evaluated and not stop:
      improved = validate(run)
      stop, run.saved = improved is None, False
    done = run.step == run.events.total_steps or bool(run.plateau.stopped.all())
    if done:
      finish_steps(run)
      record_training(run)
    if not run.saved and (stop or done or improved or run.save_is_due()):
      finish_steps(run)
      run.save(wait=stop or done, retry=not stop)
      run.meter.restart_clock()
    if stop or done:
      return not stop
    take_steps(run)


def take_steps(run: Run) -> None:
  """Starts the next step, or those up to the next event as one program."""
  count = run.events.steps_until_next(run.step, run.steps_per_call)
  with run.meter.waiting():
    chunk = run.next_batches(count)
  run.state, sums = run.step_fn(run.state, chunk)
  run.progress.batches = run.feed.get_state()
  finish_steps(run)  # The metrics of step n - 1 are read while step n runs.
  run.in_flight = InFlight(run.step + 1, count, sums, chunk)
  run.step += count
  run.saved = False
  run.progress.evaluated = not run.events.validates(run.step)
  if run.config.stop_at_train_error and run.events.logs(run.step):
    finish_steps(run)  # A net that ends here must not take the next step.


def finish_steps(run: Run) -> None:
  """Waits for the steps in flight, if there are any, and adds up their sums."""
  if run.in_flight is None:
    return
  in_flight, run.in_flight = run.in_flight, None
  finite = []
  for step, sums in in_flight.sums_of_steps():
    nonfinite = sums.pop("nonfinite")
    if diagnose.is_finite(sums, nonfinite):
      finite.append(sums)
    else:
      batch = in_flight.chunk.batch_of(step - in_flight.first)
      diagnose.skip_or_raise(run, step, sums, nonfinite, batch)
    run.log.advance(step, run.events.epoch(step))
  run.meter.add(finite)
  if run.events.logs(run.step):
    record_training(run)


def record_training(run: Run) -> None:
  """Records the means since the last record; ends nets that are good enough."""
  if not run.meter:
    return
  figures = run.meter.take()
  run.record("train", figures)
  if target := run.config.stop_at_train_error:
    error = run.of_members([each["top1_error"] for each in figures])
    stopped = run.plateau.stopped | (error < target)
    for member in np.flatnonzero(stopped & ~run.plateau.stopped):
      who = f"member {member}: " if stopped.ndim else ""
      run.log.print(f"{who}training error below {target:g}: the end")
    run.set_plateau(dataclasses.replace(run.plateau, stopped=stopped))
  diagnose.check_above_chance(run.config, run.step, figures)


def validate(run: Run) -> bool | None:
  """Evaluates the validation split and follows the plateau.

  Returns:
    Whether the error is the lowest so far; None if it had to stop meanwhile.
  """
  finish_steps(run)
  figures = evaluate_split(run, "validation", views=1)
  run.meter.restart_clock()
  if figures is None:
    return None
  run.record("validation", figures)
  if run.config.schedule == "plateau":
    update_plateau(run, figures)
  error, best = figures[-1]["top1_error"], run.progress.best_error
  improved = best is None or error < best
  run.progress.evaluated = True
  if improved:
    run.progress.best_step, run.progress.best_error = run.step, error
  return improved


def update_plateau(run: Run, figures: Figures) -> None:
  """Lowers the rate, or ends a net, whose error no longer falls."""
  config = run.config
  error = run.of_members([each["top1_error"] for each in figures])
  new = jax.device_get(
    run.plateau.after(error, config.plateau_patience, config.plateau_drops)
  )
  diagnose.print_plateau(run, new)
  run.set_plateau(new)


def test(run: Run) -> None:
  """Evaluates the test split, and writes what the images were taken for."""
  counts = collections.Counter()

  def count(batch, log_probabilities):
    labels, best = evaluate.predictions(
      batch, log_probabilities[-1], run.eval_mesh
    )
    counts.update(zip(labels.tolist(), best.tolist(), strict=True))

  views = run.config.test_views
  figures = evaluate_split(run, "test", views, on_batch=count)
  if figures is None:
    run.log.print("stopped during the test; the same command resumes")
    return
  run.log.write_confusions(run.step, views, counts)
  run.record("test", figures)


def evaluate_split(
  run: Run, split: str, views: int, on_batch: Any = None
) -> Figures | None:
  """Returns loss and errors on a split; None if it had to stop."""
  config = run.config
  seen = augment.views(views, config.image_size_px, config.crop_size_px)
  params = placement.replicate(run.eval_mesh, run.state.params)
  nets = [
    evaluate.Net(run.view_step, member, seen)
    for member in ensemble.unstack(params, config.ensemble)
  ]
  return evaluate.evaluate_nets(
    nets,
    run.splits[split],
    config,
    run.eval_mesh,
    should_stop=run.should_stop,
    on_batch=on_batch,
  )
