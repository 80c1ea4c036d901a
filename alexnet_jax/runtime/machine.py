"""What this process may use of its machine."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path


def cpu_count() -> int:
  """Returns how many CPUs this process may run on."""
  if hasattr(os, "sched_getaffinity"):  # Not on macOS.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def memory_bytes(root: Path = Path("/")) -> int:
  """Returns the bytes of memory that this process may have.

  That is the least of what is built in and of the limits of the process and of
  its cgroup, whose files are below `root`.
  """
  limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
  for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
    limit, _ = resource.getrlimit(kind)
    limits += [limit] if limit != resource.RLIM_INFINITY else []
  return min([*limits, *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> Iterator[int]:
  """Yields the limits of the process's cgroup, v1 or v2, and its parents."""
  try:
    lines = (root / "proc/self/cgroup").read_text().splitlines()
  except OSError:  # On macOS, say.
    return
  for line in lines:
    _, controllers, name = line.split(":", 2)
    if controllers == "":
      top, file = root / "sys/fs/cgroup", "memory.max"
    elif "memory" in controllers.split(","):
      top, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
    else:
      continue
    # In a container, `name` may be a path outside of it; `top` is its own.
    folder = top / name.lstrip("/")
    for group in (folder, *folder.parents):
      limit = group / file
      if group.is_relative_to(top) and limit.exists():
        text = limit.read_text().strip()
        yield from [int(text)] if text != "max" else []
