"""The training loop: build, iterate, log, evaluate, save."""

import collections
import contextlib
import dataclasses
import functools
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
  evaluate,
  metrics,
  model,
  networks,
  optimizer,
  schedules,
  steps,
)
from alexnet_jax.data import batches, checks, feed, records, statistics
from alexnet_jax.data.prepare import shapes
from alexnet_jax.parallel import ensemble, layouts, placement, train_loop
from alexnet_jax.runs import (
  checkpoint,
  config_files,
  diagnose,
  logs,
  opened,
  run_files,
)
from alexnet_jax.runtime import errors, hosts, platforms, signals

_RETRY_S = 10
# A loss so near to that of chance, as a share of it, is no better.
DEAD = 0.01


def train_and_evaluate(
  config: Any,
  workdir: Path,
  should_stop: Callable[[], bool] = lambda: False,
) -> None:
  """Trains as a config says, from where the workdir stands, then tests.

  Args:
    config: a whole config; see configs/alexnet.py for its fields.
    workdir: gets config.json, metrics.jsonl, tensorboard/ and checkpoints/.
    should_stop: asked after every step, or every program of several, and
      batch of an evaluation; the run is then saved and can go on from there.

  Raises:
    InputError: a bad config, data set or workdir, found before the first step;
      DivergedError in training, the last good checkpoint being kept.
  """
  hosts.assert_same_on_all_hosts(
    config_files.flatten(config.to_dict()) | {"workdir": str(workdir)}
  )
  _check_config(config)
  net = networks.make_model(config)
  layout = layouts.from_config(config, net.network, jax.device_count())
  mesh = placement.make_mesh(layout.devices, layout.model)
  # Whatever the layout, evaluations are data parallel.
  whole_mesh = placement.make_mesh()
  with hosts.raise_on_all_hosts():
    if hosts.is_first():
      _draw_shapes(config)
  with hosts.raise_on_all_hosts():
    dataset = records.open_directory(Path(config.data_dir))
    splits = _open_splits(config, dataset)
    held = checks.check(splits["train"], config)
    if config.init_inherits:  # The net knows pixels less that mean.
      begun = (workdir / "class_names.json").exists()
      _, held = run_files.read_run_metadata(
        workdir if begun else Path(config.init_from)
      )
    fingerprint = checks.fingerprint(splits.values())
    saved = checkpoint.exists(workdir)
    if config.init_from and not saved:
      opened.find_run(Path(config.init_from))
  hosts.assert_same_on_all_hosts(_facts(dataset, splits, held, fingerprint))
  # In a folder of its own a process may see another; see `share`.
  saved = hosts.from_first(saved)
  num_examples = len(splits["train"])
  total_steps = config.total_steps or schedules.step_of_epoch(
    config.total_epochs, num_examples, config.batch_size
  )
  tx, learning_rate = optimizer.from_config(
    config, num_examples, total_steps, layout.axes_of
  )
  augmentation = augment.from_config(config, held, num_examples)
  stream = feed.open_feed(splits["train"], config, layout, mesh)
  progress = checkpoint.Progress(stream.get_state(), fingerprint)
  if saved:
    state, started = _abstract_state(net, tx, layout, mesh), ""
  else:
    state, started = _start(config, net, tx, layout, mesh)
  with contextlib.ExitStack() as stack:
    # Last, so that nothing is written for a config that cannot run.
    with hosts.raise_on_all_hosts():
      if hosts.is_first():
        stack.enter_context(run_files.claim_workdir(workdir, config))
        with run_files.writing(workdir):
          run_files.check_run_metadata(workdir, dataset, held)
    hosts.assert_shared_folder(workdir)
    newest = _newest_good(workdir)
    if newest is not None:
      state, progress = checkpoint.restore(workdir, newest, state)
      _compare(config, newest, progress.fingerprint, fingerprint)
      stream.set_state(progress.batches)
    start_step, evaluated = int(state.step), progress.evaluated
    with hosts.raise_on_all_hosts(), run_files.writing(workdir):
      log = stack.enter_context(
        logs.Logger(workdir, start_step, evaluated, total_steps)
        if hosts.is_first()
        else logs.NullLogger(workdir, start_step, evaluated)
      )
    saver = checkpoint.Saver(
      workdir,
      keep=config.checkpoints_to_keep,
      every_minutes=config.checkpoint_every_minutes,
      best_step=progress.best_step,
      say=log.print,
    )
    if start_step:
      log.print(
        f"going on from step {start_step} of {total_steps} in {workdir}"
      )
    elif started:
      log.print(f"starting with {started}")
    step = steps.make_step(config, net, tx, augmentation, layout, mesh)
    loop = None
    if stream.draw and platforms.loops_are_fast() and config.steps_per_call > 1:
      loop = train_loop.make_train_loop(step, stream.draw, layout, mesh)
    _Run(
      config=config,
      net=net,
      layout=layout,
      mesh=mesh,
      whole_mesh=whole_mesh,
      splits=splits,
      augmentation=augmentation,
      train_step=platforms.jit(step, donate_argnums=0),
      train_loop=loop,
      view_step=steps.make_view_step(net, augmentation, whole_mesh),
      learning_rate=jax.jit(learning_rate),
      batches=stream,
      log=log,
      saver=stack.enter_context(saver),
      should_stop=should_stop,
      total_steps=total_steps,
      workdir=workdir,
      state=state,
      progress=progress,
    ).finish()


