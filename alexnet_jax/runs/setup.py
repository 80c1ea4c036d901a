"""From a config and a workdir to a run that is ready to train."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from alexnet_jax import augment, networks, optimizer, schedules, steps
from alexnet_jax.data import feed
from alexnet_jax.parallel import layouts, placement, train_loop
from alexnet_jax.runs import (
  banner,
  checkpoint,
  config_files,
  logs,
  run_data,
  run_files,
  saving,
  states,
  trained,
)
from alexnet_jax.runs.run import Run
from alexnet_jax.runtime import errors, hosts, platforms, program


@contextlib.contextmanager
def open_run(
  config: Any,
  workdir: Path,
  should_stop: Callable[[], bool],
  accept_data: bool = False,
) -> Iterator[Run]:
  """Yields a run, new or resumed from its newest undamaged checkpoint.

  With `accept_data` it resumes on a data set that has changed.
  """
  is_first = jax.process_index() == 0
  fields = config_files.flatten(config.to_dict())
  hosts.assert_same_on_all_hosts(fields | {"workdir": str(workdir)})
  config_files.check(config)
  net = networks.make_model(config)
  layout = layouts.from_config(config, net.network, len(placement.devices()))
  mesh = placement.make_mesh(layout.devices, layout.model)
  # Processes that do not share a folder would not see the same.
  resumes = hosts.from_first(bool(checkpoint.steps_of(workdir)))
  data = run_data.open_data(config, workdir, resumes)
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
    seeds = range(config.seed, config.seed + config.ensemble)
    drawn, origin = [states.init_params(net, seed) for seed in seeds], ""
    if config.init_from:
      drawn, origin = trained.load_pretrained(config, drawn)
    state = states.init_state(drawn, tx)
    where = placement.shardings(mesh, placement.specs(layout, state))
    state = jax.device_put(state, where)
  step = steps.make_step(config, net, tx, augmentation, layout, mesh)
  same = config.deterministic
  if stream.draw and platforms.loops_are_fast() and config.steps_per_call > 1:
    steps_per_call = config.steps_per_call
    step_fn = train_loop.make_train_loop(step, stream.draw, layout, mesh, same)
  else:
    steps_per_call, step_fn = 1, platforms.jit(step, same, donate_argnums=0)
  with contextlib.ExitStack() as stack:
    # Nothing is written before here, where the config is known to run.
    newest, is_held = None, lambda: True
    with hosts.raise_on_all_hosts(), errors.writing("workdir", workdir):
      if is_first:
        claim = run_files.claim_workdir(workdir, config, total_steps)
        newest, is_held = stack.enter_context(claim)
    hosts.assert_shared_folder(workdir)
    newest = hosts.from_first(newest)
    about: dict[str, Any] = {
      "config": config.to_dict(),
      "environment": program.environment(config, placement.devices()),
      "commit": program.commit(),
      "accepted_data": [],
    }
    before = about
    if newest is not None:
      _, before = checkpoint.read_progress(workdir, newest)
      about["accepted_data"] = before["accepted_data"]
      state, progress = checkpoint.restore(workdir, newest, state)
      changed = errors.differences(progress.fingerprint, data.fingerprint)
      if changed and not accept_data:
        raise errors.InputError(
          f"data_dir={config.data_dir!r} is not what the run had at step"
          f" {newest}: {changed}. Put the data back, go on with these by"
          " --accept_data, or choose another --workdir to start anew."
        )
      if changed:
        pairs = progress.fingerprint.items() ^ data.fingerprint.items()
        files = sorted({name for name, _ in pairs})
        about["accepted_data"].append({"step": newest, "changed": files})
        progress.fingerprint = data.fingerprint
      stream.set_state(progress.batches)
    start_step = int(state.step)
    plateau = jax.device_get(placement.replicate(mesh, state.plateau))
    goes_on = start_step < total_steps and not plateau.stopped.all()
    with hosts.raise_on_all_hosts(), errors.writing("workdir", workdir):
      log = logs.Logger(
        workdir,
        start_step,
        progress.evaluated,
        total_steps,
        is_first,
        before.get("records"),
        goes_on,
      )
      if is_first:
        now = {"step": start_step, "fingerprint": data.fingerprint}
        names = workdir / "class_names.json"
        kept = names.exists() and run_files.has_statistics(workdir)
        if not resumes or not kept:
          run_files.write_run_metadata(
            workdir, data.class_names, data.statistics
          )
        text = json.dumps(about | now, indent=2)  # For people.
        run_files.replace_text(workdir / "about.json", text + "\n")
    stack.enter_context(log)
    saver = saving.Saver(
      workdir, config, log, progress.best_step, should_stop, about, is_held
    )
    run = Run(
      config=config,
      workdir=workdir,
      splits=data.splits,
      net=net,
      augmentation=augmentation,
      mesh=mesh,
      learning_rate=jax.jit(learning_rate),
      steps_per_call=steps_per_call,
      step_fn=step_fn,
      feed=stream,
      total_steps=total_steps,
      log=log,
      saver=stack.enter_context(saver),
      should_stop=should_stop,
      state=state,
      plateau=plateau,
      progress=progress,
    )
    for line in banner.lines(run) if goes_on else ():
      log.print(line)
    if start_step and goes_on:
      where = f"step {start_step} of {total_steps} in {workdir}"
      log.print(f"resuming from {where}")
      if differing := errors.differences(
        before["environment"], about["environment"], ("before", "now")
      ):
        log.print(
          f"not all is as before: {differing}. The run will be equal to one"
          " that never stopped up to rounding, not to the bit"
        )
    elif origin:
      log.print(f"starting with {origin}")
    yield run
