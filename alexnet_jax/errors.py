"""The one exception for bad input: a command prints its text and exits 1."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
  """Bad input from a user: the value, the rule that it breaks, the remedy."""


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
