"""The training loop: build, iterate, log, evaluate, save."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from alexnet_jax import (
  augment,
  checkpoint,
  errors,
  evaluate,
  logs,
  metrics,
  model,
  networks,
  optimizer,
  parallel,
  steps,
)
from alexnet_jax.data import feed, records, shapes, source


def train_and_evaluate(config: Any, workdir: Path) -> None:
  """Trains as a config says, from where the workdir stands, then tests.

  Args:
    config: a whole config; see configs/alexnet.py for its fields.
    workdir: gets config.json, metrics.jsonl, tensorboard/ and checkpoints/.

  Raises:
    InputError: a bad config, data set or workdir, found before the first step;
      or a loss that is not finite, the last good checkpoint being kept.
  """
  _check_config(config)
  net = model.from_config(config)
  optimizer.check(config, networks.names(net.network))
  mesh = parallel.make_mesh()
  parallel.check_batch_size(mesh, config.batch_size)
  dataset = _open_dataset(config)
  splits = _open_splits(config, dataset)
  statistics = source.check(splits["train"], config)
  num_examples = len(splits["train"])
  total_steps = config.total_steps or optimizer.step_of_epoch(
    config.total_epochs, num_examples, config.batch_size
  )
  params, started = steps.init_params(net, config.seed), ""
  if config.init_from and not checkpoint.exists(workdir):
    params, taken, left = evaluate.start_from(
      Path(config.init_from), params, mesh
    )
    started = f"{', '.join(taken)} from {config.init_from}"
    started += f"; {', '.join(left)} drawn anew" if left else ""
  tx, learning_rate = optimizer.from_config(
    config, params, num_examples, total_steps
  )
  state = parallel.replicate(mesh, steps.init_state(params, tx))
  augmentation = augment.from_config(config, statistics, num_examples)
  train_step = steps.make_train_step(net, tx, augmentation, mesh, config.seed)
  view_step = steps.make_view_step(net, augmentation, mesh)
  batches = feed.open_feed(splits["train"], config, mesh)
  # Last, so that nothing is written for a config that cannot run.
  logs.claim_workdir(workdir, config)
  source.keep(workdir, dataset, statistics)

  with contextlib.ExitStack() as stack:
    manager = stack.enter_context(
      checkpoint.open_manager(workdir, config.checkpoints_to_keep)
    )
    if manager.latest_step() is not None:
      state, position = checkpoint.restore(manager, state, mesh)
      batches.set_state(position)
    start_step = int(state.step)
    # Kept here too: to ask the state would be to wait for the running step.
    plateau = jax.device_get(state.plateau)
    drops = plateau.drops
    log = stack.enter_context(logs.RunLog(workdir, start_step, total_steps))

    def record(step: int, split: str, figures: dict[str, float]) -> None:
      rate = float(learning_rate(max(step - 1, 0), drops))
      if not math.isfinite(figures["loss"]):
        manager.wait_until_finished()
        raise errors.InputError(
          f"the {split} loss is {figures['loss']} at step {step} with"
          f" learning_rate={rate:g}; lower it. The newest good checkpoint is"
          f" that of step {manager.latest_step()}."
        )
      epoch = step * config.batch_size / num_examples
      about = {"step": step, "epoch": epoch, "split": split}
      log.record(about | figures | {"learning_rate": rate})

    def settle(step: int, sums: metrics.Sums) -> None:
      loss = meter.add(sums)
      log.advance(step, step * config.batch_size / num_examples)
      if not math.isfinite(loss):
        record(step, "train", {"loss": loss})
      if step % config.log_every_steps == 0 or step == total_steps:
        record(step, "train", meter.take())

    def evaluate_on(split: str, step: int, views: int) -> float:
      seen = augment.views(views, config.image_size_px, config.crop_size_px)
      member = evaluate.Member(view_step, state.params, seen)
      figures = evaluate.evaluate_split([member], splits[split], config, mesh)
      record(step, split, figures)
      return figures["top1_error"]

    if start_step:
      log.say(f"going on from step {start_step} of {total_steps} in {workdir}")
    elif started:
      log.say(f"starting with {started}")
    meter = _Meter()
    running = None
    for step in range(start_step + 1, total_steps + 1):
      if plateau.stopped:
        break
      with meter.waiting():
        batch = next(batches)
      state, sums = train_step(state, batch)
      drops = plateau.drops
      # The step before is read while this one runs.
      if running:
        settle(*running)
      running = (step, sums)
      last = step == total_steps
      evaluates = "validation" in splits and (
        last
        or _crosses(
          config.evaluate_every_epochs, step, config.batch_size, num_examples
        )
      )
      saves = last or step % config.checkpoint_every_steps == 0
      if evaluates or saves:
        settle(*running)
        running = None
        if evaluates:
          error = evaluate_on("validation", step, views=1)
          if config.schedule == "plateau":
            plateau = _watch(plateau, error, config, log)
            state = dataclasses.replace(
              state, plateau=parallel.replicate(mesh, plateau)
            )
        if plateau.stopped and meter.pending:
          record(step, "train", meter.take())
        if saves or plateau.stopped:
          checkpoint.save(manager, state, batches.get_state())
        meter.restart()
    step = int(state.step)
    if "test" in splits and not log.holds(step, "test"):
      evaluate_on("test", step, config.test_views)
    elif start_step == step:
      log.say(f"the run in {workdir} is finished; nothing to do")


def _watch(
  before: optimizer.Plateau, error: float, config: Any, log: Any
) -> optimizer.Plateau:
  """Tells the plateau's rule of a validation error, and the user of a drop."""
  after = jax.device_get(
    before.after(error, config.plateau_patience, config.plateau_drops)
  )
  waited = f"no lower validation error in {config.plateau_patience} evaluations"
  if after.stopped:
    log.say(f"{waited} after {int(after.drops)} drops of the rate: the end")
  elif after.drops > before.drops:
    log.say(f"{waited}: the rate drops")
  return after


