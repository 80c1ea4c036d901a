"""What every command shares: bad input in one line, and a progress bar."""

import contextlib
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_dict, config_flags
from rich import progress as rich_progress
from rich.console import Console

from alexnet_jax import errors

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"


def run(
  main: Callable[[Sequence[str]], Any],
  define_flags: Callable[[], Any],
) -> None:
  """Runs a command; bad input ends it with one clear line and exit code 1.

  Args:
    main: the command, given what is left of the command line.
    define_flags: defines the command's absl flags.
  """
  logging.set_verbosity(logging.WARNING)
  # Whatever is half-written is cleaned up on the way out.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  try:
    define_flags()
    app.run(main)
  except errors.InputError as e:
    print(f"error: {e}", file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(130)


def define_config() -> None:
  """Defines `--config=FILE`, by default the quickstart, and its fields.

  Raises:
    InputError: there is no such file, or no such field in it.
  """
  # ml_collections reports a missing file by a traceback of its own.
  asked = re.search(r"(?:^|\0)--?config[=\0]([^\0]+)", "\0".join(sys.argv))
  if asked:
    file = Path(asked[1].partition(":")[0])
    if file.suffix != ".py" or not file.is_file():
      raise errors.InputError(
        f"--config={str(file)!r} is no Python file that exists; give one like"
        " configs/alexnet.py."
      )
  # Overrides on the command line are looked up here, before flags are parsed.
  try:
    config_flags.DEFINE_config_file(
      "config", str(QUICKSTART), "Config file; --config.FIELD=VALUE overrides."
    )
  except AttributeError as e:
    guess = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', str(e))
    name = guess[2] if guess else str(e).strip("'\"\\")
    remedy = (
      f"did you mean {guess[1]!r}?" if guess else "see configs/alexnet.py."
    )
    raise errors.InputError(
      f"the config has no field {name!r} there; {remedy}"
    ) from e


def config() -> tuple[config_dict.ConfigDict, str]:
  """Returns the config of the command line and the name of its file."""
  file = config_flags.get_config_filename(flags.FLAGS["config"])
  return flags.FLAGS.config.copy_and_resolve_references(), Path(file).stem


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
    rich_progress.TimeRemainingColumn(),
    console=console,
    disable=not console.is_terminal,
  ) as bar:
    task = bar.add_task(what, total=total)
    yield lambda count: bar.advance(task, count)
