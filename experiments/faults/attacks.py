"""Does to runs what strangers do to them, and says which promises held.

  python experiments/faults/attacks.py [--only=WORD]

Every attempt is a command or a script as users run it, on a small data set and
on copies of one finished run. It prints HELD or FAILED with the line that shows
it, and writes attacks.csv. The exit code is 1 if any attempt failed. The tests
hold the same promises one by one; docs/promises.md names them.
"""

# Each attempt yields what it tries, which would be its docstring.
# ruff: noqa: D103

import argparse
import contextlib
import csv
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jaxlib.version
import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "tests/support"), str(HERE), str(ROOT)]

import tfds_files  # noqa: E402  # pyright: ignore[reportMissingImports]
from run import FIELDS, digest, records, steps_of  # noqa: E402  # pyright: ignore

import alexnet_jax  # noqa: E402
from alexnet_jax.data.prepare import shapes  # noqa: E402
from alexnet_jax.tools import commands  # noqa: E402

RUN = {
  **FIELDS,
  "total_steps": 12,
  "log_every_steps": 2,
  "checkpoint_every_steps": 4,
  "checkpoints_to_keep": 16,
  "evaluate_every_epochs": 0.4,
}
LONG = {**RUN, "total_steps": 4000, "checkpoints_to_keep": 1}
COUNTS = {"train": 160, "validation": 40, "test": 50}
FORKED = multiprocessing.get_context("forkserver")
Verdict = tuple[bool, str]
"""Whether a promise held, and what shows it."""
Attempts = Iterator[tuple[str, Verdict]]
ALEXNET = sys.executable, "-m", "alexnet_jax"
LIMITS: dict[str, Any] = {
  "limits": {resource.RLIMIT_DATA: 6 << 30},
  "timeout_s": 60,
}


class Result(NamedTuple):
  """How a command ended, and what it printed."""

  code: int | None
  output: str

  def line(self, *words: str) -> str:
    """Returns the first line that holds all the words, or ""."""
    lines = self.output.splitlines()
    return next((x for x in lines if all(w in x for w in words)), "")

  def refused(self, *words: str) -> Verdict:
    """Whether it ended with code 1 and one line that holds the words."""
    found = [x for x in self.output.splitlines() if x.startswith("error:")]
    line = found[0] if len(found) == 1 else self.output[-400:]
    # Threads of Orbax may complain as well of a folder that is gone.
    theirs = "orbax" in self.output or "asyncio" in self.output
    clean = "Traceback" not in self.output or theirs
    good = self.code == 1 and len(found) == 1 and clean
    return good and all(word in line for word in words), line

  def worked(self, *words: str) -> Verdict:
    """Whether it ended with code 0 and a line that holds the words."""
    line = self.line(*words) or self.output[-400:]
    good = self.code == 0 and "Traceback" not in self.output
    return good and all(word in line for word in words), line


def _command(words: list[str], output: str, limits: dict[int, int]) -> None:
  """Runs a command in this process; all that it prints goes to a file."""
  stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(stream, 1)
  os.dup2(stream, 2)
  os.chdir(Path(output).parent)
  for limit, value in limits.items():
    resource.setrlimit(limit, (value, value))
  sys.argv = ["alexnet", *words]
  commands.main()


class Command:
  """A command, started; `with` kills it in the end."""

  def __init__(self, folder: Path, words: list[str], limits: dict[int, int]):
    descriptor, self._output = tempfile.mkstemp(dir=folder)
    os.close(descriptor)
    self._process = FORKED.Process(
      target=_command, args=(words, self._output, limits)
    )
    self._process.start()

  def __enter__(self) -> "Command":
    return self

  def __exit__(self, *_) -> None:
    self._process.kill()
    self._process.join()

  @property
  def output(self) -> str:
    """What it has printed so far."""
    return Path(self._output).read_text(errors="surrogateescape")

  def runs(self) -> bool:
    """Whether it has not ended."""
    return self._process.is_alive()

  def signal(self, number: int) -> None:
    """Sends it a signal."""
    os.kill(self._process.pid or 0, number)

  def until(self, done: Callable[[], Any], timeout_s: float = 120) -> bool:
    """Waits until something holds, or the command ends; returns if it holds."""
    end = time.monotonic() + timeout_s
    while self.runs() and time.monotonic() < end and not done():
      time.sleep(0.005)
    return bool(done())

  def end(self, timeout_s: float = 120) -> Result:
    """Waits for its end; the code is None if it does not come."""
    self._process.join(timeout_s)
    code = self._process.exitcode
    self._process.kill()
    self._process.join()
    return Result(code, self.output)


