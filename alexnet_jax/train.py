"""The training loop: build, iterate, log, evaluate, save."""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alexnet_jax import (
  augment,
  checkpoint,
  errors,
  evaluate,
  logs,
  metrics,
  model,
  optimizer,
  parallel,
  steps,
)
from alexnet_jax.data import shapes, source


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
  mesh = parallel.make_mesh()
  parallel.check_batch_size(mesh, config.batch_size)
  dataset = _open_dataset(config)
  splits = _open_splits(config, dataset)
  num_examples = len(splits["train"])
  total_steps = config.total_steps or optimizer.step_of_epoch(
    config.total_epochs, num_examples, config.batch_size
  )
  tx, schedule = optimizer.from_config(config, num_examples)
  augmentation = augment.from_config(config, dataset.statistics)
  train_step = steps.make_train_step(net, tx, augmentation, mesh, config.seed)
  eval_step = steps.make_eval_step(net, augmentation, mesh)
  state = parallel.replicate(mesh, steps.init_state(net, tx, config.seed))
  batches = source.train_batches(
    splits["train"],
    batch_size=config.batch_size,
    seed=config.seed,
    threads=config.reader_threads,
  )
  # Last, so that nothing is written for a config that cannot run.
  logs.claim_workdir(workdir, config)

  with contextlib.ExitStack() as stack:
    manager = stack.enter_context(
      checkpoint.open_manager(workdir, config.checkpoints_to_keep)
    )
    if manager.latest_step() is not None:
      state, position = checkpoint.restore(manager, state, mesh)
      batches.set_state(position)
    start_step = int(state.step)
    log = stack.enter_context(logs.RunLog(workdir, start_step, total_steps))

    def record(step: int, split: str, figures: dict[str, float]) -> None:
      rate = float(schedule(max(step - 1, 0)))
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

    def evaluate_on(split: str, step: int) -> None:
      examples = splits[split]
      record(
        step,
        split,
        evaluate.evaluate_split(
          eval_step, state.params, examples, config, mesh
        ),
      )

    if start_step:
      log.say(f"going on from step {start_step} of {total_steps} in {workdir}")
    meter = _Meter()
    running = None
    for step in range(start_step + 1, total_steps + 1):
      batch = parallel.put_batch(mesh, next(batches))
      state, sums = train_step(state, batch)
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
          evaluate_on("validation", step)
        if saves:
          checkpoint.save(manager, state, batches.get_state())
        meter.restart()
    if "test" in splits and not log.holds(total_steps, "test"):
      evaluate_on("test", total_steps)
    elif start_step == total_steps:
      log.say(f"the run in {workdir} is finished; nothing to do")


class _Meter:
  """Adds up the training figures between two records, and their time."""

  def __init__(self):
    self._steps = 0
    self._clear()
    self.restart()

  def _clear(self) -> None:
    self._totals: dict[str, float] = {}
    self._seconds = self._timed_images = 0.0

  def restart(self) -> None:
    """Starts the clock of the next step: an evaluation is no training."""
    self._mark = time.perf_counter()

  def add(self, sums: metrics.Sums) -> float:
    """Waits for a step's sums, counts them and returns its mean loss."""
    before = self._totals.get("loss", 0.0)
    metrics.add(self._totals, sums)
    examples = float(sums["examples"])
    start, self._mark = self._mark, time.perf_counter()
    self._steps += 1
    if self._steps == 2:  # The first step compiled: it is no measure of speed.
      self._seconds = self._timed_images = 0.0
    self._seconds += self._mark - start
    self._timed_images += examples
    return (self._totals["loss"] - before) / examples

  def take(self) -> dict[str, float]:
    """Returns the figures since the last call and starts anew."""
    speed = self._timed_images / self._seconds
    figures = metrics.means(self._totals) | {"images_per_second": speed}
    self._clear()
    return figures


def _open_dataset(config: Any) -> source.Dataset:
  data_dir = Path(config.data_dir)
  if config.generate_shapes and not data_dir.exists():
    print(f"drawing the shapes data set into {data_dir}", flush=True)
    shapes.generate(data_dir, size_px=config.image_size_px)
  dataset = source.open_dataset(data_dir)
  for field, asked, held in (
    ("image_size_px", config.image_size_px, dataset.image_size_px),
    ("num_classes", config.num_classes, len(dataset.class_names)),
  ):
    if asked != held:
      raise errors.InputError(
        f"{field}={asked} but {config.data_dir!r} has {held}; pass"
        f" --config.{field}={held}."
      )
  return dataset


def _open_splits(config: Any, dataset: source.Dataset) -> dict[str, Any]:
  """Returns the examples of the splits that the config names."""
  splits = {
    split: source.open_split(dataset, f"{split}_split", name)
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
  rules: list[tuple[str, Any, Callable[[Any], bool], str]] = [
    (name, config[name], lambda value: value > 0, "positive")
    for name in (
      "crop_size_px",
      "checkpoint_every_steps",
      "checkpoints_to_keep",
      "evaluate_every_epochs",
      "learning_rate",
      "learning_rate_drop_factor",
      "log_every_steps",
      "reader_threads",
      "total_epochs",
    )
  ]
  rules += [
    (name, config[name], lambda value: 0 <= value < math.inf, "0 or more")
    for name in ("colour_noise", "weight_decay")
  ]
  rules += [
    ("learning_rate_drop_epochs", epoch, lambda e: e > 0, "positive numbers")
    for epoch in config.learning_rate_drop_epochs
  ]
  rules += [
    ("num_classes", config.num_classes, lambda n: n >= 2, "2 or more"),
    ("momentum", config.momentum, lambda m: 0 <= m < 1, "from 0 to under 1"),
    ("seed", config.seed, lambda s: 0 <= s < 2**32, "from 0 to 2**32 - 1"),
    (
      "crop_size_px",
      config.crop_size_px,
      lambda size: size <= config.image_size_px,
      f"at most image_size_px={config.image_size_px}",
    ),
  ]
  if config.total_steps is not None:
    rules.append(
      ("total_steps", config.total_steps, lambda n: n > 0, "positive")
    )
  for name, value, holds, rule in rules:
    if not isinstance(value, int | float) or not holds(value):
      raise errors.InputError(f"{name}={value!r} must be {rule}.")


def _crosses(
  every_epochs: float, step: int, batch_size: int, num_examples: int
) -> bool:
  """Whether a multiple of `every_epochs` passes is reached by this step."""

  def passed(step: int) -> int:
    return int(step * batch_size / (num_examples * every_epochs))

  return passed(step) > passed(step - 1)
