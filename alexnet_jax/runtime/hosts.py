"""The processes of a run: how they find each other, and that they agree."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from alexnet_jax.runtime import errors, peers

_FLAGS = "--coordinator=HOST:PORT --num_processes=N --process_id=I"
# Tell a process its number, but not where the first one is.
_OTHER_LAUNCHERS = (
  ("PMI_SIZE", "PMI_RANK"),
  ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
  ("WORLD_SIZE", "RANK"),
)


@contextlib.contextmanager
def initialize(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  timeout_s: int,
) -> Iterator[None]:
  """Joins the processes of a run; to be entered before jax sees its devices.

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

  Yields:
    While a process that is lost ends the others; see `peers.watching`.

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
    yield
    return
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  connections = peers.meet(group, timeout_s) if group else {}
  with peers.watching(connections, group.num_processes if group else 0):
    try:
      jax.distributed.initialize(
        coordinator_address=group.coordinator if group else None,
        num_processes=group.num_processes if group else None,
        process_id=group.process_id if group else None,
        cluster_detection_method=group.method if group else tpu,
        initialization_timeout=timeout_s,
        # Where peers are watched, jax's own abort is to come after ours.
        heartbeat_timeout_seconds=peers.SILENCE_S * (3 if connections else 1),
        shutdown_timeout_seconds=peers.SILENCE_S,
      )
    except (RuntimeError, ValueError, OSError) as e:
      reason = " ".join(str(e).split()).rstrip(".")
      where = f"process {group.process_id} of " if group else ""
      raise errors.InputError(
        f"{where}the run cannot be joined ({reason}); give every process"
        f" {_FLAGS}."
      ) from e
    yield


def assert_same_on_all_hosts(facts: Mapping[str, Any]) -> None:
  """Checks that every process of the run has the same facts.

  To be called by all of them; each then raises the same error, or none.

  Args:
    facts: a JSON value by name; nothing that may differ between processes.

  Raises:
    InputError: some process differs from process 0.
  """
  if jax.process_count() == 1:
    return
  # What JSON cannot say is refused by what reads it.
  text = json.dumps(facts, sort_keys=True, default=repr)
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
      values = (
        f"{peers.cut(v)} in {peers.name(ids)}" for v, ids in holders.items()
      )
      differing.append(f"{name} is {' but '.join(values)}")
  raise errors.InputError(
    "the processes of this run differ:"
    f" {errors.first_few(differing, between='; ')}; start every"
    " process with the same command, code and data."
  )


@contextlib.contextmanager
def raise_on_all_hosts() -> Iterator[None]:
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


def assert_shared_folder(folder: Path) -> None:
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
      f"{peers.name(others)}: workdir={str(folder)!r} is not that of process 0;"
      " give all processes one that they share."
    )


def from_first(value: Any) -> Any:
  """Returns the JSON value that process 0 has, in all processes."""
  if jax.process_count() == 1:
    return value
  return json.loads(_gather_texts(json.dumps(value))[0])


def is_first() -> bool:
  """Whether this is the process that writes logs."""
  return jax.process_index() == 0


def _from_flags(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> peers.Group | None:
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
  return peers.Group(coordinator, num_processes, process_id, remedy, method)


def _from_environment(environ: Mapping[str, str]) -> peers.Group | None:
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
    return peers.Group(address, size, rank, remedy, "ompi")

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
    return peers.Group(f"{host}:{port}", size, rank, remedy, method)

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


def _gather(values: np.ndarray) -> np.ndarray:
  """Returns the arrays of all processes, stacked by their numbers."""
  return np.asarray(multihost_utils.process_allgather(values))


def _gather_texts(text: str) -> list[str]:
  """Returns the texts of all processes, by their numbers."""
  data = text.encode()
  length = int(_gather(np.array(len(data), np.int32)).max())
  rows = _gather(np.frombuffer(data.ljust(length, b"\0"), np.uint8))
  return [row.tobytes().rstrip(b"\0").decode() for row in rows]