@dataclasses.dataclass
class _Running:
  """Steps whose figures are still to come.

  Attributes:
    first: the number of the first.
    count: how many there are.
    sums: of each, stacked; of a step that is no loop's, as they are.
    batch_of: from the turn of a step, from 0, to what it saw.
  """

  first: int
  count: int
  sums: dict[str, jax.Array]
  batch_of: Callable[[int], steps.Batch]


@dataclasses.dataclass
class _Run:
  """A run under way: what it is made of, and where it stands."""

  config: Any
  workdir: Path
  net: model.AlexNet
  layout: layouts.Layout
  mesh: Mesh
  whole_mesh: Mesh
  splits: dict[str, records.Examples]
  augmentation: augment.Augmentation
  train_step: Callable[..., Any]
  train_loop: Callable[..., Any] | None
  view_step: Callable[..., jax.Array]
  learning_rate: Callable[..., Any]
  batches: feed.Feed
  log: Any
  saver: checkpoint.Saver
  should_stop: Callable[[], bool]
  total_steps: int
  state: steps.TrainState
  progress: checkpoint.Progress

  def __post_init__(self):
    """Reads the state, which from the first step on is to be asked no more."""
    self.meter = _Meter(self.progress.totals)
    self.step = self.start_step = int(self.state.step)
    self.plateau = jax.device_get(
      placement.replicate(self.mesh, self.state.plateau)
    )
    self.running: _Running | None = None
    self.saved = True  # Whether what is here is what is on disk.

  def finish(self) -> None:
    """Trains to the end and tests, or until the run is told to stop."""
    try:
      self._train_and_test()
    except errors.InputTimeoutError as e:
      if jax.process_count() > 1:  # The others would not come to save.
        raise
      if not signals.stop_requested():
        self.log.print(f"WARNING: {e}")  # The disk may stall the saving too.
      try:
        if not self.saved:
          self._save(told=True, ended=False)
      except errors.InputError as failed:
        failed.exit_immediately = True
        raise
      if signals.stop_requested():
        errors.exit_immediately(self._told(), 0)
      raise

  def _told(self) -> str:
    return f"told to stop after step {self.step}; the same command goes on"

  def _train_and_test(self) -> None:
    if self._train():
      if "test" in self.splits and not self.log.holds(self.step, "test"):
        views = self.config.test_views
        if self._evaluate("test", views) is None:
          self.log.print("told to stop in the test; the same command goes on")
      elif self.start_step == self.step:
        self.log.print(f"the run in {self.workdir} is finished; nothing to do")

  def _train(self) -> bool:
    """Trains; returns whether that came to its end."""
    while True:
      told = self.should_stop()
      improved = False
      if not self.progress.evaluated and not told:
        improved = self._validate()
        told, self.saved = improved is None, False
      ended = self.step == self.total_steps or bool(self.plateau.stopped.all())
      if ended:
        self._settle()
        self._record_training()
      if not self.saved and (told or ended or improved or self._save_is_due()):
        self._save(told, ended)
        self.meter.restart()
      if told:
        self.log.print(self._told())
      if told or ended:
        return not told
      self._take_steps()
      self.saved = False

  def _take_steps(self) -> None:
    """Takes a step, or those up to the next event as one program."""
    last = self.step + 1
    if self.train_loop:
      room = self.config.steps_per_call
      while last < self.step + room and not self._is_event(last):
        last += 1
      count = last - self.step
      with self.meter.waiting():
        index = self.batches.indices(count, room)
      pool = self.batches.pool
      self.state, sums = self.train_loop(self.state, pool, index, count)
      batch_of = functools.partial(self.batches.batch_of, index)
    else:
      with self.meter.waiting():
        batch = next(self.batches)
      self.state, sums = self.train_step(self.state, batch)

      def batch_of(turn: int) -> steps.Batch:
        return batch

    self._know(batches=self.batches.get_state())
    # Those before are read while these run.
    self._settle()
    self.running = _Running(self.step + 1, last - self.step, sums, batch_of)
    self.step = last
    self._know(evaluated=not self._evaluates_after(last))
    if self.config.stop_at_train_error and self._is_logged(last):
      self._settle()  # What stops is not to take the next step.

  def _is_event(self, step: int) -> bool:
    """Whether there is something to do after a step but the next."""
    config = self.config
    return (
      self._is_logged(step)
      or step % config.checkpoint_every_steps == 0
      or step == self.total_steps
      or self._evaluates_after(step)
    )

  def _is_logged(self, step: int) -> bool:
    return step % self.config.log_every_steps == 0

  def _evaluates_after(self, step: int) -> bool:
    return "validation" in self.splits and (
      step == self.total_steps
      or _crosses(
        self.config.evaluate_every_epochs,
        step,
        self.config.batch_size,
        len(self.splits["train"]),
      )
    )

  def _know(self, **changes: Any) -> None:
    self.progress = dataclasses.replace(self.progress, **changes)

  def _settle(self) -> None:
    """Waits for the steps that run, if some do, and takes their figures in."""
    if self.running is None:
      return
    running, self.running = self.running, None
    whole = {name: np.asarray(x) for name, x in running.sums.items()}
    if not self.train_loop:
      whole = {name: x[None] for name, x in whole.items()}
    good = []
    for turn in range(running.count):
      step = running.first + turn
      sums = {name: values[turn] for name, values in whole.items()}
      nonfinite = sums.pop("nonfinite")
      losses = np.atleast_1d(sums["loss"] / sums["examples"])
      if nonfinite.any() or not np.isfinite(losses).all():
        batch = running.batch_of(turn)
        self._skip(step, losses, np.atleast_2d(nonfinite), batch)
      else:
        good.append(sums)
      self.log.advance(step, self._epoch(step))
    self.meter.add(good)
    if self._is_logged(step):
      self._record_training(step)

  def _epoch(self, step: int) -> float:
    return step * self.config.batch_size / len(self.splits["train"])

  def _rates(self, step: int) -> np.ndarray:
    """Returns the learning rate of each member in a step."""
    rates = self.learning_rate(max(step - 1, 0), self.plateau.drops)
    return np.broadcast_to(rates, (self.layout.members,))

  def _record_training(self, step: int | None = None) -> None:
    """Writes the figures of the steps since the last time, if there are any."""
    if not self.meter.pending:
      return
    step = step or self.step
    each = self.meter.take()
    self._record(step, "train", each)
    if target := self.config.stop_at_train_error:
      error = self._of_members(each)
      stopped = self.plateau.stopped | (error < target)
      for member in np.flatnonzero(stopped & ~self.plateau.stopped):
        who = f"member {member}: " if stopped.ndim else ""
        self.log.print(f"{who}training error below {target:g}: the end")
      self._follow(dataclasses.replace(self.plateau, stopped=stopped))
    after = self.config.check_learning_after_steps
    if after and step >= after:
      _check_alive(self.config, step, [figures["loss"] for figures in each])

  def _record(
    self, step: int, split: str, each: list[dict[str, float]]
  ) -> None:
    """Writes the figures of each member, and of all together the last."""
    bad = [x["loss"] for x in each if not math.isfinite(x["loss"])]
    if bad:
      raise errors.DivergedError(
        f"the {split} loss is {bad[0]} at step {step}; lower learning_rate."
        f" {self._newest()}"
      )
    rates = self._rates(step)
    members = self.layout.members
    ended = np.atleast_1d(self.plateau.stopped)
    for number, figures in enumerate(each):
      # One that has ended waits for the others' test.
      if number < members > 1 and split != "test" and ended[number]:
        continue
      about = {"step": step, "epoch": self._epoch(step), "split": split}
      rate = rates.mean()
      if len(each) > 1 and number < members:
        about["member"] = number
        rate = rates[number]
      self.log.record(about | figures | {"learning_rate": float(rate)})

  def _evaluate(self, split: str, views: int) -> list[dict[str, float]] | None:
    """Returns the figures of a split, None if the run was told to stop."""
    config = self.config
    seen = augment.views(views, config.image_size_px, config.crop_size_px)
    params = placement.replicate(self.whole_mesh, self.state.params)
    counts = collections.Counter()

    def count(batch: steps.Batch, each: list[jax.Array]) -> None:
      answers = evaluate.predictions(batch, each[-1], self.whole_mesh)
      counts.update(zip(*(x.tolist() for x in answers), strict=True))

    each = evaluate.evaluate_members(
      [
        evaluate.Net(self.view_step, member, seen)
        for member in ensemble.unstack(params, self.layout.members)
      ],
      self.splits[split],
      config,
      self.whole_mesh,
      self.should_stop,
      on_batch=count if split == "test" else None,
    )
    if each is not None:
      if split == "test":
        self.log.keep_confusions(self.step, views, counts)
      self._record(self.step, split, each)
    return each

  def _validate(self) -> bool | None:
    """Evaluates the validation split, and follows the plateau's rule.

    Returns:
      Whether the error is the lowest so far, None if told to stop meanwhile.
    """
    self._settle()
    each = self._evaluate("validation", views=1)
    self.meter.restart()
    if each is None:
      return None
    if self.config.schedule == "plateau":
      error = self._of_members(each)
      self._follow(_watch(self.plateau, error, self.config, self.log))
    error, best = each[-1]["top1_error"], self.progress.best_error
    improved = best is None or error < best
    self._know(evaluated=True)
    if improved:
      self._know(best_step=self.step, best_error=error)
    return improved

  def _of_members(self, each: list[dict[str, float]]) -> np.ndarray:
    """Returns the error of each member, in the shape of the plateau's."""
    error = [x["top1_error"] for x in each[: self.layout.members]]
    return np.reshape(error, self.plateau.stale.shape)

  def _follow(self, plateau: schedules.Plateau) -> None:
    """Has the next steps go by this plateau."""
    where = jax.tree.map(lambda x: x.sharding, self.state.plateau)
    self.plateau = plateau
    self.state = dataclasses.replace(
      self.state, plateau=jax.device_put(plateau, where)
    )

  def _save_is_due(self) -> bool:
    """Whether to save now, by the steps or by the clock of process 0."""
    config = self.config
    if self.step % config.checkpoint_every_steps == 0:
      return True
    # Of several processes all have to wait for the answer.
    asks = jax.process_count() == 1 or self.step % config.log_every_steps == 0
    return asks and hosts.from_first(self.saver.is_due())

  def _save(self, told: bool, ended: bool) -> None:
    """Saves; what is the end of this run is not let go before it is on disk."""
    self._settle()
    self._know(totals=self.meter.totals())
    self.log.flush()  # A run that goes on from here writes none of it again.
    self.saver.save(self.state, self.progress)
    while (told or ended) and not hosts.from_first(
      self.saver.wait() and self.log.flush()
    ):
      if told or self.should_stop():
        raise errors.InputError(
          f"step {self.step} could not be saved. {self._newest()}"
        )
      time.sleep(_RETRY_S)
      self.saver.save(self.state, self.progress)
    self.saved = True

  def _newest(self) -> str:
    self.saver.wait()
    return checkpoint.newest_of(self.workdir)

  def _skip(
    self,
    step: int,
    losses: np.ndarray,
    nonfinite: np.ndarray,
    batch: steps.Batch,
  ) -> None:
    """Passes over a step that was left out; raises InputError if too many."""
    member = int(np.argmax(nonfinite.any(axis=1) | ~np.isfinite(losses)))
    whose = f" of member {member}" if len(losses) > 1 else ""
    loss = f"the loss{whose} is {losses[member]:g} at step {step}"
    allowed = self.config.skip_nonfinite_steps
    skipped = self.progress.skipped + 1
    if skipped <= allowed:
      self._know(skipped=skipped)
      self.log.print(
        f"WARNING: {loss}, or a gradient is not finite; it is left out"
        f" ({skipped} of skip_nonfinite_steps={allowed})"
      )
      return
    remedy = (
      f"with learning_rate={self._rates(step)[member]:g}; lower it, or have"
      " such steps left out with --config.skip_nonfinite_steps=N."
      f" {self._newest()}"
    )
    with hosts.raise_on_all_hosts():
      if blamed := self._blame(step, batch):
        raise errors.DivergedError(f"{loss}: {blamed}, {remedy}")
    # Gradients come from the last layer: those before it have them from there.
    paths = jax.tree.leaves_with_path(self.state.params)
    names = networks.layer_names(self.net.network)
    bad = [
      (names.index(path[-2].key), f"{path[-2].key}/{path[-1].key}")
      for (path, _), count in zip(paths, nonfinite[member], strict=True)
      if count
    ]
    _, array = max(bad, default=(0, "no array"))
    seen = self._examples(step, member, slice(None))
    raise errors.DivergedError(
      f"{loss}, and of {len(bad)} arrays the gradient is not finite, first that"
      f" of {array}, for {seen}, {remedy}"
    )

  def _examples(self, step: int, member: int, rows: Any) -> str:
    """Returns which examples the rows of a step's batch are, in words."""
    examples = self.splits["train"]
    found = batches.examples_of(
      len(examples),
      batch_size=self.config.batch_size,
      seed=self.config.seed + member,
      batch=step - 1,
    )[rows]
    more = ", ..." if len(found) > 8 else ""
    shown = ", ".join(map(str, found[:8]))
    return f"examples {shown}{more} of {examples.split!r}"

  def _blame(self, step: int, batch: steps.Batch) -> str:
    """Returns the first layer whose outputs are not finite, and for what.

    By the parameters of now; of the examples that this process has.
    """
    params = placement.replicate(self.mesh, self.state.params)
    members = ensemble.unstack(jax.device_get(params), self.layout.members)
    probe = diagnose.make_finite_probe(self.net, self.augmentation)
    rows_B = self.layout.example_order()
    for shard in batch["image"].addressable_shards:
      images = np.asarray(shard.data)
      whose = range(len(members))[shard.index[0]] if len(members) > 1 else [0]
      rows = rows_B[shard.index[len(members) > 1]]
      for number, seen in zip(
        whose, images if len(members) > 1 else [images], strict=True
      ):
        seed = np.uint32(self.config.seed + number)
        finite_LxB = np.asarray(
          probe(members[number], seen, rows, np.int32(step - 1), seed)
        )
        for name, finite_B in zip(
          networks.layer_names(self.net.network), finite_LxB, strict=True
        ):
          if not finite_B.all():
            bad = rows[~finite_B]
            return (
              f"the outputs of {name} are not finite for {len(bad)} of"
              f" {len(rows)} images, {self._examples(step, number, bad)}"
            )
    return ""


