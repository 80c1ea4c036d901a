"""The training loop: build, iterate, log, evaluate, save."""

import contextlib
import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from alexnet_jax import (
  augment,
  checkpoint,
  distributed,
  errors,
  evaluate,
  layouts,
  logs,
  metrics,
  model,
  networks,
  optimizer,
  steps,
)
from alexnet_jax.data import feed, records, shapes, source, statistics


def train_and_evaluate(config: Any, workdir: Path) -> None:
  """Trains as a config says, from where the workdir stands, then tests.

  Args:
    config: a whole config; see configs/alexnet.py for its fields.
    workdir: gets config.json, metrics.jsonl, tensorboard/ and checkpoints/.

  Raises:
    InputError: a bad config, data set or workdir, found before the first step;
      or a loss that is not finite, the last good checkpoint being kept.
  """
  distributed.agree(logs.flatten(config.to_dict()) | {"workdir": str(workdir)})
  _check_config(config)
  net = model.from_config(config)
  optimizer.check(config, networks.names(net.network))
  layout = layouts.from_config(config, net.network, jax.device_count())
  mesh = layouts.make_mesh(layout.devices, layout.model)
  # Whatever the layout, evaluations are data parallel.
  whole_mesh = layouts.make_mesh()
  with distributed.together():
    if distributed.is_first():
      _draw_shapes(config)
  with distributed.together():
    dataset = records.open_directory(Path(config.data_dir))
    splits = _open_splits(config, dataset)
    held = source.check(splits["train"], config)
    starts = config.init_from and not checkpoint.exists(workdir)
    if starts:
      evaluate.find_run(Path(config.init_from))
  distributed.agree(_facts(dataset, splits, held))
  num_examples = len(splits["train"])
  total_steps = config.total_steps or optimizer.step_of_epoch(
    config.total_epochs, num_examples, config.batch_size
  )
  tx, learning_rate = optimizer.from_config(
    config, num_examples, total_steps, layout.axes_of
  )
  source_run = Path(config.init_from) if starts else None
  state, started = _start(config, net, tx, layout, mesh, source_run)
  augmentation = augment.from_config(config, held, num_examples)
  train_step = steps.make_train_step(
    net, tx, augmentation, layout, mesh, config.seed
  )
  view_step = steps.make_view_step(net, augmentation, whole_mesh)
  batches = feed.open_feed(splits["train"], config, layout, mesh)
  # Last, so that nothing is written for a config that cannot run.
  with distributed.together():
    if distributed.is_first():
      logs.claim_workdir(workdir, config)
      source.keep(workdir, dataset, held)
  distributed.share(workdir)

  with contextlib.ExitStack() as stack:
    manager = stack.enter_context(
      checkpoint.open_manager(workdir, config.checkpoints_to_keep)
    )
    if manager.latest_step() is not None:
      state, position = checkpoint.restore(manager, state)
      batches.set_state(position)
    start_step = int(state.step)
    # Kept here too: to ask the state would be to wait for the running step.
    plateau = jax.device_get(layouts.replicate(mesh, state.plateau))
    drops = plateau.drops
    log = stack.enter_context(
      logs.RunLog(workdir, start_step, total_steps)
      if distributed.is_first()
      else logs.SilentLog(workdir, start_step)
    )

    def record(step: int, split: str, each: list[dict[str, float]]) -> None:
      """Writes the figures of each member, and of all together the last."""
      epoch = step * config.batch_size / num_examples
      rates = np.broadcast_to(
        learning_rate(max(step - 1, 0), drops), (layout.members,)
      )
      bad = [x["loss"] for x in each if not math.isfinite(x["loss"])]
      if bad:
        manager.wait_until_finished()
        raise errors.InputError(
          f"the {split} loss is {bad[0]} at step {step} with"
          f" learning_rate={rates.max():g}; lower it. The newest good"
          f" checkpoint is that of step {manager.latest_step()}."
        )
      for number, figures in enumerate(each):
        about = {"step": step, "epoch": epoch, "split": split}
        rate = rates.mean()
        if len(each) > 1 and number < layout.members:
          about["member"] = number
          rate = rates[number]
        log.record(about | figures | {"learning_rate": float(rate)})

    def settle(step: int, sums: metrics.Sums) -> None:
      losses = meter.add(sums)
      log.advance(step, step * config.batch_size / num_examples)
      if not np.isfinite(losses).all():
        record(step, "train", [{"loss": loss} for loss in losses])
      if step % config.log_every_steps == 0 or step == total_steps:
        record(step, "train", meter.take())

    def evaluate_on(split: str, step: int, views: int) -> np.ndarray:
      """Returns the top-1 error of each member, one number if there is one."""
      seen = augment.views(views, config.image_size_px, config.crop_size_px)
      params = layouts.replicate(whole_mesh, state.params)
      each = evaluate.evaluate_members(
        [
          evaluate.Member(view_step, member, seen)
          for member in steps.unstack_members(params, layout.members)
        ],
        splits[split],
        config,
        whole_mesh,
      )
      record(step, split, each)
      errors_of = [figures["top1_error"] for figures in each[: layout.members]]
      return np.reshape(errors_of, plateau.stale.shape)

    if start_step:
      log.say(f"going on from step {start_step} of {total_steps} in {workdir}")
    elif started:
      log.say(f"starting with {started}")
    if distributed.was_told_to_stop(start_step):
      log.say(f"told to stop at step {start_step}; the same command goes on")
      return
    meter = _Meter()
    running = None
    for step in range(start_step + 1, total_steps + 1):
      if plateau.stopped.all():
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
      stops = distributed.is_told_to_stop(step)
      saves = last or stops or step % config.checkpoint_every_steps == 0
      if evaluates or saves:
        settle(*running)
        running = None
        if evaluates:
          error = evaluate_on("validation", step, views=1)
          if config.schedule == "plateau":
            plateau = _watch(plateau, error, config, log)
            state = dataclasses.replace(
              state,
              plateau=jax.device_put(
                plateau, jax.tree.map(lambda x: x.sharding, state.plateau)
              ),
            )
        ended = plateau.stopped.all()
        if ended and meter.pending:
          record(step, "train", meter.take())
        if saves or ended:
          checkpoint.save(manager, state, batches.get_state())
        if stops:
          log.say(f"told to stop after step {step}; the same command goes on")
          return
        meter.restart()
    step = int(state.step)
    if "test" in splits and not log.holds(step, "test"):
      evaluate_on("test", step, config.test_views)
    elif start_step == step:
      log.say(f"the run in {workdir} is finished; nothing to do")


