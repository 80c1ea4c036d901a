"""The SHA-256 of every file of a folder, in one file that is written last.

`sha256sum --check SHA256SUMS` in the folder compares them too.
"""

import concurrent.futures
import hashlib
import os
from pathlib import Path

NAME = "SHA256SUMS"


def write(folder: Path) -> None:
  """Writes `SHA256SUMS` into a folder that is otherwise complete."""
  lines = [f"{digest}  {name}\n" for name, digest in _digests(folder).items()]
  with (folder / NAME).open("w") as file:
    file.write("".join(lines))
    file.flush()
    os.fsync(file.fileno())


def problem(folder: Path) -> str:
  """Returns what is wrong with the files of a folder, "" if nothing is."""
  try:
    *lines, rest = (folder / NAME).read_bytes().decode().split("\n")
    found = _digests(folder)
  except FileNotFoundError as e:
    return f"{Path(e.filename).name} is missing"
  except (OSError, UnicodeDecodeError) as e:
    return f"its files cannot be read ({e})"
  if rest:
    return f"{NAME} is cut"
  for line in lines:
    digest, _, name = line.partition("  ")
    if name not in found:
      return f"{name!r} is missing, or {NAME} is damaged"
    if f"{found.pop(name)}  {name}" != line:
      return f"{name} is not as it was written ({NAME} has {digest[:16]!r})"
  extra = next(iter(found), None)
  return f"{extra} is not in {NAME}" if extra else ""


def _digests(folder: Path) -> dict[str, str]:
  """Returns the digest of each file but `SHA256SUMS`, by its sorted name."""
  files = sorted(
    path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
  )
  names = [file.relative_to(folder).as_posix() for file in files]
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    digests = list(pool.map(_digest, files))
  found = dict(zip(names, digests, strict=True))
  found.pop(NAME, None)
  return found


def _digest(file: Path) -> str:
  if file.is_symlink():  # To what is no part of this.
    return "a link"
  with file.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()
