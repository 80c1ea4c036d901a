"""Tables of a README, between `<!-- NAME -->` and `<!-- end -->`."""

from collections.abc import Iterable
from pathlib import Path


def fill(readme: Path, name: str, lines: Iterable[str]) -> None:
  """Puts lines in the place of those between the marks of a name.

  Raises:
    ValueError: the marks are not there.
  """
  text = readme.read_text()
  head, mark, rest = text.partition(f"<!-- {name} -->\n")
  _, end, tail = rest.partition("<!-- end -->")
  if not (mark and end):
    raise ValueError(f"{readme} has no marks of {name!r}")
  readme.write_text(head + mark + "\n".join(lines) + "\n" + end + tail)
