"""Bad input: a command prints the error's text in one line and exits with 1."""

import contextlib
import difflib
import errno
import os
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn


class InputError(ValueError):
  """Bad input from a user; the text gives the value, the rule, the remedy."""

  exit_immediately = False  # Whether to end without waiting for threads.


class DivergedError(InputError):
  """Training diverged: a loss or a gradient is not finite."""


class NotLearningError(DivergedError):
  """Training failed: the net is no better than chance."""


class DataError(InputError):
  """An example cannot be used, or none came; the run may go on from here."""


class SavingError(InputError):
  """A run cannot be saved; a thread that saves may not return for minutes."""

  exit_immediately = True


class InputTimeoutError(DataError):
  """A thread that may never return did not deliver in time."""

  exit_immediately = True


def unknown(what: str, value: object, known: Iterable[object]) -> InputError:
  """Returns the error for a value of a field or flag that is not known."""
  known = sorted(map(str, known))
  near = difflib.get_close_matches(str(value), known, n=1)
  guess = f" Did you mean {near[0]!r}?" if near else ""
  return InputError(
    f"{what}={value!r} is not known.{guess} Known: {', '.join(known)}."
  )


@contextlib.contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
  """Raises InputError if a path cannot be written; `what` is its flag."""
  try:
    yield
  except OSError as e:
    raise InputError(
      f"{what}={str(path)!r} cannot be written ({e.strerror}); make it"
      " writable, with room, or choose another."
    ) from e


def disk_is_full(e: Exception) -> bool:
  """Whether making room would mend an error, also one in TensorStore's text."""
  return any(
    code == getattr(e, "errno", None) or os.strerror(code) in str(e)
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  )


def printable(text: str) -> str:
  """Returns a text as one line, in which control characters are escapes."""
  return "".join(
    x if x.isprintable() or unicodedata.category(x) == "Zs" else ascii(x)[1:-1]
    for x in text
  )


def reason(e: Exception) -> str:
  """Returns type and text of a library's error in a line."""
  return textwrap.shorten(f"{type(e).__name__}: {e}", 200, placeholder="...")


def first_few(
  things: Iterable[str], count: int = 5, between: str = ", "
) -> str:
  """Returns the first `count` of some texts, and how many more there are."""
  things = list(things)
  more = f" and {len(things) - count} more" if len(things) > count else ""
  return between.join(things[:count]) + more


def differences(
  a: Mapping[str, Any],
  b: Mapping[str, Any],
  where: tuple[str, str] = ("there", "here"),
) -> str:
  """Returns the first names whose values differ, with both; "" if none do."""
  return first_few(
    f"{name} ({x!s:.60} {where[0]}, {y!s:.60} {where[1]})"
    for name in sorted({**a, **b})
    if (x := a.get(name, "absent")) != (y := b.get(name, "absent"))
  )


def exit_immediately(text: str, code: int) -> NoReturn:
  """Prints a line and ends the process, from any thread."""
  # A progress bar may have hidden the cursor.
  show_cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""
  os.write(2, f"{show_cursor}{text}\n".encode())
  os._exit(code)
