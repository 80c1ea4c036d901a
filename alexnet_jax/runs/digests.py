"""SHA256SUMS: the SHA-256 of every file of a folder, as sha256sum writes it."""

import concurrent.futures
import hashlib
import os
from pathlib import Path

from alexnet_jax.runtime import files, machine

NAME = "SHA256SUMS"


def write(folder: Path) -> None:
  """Writes SHA256SUMS into a folder that is otherwise complete."""
  with (folder / NAME).open("w") as file:
    file.writelines(_lines(folder))
    file.flush()
    os.fsync(file.fileno())


def problem(folder: Path) -> str:
  """Returns what is wrong with the files of a folder, "" if nothing is."""
  try:
    listed = files.read(folder / NAME).decode(errors="replace")
    lines = _lines(folder)
  except OSError as e:
    return str(e) if e.filename else f"{NAME}: {e.strerror}"
  if listed == "".join(lines):
    return ""
  differing = {*listed.splitlines(keepends=True)} ^ {*lines}
  names = sorted(line.strip().partition("  ")[2] for line in differing)
  return f"{names[0] if names else NAME} is missing or differs from {NAME}"


def _lines(folder: Path) -> list[str]:
  """Returns the lines of SHA256SUMS, sorted by the names of the files."""

  def line_of(file: Path) -> str:
    name = file.relative_to(folder).as_posix()
    if file.is_symlink() or not file.is_file():  # A link leads out of here.
      return f"no file  {name}\n"
    with file.open("rb") as stream:
      digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"{digest}  {name}\n"

  paths = sorted({*folder.rglob("*")} - {folder / NAME})
  leaves = [path for path in paths if path.is_symlink() or not path.is_dir()]
  with concurrent.futures.ThreadPoolExecutor(machine.cpu_count()) as pool:
    return list(pool.map(line_of, leaves))