class Ground:
  """A data set, a finished run, and commands."""

  def __init__(self, folder: Path):
    self.folder = folder
    self.data = folder / "data"
    shapes.generate(self.data, size_px=32, workers=0, **COUNTS)
    self.whole = folder / "whole"
    self.picture = folder / "picture.png"
    picture = tfds_files.noise(0, 40, 40, 3)
    self.picture.write_bytes(tfds_files.encoded(picture))
    if self.train(self.whole).code != 0:
      raise SystemExit("the undisturbed run failed")
    self.digest = digest(self.whole)

  def new(self, name: str = "new") -> Path:
    """Returns a path in a new folder."""
    return Path(tempfile.mkdtemp(dir=self.folder)) / name

  def start(self, *words: object, limits: dict[int, int] | None = None):
    """Starts a command."""
    return Command(self.folder, [*map(str, words)], limits or {})

  def run(self, *words: object, timeout_s: float = 120, **options: Any):
    """Returns how a command ended."""
    return self.start(*words, **options).end(timeout_s)

  def train_words(self, workdir: Path, **fields: Any) -> list[str]:
    """Returns the command that trains."""
    fields = {**RUN, "data_dir": self.data, **fields}
    words = [f"--config.{k}={v}" for k, v in fields.items() if v is not None]
    return ["train", f"--workdir={workdir}", *words]

  def train(self, workdir: Path, *words: str, **fields: Any) -> Result:
    """Returns how a training ended."""
    return self.run(*self.train_words(workdir, **fields), *words)

  def copy(self, newest: int = 8) -> Path:
    """Returns a copy of the finished run, as if killed after a step."""
    workdir = self.new("run")
    shutil.copytree(self.whole, workdir)
    for step in steps_of(workdir):
      if step > newest:
        shutil.rmtree(workdir / f"checkpoints/{step}")
    return workdir

  def resumed(self, workdir: Path, *words: str, **fields: Any) -> Verdict:
    """Whether a run goes on to the bit, and says the words."""
    result = self.train(workdir, **fields)
    held, line = result.worked(*words)
    same = digest(workdir) == self.digest
    kept = records(workdir) == records(self.whole)
    return held and same and kept, line if same and kept else f"differs: {line}"

  def process(self, *words: object, timeout_s: float = 120) -> Result:
    """Runs any program of a user."""
    with contextlib.suppress(subprocess.TimeoutExpired):
      done = subprocess.run(
        [*map(str, words)],
        cwd=tempfile.mkdtemp(dir=self.folder),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
      )
      return Result(done.returncode, done.stdout + done.stderr)
    return Result(None, "it hangs")

  def script(self, text: str) -> Result:
    """Runs a script that a user might write."""
    file = self.new("script.py")
    file.write_text(text)
    return self.process(sys.executable, file)


def rewrite(checkpoint: Path, change: Callable[[str], str]) -> None:
  """Changes the JSON of a checkpoint, and its digests with it."""
  for file in (checkpoint / "progress").glob("metadata"):
    before = file.read_text()
    file.write_text(change(before))
    assert file.read_text() != before
  names = [x for x in checkpoint.rglob("*") if x.is_file()]
  names = sorted(str(x.relative_to(checkpoint)) for x in names)
  names.remove("SHA256SUMS")
  sums = subprocess.run(
    ["sha256sum", *names], cwd=checkpoint, capture_output=True, check=True
  )
  (checkpoint / "SHA256SUMS").write_bytes(sums.stdout)


# A checkpoint knows what it is.


def _renamed(g: Ground) -> Path:
  workdir = g.copy(8)
  (workdir / "checkpoints/8").rename(workdir / "checkpoints/10")
  return workdir


def _without_config(g: Ground) -> Path:
  workdir = g.copy(8)
  (workdir / "config.json").unlink()
  return workdir


