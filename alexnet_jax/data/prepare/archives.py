"""The files of a folder or an archive, and where the bytes of each lie.

A plain tar is read in place. One that is compressed, and a zip, are unpacked
into one spool file.
"""

import errno
import os
import posixpath
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from alexnet_jax.runtime import errors

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# Above what Pillow's bound on pixels takes in RGB of 16 bits. An archive of a
# megabyte can hold a member a thousand times as large.
MAX_BYTES = 2**30


class Item(Protocol):
  """Where one image lies; small, as there is one for each, and picklable.

  Equal items hold equal bytes: an item knows when its file changed (`ctime`,
  which no program can set).
  """

  @property
  def name(self) -> str:
    """What the user knows it by."""
    ...

  def read(self) -> bytes:
    """Returns its bytes; raises OSError where they cannot be had."""
    ...


class File(NamedTuple):
  """An image in a file of its own."""

  path: str
  size: int
  changed_ns: int

  @property
  def name(self) -> str:
    """The path."""
    return self.path

  def read(self) -> bytes:
    """Returns the whole file."""
    if self.size < 0:  # See `file_at`.
      os.stat(self.path)
      raise OSError("no regular file")
    _check_size(self.size)
    with open(self.path, "rb") as file:
      return file.read()


class Range(NamedTuple):
  """An image that is a range of bytes in an archive or a spool file."""

  path: str
  offset: int
  size: int
  name: str
  changed_ns: int  # Of the archive.

  def read(self) -> bytes:
    """Returns the range."""
    if self.size < 0:  # See `in_tar`.
      raise OSError("no regular file, or a link to nothing")
    _check_size(self.size)
    with open(self.path, "rb") as file:
      file.seek(self.offset)
      data = file.read(self.size)
    if len(data) != self.size:
      raise OSError("the archive was cut off meanwhile")
    return data


def _check_size(size: int) -> None:
  if size > MAX_BYTES:
    raise OSError(f"it has {size:,} bytes; an image has at most {MAX_BYTES:,}")


def in_folder(root: Path) -> Iterator[tuple[str, Item]]:
  """Yields the path below `root` and the file of everything in it.

  Links are followed, but not to a folder that they lie in.
  """

  def walk(folder: str, above: frozenset[str]) -> Iterator[tuple[str, Item]]:
    here = os.path.realpath(folder)
    if here in above:
      return
    try:
      entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as e:
      raise errors.InputError(
        f"{folder!r} cannot be opened ({e.strerror}); mend or remove it."
      ) from e
    for entry in entries:
      if os.path.isdir(entry.path):
        yield from walk(entry.path, above | {here})
      else:
        path = os.path.relpath(entry.path, root).replace(os.sep, "/")
        yield path, file_at(entry.path)

  yield from walk(str(root), frozenset())


def file_at(path: str) -> File:
  """Returns a file, to be read later; one that cannot be has size -1."""
  try:
    status = os.stat(path)
  except OSError:
    return File(path, -1, 0)
  # To open a pipe would be to wait for ever.
  regular = stat.S_ISREG(status.st_mode)
  return File(path, status.st_size if regular else -1, status.st_ctime_ns)


def in_archive(path: Path, spool: Path) -> Iterator[tuple[str, Item]]:
  """Yields what `in_folder` does, of a tar or a zip.

  Raises:
    InputError: it is neither, is damaged or cut off, or has a name that leads
      out of it.
  """
  try:
    try:
      archive = tarfile.open(path, "r:")
    except tarfile.ReadError:
      # A tar that ends in a zip would pass for one.
      if zipfile.is_zipfile(path):
        yield from _zip_members(path, spool)
        return
      archive = tarfile.open(path, "r:*")
      with archive, spool.open("wb") as file:
        yield from in_tar(archive, path, spool_to=file)
    else:
      with archive:
        yield from in_tar(archive, path)
  except errors.InputError:
    raise
  # Archives of each kind have errors of their own, and so has each damage.
  except Exception as e:
    if isinstance(e, OSError) and e.errno in NO_ROOM:
      raise  # The spool's fault.
    raise errors.InputError(
      f"source={str(path)!r} is not a whole tar, zip or list file"
      f" ({' '.join(str(e).split())}); give one, or a folder."
    ) from e


