"""Reads files that others give."""

import errno
import os
import stat
from pathlib import Path

MAX_BYTES = 2**30  # More than any image that Pillow reads.


def read(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
  """Returns the bytes of a regular file.

  Raises OSError if it is none (a pipe might be waited for without an end), has
  more than `max_bytes`, or cannot be read.
  """
  # Without O_NONBLOCK, opening a pipe waits for a writer.
  flags = os.O_RDONLY | os.O_NONBLOCK
  with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
      raise OSError(errno.EINVAL, "it is no regular file")
    if status.st_size > max_bytes:
      raise OSError(
        errno.EINVAL,
        f"it has {status.st_size:,} bytes, and the limit is {max_bytes:,}",
      )
    return file.read(status.st_size)
