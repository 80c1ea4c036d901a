"""What all commands share: flags, help, one-line errors, files, progress."""

import contextlib
import ctypes
import errno
import gc
import inspect
import io
import os
import re
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from absl import app, flags, logging
from rich.console import Console
from rich.progress import Progress

from alexnet_jax.runtime import errors


def run(
  main: Callable[[Sequence[str]], Any],
  define_flags: Callable[[], Any],
  takes_files: bool = False,
) -> None:
  """Runs a command, or prints its help; bad input ends it with exit code 1.

  `main` gets the words that are not flags, if the command `takes_files`.
  """

  def checked_main(words: Sequence[str]) -> None:
    if len(words) > 1 and not takes_files:
      raise errors.InputError(f"{words[1]!r} is no flag; write --FLAG=VALUE.")
    main(words)
    sys.stdout.flush()

  if sys.stdout is None:  # The shell has closed it.
    sys.stdout = open(os.devnull, "w")
  # Imported objects stay; not collecting them saves a tenth of the start.
  gc.freeze()
  # What libraries log as an error they also raise.
  logging.set_verbosity(logging.FATAL)
  if not sys.warnoptions:  # -W or PYTHONWARNINGS.
    warnings.simplefilter("ignore")
  # Names of files may be any bytes.
  for stream, handler in (
    (sys.stdin, "surrogateescape"),
    (sys.stdout, "backslashreplace"),
  ):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors=handler)
  # As an exception, so that unfinished files are removed on the way out.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  try:
    known = set(flags.FLAGS)
    define_flags()
    if {"-h", "--help"} & set(sys.argv):
      print(_help(main, [name for name in flags.FLAGS if name not in known]))
      return
    app.run(checked_main, flags_parser=_parse)
  except errors.InputError as e:
    echo(f"error: {e}", sys.stderr)
    if e.exit_immediately:
      sys.stdout.flush()
      os._exit(1)
    sys.exit(1)
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(130)
  except BrokenPipeError:  # The program that read the output has ended.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(141)


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    with refuse_unknown_fields():
      return flags.FLAGS(argv)
  except flags.Error as e:
    if isinstance(e.__context__, errors.InputError):
      raise e.__context__ from e
    text = " ".join(str(e).split()).rstrip(".")
    raise errors.InputError(f"{text}; --help lists the flags.") from e


def _help(main: Callable[..., Any], names: Sequence[str]) -> str:
  """Returns a command's usage, and its flags with their defaults."""
  lines = [inspect.getdoc(inspect.getmodule(main)) or "", "\nFlags:"]
  for name in names:
    flag = flags.FLAGS[name]
    default = (flag.default_as_str or "").strip("'")
    lines.append(f"  --{name}" + (f"={default}" if default else ""))
    lines.append(textwrap.indent(textwrap.fill(flag.help, 72), " " * 6))
  return "\n".join(lines)


def configure_process() -> None:
  """Lets glibc keep freed memory, and jax compiled programs in ~/.cache.

  JAX_COMPILATION_CACHE_DIR names another folder, or none if it is empty.
  """
  # By default glibc returns large blocks, and the system maps each page again.
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt:
    mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: the largest that glibc allows.
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
  import jax  # Some commands need none, and it takes a second.

  cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  # In a container there may be no home.
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ and os.path.isabs(cache):
    jax.config.update("jax_compilation_cache_dir", f"{cache}/alexnet_jax")
    # By default jax caches what takes a second; predicting takes less.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@contextlib.contextmanager
def refuse_unknown_fields() -> Iterator[None]:
  """Raises InputError where a config lacks a field."""
  try:
    yield
  except (AttributeError, KeyError) as e:
    guess = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', str(e))
    name = guess[2] if guess else " ".join(str(e).split()).strip("'\"\\")
    remedy = f"did you mean {guess[1]!r}?" if guess else "see --config=alexnet."
    raise errors.InputError(
      f"the config has no field {name!r} there; {remedy}"
    ) from e


def echo(text: object, file: TextIO | None = None) -> None:
  """Prints a line; a name in it cannot act on the terminal."""
  print(errors.printable(str(text)), file=file, flush=True)


def make_folder(flag: str, folder: Path) -> None:
  """Makes the folder that a flag names, if it does not exist."""
  with errors.writing(flag, folder):
    folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
  """Yields a new file to write, which replaces `file` when all went well."""
  real = file.resolve()  # A link stays, and the file it points to is replaced.
  new = real.with_name(f".{real.stem}.{os.getpid()}{real.suffix}")
  with errors.writing("file", file):
    if file.exists() and not file.is_file():
      raise OSError(errno.EEXIST, "it is no ordinary file")
    new.touch()
    try:
      yield new
      os.replace(new, real)
    finally:
      new.unlink(missing_ok=True)


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
  """Shows a progress bar on a terminal; yields a function to advance it by."""
  console = Console(stderr=True)
  with Progress(console=console, disable=not console.is_terminal) as bar:
    task = bar.add_task(what, total=total)
    yield lambda count: bar.advance(task, count)
