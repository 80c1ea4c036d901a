"""What a process may use: the least of what limits it."""

import os
import resource

import pytest

from alexnet_jax.runtime import machine

PHYSICAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
MB = 2**20


def write(root, files):
  for path, text in files.items():
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"{text}\n")
  return root


V1 = "4:memory:/job\n1:cpu,cpuacct:/other\n0::/"
TREES = {
  "macOS has none": ({}, None),
  "v2": (
    {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/memory.max": 7 * MB},
    7 * MB,
  ),
  "v2, by a parent": (
    {
      "proc/self/cgroup": "0::/a/b",
      "sys/fs/cgroup/a/memory.max": 5 * MB,
      "sys/fs/cgroup/a/b/memory.max": "max",
    },
    5 * MB,
  ),
  "v2, a path outside of the container": (
    {"proc/self/cgroup": "0::/pods/7", "sys/fs/cgroup/memory.max": 6 * MB},
    6 * MB,
  ),
  "v1": (
    {
      "proc/self/cgroup": V1,
      "sys/fs/cgroup/memory/job/memory.limit_in_bytes": 9 * MB,
      "sys/fs/cgroup/memory/memory.limit_in_bytes": 2**63 - 4096,
    },
    9 * MB,
  ),
  "v1, with a colon in its name": (
    {
      "proc/self/cgroup": "7:cpu,memory:/a:b",
      "sys/fs/cgroup/memory/a:b/memory.limit_in_bytes": 8 * MB,
    },
    8 * MB,
  ),
  "another program's": (
    {"proc/self/cgroup": V1, "sys/fs/cgroup/memory/x/memory.max": 3 * MB},
    None,
  ),
}


@pytest.mark.parametrize(("files", "limit"), TREES.values(), ids=TREES.keys())
def test_memory_is_bounded_by_the_cgroup(tmp_path, files, limit):
  """A pool for the whole machine would end a job in a part of it."""
  assert machine.memory_bytes(write(tmp_path, files)) == (limit or PHYSICAL)


@pytest.mark.parametrize("kind", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_memory_is_bounded_by_the_limits_of_the_process(kind):
  before = resource.getrlimit(kind)
  limit = machine.memory_bytes() - MB
  resource.setrlimit(kind, (limit, before[1]))
  try:
    assert machine.memory_bytes() == limit
  finally:
    resource.setrlimit(kind, before)


def test_memory_is_that_of_this_machine():
  assert 0 < machine.memory_bytes() <= PHYSICAL