def renamed(g: Ground) -> Attempts:
  found = g.resumed(_renamed(g), "WARNING", "10", "damaged")
  yield "a folder 8 renamed 10: the step before resumes", found
  workdir = f"--workdir={_renamed(g)}"
  found = g.run("evaluate", workdir, "--step=10").refused("10")
  yield "evaluate --step=10 of that folder", found
  found = g.run("checkpoint", "verify", workdir).refused("step 10")
  yield "checkpoint verify of that folder", found


def copied(g: Ground) -> Attempts:
  for step, words in {8: ("WARNING", "1000"), 12: ("finished",)}.items():
    workdir = g.copy(step)
    folder = workdir / "checkpoints"
    shutil.copytree(folder / str(step), folder / "1000")
    found = g.resumed(workdir, *words)
    yield f"cp -r {step} 1000: nothing is trained past the end", found


def config_removed(g: Ground) -> Attempts:
  for name, value in {"learning_rate": 0.001, "network.fc6.units": 16}.items():
    found = g.train(_without_config(g), **{name: value}).refused(name)
    yield f"config.json removed, another {name}", found
  found = g.resumed(_without_config(g), "resuming from step 8")
  yield "config.json removed, the same command: it resumes to the bit", found


def config_edited(g: Ground) -> Attempts:
  workdir = g.copy(8)
  file = workdir / "config.json"
  config = json.loads(file.read_text()) | {"learning_rate": 0.001}
  file.write_text(json.dumps(config))
  found = g.train(workdir, learning_rate=0.001).refused("learning_rate")
  yield "config.json and the command changed alike", found


def another_machine(g: Ground) -> Attempts:
  words = g.train_words(g.copy(8))
  command = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
  found = g.process(*command, *ALEXNET, *words).worked("cpu", "1")
  yield "resumed on one CPU of two: told of", found
  workdir = g.copy(8)
  old, new = f'"{jaxlib.version.__version__}"', '"0.1.2"'
  rewrite(workdir / "checkpoints/8", lambda text: text.replace(old, new))
  yield (
    "resumed under another jaxlib: told of",
    g.train(workdir).worked("jaxlib", "0.1.2"),
  )


def about(g: Ground) -> Attempts:
  text = (g.whole / "about.json").read_text().lower()
  held = all(word in text for word in ("jaxlib", "numpy", "commit", "cpu"))
  yield "about.json says what the run ran on", (held, text[:200])
  workdir = g.copy(8)
  (workdir / "about.json").write_text("{")
  found = g.resumed(workdir, "resuming from step 8")
  yield "about.json is damaged: the run goes on", found


def progress_removed(g: Ground) -> Attempts:
  workdir = g.copy(8)
  shutil.rmtree(workdir / "checkpoints/8/progress")
  found = g.resumed(workdir, "WARNING", "8", "damaged")
  yield "a part of a checkpoint removed", found


# A workdir is held by what it is, and can be read while it trains.


@contextlib.contextmanager
def _living(g: Ground, **fields: Any) -> Iterator[tuple[Path, Command]]:
  """Yields a long run that has saved."""
  workdir = g.new("run")
  with g.start(*g.train_words(workdir, **LONG | fields)) as command:
    command.until(lambda: steps_of(workdir))
    yield workdir, command


def _remove(folder: Path) -> None:
  while folder.exists():  # The run may add files meanwhile.
    shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path) -> None:
  folder.rename(folder.with_name("moved"))


def vanishing(g: Ground) -> Attempts:
  def replace(workdir: Path) -> None:
    _move(workdir)
    shutil.copytree(g.whole, workdir, dirs_exist_ok=True)

  for what, change in {
    "rm -rf": _remove,
    "mv": _move,
    "another run in the place": replace,
  }.items():
    with _living(g) as (workdir, command):
      change(workdir)
      found = command.end(60).refused(str(workdir))
    yield f"{what} of a live run's folder: it ends", found


def two_programs(g: Ground) -> Attempts:
  with _living(g, seed=7) as (workdir, first):
    yield "a second program on a live run", g.train(workdir).refused("in use")
    _remove(workdir)
    second, _ = g.resumed(workdir)
    held, line = first.end(60).refused(str(workdir))
    yield (
      "rm -rf, and a second program of that name: each its own weights",
      (held and second, line),
    )


