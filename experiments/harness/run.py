"""Trains the nets of an experiment that have no row in results.csv yet.

  python -m experiments.harness.run NAME [--only=ARM,ARM] [--seeds=5]

After a kill or a stop signal, the same command continues. Several of them, each
on cores or a device of its own, share the work. Each net gets a row in
experiments/NAME/results.csv and a folder in experiments/NAME/runs. Weights stay
in runs/experiments, where other experiments with the same config find them.

A program trains one net, or several of consecutive seeds as an ensemble.
"""

import contextlib
import fcntl
import functools
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from alexnet_jax import augment, evaluate, steps, train
from alexnet_jax.parallel import placement
from alexnet_jax.runs import logs, run_files, trained
from alexnet_jax.runtime import cli, errors, platforms, signals
from experiments.harness import plan, results

VIEWS = {"one_view_error": 1, "ten_view_error": 10}
CHANCE_TOLERANCE = 0.01
"""A net has learned if its loss is below chance's by this fraction."""
_THEN = ", then "  # between the commits that trained a net one after another
_ABOUT = "program.json"  # in a workdir: commits, devices, versions and seconds


def main(words: Sequence[str]) -> None:
  """Runs the command."""
  name = experiment_name(words, "run")
  experiment, options = plan.load(name), flags.FLAGS
  if options.only == []:
    raise errors.InputError("--only='' must name an arm; leave it out for all.")
  arms = plan.select(experiment, options.only or ())
  # On a CPU an ensemble is no quicker (experiments/seeds_at_once).
  at_once = options.seeds_at_once or (5 if platforms.loops_are_fast() else 1)
  seeds = {arm.name: options.seeds or arm.seeds for arm in arms}
  cli.configure_process()
  with signals.handle_signals() as should_stop:
    train_missing(name, seeds, at_once, should_stop)


def train_missing(
  name: str,
  seeds: Mapping[str, int],
  at_once: int,
  should_stop: Callable[[], bool],
) -> None:
  """Trains and tests the nets of an experiment that have no row yet.

  Args:
    name: of the experiment.
    seeds: how many nets of each arm.
    at_once: nets in a program, at most.
    should_stop: asked after every step.

  Raises:
    InputError: results.csv is damaged, or has rows of another config.
  """
  arms = {arm.name: arm for arm in plan.select(plan.load(name), ())}
  configs = {arm: plan.config_of(arms[arm]) for arm in arms}
  results.check(results.read(name), configs, name)
  _commit()  # cached now: of the code that runs, whatever is committed later
  # Every arm gets its first seeds before one arm gets all of them.
  for first in range(0, max(seeds.values()), at_once):
    for arm, count in seeds.items():
      group = range(first, min(first + at_once, count))
      digest = plan.digest_of(configs[arm])
      _train_arm(name, arms[arm], group, digest, should_stop)
      if should_stop():
        print("stopped by a signal; the same command continues")
        return
  nets = sum(
    int(r["seed"]) < seeds.get(r["arm"], 0) for r in results.read(name)
  )
  print(f"{results.file_of(name)} has {nets} of {sum(seeds.values())} nets")


def experiment_name(words: Sequence[str], module: str) -> str:
  """Returns the one argument of a command of this package."""
  if len(words) != 2:
    raise errors.InputError(
      f"{' '.join(words[1:])!r} must be the name of one experiment; write"
      f" python -m experiments.harness.{module} NAME."
    )
  return words[1]