def _zip_members(path: Path, spool: Path) -> Iterator[tuple[str, Item]]:
  changed_ns = path.stat().st_ctime_ns
  with zipfile.ZipFile(path) as archive, spool.open("wb") as file:
    for info in archive.infolist():
      if not info.is_dir():
        name = _inner_name(path, _zip_name(info))
        with archive.open(info) as stream:
          item = _spooled(stream, info.file_size, file, name, changed_ns)
        yield name, item


def _zip_name(info: zipfile.ZipInfo) -> str:
  """Returns a name in UTF-8, which zip on Linux writes but does not declare."""
  if info.flag_bits & 0x800:
    return info.filename
  try:
    return info.filename.encode("cp437").decode("utf-8")
  except ValueError:
    return info.filename


def _normal(name: str) -> str:
  return posixpath.normpath(name).lstrip("/")


def _inner_name(archive: Path, name: str) -> str:
  """Returns the name of a member, below the archive; the root is its top."""
  inner = _normal(name)
  if inner.startswith("../"):
    raise errors.InputError(
      f"{name!r} lies outside of source={str(archive)!r}; pack it anew."
    )
  return inner


def _spooled(
  stream: IO[bytes], size: int, file: IO[bytes], name: str, changed_ns: int
) -> Range:
  if size > MAX_BYTES:  # To be refused when it is read.
    return Range(file.name, 0, size, name, changed_ns)
  data = stream.read()
  item = Range(file.name, file.tell(), len(data), name, changed_ns)
  file.write(data)
  return item


def in_tar(
  archive: tarfile.TarFile,
  path: Path,
  *,
  offset: int = 0,
  folder: str = "",
  spool_to: IO[bytes] | None = None,
) -> Iterator[tuple[str, Item]]:
  """Yields the members of a tar; of a plain one, also those of tars in it.

  Args:
    archive: opened.
    path: of the file that it is in.
    offset: of the tar in that file.
    folder: that its members are put under.
    spool_to: a file for the members' bytes, where the tar is compressed.
  """
  changed_ns = path.stat().st_ctime_ns
  nothing = Range(str(path), 0, -1, "", changed_ns)
  ranges: dict[str, Range] = {}
  links: dict[str, str] = {}
  while member := archive.next():
    vars(archive)["members"].clear()  # It would keep them all.
    name = folder + _inner_name(path, member.name)
    if member.issparse():
      raise tarfile.ReadError(f"{name} is sparse")
    if member.isreg():
      stream: Any = archive.extractfile(member)
      if name.endswith(".tar") and not spool_to:
        with tarfile.open(fileobj=stream, mode="r:") as inner:
          yield from in_tar(
            inner,
            path,
            offset=offset + member.offset_data,
            folder=name.removesuffix(".tar") + "/",
          )
        continue
      if spool_to:
        item = _spooled(stream, member.size, spool_to, name, changed_ns)
      else:
        start = offset + member.offset_data
        item = Range(str(path), start, member.size, name, changed_ns)
    elif member.islnk():
      target = folder + _normal(member.linkname)
      item = ranges.get(target, nothing)._replace(name=name)
    elif member.issym():
      target = posixpath.join(posixpath.dirname(name), member.linkname)
      links[name] = posixpath.normpath(target)
      continue
    elif member.isdir():
      continue
    else:
      item = nothing._replace(name=name)
    links.pop(name, None)
    ranges[name] = item
    yield name, item
  for name in links:
    seen, target = set(), name
    while target in links and target not in seen:
      seen.add(target)
      target = links[target]
    yield name, ranges.get(target, nothing)._replace(name=name)
  # A tar that is cut off between two members reads like a whole one.
  file: Any = archive.fileobj
  file.seek(archive.offset)
  if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
    raise tarfile.ReadError("it ends before its end mark")
  if spool_to:
    read_on(file)


def read_on(file: IO[bytes]) -> None:
  """Reads to the end, where the checksum of a .gz is."""
  while file.read(2**20):
    pass
