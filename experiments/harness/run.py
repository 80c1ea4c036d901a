"""Trains the nets of an experiment that are still to be trained.

  python -m experiments.harness.run NAME [--only=ARM,ARM] [--seeds=5]

Killed or told to stop, the same command goes on where it was; several side by
side, each on cores or a device of its own, share the work. Each net gives a row
of experiments/NAME/results.csv and a folder in experiments/NAME/runs; weights
stay in runs/experiments, where another experiment with the same config finds
them.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from alexnet_jax import augment, evaluate, steps, train
from alexnet_jax.parallel import placement
from alexnet_jax.runs import logs, opened, run_files
from alexnet_jax.runtime import cli, errors, platforms, signals
from experiments.harness import plan, results

THEN = ", then "  # Between what trained a net one after another.
_ABOUT = "about.json"  # In a workdir: what trained its nets, and how long.
VIEWS = {"one_view_error": 1, "ten_view_error": 10}


def main(words: Sequence[str]) -> None:
  """Runs the command."""
  if len(words) != 2:
    raise errors.InputError(
      f"{' '.join(words[1:])!r} must be the name of one experiment; write"
      " python -m experiments.harness.run NAME."
    )
  options, name = flags.FLAGS, words[1]
  experiment = plan.load(name)
  if options.only == []:
    raise errors.InputError("--only='' must name an arm; leave it out for all.")
  arms = plan.select(experiment, options.only or ())
  # One on a CPU by measurement (experiments/seeds_at_once).
  at_once = options.seeds_at_once or (5 if platforms.loops_are_fast() else 1)
  for flag in ("seeds", "seeds_at_once"):
    value: Any = options[flag].value
    if value is not None and value < 1:
      raise errors.InputError(f"--{flag}={value} must be 1 or more.")
  seeds = {arm.name: options.seeds or arm.seeds for arm in arms}
  configs = {
    arm.name: plan.config_of(arm) for arm in plan.select(experiment, ())
  }
  results.check(results.read(name), configs, name)
  cli.keep_memory()
  cli.keep_programs()
  _commit()  # That of the code which runs, whatever is committed meanwhile.
  with signals.handle_signals() as should_stop:
    # Breadth first: every arm has some seeds before one has them all.
    for first in range(0, max(seeds.values()), at_once):
      for arm in arms:
        group = range(first, min(first + at_once, seeds[arm.name]))
        digest = plan.digest_of(configs[arm.name])
        _run(name, arm, group, digest, should_stop)
        if should_stop():
          print("told to stop; the same command goes on")
          return
  nets = sum(
    int(r["seed"]) < seeds.get(r["arm"], 0) for r in results.read(name)
  )
  print(f"{results.file_of(name)} has {nets} of {sum(seeds.values())} nets")


def _run(
  name: str,
  arm: plan.Arm,
  seeds: Sequence[int],
  digest: str,
  should_stop: Callable[[], bool],
) -> None:
  """Trains and tests the nets of an arm that have no row yet."""
  for program in _programs(name, arm, seeds, digest):
    print(f"{name}: {arm.name}, seeds {program[0]} to {sum(program) - 1}")
    workdir = results.WORKDIRS / digest / f"{program[0]}-{program[1]}"
    with _claim(workdir) as free:
      if not free:
        print("  another program is at it")
        continue
      wanted = [
        seed
        for seed in _pending(name, arm, seeds)
        if seed in range(program[0], sum(program))
      ]
      if not wanted:  # Another program was.
        continue
      rows = _rows(arm, program, wanted, workdir, should_stop)
      if should_stop():
        return
      if rows is None:
        # One of them came to nothing; which one, each tells alone.
        for seed in wanted:
          (workdir.parent / f"{seed}-1").mkdir(exist_ok=True)
        shutil.rmtree(workdir)
      else:
        for row in rows:
          _keep(name, arm, row, workdir, program)
        results.add(name, rows)
    for row in rows or ():
      figures = ", ".join(
        f"{metric} {row[metric]:.2%}" for metric in VIEWS if metric in row
      )
      print(f"{arm.name}, seed {row['seed']}: {row['outcome']} {figures}")
      print(f"  again: {plan.command_of(name, arm, row['seed'])}")
    if rows is None:
      _run(name, arm, seeds, digest, should_stop)


def _pending(name: str, arm: plan.Arm, seeds: Sequence[int]) -> list[int]:
  """Returns the seeds that have no row."""
  rows = results.read(name)
  done = {int(row["seed"]) for row in rows if row["arm"] == arm.name}
  return [seed for seed in seeds if seed not in done]


def _programs(
  name: str, arm: plan.Arm, seeds: Sequence[int], digest: str
) -> list[tuple[int, int]]:
  """Returns first seed and number of nets of the programs still to end.

  What was begun goes on as it was grouped.
  """
  pending = _pending(name, arm, seeds)
  held = {
    seed: (first, count)
    for _, first, count in results.programs(digest)
    for seed in range(first, first + count)
  }
  fresh = [seed for seed in pending if seed not in held]
  begun = {held[seed] for seed in pending if seed in held}
  return sorted([*begun, *_stretches(fresh)])


@contextlib.contextmanager
def _claim(workdir: Path) -> Iterator[bool]:
  """Yields whether no other program trains these nets."""
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / ".claimed").open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      yield False
    else:
      yield True


def _stretches(seeds: Sequence[int]) -> Iterator[tuple[int, int]]:
  """Yields (first, count) of each run of consecutive seeds."""
  first = None
  for seed in seeds:
    first = seed if first is None else first
    if seed + 1 not in seeds:
      yield first, seed + 1 - first
      first = None


def _rows(
  arm: plan.Arm,
  program: tuple[int, int],
  wanted: Sequence[int],
  workdir: Path,
  should_stop: Callable[[], bool],
) -> list[dict[str, Any]] | None:
  """Trains the nets of a program, and tests them.

  Args:
    arm: of the nets.
    program: its first seed, and how many nets it has.
    wanted: seeds that are to have a row.
    workdir: of the program.
    should_stop: asked after every step.

  Returns:
    Rows of results.csv, none if told to stop; None if one net among several
    came to nothing, and ended them all.
  """
  first, count = program
  config: Any = plan.config_of(arm, first, count)
  outcome, answers = results.FINISHED, {}
  _tell_of_program(workdir)
  with _timing(workdir):
    try:
      train.train_and_evaluate(config, workdir, should_stop)
    except errors.DivergedError as e:
      print(e)
      if count > 1:
        return None
      dead = isinstance(e, errors.NotLearningError)
      outcome = results.CHANCE if dead else results.DIVERGED
  jax.clear_caches()
  if outcome == results.FINISHED and not should_stop():
    answers = _answers(workdir, should_stop)
    jax.clear_caches()
  if should_stop():
    return []
  lines = logs.read_metrics(workdir)
  held = _about(workdir)
  seconds = held.pop("seconds")
  about: dict[str, Any] = {
    "arm": arm.name,
    "digest": plan.digest_of(config),
    **held,
    "nets_in_program": count,
    "wall_s": round(seconds / count),
    "outcome": outcome,
  }
  rows = []
  for seed in wanted:
    member = seed - first
    own = [x for x in lines if count == 1 or x.get("member") == member]
    row = about | {"seed": seed} | _figures(own, config)
    for metric in VIEWS if answers else ():
      best = answers[metric][member].argmax(axis=1)
      row[metric] = float(np.mean(best != answers["labels"]))
    if answers and _is_at_chance(own, config):
      row["outcome"] = results.CHANCE
    rows.append(row)
  return rows


def _is_at_chance(lines: list[dict[str, Any]], config: Any) -> bool:
  """Whether the last training loss of a net is no better than chance's."""
  losses = [x["loss"] for x in lines if x["split"] == "train"]
  least = (1 - train.DEAD) * math.log(config.num_classes)
  return bool(losses) and losses[-1] > least