def readers(g: Ground) -> Attempts:
  with _living(g, checkpoint_every_steps=1) as (workdir, command):
    where = f"--workdir={workdir}"
    for words in (
      ("evaluate", where),
      ("checkpoint", "verify", where),
      ("checkpoint", "digest", where),
      ("predict", where, g.picture),
      ("report", workdir, f"--output={g.new('report.html')}"),
      ("features", where, "--layer=fc6", f"--output={g.new('features.npz')}"),
    ):
      found = [g.run(*words) for _ in range(4)]
      bad = [x for x in found if x.code != 0 or "damaged" in x.output]
      shown = str((bad or found)[0].output.strip().splitlines()[-1:])
      yield (
        f"{words[0]} while every step is saved and removed, 4 times",
        (not bad and command.runs(), shown),
      )


def folders_that_cannot_be_saved_to(g: Ground) -> Attempts:
  found = g.train(g.new(os.fsdecode(b"run-\xff"))).refused("UTF-8")
  yield "a workdir whose name is not UTF-8", found
  with _living(g) as (workdir, command):
    _remove(workdir / "checkpoints")
    with contextlib.suppress(OSError):
      (workdir / "checkpoints").write_text("")
    held, line = command.end().refused("step")
  yield (
    "checkpoints/ becomes a file: the run ends, and does not ask for room",
    (held and "room" not in line, line),
  )


def signals(g: Ground) -> Attempts:
  for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
    with _living(g) as (workdir, command):
      command.signal(number)
      held, line = command.end().worked("stopped after step")
    step = steps_of(workdir)[-1]
    yield (
      f"{number.name} saves and ends with code 0",
      (held and f"after step {step};" in line, line),
    )
  workdir = g.new("run")
  words = "nohup", *ALEXNET, *g.train_words(workdir, total_steps=300)
  with subprocess.Popen(words, cwd=ROOT, stdout=-1, stderr=-2) as process:
    while process.poll() is None and not steps_of(workdir):
      time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    output = process.communicate()[0].decode()
  found = Result(process.returncode, output).worked("step 300/300", "test")
  yield "SIGHUP under nohup: the run goes on", found


def metrics(g: Ground) -> Attempts:
  for what, times in {"lacks a line": 0, "has a line twice": 2}.items():
    workdir = g.copy(8)
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    lines[1:2] = lines[1:2] * times
    file.write_text("".join(lines))
    found = g.train(workdir).worked("WARNING", "metrics.jsonl")
    yield f"metrics.jsonl {what}: told of", found


# Bad data is found before the first step, or costs nothing.

# Of three classes, and streamed: else all images are read before a step.
THREE = {"num_classes": 3, "device_cache_fraction": 0.0}


def _pictures(count: int, label: Callable[[int], int]) -> list[dict[str, Any]]:
  """Returns examples of a TFDS data set: noise, with labels by number."""
  return [
    {
      "image": tfds_files.encoded(tfds_files.noise(n, 32, 32, 3)),
      "label": label(n),
    }
    for n in range(count)
  ]


def _data_set(g: Ground, **changed: list[dict[str, Any]]) -> Path:
  """Writes a TFDS data set of three classes, without a mean image."""
  counts = {"train": 600, "validation": 30, "test": 30}
  good = {k: _pictures(n, lambda i: i % 3) for k, n in counts.items()}
  splits = {split: [examples] for split, examples in (good | changed).items()}
  return tfds_files.write(g.new("data"), splits)


def _with_a_cut_image() -> list[dict[str, Any]]:
  """Returns training examples, of which the first sample skips the bad one."""
  examples = _pictures(600, lambda i: i % 3)
  examples[10]["image"] = examples[10]["image"][:200]
  return examples


def bad_examples(g: Ground) -> Attempts:
  cut = _pictures(30, lambda i: 0)
  for example in cut:
    example["image"] = example["image"][:99]
  for what, split, examples in (
    ("labels of -1, as TFDS has them", "test", _pictures(30, lambda i: -1)),
    ("a label of no class", "validation", _pictures(30, lambda i: i % 4)),
    ("cut images", "test", cut),
  ):
    workdir, data = g.new("run"), _data_set(g, **{split: examples})
    held, line = g.train(workdir, data_dir=data, **THREE).refused(split)
    yield (
      f"{what} in {split}: found before anything is written",
      (held and not workdir.exists(), line),
    )


