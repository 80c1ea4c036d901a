"""Workdirs that several programs use: one holds it, and others read it."""

import contextlib
import errno
import fcntl
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from alexnet_jax.runtime import errors

_F = TypeVar("_F", bound=Callable[..., Any])
# What flock says where a file system has no locks, such as some NFS.
_NO_LOCKS = errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP


def check_path(workdir: Path) -> None:
  """Raises InputError for a path that TensorStore cannot take."""
  try:
    str(workdir.absolute()).encode()
  except UnicodeEncodeError as e:
    raise errors.InputError(
      f"workdir={str(workdir)!r} is no path in UTF-8, which checkpoints need;"
      " rename the folder, or choose another --workdir."
    ) from e


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[Callable[[], bool]]:
  """Locks a workdir, until the process ends at the latest.

  Yields a function that returns whether the path still leads to what was
  locked.
  Raises InputError if another program holds it.
  """
  file = workdir / ".lock"
  # A pipe would be waited for.
  flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK
  with open(os.open(file, flags, 0o666), "wb") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise errors.InputError(
        f"workdir={str(workdir)!r} is in use by another program; wait until"
        " it ends, or choose another --workdir."
      ) from e
    except OSError as e:
      if e.errno not in _NO_LOCKS:
        raise
      print(
        f"WARNING: workdir={str(workdir)!r} cannot be locked there"
        f" ({e.strerror}); start no second program with it",
        file=sys.stderr,
      )

    def is_held() -> bool:
      try:
        return os.path.samestat(file.stat(), os.fstat(lock.fileno()))
      except OSError as e:  # If it is another, nothing can be written there.
        return not isinstance(e, FileNotFoundError | NotADirectoryError)

    yield is_held


def looking_again(read: _F) -> _F:
  """Decorates what reads checkpoints of a workdir, its first argument.

  It is called again if it failed while checkpoints came or went.
  """

  def listing(folder: Path) -> set[tuple[str, int]]:
    files = os.scandir(folder) if folder.exists() else ()
    return {(file.name, file.inode()) for file in files}

  @functools.wraps(read)
  def look(workdir: Path, *args: Any) -> Any:
    while True:
      before = listing(workdir / "checkpoints")
      try:
        return read(workdir, *args)
      except Exception:  # Libraries raise errors of many types.
        if listing(workdir / "checkpoints") == before:
          raise

  return cast(_F, look)
