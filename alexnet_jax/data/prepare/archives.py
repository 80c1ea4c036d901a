"""The files of a folder or an archive, and where the bytes of each lie.

A plain tar is read in place; others are unpacked into one spool file.
"""

import errno
import os
import posixpath
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from alexnet_jax.runtime import errors

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# More than any image that Pillow reads. A small archive can hold far more.
MAX_BYTES = 2**30


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
      os.stat(self.path)  # Raises the reason, if there is no such file.
      raise OSError("no regular file, or a link to nothing")
    if self.size > MAX_BYTES:
      raise OSError(f"it has {self.size:,} bytes; the limit is {MAX_BYTES:,}")
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
  """Yields all files with their paths below `root`, in order.

  Links are followed, except to a folder that they lie in.
  """

  def walk(folder: str, above: frozenset[str]) -> Iterator[tuple[str, Item]]:
    here = os.path.realpath(folder)
    if here in above:
      return
    try:
      entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as e:
      raise errors.InputError(
        f"{folder!r} cannot be opened ({e.strerror}); make it readable or"
        " remove it."
      ) from e
    for entry in entries:
      if os.path.isdir(entry.path):
        yield from walk(entry.path, above | {here})
      else:
        yield os.path.relpath(entry.path, root), file_at(entry.path)

  yield from walk(str(root), frozenset())


def in_archive(path: Path, spool: Path) -> Iterator[tuple[str, Item]]:
  """Yields the members of a tar or zip, with their paths in it.

  `spool` is a file to make, if they have to be unpacked. Raises InputError for
  another or a damaged file, or if a member's name leads out of the archive.
  """
  try:
    try:
      archive = tarfile.open(path, "r:")
    except tarfile.ReadError:
      # Tried second, as a tar that ends in a zip looks like one.
      if zipfile.is_zipfile(path):
        yield from _in_zip(path, spool)
        return
      with tarfile.open(path, "r:*") as archive, spool.open("wb") as file:
        yield from in_tar(archive, path, spool_to=file)
    else:
      with archive:
        yield from in_tar(archive, path)
  except errors.InputError:
    raise
  except Exception as e:  # Each kind of archive and damage has its own error.
    if isinstance(e, OSError) and e.errno in NO_ROOM:
      raise  # It is the spool that has no room.
    raise errors.InputError(
      f"source={str(path)!r} is not a whole tar, zip or list file"
      f" ({errors.reason(e)}); give one, or a folder."
    ) from e


def _in_zip(path: Path, spool: Path) -> Iterator[tuple[str, Item]]:
  changed_ns = path.stat().st_ctime_ns
  with zipfile.ZipFile(path) as archive, spool.open("wb") as file:
    for info in archive.infolist():
      if not info.is_dir():
        name = _inner_name(path, _zip_name(info))
        with archive.open(info) as stream:
          item = _spooled(stream, info.file_size, file, name, changed_ns)
        yield name, item


def _zip_name(info: zipfile.ZipInfo) -> str:
  """Returns a member's name; many programs write UTF-8 without saying so."""
  if info.flag_bits & 0x800:
    return info.filename
  try:
    return info.filename.encode("cp437").decode("utf-8")
  except ValueError:
    return info.filename


def _normal(name: str) -> str:
  return posixpath.normpath(name).lstrip("/")


def _inner_name(archive: Path, name: str) -> str:
  inner = _normal(name)
  if inner.startswith("../"):
    raise errors.InputError(
      f"{name!r} lies outside of source={str(archive)!r}; pack it again."
    )
  return inner


def _spooled(
  stream: IO[bytes], size: int, file: IO[bytes], name: str, changed_ns: int
) -> Item:
  if size > MAX_BYTES:  # To be refused when it is read.
    return Item(file.name, 0, size, name, changed_ns)
  start = file.tell()
  return Item(file.name, start, file.write(stream.read()), name, changed_ns)


def in_tar(
  archive: tarfile.TarFile,
  path: Path,
  *,
  offset: int = 0,
  folder: str = "",
  spool_to: IO[bytes] | None = None,
) -> Iterator[tuple[str, Item]]:
  """Yields the members of a tar and, if it is plain, those of tars in it.

  The tar begins at `offset` in the file `path`, and its members are put under
  `folder`. Those of a compressed one are written to `spool_to`.
  """
  changed_ns = path.stat().st_ctime_ns
  nothing = Item(str(path), 0, -1, "", changed_ns)
  items: dict[str, Item] = {}
  links: dict[str, str] = {}
  while member := archive.next():
    vars(archive)["members"].clear()  # It would keep them all in memory.
    name = folder + _inner_name(path, member.name)
    start = offset + member.offset_data
    if member.isdir():
      continue
    if member.issparse():
      raise tarfile.ReadError(f"{name} is sparse")
    if member.issym():
      target = posixpath.join(posixpath.dirname(name), member.linkname)
      links[name] = posixpath.normpath(target)
      continue
    stream: Any = archive.extractfile(member) if member.isreg() else None
    if member.islnk():
      target = folder + _normal(member.linkname)
      item = items.get(target, nothing)._replace(name=name)
    elif not stream:
      item = nothing._replace(name=name)
    elif spool_to:
      item = _spooled(stream, member.size, spool_to, name, changed_ns)
    elif name.endswith(".tar"):
      inside = name.removesuffix(".tar") + "/"
      with tarfile.open(fileobj=stream, mode="r:") as inner:
        yield from in_tar(inner, path, offset=start, folder=inside)
      continue
    else:
      item = Item(str(path), start, member.size, name, changed_ns)
    links.pop(name, None)
    items[name] = item
    yield name, item
  for name, target in links.items():
    yield name, items.get(target, nothing)._replace(name=name)
  # A tar that was cut off between two members reads like a whole one.
  file: Any = archive.fileobj
  file.seek(archive.offset)
  if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
    raise tarfile.ReadError("it ends before its end mark")
  if spool_to:
    read_to_end(file)


def read_to_end(file: IO[bytes]) -> None:
  """Reads on, because gzip compares its checksum at the end."""
  while file.read(2**20):
    pass