def _train_arm(
  name: str,
  arm: plan.Arm,
  seeds: Sequence[int],
  digest: str,
  should_stop: Callable[[], bool],
) -> None:
  """Trains and tests the nets of an arm that have no row yet."""
  for program in _programs(name, arm, seeds, digest):
    first, last = program[0], sum(program) - 1
    print(f"{name}: {arm.name}, seeds {first} to {last}")
    workdir = results.WORKDIRS / digest / f"{program[0]}-{program[1]}"
    with _claim(workdir) as claimed:
      if not claimed:
        print("  another program trains these")
        continue
      missing = [
        seed
        for seed in _missing(name, arm, seeds)
        if seed in range(first, last + 1)
      ]
      if not missing:  # another program has trained them
        continue
      rows = _train_program(arm, program, missing, workdir, should_stop)
      if should_stop():
        return
      if rows is None:
        # One of several nets failed; train each alone to see which.
        for seed in missing:
          (workdir.parent / f"{seed}-1").mkdir(exist_ok=True)
        shutil.rmtree(workdir)
      else:
        for row in rows:
          _save_net(name, arm, row, workdir, program)
        results.add(name, rows)
    for row in rows or ():
      figures = ", ".join(
        f"{metric} {row[metric]:.2%}" for metric in VIEWS if metric in row
      )
      print(f"{arm.name}, seed {row['seed']}: {row['outcome']} {figures}")
      print(f"  to repeat: {plan.command_of(name, arm, row['seed'])}")
    if rows is None:
      _train_arm(name, arm, seeds, digest, should_stop)


def _missing(name: str, arm: plan.Arm, seeds: Sequence[int]) -> list[int]:
  """Returns the seeds that have no row."""
  rows = results.read(name)
  done = {int(row["seed"]) for row in rows if row["arm"] == arm.name}
  return [seed for seed in seeds if seed not in done]


def _programs(
  name: str, arm: plan.Arm, seeds: Sequence[int], digest: str
) -> list[tuple[int, int]]:
  """Returns first seed and number of nets of each program to run.

  Programs that a former call has begun keep their nets.
  """
  missing = _missing(name, arm, seeds)
  begun = {
    seed: (first, count)
    for _, first, count in results.programs(digest)
    for seed in range(first, first + count)
  }
  new = [seed for seed in missing if seed not in begun]
  again = {begun[seed] for seed in missing if seed in begun}
  return sorted([*again, *_consecutive(new)])


def _consecutive(seeds: Sequence[int]) -> Iterator[tuple[int, int]]:
  """Yields (first, count) of each stretch of consecutive seeds."""
  first = None
  for seed in seeds:
    first = seed if first is None else first
    if seed + 1 not in seeds:
      yield first, seed + 1 - first
      first = None


@contextlib.contextmanager
def _claim(workdir: Path) -> Iterator[bool]:
  """Yields whether no other program holds the workdir."""
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / ".claimed").open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield False
    else:
      yield True


def _train_program(
  arm: plan.Arm,
  program: tuple[int, int],
  seeds: Sequence[int],
  workdir: Path,
  should_stop: Callable[[], bool],
) -> list[dict[str, Any]] | None:
  """Trains the nets of a program, and tests them.

  Args:
    arm: of the nets.
    program: its first seed and number of nets.
    seeds: the nets that need a row.
    workdir: of the program.
    should_stop: asked after every step.

  Returns:
    Rows of results.csv, none if stopped; None if the program failed and has
    several nets.
  """
  first, count = program
  config: Any = plan.config_of(arm, first, count)
  outcome, answers = results.FINISHED, {}
  _record_program(workdir)
  with _timing(workdir):
    try:
      train.train_and_evaluate(config, workdir, should_stop)
    except errors.DivergedError as e:
      print(e)
      if count > 1:
        return None
      at_chance = isinstance(e, errors.NotLearningError)
      outcome = results.AT_CHANCE if at_chance else results.DIVERGED
  jax.clear_caches()
  if outcome == results.FINISHED and not should_stop():
    answers = _answers(workdir, should_stop)
    jax.clear_caches()
  if should_stop():
    return []
  lines = logs.read_metrics(workdir)
  about = _read_about(workdir)
  seconds = about.pop("seconds")
  common: dict[str, Any] = {
    "arm": arm.name,
    "digest": plan.digest_of(config),
    **about,
    "nets_in_program": count,
    "wall_s": round(seconds / count),
    "outcome": outcome,
  }
  rows = []
  for seed in seeds:
    member = seed - first
    own = [x for x in lines if count == 1 or x.get("member") == member]
    row = common | {"seed": seed} | _training_figures(own, config)
    for metric in VIEWS if answers else ():
      predicted = answers[metric][member].argmax(axis=1)
      row[metric] = float(np.mean(predicted != answers["labels"]))
    if answers and _is_at_chance(own, config):
      row["outcome"] = results.AT_CHANCE
    rows.append(row)
  return rows


