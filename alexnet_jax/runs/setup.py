"""From a config and a workdir to a run that is ready to train."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from alexnet_jax import augment, networks, optimizer, schedules, steps
from alexnet_jax.data import checks, feed, records, statistics
from alexnet_jax.data.prepare import shapes
from alexnet_jax.parallel import layouts, placement, train_loop
from alexnet_jax.runs import (
  checkpoint,
  config_files,
  logs,
  opened,
  run_files,
  saving,
  states,
)
from alexnet_jax.runs.events import Events
from alexnet_jax.runs.run import Chunk, Run
from alexnet_jax.runtime import errors, hosts, platforms, signals


@contextlib.contextmanager
def open_run(
  config: Any, workdir: Path, should_stop: Callable[[], bool]
) -> Iterator[Run]:
  """Yields a run, new or resumed from its newest valid checkpoint.

  Args:
    config: a whole config.
    workdir: of the run; made if it does not exist.
    should_stop: see `train.train_and_evaluate`.

  Raises:
    InputError: a bad config, data set or workdir.
  """
  facts = config_files.flatten(config.to_dict()) | {"workdir": str(workdir)}
  hosts.assert_same_on_all_hosts(facts)
  config_files.check(config)
  net = networks.make_model(config)
  layout = layouts.from_config(config, net.network, jax.device_count())
  mesh = placement.make_mesh(layout.devices, layout.model)
  data = open_data(config, workdir)
  hosts.assert_same_on_all_hosts(data.facts())
  # Processes that do not share a folder would not see the same.
  resumes = hosts.from_first(checkpoint.exists(workdir))
  num_examples = len(data.splits["train"])
  total_steps = config.total_steps or schedules.step_of_epoch(
    config.total_epochs, num_examples, config.batch_size
  )
  tx, learning_rate = optimizer.from_config(
    config, num_examples, total_steps, layout.axes_of
  )
  augmentation = augment.from_config(config, data.statistics, num_examples)
  stream = feed.Feed(data.splits["train"], config, layout, mesh)
  progress = checkpoint.Progress(stream.get_state(), data.fingerprint)
  if resumes:
    state, origin = states.abstract(net, tx, layout, mesh), ""
  else:
    state, origin = states.initial(config, net, tx, layout, mesh)
  step = steps.make_step(config, net, tx, augmentation, layout, mesh)
  steps_per_call, step_fn = _make_step_fn(config, step, stream, layout, mesh)
  with contextlib.ExitStack() as stack:
    # Nothing is written before here, where the config is known to run.
    with hosts.raise_on_all_hosts():
      if hosts.is_first():
        stack.enter_context(run_files.claim_workdir(workdir, config))
        with run_files.writing(workdir):
          run_files.check_run_metadata(workdir, data.dataset, data.statistics)
    hosts.assert_shared_folder(workdir)
    newest = _latest_valid(workdir)
    if newest is not None:
      state, progress = checkpoint.restore(workdir, newest, state)
      _check_same_files(config, newest, progress.fingerprint, data.fingerprint)
      stream.set_state(progress.batches)
    start_step = int(state.step)
    about = workdir, start_step, progress.evaluated
    with hosts.raise_on_all_hosts(), run_files.writing(workdir):
      log = stack.enter_context(
        logs.Logger(*about, total_steps)
        if hosts.is_first()
        else logs.NullLogger(*about)
      )
    if start_step:
      log.print(
        f"resuming from step {start_step} of {total_steps} in {workdir}"
      )
    elif origin:
      log.print(f"starting with {origin}")
    saver = saving.Saver(
      workdir,
      keep=config.checkpoints_to_keep,
      every_minutes=config.checkpoint_every_minutes,
      log=log,
      best_step=progress.best_step,
      should_stop=should_stop,
    )
    eval_mesh = placement.make_mesh()
    run = Run(
      config=config,
      workdir=workdir,
      splits=data.splits,
      net=net,
      augmentation=augmentation,
      layout=layout,
      mesh=mesh,
      eval_mesh=eval_mesh,
      learning_rate=jax.jit(learning_rate),
      steps_per_call=steps_per_call,
      step_fn=step_fn,
      view_step=steps.make_view_step(net, augmentation, eval_mesh),
      feed=stream,
      events=Events(
        total_steps=total_steps,
        steps_per_epoch=num_examples / config.batch_size,
        log_every_steps=config.log_every_steps,
        save_every_steps=config.checkpoint_every_steps,
        validate_every_epochs=(
          config.evaluate_every_epochs if "validation" in data.splits else None
        ),
      ),
      log=log,
      saver=stack.enter_context(saver),
      should_stop=should_stop,
      state=state,
      progress=progress,
    )
    try:
      yield run
    except errors.InputTimeoutError as e:
      _save_without_input(run, e)
      raise


def _make_step_fn(
  config: Any, step: Any, stream: feed.Feed, layout: layouts.Layout, mesh: Mesh
) -> tuple[int, Callable[[steps.TrainState, Chunk], Any]]:
  """Returns how many steps a call takes at most, and the call."""
  if stream.draw and platforms.loops_are_fast() and config.steps_per_call > 1:
    loop = train_loop.make_train_loop(step, stream.draw, layout, mesh)
    return config.steps_per_call, lambda state, chunk: loop(
      state, *chunk.batches
    )
  one = platforms.jit(step, donate_argnums=0)
  return 1, lambda state, chunk: one(state, chunk.batches)


def _save_without_input(run: Run, error: errors.InputTimeoutError) -> None:
  """Saves a run whose input does not come, whose threads may never end."""
  if jax.process_count() > 1:  # The others would not come to save.
    return
  stopped = signals.stop_requested()
  if not stopped:
    run.log.print(f"WARNING: {error}")  # The disk may stall the saving too.
  try:
    if not run.saved:
      run.save(wait=True, retry=False)
  except errors.InputError as failed:
    failed.exit_immediately = True
    raise
  if stopped:
    errors.exit_immediately(run.stop_message(), 0)


@dataclasses.dataclass(frozen=True)
class Data:
  """The data of a run.

  Attributes:
    dataset: the directory, opened.
    splits: the examples of train, and of validation and test if there are any.
    statistics: mean image and colour axes.
    fingerprint: digest of each file.
  """

  dataset: records.Dataset
  splits: dict[str, records.Examples]
  statistics: statistics.Statistics
  fingerprint: dict[str, str]

  def facts(self) -> dict[str, Any]:
    """Returns what must be the same in the data of each process."""
    pixels = np.ascontiguousarray(self.statistics.mean_image)
    return (
      {
        "class names of data_dir": list(self.dataset.class_names),
        "mean image of data_dir": hashlib.sha256(pixels.tobytes()).hexdigest(),
      }
      | {f"file {k} of data_dir": v for k, v in self.fingerprint.items()}
      | {f"images in {k}_split": len(v) for k, v in self.splits.items()}
    )


def open_data(config: Any, workdir: Path) -> Data:
  """Opens and checks the data set of a config.

  Raises:
    InputError: no such data, or other data than the config says.
  """
  data_dir = Path(config.data_dir)
  with hosts.raise_on_all_hosts():
    if hosts.is_first() and config.generate_shapes and not data_dir.exists():
      print(f"drawing the shapes data set into {data_dir}", flush=True)
      shapes.generate(data_dir, size_px=config.image_size_px)
  with hosts.raise_on_all_hosts():
    dataset = records.open_directory(data_dir)
    splits = {
      split: records.open_split(
        dataset, config[f"{split}_split"], f"{split}_split"
      )
      for split in ("train", "validation", "test")
      if config[f"{split}_split"] or split == "train"
    }
    if config.batch_size > len(splits["train"]):
      raise errors.InputError(
        f"batch_size={config.batch_size} is larger than train_split="
        f"{config.train_split!r} with {len(splits['train'])} images; lower it."
      )
    found = checks.check(splits["train"], config)
    if config.init_from and not checkpoint.exists(workdir):
      opened.find_run(Path(config.init_from))
    if config.init_inherits:  # The net knows pixels less that run's mean.
      begun = (workdir / "class_names.json").exists()
      origin = workdir if begun else Path(config.init_from)
      _, found = run_files.read_run_metadata(origin)
    fingerprint = checks.fingerprint(splits.values())
  return Data(dataset, splits, found, fingerprint)


def _check_same_files(
  config: Any, step: int, before: dict[str, str], now: dict[str, str]
) -> None:
  changed = sorted(
    name for name in before | now if before.get(name) != now.get(name)
  )
  if changed:
    raise errors.InputError(
      f"data_dir={config.data_dir!r} is not what the run had at step {step}:"
      f" {errors.first_few(changed, 3)} changed. Put the data back, or choose"
      " another --workdir to start anew."
    )


def _latest_valid(workdir: Path) -> int | None:
  """Returns the step to resume from; damaged checkpoints are quarantined."""
  step = None
  with hosts.raise_on_all_hosts():
    if hosts.is_first():
      with run_files.writing(workdir):
        checkpoint.clean(workdir)
        step, damaged = checkpoint.latest_valid(workdir)
        checkpoint.quarantine(workdir, damaged)
  return hosts.from_first(step)