def _tell_of_program(workdir: Path) -> None:
  """Writes down what trains nets; of several, one after another, all."""
  if (workdir / "answers.npz").exists():  # They are trained and tested.
    return
  now = {"commit": _commit(), "device": _device(), "versions": _versions()}
  held: dict[str, Any] = now | {"seconds": 0.0}
  if (workdir / _ABOUT).exists():
    held = _about(workdir)
  for name, value in now.items():
    if value not in held[name].split(THEN):
      held[name] += THEN + value
  _write_about(workdir, held)


@contextlib.contextmanager
def _timing(workdir: Path) -> Iterator[None]:
  """Adds the seconds of a block to those before, in the workdir."""
  start = time.perf_counter()
  try:
    yield
  finally:
    if workdir.exists():
      held = _about(workdir)
      held["seconds"] += round(time.perf_counter() - start, 1)
      _write_about(workdir, held)


def _about(workdir: Path) -> dict[str, Any]:
  """Returns commit, device, versions and seconds of a program.

  Raises:
    InputError: the file is damaged.
  """
  file = workdir / _ABOUT
  try:
    held = json.loads(file.read_text())
    words = {x: str(held[x]) for x in ("commit", "device", "versions")}
    return words | {"seconds": float(held["seconds"])}
  except (OSError, ValueError, LookupError, TypeError) as e:
    raise errors.InputError(
      f"{file} is damaged ({errors.reason(e)}); remove its folder, and the same"
      " command trains these nets anew."
    ) from e


