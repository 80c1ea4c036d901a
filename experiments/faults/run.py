"""Kills runs, damages checkpoints and fills disks; compares the resumed runs.

  python experiments/faults/run.py [--kills=100] [--corruptions=100]

After each fault the same command runs again. A trial survives if its parameters
and metrics equal those of an undisturbed run bit for bit. Full and read-only
disks are mounted, which needs root, and skipped otherwise. Every run is a
process, forked from one that has imported the program, to start sooner. Results
go to results.csv.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from alexnet_jax import main as command
from alexnet_jax.data.prepare import shapes
from alexnet_jax.runtime import cli

HERE = Path(__file__).parent
SEED = 0
EVALUATE_EVERY = 10
FIELDS = {
  "image_size_px": 32,
  "batch_size": 16,
  "network.layers": ("conv1", "conv3", "fc6", "fc8"),
  "network.conv1.filters": 8,
  "network.conv1.kernel": 5,
  "network.conv1.stride": 2,
  "network.conv1.sigma": 0.005,
  "network.conv3.filters": 16,
  "network.conv3.sigma": 0.15,
  "network.fc6.units": 32,
  "network.fc6.bias": 0.0,
  "network.fc6.sigma": 0.06,
  "network.fc8.sigma": 0.05,
  "learning_rate": 0.003,
  "check_learning_after_steps": 0,
  "total_steps": 120,
  "log_every_steps": 5,
  "checkpoint_every_steps": 17,
  "evaluate_every_epochs": 1.0,
}
COUNTS = {"train": 16 * EVALUATE_EVERY, "validation": 320, "test": 320}
DAMAGES = ("one bit", "16 bytes", "4 KiB of zeros", "truncated", "missing")
FORKED = multiprocessing.get_context("forkserver")


def _train(arguments: list[str], output: Path) -> None:
  """Runs `alexnet train` in this process; all that it prints goes to a file."""
  stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(stream, 1)
  os.dup2(stream, 2)
  sys.argv = ["alexnet train", *arguments]
  cli.run(command.main, command.define_flags)


class Command:
  """The command of a user, started."""

  def __init__(self, workdir: Path, data: Path):
    descriptor, name = tempfile.mkstemp(dir=data.parent)
    os.close(descriptor)
    self._output = Path(name)
    fields = {**FIELDS, "data_dir": data}
    arguments = [f"--config.{field}={value}" for field, value in fields.items()]
    arguments.append(f"--workdir={workdir}")
    self._process = FORKED.Process(
      target=_train, args=(arguments, self._output)
    )
    self._process.start()

  @property
  def output(self) -> str:
    """What it has printed so far."""
    return self._output.read_text()

  @property
  def runs(self) -> bool:
    """Whether it has not ended."""
    return self._process.is_alive()

  def kill(self) -> None:
    """Ends it by SIGKILL."""
    self._process.kill()
    self._process.join()

  def wait(self, timeout_s: float = 300) -> int:
    """Returns its exit code."""
    self._process.join(timeout_s)
    if self.runs:
      self.kill()
    return self._process.exitcode or 0


def steps_of(workdir: Path) -> list[int]:
  """Returns the steps that have a checkpoint."""
  names = [path.name for path in (workdir / "checkpoints").glob("*")]
  return sorted(int(name) for name in names if name.isdecimal())


def records(workdir: Path) -> list[dict[str, Any]]:
  """Returns the whole lines of metrics.jsonl, but for what depends on time."""
  file = workdir / "metrics.jsonl"
  lines = file.read_text().split("\n") if file.exists() else [""]
  found = []
  for line in lines[:-1]:
    record = json.loads(line)
    found.append({**record, "images_per_second": 0, "input_wait": 0})
  return found


def digest(workdir: Path) -> str:
  """Returns a digest of the newest parameters, read by Orbax alone."""
  newest = workdir / "checkpoints" / str(steps_of(workdir)[-1])
  total = hashlib.sha256(newest.name.encode())
  with ocp.PyTreeCheckpointer() as checkpointer:
    tree = checkpointer.metadata(newest / "params").item_metadata.tree
    plain = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
    )
    found: Any = checkpointer.restore(newest / "params", restore_args=plain)
  for stack in sorted(found):
    for layer in sorted(found[stack]):
      for name in sorted(found[stack][layer]):
        total.update(np.asarray(found[stack][layer][name]).tobytes())
  return total.hexdigest()


class Trials:
  """Runs of the same config, each with a fault, beside one that had none."""

  def __init__(self, folder: Path):
    self.folder = folder
    self.data = folder / "data"
    shapes.generate(self.data, size_px=32, workers=0, **COUNTS)
    self.rows: list[dict[str, Any]] = []
    self.whole = folder / "whole"
    for workdir in (folder / "first", self.whole):  # The first one compiles.
      start = time.monotonic()
      if self.start(workdir).wait():
        raise SystemExit("the undisturbed run failed")
      self.seconds = time.monotonic() - start
    self.expected = digest(self.whole), records(self.whole)
    print(f"an undisturbed run takes {self.seconds:.1f} s", flush=True)

  def start(self, workdir: Path) -> Command:
    """Starts the command, the same for all of them."""
    return Command(workdir, self.data)

  def same(self, workdir: Path) -> bool:
    """Whether a run has ended in what the undisturbed one has."""
    if steps_of(workdir)[-1:] != [FIELDS["total_steps"]]:
      return False
    return (digest(workdir), records(workdir)) == self.expected

  def add(self, fault: str, where: str, what: str, survived: bool) -> None:
    """Notes a trial."""
    trial = sum(row["fault"] == fault for row in self.rows)
    row = {
      "fault": fault,
      "trial": trial,
      "where": where,
      "what": what,
      "survived": survived,
    }
    self.rows.append(row)
    print(*row.values(), sep=", ", flush=True)
    with (HERE / "results.csv").open("w", newline="") as file:
      writer = csv.DictWriter(file, list(row))
      writer.writeheader()
      writer.writerows(self.rows)


def where(workdir: Path, command: Command) -> str:
  """Returns what a run was doing when it was killed."""
  found = []
  if any((workdir / "checkpoints").glob("*.unfinished*")):
    found.append("saving")
  last = (records(workdir) or [{"split": "", "step": 0}])[-1]
  trained = last["split"] == "train" and last["step"] % EVALUATE_EVERY == 0
  ended = last["split"] != "train" and last["step"] == FIELDS["total_steps"]
  if not re.search(r"^(step|resuming)", command.output, re.MULTILINE):
    found.append("starting")
  elif trained or ended:
    found.append("evaluating")
  return " and ".join(found) or "training"


def kill_sometime(
  trials: Trials, workdir: Path, rng: random.Random
) -> str | None:
  """Starts a run and kills it; returns where, None if it has ended before."""

  def lasts(done: Callable[[], bool]) -> None:
    while command.runs and not done():
      time.sleep(0.001)

  def passed(seconds: float) -> Callable[[], bool]:
    moment = time.monotonic() + seconds
    return lambda: time.monotonic() > moment

  command = trials.start(workdir)
  aim = rng.choice(("any", "training", "saving", "evaluating"))
  if aim == "any":
    lasts(passed(rng.uniform(0, trials.seconds)))
  else:
    lasts(lambda: "\nstep" in command.output)
    lasts(passed(rng.uniform(0, 1)))
    if aim == "saving":
      lasts(lambda: any((workdir / "checkpoints").glob("*.unfinished*")))
      lasts(passed(rng.uniform(0, 0.1)))
    if aim == "evaluating":
      lasts(lambda: "evaluating" in where(workdir, command))
      lasts(passed(rng.uniform(0, 0.3)))
  if not command.runs:
    return None
  command.kill()
  return where(workdir, command)


def kills(trials: Trials, count: int) -> None:
  """Kills runs again and again until each has come to its end."""
  rng = random.Random(SEED)
  done = number = 0
  while done < count:
    number += 1
    workdir = trials.folder / f"killed{number}"
    hits = []
    while done + len(hits) < count:
      hit = kill_sometime(trials, workdir, rng)
      if hit is None:
        break
      newest = steps_of(workdir)[-1:] or ["none"]
      hits.append((hit, f"run {number}, checkpoint {newest[0]}"))
    else:
      trials.start(workdir).wait()
    survived = trials.same(workdir)
    for hit, what in hits:
      trials.add("kill -9", hit, what, survived)
    done += len(hits)
    if survived:
      shutil.rmtree(workdir)


def kind_of(file: Path, folder: Path) -> str:
  """Returns a file's name without what differs from save to save."""
  name = file.relative_to(folder).as_posix()
  name = re.sub(r"[0-9a-f]{32}", "HASH", name)
  return re.sub(r"^(params|opt_state|plateau)/", "ARRAYS/", name)