class _Meter:
  """Adds up the training figures between two records, and their time."""

  def __init__(self):
    self._steps = 0
    self._clear()
    self.restart()

  def _clear(self) -> None:
    self._totals: dict[str, float] = {}
    self._seconds = self._timed_images = self._waited = 0.0

  @property
  def pending(self) -> bool:
    """Whether a step was added since the last `take`."""
    return bool(self._totals)

  def restart(self) -> None:
    """Starts the clock of the next step: an evaluation is no training."""
    self._mark = time.perf_counter()

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Times the wait for a batch."""
    start = time.perf_counter()
    yield
    self._waited += time.perf_counter() - start

  def add(self, sums: metrics.Sums) -> float:
    """Waits for a step's sums, counts them and returns its mean loss."""
    before = self._totals.get("loss", 0.0)
    metrics.add(self._totals, sums)
    examples = float(sums["examples"])
    start, self._mark = self._mark, time.perf_counter()
    self._steps += 1
    if self._steps == 2:  # The first step compiled: it is no measure of speed.
      self._seconds = self._timed_images = self._waited = 0.0
    self._seconds += self._mark - start
    self._timed_images += examples
    return (self._totals["loss"] - before) / examples

  def take(self) -> dict[str, float]:
    """Returns the figures since the last call and starts anew."""
    figures = metrics.means(self._totals) | {
      "images_per_second": self._timed_images / self._seconds,
      "input_wait": self._waited / self._seconds,
    }
    self._clear()
    return figures


def _open_dataset(config: Any) -> records.Dataset:
  data_dir = Path(config.data_dir)
  if config.generate_shapes and not data_dir.exists():
    print(f"drawing the shapes data set into {data_dir}", flush=True)
    shapes.generate(data_dir, size_px=config.image_size_px)
  return records.open_directory(data_dir)


def _open_splits(
  config: Any, dataset: records.Dataset
) -> dict[str, records.Examples]:
  """Returns the examples of the splits that the config names."""
  splits = {
    split: records.open_split(dataset, name, f"{split}_split")
    for split, name in (
      ("train", config.train_split),
      ("validation", config.validation_split),
      ("test", config.test_split),
    )
    if name or split == "train"
  }
  if config.batch_size > len(splits["train"]):
    raise errors.InputError(
      f"batch_size={config.batch_size} is larger than"
      f" train_split={config.train_split!r} with {len(splits['train'])} images;"
      " lower it."
    )
  return splits


def _check_config(config: Any) -> None:
  """Raises InputError for a number that is out of its range."""

  def check(name: str, holds: Callable[[Any], bool], rule: str) -> None:
    found = config[name]
    for value in found if isinstance(found, tuple) else (found,):
      if not isinstance(value, int | float) or not holds(value):
        raise errors.InputError(f"{name}={value!r} must be {rule}.")

  for name in (
    "batch_scaling_base",
    "checkpoint_every_steps",
    "checkpoints_to_keep",
    "colour_noise_divisor",
    "colour_noise_epochs",
    "evaluate_every_epochs",
    "images_per_crop",
    "lars_trust",
    "learning_rate",
    "learning_rate_drop_epochs",
    "learning_rate_drop_factor",
    "log_every_steps",
    "plateau_patience",
    "reader_threads",
    "total_epochs",
    "total_steps",
  ):
    if config[name] is not None:
      check(name, lambda value: 0 < value < 2**31, "positive, below 2**31")
  for name in (
    "colour_noise",
    "learning_rate_of_biases",
    "plateau_drops",
    "warmup_epochs",
    "weight_decay",
  ):
    check(name, lambda value: 0 <= value < 2**31, "0 or more, below 2**31")
  check("device_data_share", lambda value: 0 <= value <= 1, "from 0 to 1")
  check("num_classes", lambda value: value >= 2, "2 or more")
  check("dexp_rates", lambda value: 2 <= value <= 1000, "from 2 to 1000")
  check("target_factor", lambda value: 1 <= value < 2**31, "from 1 to 2**31")
  check("momentum", lambda value: 0 <= value < 1, "from 0 to under 1")
  check("seed", lambda value: 0 <= value < 2**32, "from 0 to 2**32 - 1")
  if config.test_views not in evaluate.VIEWS:
    raise errors.InputError(f"test_views={config.test_views} must be 1 or 10.")
  if config.schedule == "plateau" and not config.validation_split:
    raise errors.InputError(
      "schedule='plateau' watches the validation error, but validation_split is"
      " ''; name a split, or pass --config.schedule=epochs."
    )


def _crosses(
  every_epochs: float, step: int, batch_size: int, num_examples: int
) -> bool:
  """Whether a multiple of `every_epochs` passes is reached by this step."""

  def passed(step: int) -> float:
    return step * batch_size // (num_examples * every_epochs)

  return passed(step) > passed(step - 1)
