"""The processes of a run: how they find each other, and that they agree."""

import contextlib
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from alexnet_jax import errors

# A process is given up when it was silent for so long, or when the others have
# waited for it so long at their end. jax's own 100 and 300 s hold dead runs.
SILENCE_S = 20
_RETRY_S = 0.25
_HELLO_S = 5
_SHOWN = 60
_FLAGS = "--coordinator=HOST:PORT --num_processes=N --process_id=I"
# Tell a process its number, but not where the first one is.
_OTHER_LAUNCHERS = (
  ("PMI_SIZE", "PMI_RANK"),
  ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
  ("WORLD_SIZE", "RANK"),
)


class _Group(NamedTuple):
  """Who this process is among those of the run."""

  coordinator: str  # HOST:PORT of process 0.
  num_processes: int
  process_id: int
  remedy: str  # If they do not meet there.
  method: str | None  # By which jax finds this process's devices.


def initialize(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  timeout_s: int,
) -> None:
  """Joins the processes of a run; to be called before jax sees its devices.

  By the flags, where they are given. Else by what SLURM's srun, Open MPI's
  mpirun or a Cloud TPU slice say in the environment. A process that none of
  them started with others is on its own, and waits for nobody.

  Under SLURM and Open MPI a process takes one GPU of its node, elsewhere all it
  sees; JAX_LOCAL_DEVICE_IDS chooses.

  Args:
    coordinator: HOST:PORT at which process 0 listens, or None.
    num_processes: of the run, or None.
    process_id: number of this process, from 0, or None.
    timeout_s: seconds to wait for the other processes.

  Raises:
    InputError: bad flags; a launcher that does not say where process 0 is; or
      processes that do not meet in time.
  """
  if timeout_s < 1:
    raise errors.InputError(f"--timeout_s={timeout_s} must be 1 or more.")
  group = _from_flags(coordinator, num_processes, process_id)
  group = group or _from_environment(os.environ)
  tpu = None if group else _tpu_method(os.environ)
  if not tpu and (not group or group.num_processes == 1):
    return
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  if group:
    # jax ends a process that waits in vain by an abort, after twice the time.
    _meet(group, timeout_s)
  try:
    jax.distributed.initialize(
      coordinator_address=group.coordinator if group else None,
      num_processes=group.num_processes if group else None,
      process_id=group.process_id if group else None,
      cluster_detection_method=group.method if group else tpu,
      initialization_timeout=timeout_s,
      heartbeat_timeout_seconds=SILENCE_S,
      shutdown_timeout_seconds=SILENCE_S,
    )
  except (RuntimeError, ValueError, OSError) as e:
    reason = " ".join(str(e).split()).rstrip(".")
    where = f"process {group.process_id} of " if group else ""
    raise errors.InputError(
      f"{where}the run cannot be joined ({reason}); give every process"
      f" {_FLAGS}."
    ) from e


