"""The processes of a run: they connect, and compare what they were given."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax._src import distributed  # No public name leads to its client.
from jax.experimental import multihost_utils

from alexnet_jax.runtime import errors

HEARTBEAT_S = 20  # jax aborts the run when a process is silent for so long.
# jax's name of a launcher, by the variable that holds its number of processes;
# Open MPI first, as it may run inside a step of SLURM.
_LAUNCHERS = {
  "OMPI_COMM_WORLD_SIZE": "ompi",
  "SLURM_STEP_NUM_TASKS": "slurm",
  "PMI_SIZE": "deactivate",  # jax detects no other MPI, so it asks for flags.
}


def define_flags() -> None:
  """Defines the flags that say which processes a run has."""
  flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where there are several."
  )
  flags.DEFINE_integer("num_processes", None, "Processes of the run.")
  flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
  flags.DEFINE_integer("timeout_s", 300, "Seconds to wait for the others.")


@contextlib.contextmanager
def initialize(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  timeout_s: int,
) -> Iterator[None]:
  """Connects the processes of a run. Enter it before jax sees its devices.

  If all but the timeout is None, jax asks SLURM, Open MPI or Cloud TPU; a
  process that none of these started runs alone. Raises InputError if processes
  cannot connect, or one is lost in a computation.
  """
  given = coordinator, num_processes, process_id
  method = _detect_launcher() if given == (None, None, None) else "deactivate"
  if method is None or given[1:] == (1, 0):
    yield
    return
  _connect(given, method, timeout_s)
  client: Any = distributed.global_state.client
  try:
    _check_num_processes(client)
    yield
    # In its shutdown jax waits only for HEARTBEAT_S.
    multihost_utils.sync_global_devices("end of the run")
  except (jax.errors.JaxRuntimeError, ValueError) as e:
    error: Any = e
    if isinstance(e, jax.errors.JaxRuntimeError) or "Gloo" in str(e):
      error = errors.InputError(
        f"a computation over all processes failed ({errors.reason(e)}); if one"
        " has ended, its output says why, and the same command in all resumes."
      )
    # Each process reports its error before the end of another aborts it.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      client.wait_at_barrier("failed", 5000)
      jax.distributed.shutdown()
    error.exit_immediately = True
    raise error from e


def assert_same_on_all_hosts(facts: Mapping[str, Any]) -> None:
  """Raises InputError in all processes if their facts, JSON values, differ."""
  # `repr` is for values that a later check refuses.
  mine = {x: json.dumps(value, default=repr) for x, value in facts.items()}
  first, *others = gather(mine)
  for process, other in enumerate(others, start=1):
    where = "in process 0", f"in process {process}"
    if differing := errors.differences(first, other, where):
      raise errors.InputError(
        f"the processes differ: {differing}; start all with the same command,"
        " code and data."
      )


@contextlib.contextmanager
def raise_on_all_hosts() -> Iterator[None]:
  """Raises an InputError of one process in all of them. Blocks do not nest."""
  message = ""
  try:
    yield
  except errors.InputError as e:
    if jax.process_count() == 1:
      raise
    message = str(e)
  for process, text in enumerate(gather(message)):
    if text:
      raise errors.InputError(f"process {process}: {text}")


def assert_shared_folder(folder: Path) -> None:
  """Raises InputError if a process does not see the folder of process 0."""
  name = f".shared-{os.urandom(8).hex()}"
  if jax.process_index() == 0:
    (folder / name).touch()
  mark = folder / from_first(name)
  sees = gather(mark.exists())
  if jax.process_index() == 0:
    mark.unlink()
  if not all(sees):
    raise errors.InputError(
      f"process {sees.index(False)}: workdir={str(folder)!r} is not the folder"
      " that process 0 sees; choose one that all processes share."
    )


def from_first(value: Any) -> Any:
  """Returns the JSON value of process 0 in all processes."""
  return gather(value)[0]


def gather(value: Any) -> list[Any]:
  """Returns the JSON values of all processes, in their order."""
  data = json.dumps(value).encode()
  if jax.process_count() == 1:
    return [json.loads(data)]
  gather = multihost_utils.process_allgather
  length = int(np.max(gather(np.array(len(data), np.int32))))
  rows = gather(np.frombuffer(data.ljust(length), np.uint8))
  return [json.loads(row.tobytes()) for row in np.asarray(rows)]


def _detect_launcher() -> str | None:
  """Returns jax's name of the launcher of several processes, or None."""
  for size, method in _LAUNCHERS.items():
    if size in os.environ:
      return method if os.environ[size] != "1" else None
  if "tpu" not in (jax.config.values["jax_platforms"] or ""):
    return None
  for workers in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
    if workers in os.environ:
      return "gketpu" if "," in os.environ[workers] else None
  return None if "TPU_SKIP_MDS_QUERY" in os.environ else "gcetpu"


def _connect(given: Any, method: str, timeout_s: int) -> None:
  flags = "--coordinator=HOST:PORT --num_processes=N --process_id=I"
  remedy = f"start all processes, and give each {flags}."
  late = f"error: not all connected within --timeout_s={timeout_s}; {remedy}"
  # jax itself would abort, and while it waits no handler of Python's runs.
  timer = threading.Timer(timeout_s, errors.exit_immediately, [late, 1])
  timer.start()
  on_interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)
  signal.signal(signal.SIGTERM, signal.SIG_DFL)  # jax handles it later.
  try:
    jax.distributed.initialize(
      *given,
      cluster_detection_method=method,
      initialization_timeout=timeout_s + 60,
      heartbeat_timeout_seconds=HEARTBEAT_S,
      shutdown_timeout_seconds=HEARTBEAT_S,
    )
  except (RuntimeError, ValueError, LookupError) as e:
    raise errors.InputError(
      f"this process cannot connect ({errors.reason(e)}); {remedy}"
    ) from e
  finally:
    timer.cancel()
    signal.signal(signal.SIGINT, on_interrupt)


def _check_num_processes(client: Any) -> None:
  """Raises InputError if processes were given different numbers of them."""
  me = distributed.global_state.process_id
  count = str(distributed.global_state.num_processes)
  client.key_value_set(f"count/{me}", count)
  for process in range(int(count)):
    other = client.blocking_key_value_get(f"count/{process}", 20_000)
    if other != count:
      raise errors.InputError(
        f"process {process} is one of --num_processes={other}, but process {me}"
        f" is one of {count}; give all the same number."
      )