def _is_at_chance(lines: list[dict[str, Any]], config: Any) -> bool:
  """Whether the last training loss of a net is no better than chance's."""
  losses = [x["loss"] for x in lines if x["split"] == "train"]
  least = (1 - CHANCE_TOLERANCE) * math.log(config.num_classes)
  return bool(losses) and losses[-1] > least


def _record_program(workdir: Path) -> None:
  """Adds today's commit, device and versions to program.json."""
  if (workdir / "answers.npz").exists():  # nothing is left to train
    return
  now = {"commit": _commit(), "device": _device(), "versions": _versions()}
  about: dict[str, Any] = now | {"seconds": 0.0}
  if (workdir / _ABOUT).exists():
    about = _read_about(workdir)
  for name, value in now.items():
    if value not in about[name].split(_THEN):
      about[name] += _THEN + value
  _write_about(workdir, about)


@contextlib.contextmanager
def _timing(workdir: Path) -> Iterator[None]:
  """Adds the seconds of a block to program.json."""
  start = time.perf_counter()
  try:
    yield
  finally:
    if workdir.exists():
      about = _read_about(workdir)
      about["seconds"] += round(time.perf_counter() - start, 1)
      _write_about(workdir, about)


def _read_about(workdir: Path) -> dict[str, Any]:
  """Returns commit, device, versions and seconds of a program.

  Raises:
    InputError: the file is damaged.
  """
  file = workdir / _ABOUT
  try:
    about = json.loads(file.read_text())
    words = {x: str(about[x]) for x in ("commit", "device", "versions")}
    return words | {"seconds": float(about["seconds"])}
  except (OSError, ValueError, LookupError, TypeError) as e:
    raise errors.InputError(
      f"{file} is damaged ({errors.reason(e)}); remove its folder, and the same"
      " command trains these nets again."
    ) from e


def _write_about(workdir: Path, about: dict[str, Any]) -> None:
  new = workdir / f"{_ABOUT}.new"
  new.write_text(json.dumps(about) + "\n")
  os.replace(new, workdir / _ABOUT)


def _answers(
  workdir: Path, should_stop: Callable[[], bool]
) -> dict[str, np.ndarray]:
  """Returns the answers of a finished run's nets to the test images.

  Args:
    workdir: of the run; it keeps the answers in answers.npz.
    should_stop: asked before each batch.

  Returns:
    `labels` int [N], and by metric float32 log probabilities [M, N, K] of M
    nets; nothing if stopped.
  """
  file = workdir / "answers.npz"
  if file.exists():
    with np.load(file) as held:
      return dict(held)
  mesh = placement.make_mesh()
  run = trained.load_run(workdir, mesh)
  config = run.config
  examples = trained.examples_of(config, "", "")
  augmentation = augment.from_config(
    config, run_files.read_run_metadata(workdir, config.image_size_px)[1]
  )
  view_step = steps.make_view_step(run.net, augmentation, mesh)
  answers: dict[str, Any] = {}
  for metric, count in VIEWS.items():
    views = augment.views(count, config.image_size_px, config.crop_size_px)
    labels, each = [], []

    def keep(batch, found, labels=labels, each=each):
      real = np.asarray(batch["mask"]) > 0
      labels.append(np.asarray(batch["label"])[real])
      own = found[: len(run.members)]
      each.append(np.stack([np.asarray(x)[real] for x in own]))

    nets = [evaluate.Net(view_step, x, views) for x in run.members]
    figures = evaluate.evaluate_nets(
      nets, examples, config, mesh, should_stop, keep
    )
    if figures is None:
      return {}
    answers["labels"] = np.concatenate(labels)
    answers[metric] = np.concatenate(each, axis=1)
  new = file.with_name(".answers.npz")
  np.savez(new, **answers)
  os.replace(new, file)
  return answers


