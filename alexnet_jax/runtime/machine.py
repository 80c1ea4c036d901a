"""What this process may use of its machine."""

import os


def cpu_count() -> int:
  """Returns how many CPUs this process may run on."""
  if hasattr(os, "sched_getaffinity"):  # Not on macOS.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