def remedy(g: Ground) -> Attempts:
  workdir = g.new("run")
  g.train(workdir, data_dir=_data_set(g), **THREE)
  shutil.rmtree(workdir / "checkpoints/12")
  fields = {"data_dir": _data_set(g, test=_pictures(30, lambda i: -1)), **THREE}
  refused, line = g.train(workdir, **fields).refused("test_split")
  held, _ = g.train(workdir, **fields, test_split="").worked("resuming")
  yield (
    "the remedy of that message, in a run under way",
    (refused and held, line),
  )


def mended(g: Ground) -> Attempts:
  workdir, data = g.new("run"), _data_set(g, train=_with_a_cut_image())
  # With a mean image, else the image is read to measure one.
  mean_image = np.full((32, 32, 3), 127.5, np.float32)
  np.save(data / "mean_image.npy", mean_image)
  shutil.copyfile(g.data / "colour_pca.json", data / "colour_pca.json")
  fields = {**THREE, "total_steps": 60, "checkpoint_every_steps": 1000}
  first = g.train(workdir, data_dir=data, **fields)
  held, line = first.refused("example 10")
  held &= bool(first.line("saving step"))
  step = (steps_of(workdir) or [0])[-1]
  yield "a cut image at a later step: saved", (held and step > 0, line)
  good = {"data_dir": _data_set(g), **fields}
  found = g.train(workdir, **good).refused("--accept_data")
  yield "mended data without --accept_data: refused", found
  found = g.train(workdir, "--accept_data", **good)
  yield (
    "the data are mended, and accepted: the run goes on from there",
    found.worked(f"resuming from step {step} of 60"),
  )


def other_files(g: Ground) -> Attempts:
  other = g.new("data")
  shapes.generate(other, size_px=32, workers=0, seed=5, **COUNTS)
  for split in COUNTS:
    data = g.new("data")
    shutil.copytree(g.data, data)
    for file in other.glob(f"*-{split}.*"):
      shutil.copyfile(file, data / file.name)
    result = g.train(g.copy(8), data_dir=data)
    tests = split == "test"
    found = result.worked("resuming") if tests else result.refused("data_dir")
    yield f"other {split} files in a run under way", found


def other_tests(g: Ground) -> Attempts:
  for name, value in {"test_split": "validation", "test_views": 1}.items():
    found = g.train(g.copy(8), **{name: value}).worked("resuming from step 8")
    yield f"another {name} in a run under way", found


def overlapping_splits(g: Ground) -> Attempts:
  splits = {"train_split": "train[:90%]", "validation_split": "train[80%:]"}
  found = g.train(g.new(), data_dir=_data_set(g), **THREE, **splits)
  yield "splits that share 60 examples: told of", found.worked("60", "train")
  found = g.train(g.new(), test_split="validation")
  yield (
    "validation and test are one split: allowed",
    (found.worked()[0] and not found.line("WARNING"), "no warning"),
  )


def mean_images(g: Ground) -> Attempts:
  for what, change in {
    "of 16 px": lambda mean: mean[::2, ::2],
    "of float64": lambda mean: mean.astype(np.float64),
    "with NaN": lambda mean: mean * np.nan,
  }.items():
    workdir = g.copy(8)
    file = workdir / "mean_image.npy"
    np.save(file, change(np.load(file)))
    train, line = g.train(workdir).refused(file.name)
    test, _ = g.run("evaluate", f"--workdir={workdir}").refused(file.name)
    yield f"a mean image {what}", (train and test, line)
  workdir = g.new("run")
  g.train(workdir, data_dir=_data_set(g), **THREE)
  shutil.rmtree(workdir / "checkpoints/12")
  # Who measures again reads this image, which the last steps do not use.
  data = _data_set(g, train=_with_a_cut_image())
  result = g.train(workdir, "--accept_data", data_dir=data, **THREE)
  yield "a run measures its mean image once", result.worked("resuming")


# The numbers.


def epochs(g: Ground) -> Attempts:
  for passes, steps in {1.1: 11, 2.3: 23}.items():
    fields = {"total_steps": None, "total_epochs": passes}
    found = g.train(g.new(), **fields).worked(f"step {steps}/{steps}")
    yield f"{passes} epochs of 10 steps are {steps}", found