def _newest_good(workdir: Path) -> int | None:
  """Returns the step to go on from; damaged ones are put aside and told of."""
  found = None
  with hosts.raise_on_all_hosts():
    if hosts.is_first():
      with run_files.writing(workdir):
        checkpoint.clean(workdir)
        found, bad = checkpoint.newest_good(workdir)
        for line in checkpoint.quarantine(workdir, bad):
          print(line, flush=True)
  return hosts.from_first(found)


def _compare(
  config: Any, step: int, held: dict[str, str], found: dict[str, str]
) -> None:
  """Raises InputError if the splits are not those of a checkpoint."""
  differing = sorted(
    name for name in held | found if held.get(name) != found.get(name)
  )
  if differing:
    raise errors.InputError(
      f"data_dir={config.data_dir!r} is not what the run had at step {step}:"
      f" {errors.first_few(differing, 3)} changed. Put the data back, or choose"
      " another --workdir to start anew."
    )


def _check_alive(config: Any, step: int, losses: list[float]) -> None:
  """Raises InputError if a net knows no more than that all is possible."""
  chance = math.log(config.num_classes)
  dead = [loss for loss in losses if abs(loss / chance - 1) < DEAD]
  if dead:
    raise errors.NotLearningError(
      f"the net learns nothing: at step {step} its loss is {dead[0]:.4f}, and"
      f" ln(num_classes={config.num_classes}) is {chance:.4f}. Usual causes:"
      f" learning_rate={config.learning_rate:g} is too high or too low; sigma"
      " or bias of the layers, so that no unit is active; labels that have"
      " nothing to do with the images (alexnet show draws them). If it is to"
      " go on, --config.check_learning_after_steps=0."
    )