def _training_figures(
  lines: list[dict[str, Any]], config: Any
) -> dict[str, Any]:
  """Returns the cells of a row that come from a net's metrics.jsonl."""
  trained = [x for x in lines if x["split"] == "train"]
  figures = {"steps": trained[-1]["step"] if trained else 0}
  if trained:
    figures["train_error"] = round(trained[-1]["top1_error"], 6)
  if validated := [x for x in lines if x["split"] == "validation"]:
    figures["validation_error"] = validated[-1]["top1_error"]
  if target := config.stop_at_train_error:
    reached = epochs_to(target, trained)
    figures["epochs_to_target"] = reached and round(reached, 4)
  return figures


def epochs_to(target: float, trained: list[dict[str, Any]]) -> float | None:
  """Returns the epoch at which the training error falls to a target.

  A logged error is the mean since the line before, so it stands for the middle
  of that stretch. Between two such points the error is taken as linear.

  Args:
    target: a fraction.
    trained: the training lines of a net.

  Returns:
    The epoch, or None if the error stays above the target.
  """
  before, middle, error = 0.0, 0.0, 1.0
  for line in trained:
    last_middle, last_error = middle, error
    middle, error = (before + line["epoch"]) / 2, line["top1_error"]
    before = line["epoch"]
    if error <= target:
      fraction = (last_error - target) / (last_error - error)
      return last_middle + fraction * (middle - last_middle)
  return None


def _save_net(
  name: str,
  arm: plan.Arm,
  row: dict[str, Any],
  workdir: Path,
  program: tuple[int, int],
) -> None:
  """Writes the net's folder in experiments/NAME/runs: all but its weights."""
  first, count = program
  member = row["seed"] - first
  folder = results.folder_of(name, arm.name, row["seed"])
  folder.mkdir(parents=True, exist_ok=True)
  config = plan.config_of(arm, row["seed"])
  text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
  (folder / "config.json").write_text(text + "\n")
  with (folder / "metrics.jsonl").open("w") as file:
    for line in logs.read_metrics(workdir):
      if count == 1 or line.pop("member", None) == member:
        file.write(json.dumps(line) + "\n")
  if not (workdir / "answers.npz").exists():
    return
  shutil.copy(workdir / "class_names.json", folder)
  with np.load(workdir / "answers.npz") as held:
    labels = held["labels"]
    predicted = {m: held[m][member].argmax(axis=1) for m in VIEWS}
    if plan.load(name).keeps_answers:  # float16 takes half the room
      own: Any = {m: held[m][member].astype(np.float16) for m in VIEWS}
      np.savez_compressed(folder / "answers.npz", labels=labels, **own)
  bits: Any = {m: np.packbits(x != labels) for m, x in predicted.items()}
  np.savez_compressed(folder / "wrong.npz", images=len(labels), **bits)


@functools.cache
def _commit() -> str:
  """Returns the commit, with a + if the code differs from it."""
  if not shutil.which("git"):
    return "unknown"

  def git(*words: str) -> str:
    return subprocess.run(
      ["git", *words], cwd=plan.HERE, capture_output=True, text=True
    ).stdout

  commit = git("rev-parse", "--short", "HEAD").strip()
  code = ("../alexnet_jax", "../configs", "*.py")  # results change meanwhile
  changed = git("status", "--porcelain", "--", *code)
  return f"{commit}{'+' if changed else ''}" if commit else "unknown"


def _device() -> str:
  device = jax.devices()[0]
  if device.platform == "cpu":
    cores = len(os.sched_getaffinity(0))
    return f"{cores} CPU core{'s' * (cores > 1)} ({platform.machine()})"
  return f"{jax.device_count()} x {device.device_kind}"


def _versions() -> str:
  packages = ("jax", "flax", "optax")
  found = [f"{name} {importlib.metadata.version(name)}" for name in packages]
  return f"{' '.join(found)} python {platform.python_version()}"


def _define_flags() -> None:
  flags.DEFINE_integer(
    "seeds", None, "Nets of each arm; by default the experiment's.", 1
  )
  flags.DEFINE_integer(
    "seeds_at_once", None, "Nets in a program, at most; 5, or 1 on a CPU.", 1
  )
  flags.DEFINE_list("only", None, "Arms to train; all by default.")


if __name__ == "__main__":
  cli.run(main, _define_flags, takes_files=True)