def damage(file: Path, how: str, rng: random.Random) -> None:
  """Damages a file, so that it is another than it was."""
  data = bytearray(file.read_bytes())
  while bytes(data) == file.read_bytes():
    start = rng.randrange(len(data))
    match how:
      case "one bit":
        data[start] ^= 1 << rng.randrange(8)
      case "16 bytes":
        data[start : start + 16] = rng.randbytes(len(data[start : start + 16]))
      case "4 KiB of zeros":
        data[start : start + 4096] = bytes(len(data[start : start + 4096]))
      case "truncated":
        del data[start:]
      case "missing":
        file.unlink()
        return
  file.write_bytes(data)


def corruptions(trials: Trials, count: int) -> None:
  """Damages the newest checkpoint of a finished run, and has it go on."""
  rng = random.Random(SEED)
  newest = str(steps_of(trials.whole)[-1])
  held = trials.whole / "checkpoints" / newest
  kinds: dict[str, list[str]] = {}
  for file in sorted(held.rglob("*")):
    if file.is_file():
      name = file.relative_to(held).as_posix()
      kinds.setdefault(kind_of(file, held), []).append(name)
  pairs = [(kind, how) for kind in sorted(kinds) for how in DAMAGES]
  for number in range(count):
    if number % len(pairs) == 0:
      rng.shuffle(pairs)
    kind, how = pairs[number % len(pairs)]
    name = rng.choice(kinds[kind])
    workdir = trials.folder / f"damaged{number}"
    shutil.copytree(trials.whole, workdir)
    damage(workdir / "checkpoints" / newest / name, how, rng)
    command = trials.start(workdir)
    survived = command.wait() == 0 and trials.same(workdir)
    warning = re.search(
      rf"WARNING: the checkpoint of step {newest} is damaged \((.*)\)",
      command.output,
    )
    # A damaged SHA256SUMS may say that of any file.
    named = warning and (
      name == "SHA256SUMS" or warning[1].startswith(f"{name} is missing")
    )
    aside = (workdir / f"checkpoints/{newest}.damaged-1").is_dir()
    trials.add("corruption", kind, how, bool(survived and named and aside))
    if survived:
      shutil.rmtree(workdir)


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
  """Yields a folder that is a disk of its own."""
  folder.mkdir()
  options = ["-t", "tmpfs", "-o", f"size={size}", "none"]
  subprocess.run(["mount", *options, folder], check=True)
  try:
    yield folder
  finally:
    subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> None:
  """Takes all room that is left."""
  with contextlib.suppress(OSError), (folder / "ballast").open("ab", 0) as file:
    while True:
      file.write(bytes(4096))