def members(g: Ground) -> Attempts:
  fields = {"schedule": "plateau", "plateau_patience": 1, "plateau_drops": 1}
  # The end falls between two lines of the log.
  fields |= {"total_steps": 60, "learning_rate": 0.05, "log_every_steps": 5}

  def lines(seed: int, ensemble: int = 1) -> list[dict[str, Any]]:
    workdir = g.new("run")
    g.train(workdir, seed=seed, ensemble=ensemble, **fields)
    return records(workdir)

  def keys(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(x["step"], x["split"], x["learning_rate"]) for x in records]

  both = lines(1, ensemble=2)
  for member in (0, 1):
    alone = keys(lines(1 + member))
    ours = keys([x for x in both if x.get("member") == member])
    yield (
      f"member {member} of a plateau has the lines of the single run",
      (alone == ours, f"{len(alone)} lines, the last {alone[-1]}, {ours[-1]}"),
    )


def training_error(g: Ground) -> Attempts:
  ends = []
  for every in (1, 3, 7):
    workdir = g.new("run")
    fields = {"total_steps": 300, "stop_at_train_error": 0.86}
    g.train(workdir, **fields, log_every_steps=every)
    ends.append(steps_of(workdir)[-1])
  held = len(set(ends)) == 1 and ends[0] < 300
  yield "log_every_steps does not decide where it stops", (held, str(ends))


def frozen(g: Ground) -> Attempts:
  workdir, rates = g.new("run"), "((0.0,'conv1',0.0),)"
  g.train(workdir, learning_rate_of_layers=rates, init_from=g.whole)
  a, b = (
    alexnet_jax.load(run).members[0]["features"] for run in (g.whole, workdir)
  )
  same = [
    np.array_equal(a[name]["kernel"], b[name]["kernel"])
    for name in ("conv1", "conv3")
  ]
  yield (
    "a frozen layer keeps its bits, others learn",
    (
      same == [True, False],
      f"equal: conv1 {same[0]}, conv3 {same[1]}",
    ),
  )


def batches(g: Ground) -> Attempts:
  workdir = g.copy(12)
  file = workdir / "config.json"
  config = json.loads(file.read_text()) | {"batch_size": 2**22}
  file.write_text(json.dumps(config))
  limits = {resource.RLIMIT_DATA: 8 << 30}
  big = g.run("evaluate", f"--workdir={workdir}", limits=limits)
  small = g.run("evaluate", f"--workdir={g.whole}")
  yield (
    "a split of 50, evaluated in batches of 4,194,304",
    (big.output == small.output and big.code == 0, big.output.strip()),
  )


# A guest in the host's process.


def _script(g: Ground, text: str) -> str:
  """Returns a script that ends well if it leaves its process as it was."""
  return f"""
import logging, sys, threading, warnings
from pathlib import Path
import numpy as np
import jax, alexnet_jax
images = np.random.default_rng(0).integers(0, 256, (5, 40, 30, 3), np.uint8)
workdir, data = Path({str(g.whole)!r}), Path({str(g.data)!r})
alexnet_jax.load(workdir)
def state():
  return [*warnings.filters], logging.root.level, sys.stdout, jax.config.values
def in_threads(work):
  threads = [threading.Thread(target=work) for _ in range(8)]
  [t.start() for t in threads], [t.join() for t in threads]
before = state()
{text}
assert state() == before, (before, state())
"""


def other_settings(g: Ground) -> Attempts:
  answer = "print(alexnet_jax.load(workdir).predict(images).round(5).tolist())"
  expected = g.script(_script(g, answer)).output
  for names in (
    {"jax_enable_x64": True},
    {"jax_debug_nans": True, "jax_check_tracer_leaks": True},
    {"jax_num_cpu_devices": 2, "jax_default_device": "jax.devices()[1]"},
    {"jax_default_matmul_precision": "'bfloat16'"},
  ):
    lines = [f"jax.config.update({k!r}, {v})" for k, v in names.items()]
    script = "\n".join(["import jax", *lines]) + _script(g, answer)
    result = g.script(script)
    held = result.code == 0 and result.output == expected
    yield f"{', '.join(names)}: the same answers", (held, result.output[-300:])


