"""What every command shares: bad input in one line, and a progress bar."""

import contextlib
import ctypes
import errno
import gc
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from rich import progress as rich_progress
from rich.console import Console

from alexnet_jax.runtime import errors


def run(
  main: Callable[[Sequence[str]], Any],
  define_flags: Callable[[], Any],
  takes_files: bool = False,
) -> None:
  """Runs a command; bad input ends it with one clear line and exit code 1.

  Args:
    main: the command, given what is left of the command line.
    define_flags: defines the command's absl flags.
    takes_files: whether words that are no flags mean something to it.
  """

  def checked(argv: Sequence[str]) -> None:
    if len(argv) > 1 and not takes_files:
      raise errors.InputError(f"{argv[1]!r} is no flag; write --FLAG=VALUE.")
    try:
      main(argv)
    finally:
      if sys.stdout:  # None if it was closed.
        sys.stdout.flush()

  def parse(argv: Sequence[str]) -> list[str]:
    try:
      with config_told():
        return flags.FLAGS(argv)
    except flags.Error as e:
      reason = " ".join(str(e).split()).rstrip(".")
      raise errors.InputError(f"{reason}; --help lists the flags.") from e

  # What was imported is no garbage; to look it through takes nearly a tenth of
  # the time to the first step.
  gc.freeze()
  # What libraries log as errors is raised too, and told in one line.
  logging.set_verbosity(logging.FATAL)
  # Whatever is half-written is cleaned up on the way out.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  hook, sys.unraisablehook = sys.unraisablehook, _signal_again
  try:
    define_flags()
    app.run(checked, flags_parser=parse)
  except errors.InputError as e:
    print(f"error: {_one_line(str(e))}", file=sys.stderr)
    if e.exit_immediately:
      sys.stdout.flush()
      os._exit(1)
    sys.exit(1)
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(130)
  except OSError as e:
    if e.errno == errno.EPIPE and _is_unread():
      _drop_output()
      sys.exit(141)
    if e.errno != errno.ENOSPC:
      raise
    _drop_output()
    print(
      f"error: the output cannot be written ({e.strerror}); make room, and give"
      " the command again.",
      file=sys.stderr,
    )
    sys.exit(1)
  finally:
    sys.unraisablehook = hook


def _signal_again(unraisable: Any) -> None:
  """Sends a signal again whose exception Python dropped.

  It drops all that is raised in callbacks of the garbage collector, of which
  jax has one, and in destructors.
  """
  raised_by = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
  number = raised_by.get(unraisable.exc_type)
  if number is None:
    sys.__unraisablehook__(unraisable)
    return
  again = threading.Timer(0.1, os.kill, (os.getpid(), number))
  again.daemon = True
  again.start()


def _one_line(text: str) -> str:
  """Returns a text without what would break a line, and not too long.

  Files of others have a say in it.
  """
  if len(text) > 3000:
    text = f"{text[:2000]} ... {text[-500:]}"
  return "".join(x if x.isprintable() else ascii(x)[1:-1] for x in text)


def _is_unread() -> bool:
  """Whether standard output is a pipe that nobody reads any more."""
  output = select.poll()
  output.register(1, 0)
  return any(event & select.POLLERR for _, event in output.poll(0))


def _drop_output() -> None:
  """Sends what standard output does not take nowhere, lest it is told twice."""
  try:
    sys.stdout.flush()
  except OSError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def keep_memory() -> None:
  """Has what a step frees kept for the next, in blocks of up to 32 MB.

  Else glibc hands it back to the system after every step, which gives it out
  again page by page. Other C libraries are left as they are.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt:
    mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: its own largest.
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def keep_programs() -> None:
  """Has compiled programs kept on disk for the next run (jax's own cache).

  In ~/.cache/alexnet_jax, or where JAX_COMPILATION_CACHE_DIR says; "" for none.
  """
  import jax  # Some commands need none.

  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  kept = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  if os.path.isabs(kept):  # Who runs in a container may have no home.
    folder = os.path.join(kept, "alexnet_jax")
    jax.config.update("jax_compilation_cache_dir", folder)
    # An answer of the full net compiles within jax's own bound of one second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@contextlib.contextmanager
def config_told() -> Iterator[None]:
  """Raises InputError where a config lacks a field that is to be set."""
  try:
    yield
  except (AttributeError, KeyError) as e:
    guess = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', str(e))
    name = guess[2] if guess else " ".join(str(e).split()).strip("'\"\\")
    remedy = (
      f"did you mean {guess[1]!r}?" if guess else "see configs/alexnet.py."
    )
    raise errors.InputError(
      f"the config has no field {name!r} there; {remedy}"
    ) from e


def make_folder(flag: str, folder: Path) -> None:
  """Makes a folder that a flag names, if it is not there.

  Raises:
    InputError: it cannot be made.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise errors.InputError(
      f"{flag}={str(folder)!r} cannot be made ({e.strerror}); choose another"
      " folder."
    ) from e


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
  """Yields an empty file to write; it takes the other's place when all is in.

  A link stays, and what it leads to is replaced.

  Raises:
    InputError: the folder is not there or cannot be written, or the file is a
      folder, a pipe or a device.
  """
  real = file.resolve()
  new = real.with_name(f".{real.stem}.{os.getpid()}{real.suffix}")
  try:
    if file.exists() and not file.is_file():
      raise OSError(errno.EEXIST, "it is no ordinary file")
    new.touch()
    try:
      yield new
      os.replace(new, real)
    finally:
      new.unlink(missing_ok=True)
  except OSError as e:
    raise errors.InputError(
      f"{str(file)!r} cannot be written ({e.strerror}); choose a file in a"
      " folder that exists, with room."
    ) from e


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
  """Shows a bar with rate and time left, on a terminal alone.

  Args:
    what: is counted.
    total: of them.

  Yields:
    A function to call with how many more are done.
  """
  console = Console(stderr=True)
  with rich_progress.Progress(
    rich_progress.TextColumn(what),
    rich_progress.BarColumn(),
    rich_progress.MofNCompleteColumn(),
    rich_progress.TextColumn("{task.fields[rate]}"),
    rich_progress.TimeRemainingColumn(),
    console=console,
    disable=not console.is_terminal,
  ) as bar:
    task = bar.add_task(what, total=total, rate="")

    def advance(count: int) -> None:
      bar.update(task, advance=count)
      speed = bar.tasks[task].speed
      bar.update(task, rate=f"{speed:,.0f}/s" if speed else "")

    yield advance