def full_disks(trials: Trials, count: int) -> None:
  """Fills the disk of a run, before or within it, and makes room again."""
  rng = random.Random(SEED)
  for number in range(count):
    until = ("the next save", "the end", "a kill", "a refusal")[number % 4]
    with mounted(trials.folder / f"full{number}", "8m") as disk:
      workdir = disk / "run"
      if until == "a refusal":
        fill(disk)
      command = trials.start(workdir)
      lines = rng.randrange(1, 15)
      while until != "a refusal" and command.runs:
        if len(records(workdir)) >= lines:
          break
        time.sleep(0.001)
      last = f"step {FIELDS['total_steps']} could not"
      told = 0
      enough = False
      while command.runs and not enough:
        fill(disk)
        time.sleep(0.01)
        told = command.output.count("could not be saved")
        enough = last in command.output if until == "the end" else told > 1
      if until == "a refusal":
        found = [x for x in command.output.splitlines() if "error:" in x]
        warned = command.wait() == 1 and "No space left" in "".join(found)
      else:
        warned = told > 0 and command.runs
      if until == "a kill":
        command.kill()
      (disk / "ballast").unlink()
      if until in ("a kill", "a refusal"):
        command = trials.start(workdir)
      survived = command.wait() == 0 and warned and trials.same(workdir)
      trials.add("full disk", f"until {until}", f"{told} told", survived)