def threads(g: Ground) -> Attempts:
  for what, work in {
    "data sets opened by eight threads": """
from alexnet_jax.data import records
in_threads(lambda: [records.open_directory(data) for _ in range(9)])""",
    "images decoded by eight threads": f"""
from alexnet_jax.data import decode
image = Path({str(g.picture)!r}).read_bytes()
in_threads(lambda: [decode.decode(image) for _ in range(200)])""",
    "a training in a thread": """
from alexnet_jax.runs import run_files
from alexnet_jax.train import train_and_evaluate
config, copy = run_files.read_config(workdir), Path("run")
thread = threading.Thread(target=train_and_evaluate, args=(config, copy))
thread.start(), thread.join()
a, b = (alexnet_jax.load(x).members for x in (workdir, copy))
assert all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))""",
  }.items():
    found = g.script(_script(g, f"{work}\nprint('done')")).worked("done")
    yield f"{what}: the process stays as it was", found


def iterables(g: Ground) -> Attempts:
  for images in ("(x for x in images)", "tuple(images)", "iter(images)"):
    script = f"""
model = alexnet_jax.load(workdir)
assert np.array_equal(model.predict({images}), model.predict(images))
print("done")"""
    found = g.script(_script(g, script)).worked("done")
    yield f"predict takes {images}", found


def scripts(g: Ground) -> Attempts:
  result = g.script("""
from pathlib import Path
from alexnet_jax.data.prepare import shapes
shapes.generate(Path("shapes"), size_px=32, train=600, validation=9, test=9)
""")
  line = result.line("Error", "__main__")
  held = result.code == 1 and bool(line)
  yield "a script without a __main__ guard: told so", (held, line)
  command = " ".join([*ALEXNET, "summary", "--config=quickstart", ">&-"])
  found = g.process("bash", "-c", f"{command} && echo done >&2").worked("done")
  yield "stdout closed by the shell", found


# What it may use, and errors of their own kind.


def _pipe(g: Ground, name: str) -> Path:
  path = g.new(name)
  os.mkfifo(path)
  return path


def _sparse(g: Ground, name: str) -> Path:
  path = g.new(name)
  with path.open("wb") as file:
    file.truncate(40 << 30)
  return path


def _photos(g: Ground) -> Path:
  folder = g.new("photos")
  for label in range(3):
    (folder / f"class {label}").mkdir(parents=True)
    for number in range(12):
      image = tfds_files.encoded(tfds_files.noise(number, 40, 40, 3))
      (folder / f"class {label}" / f"{number}.png").write_bytes(image)
  return folder


def _prepare(g: Ground, source: Path, output: Path) -> Result:
  words = f"--source={source}", f"--output={output}", "--size=32"
  return g.run("prepare", *words, "--workers=0", **LIMITS)


def no_images(g: Ground) -> Attempts:
  for what, path in {
    "a FIFO": _pipe(g, "dog.jpg"),
    "/dev/zero": Path("/dev/zero"),
    "a file of 40 GB": _sparse(g, "dog.jpg"),
    "a folder with a FIFO": _pipe(g, "dog.jpg").parent,
  }.items():
    run = f"--workdir={g.whole}"
    yield f"predict {what}", g.run("predict", run, path, **LIMITS).refused()
    options = f"--image={path}", "--only=activations", f"--output={g.new()}"
    found = g.run("figures", run, *options, **LIMITS).refused()
    yield f"figures --image of {what}", found


def no_sources(g: Ground) -> Attempts:
  photos = _photos(g)
  os.mkfifo(photos / "class 0" / "x.png")
  for what, source in {
    "a folder with a FIFO": photos,
    "a list file that is a FIFO": _pipe(g, "list.csv"),
    "a list file of 40 GB": _sparse(g, "list.csv"),
  }.items():
    yield f"prepare of {what}", _prepare(g, source, g.new()).refused()


def no_weights(g: Ground) -> Attempts:
  path = g.new("memo.pt")
  # An empty dictionary, kept at a place far away.
  data = b"\x80\x02}r" + (2**30).to_bytes(4, "little") + b"."
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("archive/data.pkl", data)
    file.writestr("archive/version", "3\n")
  for what, source in {
    "a small pickle that asks for 8.6 GB": path,
    "a file of 40 GB": _sparse(g, "weights.pt"),
    "a FIFO": _pipe(g, "weights.pt"),
  }.items():
    words = f"--from={source}", f"--output={g.new()}"
    yield f"convert of {what}", g.run("convert", *words, **LIMITS).refused()


