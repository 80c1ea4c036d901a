"""The files of a folder or an archive, and where the bytes of each lie.

A plain tar is read in place; others are unpacked into one spool file.
"""

import errno
import io
import os
import posixpath
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from alexnet_jax.runtime import errors, files

_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class Item(NamedTuple):
  """An image as a range of bytes in a file; small and picklable."""

  path: str
  offset: int
  size: int  # -1 for what is no regular file.
  name: str  # For the user.
  changed_ns: int  # The ctime, which no program can set.

  def read(self) -> bytes:
    """Returns the bytes; raises OSError if they cannot be read."""
    if self.size < 0:
      raise OSError("no regular file, or a link to nothing")
    if self.size > files.MAX_BYTES:
      raise OSError(
        f"it has {self.size:,} bytes; the limit is {files.MAX_BYTES:,}"
      )
    with open(self.path, "rb") as file:
      file.seek(self.offset)
      data = file.read(self.size)
    if len(data) != self.size:
      raise OSError("its file was cut off after it was listed")
    return data


def file_at(path: str) -> Item:
  """Returns the item of a file, or of size -1 if it cannot be read."""
  try:
    status = os.stat(path)
  except OSError:
    return Item(path, 0, -1, path, 0)
  # Opening a pipe would wait for ever.
  size = status.st_size if stat.S_ISREG(status.st_mode) else -1
  return Item(path, 0, size, path, status.st_ctime_ns)


def in_folder(root: Path) -> Iterator[tuple[str, Item]]:
  """Yields all files; follows links, except to a folder that they lie in."""

  def fail(e: OSError) -> None:
    raise errors.InputError(
      f"{e.filename!r} cannot be opened ({e.strerror}); make it readable or"
      " remove it."
    ) from e

  for folder, folders, names in os.walk(root, onerror=fail, followlinks=True):
    here = Path(os.path.realpath(folder))
    folders[:] = [
      f for f in folders if not here.is_relative_to(os.path.realpath(here / f))
    ]
    for name in names:
      path = os.path.join(folder, name)
      yield os.path.relpath(path, root), file_at(path)


def in_archive(path: Path, spool: Path) -> Iterator[tuple[str, Item]]:
  """Yields the members of a tar or zip, and of tars in a plain tar.

  What is compressed is unpacked into `spool`. Raises InputError if damaged.
  """
  try:
    with spool.open("wb") as file:
      # A tar that ends in a zip looks like one.
      if zipfile.is_zipfile(path) and not tarfile.is_tarfile(path):
        yield from _in_zip(path, file)
        return
      with tarfile.open(path) as archive:
        is_plain = isinstance(archive.fileobj, io.BufferedReader)
        yield from _members(archive, path, None if is_plain else file)
  except Exception as e:  # Each kind of archive and damage has its own error.
    if isinstance(e, OSError) and e.errno in _NO_ROOM:
      raise  # It is the spool that has no room.
    raise errors.InputError(
      f"source={str(path)!r} is not a complete tar, zip or list file"
      f" ({errors.reason(e)}); give one, or a folder."
    ) from e


def _in_zip(path: Path, spool: IO[bytes]) -> Iterator[tuple[str, Item]]:
  # Many programs write names in UTF-8 without saying so.
  with zipfile.ZipFile(path, metadata_encoding="utf-8") as archive:
    for info in archive.infolist():
      if not info.is_dir():
        name = _inner_name(info.filename)
        with archive.open(info) as stream:
          yield name, _spooled(stream, info.file_size, spool, name, path)


def _inner_name(name: str) -> str:
  """Returns a member's path below the archive, also if it says "../"."""
  return posixpath.normpath("/" + name).lstrip("/")


def _spooled(
  stream: IO[bytes], size: int, spool: IO[bytes], name: str, archive: Path
) -> Item:
  # A small archive can hold far more. What is too large is refused when read.
  start = spool.tell()
  size = size if size > files.MAX_BYTES else spool.write(stream.read())
  return Item(spool.name, start, size, name, archive.stat().st_ctime_ns)


def _members(
  archive: tarfile.TarFile,
  path: Path,
  spool: IO[bytes] | None = None,
  *,
  offset: int = 0,
  folder: str = "",
) -> Iterator[tuple[str, Item]]:
  """Yields the members, as if in `folder`, of a tar at `offset` in a file."""
  changed_ns = path.stat().st_ctime_ns
  while member := archive.next():
    vars(archive)["members"].clear()  # It would keep them all in memory.
    name = folder + _inner_name(member.name)
    start = offset + member.offset_data
    if member.isdir():
      continue
    if member.issparse():
      raise tarfile.ReadError(f"{name} is sparse")
    stream: Any = archive.extractfile(member) if member.isreg() else None
    if not stream:  # A link, say.
      yield name, Item(str(path), 0, -1, name, changed_ns)
    elif spool:
      yield name, _spooled(stream, member.size, spool, name, path)
    elif name.endswith(".tar"):
      inside = name.removesuffix(".tar") + "/"
      with tarfile.open(fileobj=stream, mode="r:") as inner:
        yield from _members(inner, path, offset=start, folder=inside)
    else:
      yield name, Item(str(path), start, member.size, name, changed_ns)
  # A tar that was cut off between two members reads like a complete one.
  file: Any = archive.fileobj
  file.seek(archive.offset)
  if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
    raise tarfile.ReadError("it ends before its end mark")
  while spool and file.read(2**20):
    pass  # At the end gzip compares its checksum.