def contents(folder: Path) -> dict[str, bytes]:
  """Returns all bytes of a folder by their names."""
  files = [path for path in folder.rglob("*") if path.is_file()]
  return {str(file): file.read_bytes() for file in files}


def read_only_disks(trials: Trials, count: int) -> None:
  """Starts runs, new and finished, on a disk that cannot be written."""
  for number in range(count):
    with mounted(trials.folder / f"read_only{number}", "8m") as disk:
      workdir, what = disk / "run", "a new run"
      if number % 2:
        what = "a run to go on"
        shutil.copytree(trials.whole, workdir)
        shutil.rmtree(workdir / "checkpoints" / str(FIELDS["total_steps"]))
      before = contents(disk)
      subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
      command = trials.start(workdir)
      refused = command.wait() == 1
      lines = [x for x in command.output.splitlines() if "error:" in x]
      told = len(lines) == 1 and "Read-only" in lines[0]
      told = told and "Traceback" not in command.output
      survived = refused and told and contents(disk) == before
      trials.add("read-only disk", what, "refused in one line", survived)


def two_programs(trials: Trials, count: int) -> None:
  """Starts the command beside itself, and where a killed one held the lock."""
  rng = random.Random(SEED)
  for number in range(count):
    workdir = trials.folder / f"two{number}"
    first = trials.start(workdir)
    delay = rng.uniform(0, trials.seconds / 2)
    time.sleep(delay)
    second = trials.start(workdir)
    codes = sorted((first.wait(), second.wait()))
    refused = [
      line
      for line in (first.output + second.output).splitlines()
      if line.startswith("error:") and "in use by another program" in line
    ]
    survived = codes == [0, 1] and len(refused) == 1 and trials.same(workdir)
    trials.add("two programs", f"{delay:.1f} s apart", "one refused", survived)


def can_mount(folder: Path) -> bool:
  """Whether disks can be mounted here."""
  try:
    with mounted(folder, "1m"):
      return True
  except (OSError, subprocess.CalledProcessError):
    return False


def main() -> None:
  """Runs the trials and writes results.csv."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--corruptions", type=int, default=100)
  parser.add_argument("--full_disks", type=int, default=8)
  parser.add_argument("--read_only_disks", type=int, default=4)
  parser.add_argument("--two_programs", type=int, default=6)
  counts = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    os.environ |= {
      "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": f"{name}/compiled",
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "PYTHONUNBUFFERED": "1",
    }
    FORKED.set_forkserver_preload(["alexnet_jax.main"])
    trials = Trials(Path(name))
    kills(trials, counts.kills)
    corruptions(trials, counts.corruptions)
    two_programs(trials, counts.two_programs)
    if can_mount(Path(name, "mount")):
      full_disks(trials, counts.full_disks)
      read_only_disks(trials, counts.read_only_disks)
    else:
      print("full and read-only disks: skipped, mount takes root")
  lost = 0
  for fault in dict.fromkeys(row["fault"] for row in trials.rows):
    held = [row["survived"] for row in trials.rows if row["fault"] == fault]
    lost += held.count(False)
    print(f"{fault}: {len(held)} trials, {sum(held)} survived")
  if lost:
    raise SystemExit(f"{lost} trials did not survive")


if __name__ == "__main__":
  main()