def names(g: Ground) -> Attempts:
  source = _photos(g)
  for name in ("two words", "it's", "$(touch x); y", "-dash"):
    line = _prepare(g, source, g.new(name)).line("to train: ")
    command = line.removeprefix("to train: alexnet ")
    fields = {k: v for k, v in RUN.items() if k.startswith("network.")}
    fields |= {"total_steps": 2, "batch_size": 8}
    words = [f"--config.{k}={v}" for k, v in fields.items()]
    script = f'{" ".join(ALEXNET)} {command} "$@"'
    words = ["bash", "-c", script, "bash", *words, f"--workdir={g.new()}"]
    held, said = g.process(*words).worked("step 2/2")
    yield (
      f"prepare's command for {name!r} in bash",
      (held, line if held else said),
    )
  data, workdir = _data_set(g), g.new("run")
  classes = ["\x1b[31mred\x1b[0m\x07", "bee", "cat"]
  (data / "label.labels.txt").write_text("\n".join(classes))
  told = g.train(workdir, data_dir=data, **THREE).output
  for words in (
    ("predict", f"--workdir={workdir}", "--top=3", g.picture),
    (
      "evaluate",
      f"--workdir={workdir}",
    ),
  ):
    told += g.run(*words).output
  bad = [x for x in told if ord(x) < 32 and x != "\n"]
  held = "31mred" in told and not bad
  yield "a class name with terminal escapes", (held, told[-99:])
  path = g.new(os.fsdecode(b"dog-\xff.png"))
  shutil.copyfile(g.picture, path)
  found = g.run("predict", f"--workdir={g.whole}", path).worked("%")
  yield "a file name that is not UTF-8", found


def little(g: Ground) -> Attempts:
  workdir = g.new("run")
  limits = {resource.RLIMIT_DATA: 3 << 30}
  result = g.run(*g.train_words(workdir), limits=limits)
  held, line = result.worked("is finished")
  yield "training in 3 GB", (held and digest(workdir) == g.digest, line)


KINDS = {
  "checkpoint": (
    renamed, copied, config_removed, config_edited, another_machine, about,
    progress_removed,
  ),
  "workdir": (
    vanishing, two_programs, readers, folders_that_cannot_be_saved_to, signals,
    metrics,
  ),
  "data": (
    bad_examples, remedy, mended, other_files, other_tests, overlapping_splits,
    mean_images,
  ),
  "numbers": (epochs, members, training_error, frozen, batches),
  "guest": (other_settings, threads, iterables, scripts),
  "files": (no_images, no_sources, no_weights, names, little),
}  # fmt: skip


def main() -> None:
  """Makes every attempt and writes attacks.csv."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--only", default="", help="name of a kind or function")
  only = parser.parse_args().only
  rows = []

  def add(kind: str, what: str, held: bool, seen: str) -> None:
    seen = " ".join(ascii(seen)[1:-1].replace(name, "DIR").split())[:200]
    rows.append((kind, what, "HELD" if held else "FAILED", seen))
    print(f"{rows[-1][2]:6} {kind}: {what}\n       {seen}", flush=True)

  with tempfile.TemporaryDirectory() as name:
    ground = Ground(Path(name))
    for kind, functions in KINDS.items():
      for function in functions:
        if only and only not in (kind, function.__name__):
          continue
        try:
          for what, verdict in function(ground):
            add(kind, what, *verdict)
        except Exception as e:  # What cannot be tried has not held.
          add(kind, function.__name__, False, f"{type(e).__name__}: {e}")
  failed = sum(verdict == "FAILED" for _, _, verdict, _ in rows)
  print(f"{len(rows)} attempts: {len(rows) - failed} held, {failed} failed")
  if not only:
    with (HERE / "attacks.csv").open("w", newline="") as file:
      writer = csv.writer(file, lineterminator="\n")
      writer.writerow(["kind", "attempt", "verdict", "seen"])
      writer.writerows(rows)
  sys.exit(bool(failed))


if __name__ == "__main__":
  main()