def _watch(
  before: optimizer.Plateau, error: np.ndarray, config: Any, log: Any
) -> optimizer.Plateau:
  """Tells the plateau's rule of a validation error, and the user of a drop."""
  after = jax.device_get(
    before.after(error, config.plateau_patience, config.plateau_drops)
  )
  waited = f"no lower validation error in {config.plateau_patience} evaluations"
  for member, (stopped, old, new) in enumerate(
    np.broadcast(after.stopped & ~before.stopped, before.drops, after.drops)
  ):
    who = f"member {member}: " if after.drops.ndim else ""
    if stopped:
      log.say(f"{who}{waited} after {int(new)} drops of the rate: the end")
    elif new > old:
      log.say(f"{who}{waited}: the rate drops")
  return after


class _Meter:
  """Adds up the training figures between two records, and their time."""

  def __init__(self):
    self._steps = 0
    self._clear()
    self.restart()

  def _clear(self) -> None:
    self._totals: metrics.Totals = {}
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

  def add(self, sums: metrics.Sums) -> np.ndarray:
    """Waits for a step's sums, counts them and returns each member's loss."""
    before = self._totals.get("loss", 0.0)
    metrics.add(self._totals, sums)
    per_member = np.asarray(sums["examples"])
    examples = float(per_member.sum())
    start, self._mark = self._mark, time.perf_counter()
    self._steps += 1
    if self._steps == 2:  # The first step compiled: it is no measure of speed.
      self._seconds = self._timed_images = self._waited = 0.0
    self._seconds += self._mark - start
    self._timed_images += examples
    return np.atleast_1d((self._totals["loss"] - before) / per_member)

  def take(self) -> list[dict[str, float]]:
    """Returns the figures since the last call and starts anew.

    Returns:
      Those of each member, and then, if there are several, their mean.
    """
    means = {
      k: np.atleast_1d(v) for k, v in metrics.means(self._totals).items()
    }
    each = [
      {name: float(values[member]) for name, values in means.items()}
      for member in range(len(means["loss"]))
    ]
    if len(each) > 1:
      each.append({name: float(v.mean()) for name, v in means.items()})
    speed = {
      "images_per_second": self._timed_images / self._seconds,
      "input_wait": self._waited / self._seconds,
    }
    self._clear()
    return [figures | speed for figures in each]


def _start(
  config: Any,
  net: model.AlexNet,
  tx: Any,
  layout: layouts.Layout,
  mesh: Mesh,
  source_run: Path | None,
) -> tuple[steps.TrainState, str]:
  """Returns the state before the first step, and what it was started with."""
  each = [
    steps.init_params(net, config.seed + member)
    for member in range(layout.members)
  ]
  started = ""
  if source_run:
    found = [
      evaluate.start_from(source_run, params, layouts.make_mesh())
      for params in each
    ]
    each = [params for params, _, _ in found]
    _, taken, left = found[0]
    started = f"{', '.join(taken)} from {config.init_from}"
    started += f"; {', '.join(left)} drawn anew" if left else ""
  params = steps.stack_members(each) if layout.members > 1 else each[0]
  state = steps.init_state(params, tx, layout.members)
  where = layouts.shardings(mesh, layouts.specs(layout, state))
  return jax.device_put(state, where), started


def _draw_shapes(config: Any) -> None:
  """Draws the data set, if the config wants it and it is not there."""
  data_dir = Path(config.data_dir)
  if config.generate_shapes and not data_dir.exists():
    print(f"drawing the shapes data set into {data_dir}", flush=True)
    shapes.generate(data_dir, size_px=config.image_size_px)


def _facts(
  dataset: records.Dataset,
  splits: dict[str, records.Examples],
  held: statistics.Statistics,
) -> dict[str, Any]:
  """What must be the same in the data that each process reads."""
  pixels = np.ascontiguousarray(held.mean_image)
  return {
    "class names of data_dir": list(dataset.class_names),
    "mean image of data_dir": hashlib.sha256(pixels.tobytes()).hexdigest(),
  } | {f"images in {name}_split": len(split) for name, split in splits.items()}


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
  members = config.ensemble
  rule = f"from 0 to 2**32 - {members}"
  check("seed", lambda value: 0 <= value <= 2**32 - members, rule)
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