def _write_about(workdir: Path, held: dict[str, Any]) -> None:
  new = workdir / f"{_ABOUT}.new"
  new.write_text(json.dumps(held) + "\n")
  os.replace(new, workdir / _ABOUT)


def _answers(
  workdir: Path, should_stop: Callable[[], bool]
) -> dict[str, np.ndarray]:
  """Returns what the nets of a workdir make of the test split.

  Args:
    workdir: of a finished run.
    should_stop: asked before each batch.

  Returns:
    `labels` int [N], and by metric float32 log probabilities [M, N, K] of M
    nets; kept in answers.npz. Nothing if told to stop.
  """
  file = workdir / "answers.npz"
  if file.exists():
    with np.load(file) as held:
      return dict(held)
  mesh = placement.make_mesh()
  run = opened.open_run(workdir, mesh)
  config = run.config
  examples = opened.examples_of(config, "", "")
  augmentation = augment.from_config(
    config, run_files.read_run_metadata(workdir)[1]
  )
  view_step = steps.make_view_step(run.net, augmentation, mesh)
  answers: dict[str, Any] = {}
  for metric, views in VIEWS.items():
    seen = augment.views(views, config.image_size_px, config.crop_size_px)
    labels, each = [], []

    def keep(batch, found, labels=labels, each=each):
      real = np.asarray(batch["mask"]) > 0
      labels.append(np.asarray(batch["label"])[real])
      own = found[: len(run.members)]
      each.append(np.stack([np.asarray(x)[real] for x in own]))

    members = [evaluate.Net(view_step, x, seen) for x in run.members]
    figures = evaluate.evaluate_members(
      members, examples, config, mesh, should_stop, keep
    )
    if figures is None:
      return {}
    answers["labels"] = np.concatenate(labels)
    answers[metric] = np.concatenate(each, axis=1)
  new = file.with_name(".answers.npz")
  np.savez(new, **answers)
  os.replace(new, file)
  return answers


def _figures(lines: list[dict[str, Any]], config: Any) -> dict[str, Any]:
  """Returns what the metrics of one net say of its training."""
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
  """Returns when the training error came to a target, None if it never did.

  An error is the mean since the line before, so it stands for the middle of
  that stretch; between two of them the error is taken as straight.

  Args:
    target: fraction.
    trained: the training lines of a net.
  """
  before, middle, error = 0.0, 0.0, 1.0
  for line in trained:
    last_middle, last_error = middle, error
    middle, error = (before + line["epoch"]) / 2, line["top1_error"]
    before = line["epoch"]
    if error <= target:
      share = (last_error - target) / (last_error - error)
      return last_middle + share * (middle - last_middle)
  return None


def _keep(
  name: str,
  arm: plan.Arm,
  row: dict[str, Any],
  workdir: Path,
  program: tuple[int, int],
) -> None:
  """Puts what a net leaves, but for its weights, beside the results."""
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
    best = {metric: held[metric][member].argmax(axis=1) for metric in VIEWS}
    if plan.load(name).keeps_answers:  # Half as exact is half as large.
      own: Any = {x: held[x][member].astype(np.float16) for x in VIEWS}
      np.savez_compressed(folder / "answers.npz", labels=labels, **own)
  bits: Any = {metric: np.packbits(x != labels) for metric, x in best.items()}
  np.savez_compressed(folder / "wrong.npz", images=len(labels), **bits)
  pairs, counts = np.unique(
    np.stack([labels, best["one_view_error"]]), axis=1, return_counts=True
  )
  confusions = {
    "split": "test",
    "step": row["steps"],
    "views": 1,
    "counts": np.concatenate([pairs, counts[None]]).T.tolist(),
  }
  (folder / "confusions.json").write_text(json.dumps(confusions) + "\n")


@functools.cache
def _commit() -> str:
  """Returns the commit, with a + where files differ from it."""
  if not shutil.which("git"):
    return "unknown"

  def git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
      ["git", *words], cwd=plan.HERE, capture_output=True, text=True
    )

  commit = git("rev-parse", "--short", "HEAD").stdout.strip()
  code = ("../alexnet_jax", "../configs", "*.py")  # Results change meanwhile.
  changed = git("status", "--porcelain", "--", *code).stdout
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
  flags.DEFINE_integer("seeds", None, "Nets of each arm; the experiment's.")
  flags.DEFINE_integer(
    "seeds_at_once", None, "Nets in one program, at most; 5, on a CPU 1."
  )
  flags.DEFINE_list("only", None, "Arms to train; all by default.")


if __name__ == "__main__":
  cli.run(main, _define_flags, takes_files=True)
