"""Disks that are full, as far as one program sees."""

import contextlib
import resource


@contextlib.contextmanager
def no_file_grows_beyond(size, process=0):
  """Writes beyond a size fail with EFBIG, of this process or another."""
  before = resource.prlimit(process, resource.RLIMIT_FSIZE)
  resource.prlimit(process, resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    # It may have ended.
    with contextlib.suppress(ProcessLookupError):
      resource.prlimit(process, resource.RLIMIT_FSIZE, before)