def _watch(
  before: schedules.Plateau, error: np.ndarray, config: Any, log: Any
) -> schedules.Plateau:
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
      log.print(f"{who}{waited} after {int(new)} drops of the rate: the end")
    elif new > old:
      log.print(f"{who}{waited}: the rate drops")
  return after


class _Meter:
  """Adds up the training figures between two records, and their time."""

  def __init__(self, totals: dict[str, Any]):
    """Goes on from `totals()`."""
    self._calls = 0
    self._clear()
    self._totals = {name: np.float64(value) for name, value in totals.items()}
    self.restart()

  def _clear(self) -> None:
    self._totals: metrics.Totals = {}
    self._seconds = self._timed_images = self._waited = 0.0

  @property
  def pending(self) -> bool:
    """Whether a step was added since the last `take`."""
    return bool(self._totals)

  def totals(self) -> dict[str, Any]:
    """Returns the sums since the last `take`, for JSON."""
    return {name: value.tolist() for name, value in self._totals.items()}

  def restart(self) -> None:
    """Starts the clock of the next step: an evaluation is no training."""
    self._mark = time.perf_counter()

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Times the wait for a batch."""
    start = time.perf_counter()
    yield
    self._waited += time.perf_counter() - start

  def add(self, each: list[metrics.Sums]) -> None:
    """Counts the sums of the steps that have ended since the last call."""
    if not each:
      return
    start, self._mark = self._mark, time.perf_counter()
    self._calls += 1
    if self._calls == 2:  # The first compiled: it is no measure of speed.
      self._seconds = self._timed_images = self._waited = 0.0
    self._seconds += self._mark - start
    for sums in each:
      metrics.add(self._totals, sums)
      self._timed_images += float(np.sum(sums["examples"]))

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
    # A resumed run may have nothing but what was saved.
    seconds = self._seconds or math.inf
    speed = {
      "images_per_second": self._timed_images / seconds,
      "input_wait": self._waited / seconds,
    }
    self._clear()
    return [figures | speed for figures in each]


def _start(
  config: Any, net: model.AlexNet, tx: Any, layout: layouts.Layout, mesh: Mesh
) -> tuple[steps.TrainState, str]:
  """Returns the state before the first step, and what it was started with."""
  each = [
    steps.init_params(net, config.seed + member)
    for member in range(layout.members)
  ]
  started = ""
  if config.init_from:
    found = [
      opened.load_pretrained(
        Path(config.init_from),
        params,
        placement.make_mesh(),
        config.reinit_layers,
      )
      for params in each
    ]
    each = [params for params, _, _ in found]
    _, taken, left = found[0]
    started = f"{', '.join(taken)} from {config.init_from}"
    started += f"; {', '.join(left)} drawn anew" if left else ""
  state = _state(each, tx)
  where = placement.shardings(mesh, placement.specs(layout, state))
  return jax.device_put(state, where), started


def _state(each: list[Any], tx: Any) -> steps.TrainState:
  """Returns the state before the first step, of one or more members."""
  params = ensemble.stack(each) if len(each) > 1 else each[0]
  return steps.init_state(params, tx, len(each))


def _abstract_state(
  net: model.AlexNet, tx: Any, layout: layouts.Layout, mesh: Mesh
) -> steps.TrainState:
  """Returns the shapes of a state, and where its arrays are to be."""

  def draw():
    return _state([steps.init_params(net, 0)] * layout.members, tx)

  state = jax.eval_shape(draw)
  where = placement.shardings(mesh, placement.specs(layout, state))
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    state,
    where,
  )


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
  fingerprint: dict[str, str],
) -> dict[str, Any]:
  """What must be the same in the data that each process reads."""
  pixels = np.ascontiguousarray(held.mean_image)
  return (
    {
      "class names of data_dir": list(dataset.class_names),
      "mean image of data_dir": hashlib.sha256(pixels.tobytes()).hexdigest(),
    }
    | {
      f"file {name} of data_dir": digest for name, digest in fingerprint.items()
    }
    | {f"images in {name}_split": len(split) for name, split in splits.items()}
  )


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
    "checkpoint_every_minutes",
    "checkpoint_every_steps",
    "checkpoints_to_keep",
    "colour_noise_divisor",
    "colour_noise_epochs",
    "evaluate_every_epochs",
    "images_per_view",
    "input_timeout_s",
    "lars_trust",
    "learning_rate",
    "learning_rate_drop_epochs",
    "learning_rate_drop_factor",
    "log_every_steps",
    "plateau_patience",
    "reader_threads",
    "steps_per_call",
    "total_epochs",
    "total_steps",
  ):
    if config[name] is not None:
      check(name, lambda value: 0 < value < 2**31, "positive, below 2**31")
  for name in (
    "colour_noise",
    "check_learning_after_steps",
    "learning_rate_of_biases",
    "learning_rate_of_reinit_layers",
    "plateau_drops",
    "skip_nonfinite_steps",
    "warmup_epochs",
    "weight_decay",
  ):
    check(name, lambda value: 0 <= value < 2**31, "0 or more, below 2**31")
  check("device_cache_fraction", lambda value: 0 <= value <= 1, "from 0 to 1")
  check("num_classes", lambda value: value >= 2, "2 or more")
  check("dexp_rates", lambda value: 2 <= value <= 1000, "from 2 to 1000")
  check(
    "stop_at_train_error", lambda value: 0 <= value < 1, "from 0 to under 1"
  )
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
