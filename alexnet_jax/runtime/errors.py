"""The one exception for bad input: a command prints its text and exits 1."""

import difflib
import os
import sys
import textwrap
from collections.abc import Iterable
from typing import NoReturn

_SHOW_CURSOR = "\x1b[?25h"


class InputError(ValueError):
  """Bad input from a user: the value, the rule that it breaks, the remedy.

  Attributes:
    at_once: whether the command is not to wait for threads and libraries.
  """

  exit_immediately = False


class DivergedError(InputError):
  """Training came to nothing: what it computes is not finite."""


class NotLearningError(DivergedError):
  """Training came to nothing: the net is no better than chance."""


class InputTimeoutError(InputError):
  """Something is waited for in vain, in a thread that may never come back."""

  exit_immediately = True


def unknown(what: str, value: object, known: Iterable[str]) -> InputError:
  """Returns the error for a name that is not among the known ones.

  Args:
    what: the field or kind of thing that was named, as the user spells it.
    value: the name that was given.
    known: every name that would have been right.
  """
  known = sorted(known)
  near = difflib.get_close_matches(str(value), known, n=1)
  guess = f" Did you mean {near[0]!r}?" if near else ""
  return InputError(
    f"{what}={value!r} is not known.{guess} Known: {', '.join(known)}."
  )


def reason(e: Exception, text: str | None = None) -> str:
  """Returns what a library's error says, as one line of no great length.

  Args:
    e: of whatever kind.
    text: what it says, where that is not all to be told.
  """
  text = f"{type(e).__name__}: {e if text is None else text}"
  return textwrap.shorten(text, 200, placeholder="...")


def first_few(
  things: Iterable[str], count: int = 5, between: str = ", "
) -> str:
  """Returns the first few of things, and how many more there are.

  Args:
    things: what they are called, or what is wrong with them.
    count: that are named at most.
    between: two of them.
  """
  things = list(things)
  more = f" and {len(things) - count} more" if len(things) > count else ""
  return between.join(things[:count]) + more


def exit_immediately(text: str, code: int) -> NoReturn:
  """Ends the process from whatever thread; a progress bar may be on show."""
  show = f"{_SHOW_CURSOR}\n" if sys.stderr.isatty() else ""
  os.write(2, f"{show}{text}\n".encode())
  os._exit(code)