def agree(facts: Mapping[str, Any]) -> None:
  """Checks that every process of the run has the same facts.

  To be called by all of them; each then raises the same error, or none.

  Args:
    facts: a JSON value by name; nothing that may differ between processes.

  Raises:
    InputError: some process differs from process 0.
  """
  if jax.process_count() == 1:
    return
  text = json.dumps(facts, sort_keys=True)
  digest = hashlib.sha256(text.encode()).digest()
  digests = _gather(np.frombuffer(digest, np.uint8))
  if (digests == digests[0]).all():
    return
  tables = [json.loads(text) for text in _gather_texts(text)]
  differing = []
  for name in sorted({name for table in tables for name in table}):
    holders: dict[str, list[int]] = {}
    for process, table in enumerate(tables):
      value = json.dumps(table[name]) if name in table else "absent"
      holders.setdefault(value, []).append(process)
    if len(holders) > 1:
      values = (f"{_cut(v)} in {_name(ids)}" for v, ids in holders.items())
      differing.append(f"{name} is {' but '.join(values)}")
  more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
  raise errors.InputError(
    f"the processes of this run differ: {'; '.join(differing[:5])}{more}; start"
    " every process with the same command, code and data."
  )


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Lets no process go on where another has failed; blocks do not nest.

  Bad input that one process finds in the block is raised in all, after it.
  """
  found = ""
  try:
    yield
  except errors.InputError as e:
    if jax.process_count() == 1:
      raise
    found = str(e)
  if jax.process_count() == 1:
    return
  for process, text in enumerate(_gather_texts(found)):
    if text:
      raise errors.InputError(f"process {process}: {text}")


def was_told_to_stop(step: int) -> bool:
  """Whether SIGTERM came before a run that goes on asked for its first step.

  jax lets all stop at the step after the newest that was asked for. Here that
  is one that the run has behind it, so all of those are asked for.

  Args:
    step: at which the run goes on.
  """
  return any([is_told_to_stop(past) for past in range(1, step + 1)])


def share(folder: Path) -> None:
  """Checks that a folder of this name is the same one for all processes.

  Args:
    folder: exists for process 0.

  Raises:
    InputError: another process sees another folder, or none.
  """
  if jax.process_count() == 1:
    return
  mark = folder / ".shared"
  if is_first():
    mark.write_text(os.urandom(16).hex())
  multihost_utils.sync_global_devices("the mark is written")
  marks = _gather_texts(mark.read_text() if mark.exists() else "")
  if is_first():
    mark.unlink()
  others = [process for process, text in enumerate(marks) if text != marks[0]]
  if others:
    raise errors.InputError(
      f"{_name(others)}: workdir={str(folder)!r} is not that of process 0; give"
      " all processes one that they share."
    )


def is_first() -> bool:
  """Whether this is the process that writes logs."""
  return jax.process_index() == 0


def is_told_to_stop(step: int) -> bool:
  """Whether this is the step after which all processes are to save and stop.

  True for the same step in all of them, soon after one of several had SIGTERM.

  Args:
    step: counted alike in all processes; to be asked for every one.
  """
  return (
    jax.process_count() > 1
    and multihost_utils.reached_preemption_sync_point(step)
  )


def _from_flags(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> _Group | None:
  """Returns the group that the flags say, None without any of them."""
  given = {
    "--coordinator": coordinator,
    "--num_processes": num_processes,
    "--process_id": process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    return None
  if coordinator is None or num_processes is None or process_id is None:
    raise errors.InputError(
      f"{' and '.join(missing)} must be given too: a process of several needs"
      f" {_FLAGS}."
    )
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise errors.InputError(
      f"--coordinator={coordinator!r} must be HOST:PORT, the address of process"
      " 0, such as node1:29500."
    )
  if num_processes < 1:
    raise errors.InputError(
      f"--num_processes={num_processes} must be 1 or more."
    )
  if not 0 <= process_id < num_processes:
    raise errors.InputError(
      f"--process_id={process_id} must be from 0 to {num_processes - 1}, with"
      f" --num_processes={num_processes}."
    )
  # In Kubernetes jax would look for a package that this does not need.
  method = "deactivate" if "KUBERNETES_SERVICE_HOST" in os.environ else None
  remedy = "start each with the same --coordinator and --num_processes."
  return _Group(coordinator, num_processes, process_id, remedy, method)


def _from_environment(environ: Mapping[str, str]) -> _Group | None:
  """Returns the group that a launcher started, None if it is but one process.

  Raises:
    InputError: it started several, but does not say where process 0 is.
  """

  def number(name: str) -> int:
    value = environ.get(name, "")
    return int(value) if value.isdigit() else 0

  remedy = f"give every process {_FLAGS}."
  size, rank = number("OMPI_COMM_WORLD_SIZE"), number("OMPI_COMM_WORLD_RANK")
  if size > 1:
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
    found = re.match(r"(\d+)\..*?(?:tcp://([^,:]+)|tcp6://(\[[^],]+))", uri)
    if not found:
      raise errors.InputError(
        f"Open MPI started {size} processes (OMPI_COMM_WORLD_SIZE), but since"
        " its version 5 does not say where process 0 is; give each"
        f" --coordinator=HOST:PORT --num_processes={size}"
        f" --process_id=$OMPI_COMM_WORLD_RANK, here {rank}."
      )
    host = found[2] or f"{found[3]}]"
    address = f"{host}:{_port(int(found[1]) >> 12)}"
    return _Group(address, size, rank, remedy, "ompi")

  rank = number("SLURM_PROCID")
  # A batch script, or the shell of an salloc, knows the job's tasks but is no
  # task itself. A shell within a step is one: SLURM_STEP_NUM_TASKS says so.
  in_step = rank or {"SLURM_STEP_ID", "SLURM_STEP_NODELIST"} & environ.keys()
  size = number("SLURM_STEP_NUM_TASKS") or number("SLURM_NTASKS")
  if in_step and size > 1:
    needed = "SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"
    missing = [name for name in needed if not environ.get(name)]
    first = re.match(
      r"([^,\[]+)(?:\[([^],-]+))?", environ.get("SLURM_STEP_NODELIST", "")
    )
    if missing or not first:
      raise errors.InputError(
        f"SLURM started {size} processes, but {', '.join(missing)} is not set;"
        f" {remedy}"
      )
    host = first[1] + (first[2] or "")
    # Steps of one job may run side by side.
    port = _port(number("SLURM_JOB_ID") + 97 * number("SLURM_STEP_ID"))
    method = "slurm" if "SLURM_LOCALID" in environ else "deactivate"
    return _Group(f"{host}:{port}", size, rank, remedy, method)

  for size_name, rank_name in _OTHER_LAUNCHERS:
    if rank_name in environ and number(size_name) > 1:
      raise errors.InputError(
        f"{size_name}={number(size_name)} says that this is one of several"
        " processes, but not where process 0 is; give each"
        f" --coordinator=HOST:PORT --num_processes={number(size_name)}"
        f" --process_id=${rank_name}, or unset {size_name}."
      )
  if number("JOB_COMPLETION_INDEX"):
    raise errors.InputError(
      f"JOB_COMPLETION_INDEX={number('JOB_COMPLETION_INDEX')} says that this is"
      f" one of several processes; give each {_FLAGS}, or unset it for a run of"
      " its own."
    )
  return None


def _port(job: int) -> int:
  """Returns a port for a job, above those that systems hand out."""
  return 2**16 - 2**12 + job % 2**12


def _tpu_method(environ: Mapping[str, str]) -> str | None:
  """Returns how jax finds the hosts of a Cloud TPU slice; None elsewhere."""
  if "tpu" not in (jax.config.values["jax_platforms"] or ""):
    return None
  hosts = environ.get(
    "TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES")
  )
  if hosts is None:
    return None if "TPU_SKIP_MDS_QUERY" in environ else "gcetpu"
  slices = environ.get("MEGASCALE_NUM_SLICES", "1")
  return "gketpu" if "," in hosts or slices != "1" else None


def _meet(group: _Group, timeout_s: int) -> None:
  """Returns when all processes of a group are there; else all raise."""
  if group.process_id == 0:
    problem = _await_others(group, timeout_s)
  else:
    problem = _report(group, timeout_s)
  if problem:
    raise errors.InputError(problem)


def _await_others(group: _Group, timeout_s: int) -> str:
  """Waits as process 0 for the rest, and tells them what is wrong, or ""."""
  deadline = time.monotonic() + timeout_s
  port = int(group.coordinator.rpartition(":")[2])
  with contextlib.ExitStack() as stack:
    try:
      server = stack.enter_context(_listen(port))
    except OSError as e:
      return (
        f"process 0 cannot listen on port {port} of {group.coordinator}"
        f" ({e.strerror}); another run may use it: {group.remedy}"
      )
    connections: list[socket.socket] = []
    missing = set(range(1, group.num_processes))
    problem = ""
    while missing and not problem:
      server.settimeout(max(deadline - time.monotonic(), 0.001))
      try:
        connection = stack.enter_context(server.accept()[0])
      except TimeoutError:
        problem = (
          f"{_name(missing)} of {group.num_processes} did not come to process 0"
          f" at {group.coordinator} within --timeout_s={timeout_s};"
          f" {group.remedy}"
        )
        break
      match _hear(connection, _HELLO_S):
        case [int(process), int(count)]:
          connections.append(connection)
        case _:
          continue  # A probe of the port, no process of ours.
      if count != group.num_processes:
        problem = (
          f"process {process} was started as one of {count}, process 0 as one"
          f" of {group.num_processes}; {group.remedy}"
        )
      elif process not in missing:
        problem = (
          f"two processes came to {group.coordinator} as process {process};"
          " give each a --process_id of its own."
        )
      missing.discard(process)
    for connection in connections:
      _tell(connection, problem)
    return problem


def _report(group: _Group, timeout_s: int) -> str:
  """Comes to process 0, and returns what it says is wrong, or ""."""
  me = f"process {group.process_id} of {group.num_processes}"
  host, _, port = group.coordinator.rpartition(":")
  deadline = time.monotonic() + timeout_s
  while True:
    left = deadline - time.monotonic()
    try:
      connection = socket.create_connection(
        (host.strip("[]"), int(port)), timeout=max(min(left, 5), 0.001)
      )
      break
    except OSError as e:
      if time.monotonic() + _RETRY_S > deadline:
        return (
          f"{me} cannot reach process 0 at {group.coordinator} within"
          f" --timeout_s={timeout_s} ({e.strerror or e}); start process 0"
          f" there, and {group.remedy}"
        )
      time.sleep(_RETRY_S)
  with connection:
    _tell(connection, [group.process_id, group.num_processes])
    # Process 0 may have come last: it decides when the time is over.
    answer = _hear(connection, timeout_s + _HELLO_S)
  if isinstance(answer, str):
    return answer
  return (
    f"{me} reached {group.coordinator}, but what listens there is not process 0"
    f" of this run, or it has ended; {group.remedy}"
  )


def _listen(port: int) -> socket.socket:
  """Returns a socket that listens on every address of this machine."""
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ("", port), family=socket.AF_INET6, dualstack_ipv6=True
    )
  return socket.create_server(("", port))


def _tell(connection: socket.socket, message: Any) -> None:
  # Who has left since hears nothing.
  with contextlib.suppress(OSError):
    connection.sendall(json.dumps(message).encode() + b"\n")


def _hear(connection: socket.socket, timeout_s: float) -> Any:
  """Returns the JSON value of a line, None for anything else."""
  connection.settimeout(timeout_s)
  with contextlib.suppress(OSError, ValueError):
    with connection.makefile("rb") as lines:
      return json.loads(lines.readline(2**16))
  return None


def _gather(values: np.ndarray) -> np.ndarray:
  """Returns the arrays of all processes, stacked by their numbers."""
  return np.asarray(multihost_utils.process_allgather(values))


def _gather_texts(text: str) -> list[str]:
  """Returns the texts of all processes, by their numbers."""
  data = text.encode()
  length = int(_gather(np.array(len(data), np.int32)).max())
  rows = _gather(np.frombuffer(data.ljust(length, b"\0"), np.uint8))
  return [row.tobytes().rstrip(b"\0").decode() for row in rows]


def _name(processes: Any) -> str:
  """Returns `process 1`, or `processes 1, 2`."""
  ids = sorted(processes)
  return f"process{'es' * (len(ids) > 1)} {_cut(', '.join(map(str, ids)))}"


def _cut(text: str) -> str:
  return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
