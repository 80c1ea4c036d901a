"""Processes of one run: real ones, on loopback over gloo."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path

import jax
import pytest
import yaml
from commands import assert_refused, run_command

from alexnet_jax.runtime import errors, hosts

ROOT = Path(__file__).parents[2]
LAUNCHERS = ("SLURM", "OMPI", "PMI", "MV2", "JOB_", "TPU", "RANK", "WORLD_SIZE")
MEMBER = """
import argparse, json, os, signal, sys
import jax
import jax.numpy as jnp
import numpy as np
from alexnet_jax import distributed, errors
parser = argparse.ArgumentParser()
parser.add_argument("--coordinator")
parser.add_argument("--num_processes", type=int)
parser.add_argument("--process_id", type=int)
parser.add_argument("--timeout_s", type=int, default=60)
parser.add_argument("--facts", type=json.loads, default={})
parser.add_argument("--dies", type=int)
known, others = parser.parse_known_args()
flags = known.coordinator, known.num_processes, known.process_id
try:
  with hosts.initialize(*flags, known.timeout_s):
    distributed.agree(known.facts)
    me = jax.process_index()
    mesh = jax.make_mesh((jax.device_count(),), ("all",))
    rows = jax.NamedSharding(mesh, jax.P("all"))
    everywhere = jax.NamedSharding(mesh, jax.P())
    ones = jax.make_array_from_process_local_data(rows, np.array([10**me]))
    add = jax.jit(jnp.sum, out_shardings=everywhere)
    found = [jax.process_count(), me, int(add(ones)), others]
    print(json.dumps(found), flush=True)
    if known.dies == me:
      os.kill(os.getpid(), signal.SIGKILL)
    while known.dies is not None:
      add(ones).block_until_ready()
except errors.InputError as e:
  sys.exit(f"error: {e}")
"""


def clean_environment():
  """This environment without launchers and virtual devices."""
  return {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(LAUNCHERS) and name != "XLA_FLAGS"
  } | {"JAX_PLATFORMS": "cpu"}


def free_address():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return f"localhost:{free.getsockname()[1]}"


def start(command, **environ):
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=clean_environment() | environ,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def start_member(*flags, **environ):
  return start([sys.executable, "-c", MEMBER, *flags], **environ)


def start_members(address, count, numbers, *flags):
  """Starts those of `count` processes that have these numbers."""
  return [
    start_member(
      f"--coordinator={address}",
      f"--num_processes={count}",
      f"--process_id={number}",
      *flags,
    )
    for number in numbers
  ]


def finish(running):
  """Waits for processes, and returns their results."""
  results = []
  for process in running:
    try:
      stdout, stderr = process.communicate(timeout=60)
    finally:
      process.kill()
    results.append(
      subprocess.CompletedProcess(
        process.args, process.returncode, stdout, stderr
      )
    )
  return results


def assert_met(results, others=()):
  """Each knows how many there are and its number, and they can add up."""
  count = len(results)
  for me, result in enumerate(results):
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found == [count, me, int("1" * count), list(others)]


FACTS = {"seed": 1, "schedule": "epochs", "drops": [7.0, 8.5], "warmup": None}


def facts_flag(facts):
  return f"--facts={json.dumps(facts)}"


def kill_one():
  """Returns the results of two processes, and when the survivor left.

  That is in seconds after the other was killed.
  """
  running = start_members(free_address(), 2, range(2), "--dies=1")
  running[1].wait(timeout=60)
  killed = time.monotonic()
  return finish(running), time.monotonic() - killed


@pytest.fixture(name="bereaved", scope="module", autouse=True)
def fixture_bereaved():
  """Started first and asked last: nearly all of it is waiting."""
  with futures.ThreadPoolExecutor(1) as pool:
    yield pool.submit(kill_one)


# Meeting.


def test_flags_join_processes():
  """The first comes last: others wait for it. Facts are equal in any order."""
  address = free_address()
  running = start_members(address, 3, [1, 2], facts_flag(FACTS))
  again = facts_flag(dict(reversed(FACTS.items())))
  assert_met(finish(start_members(address, 3, [0], again) + running))


def slurm(me, count=2, job="7"):
  return {
    "SLURM_JOB_ID": job,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_TASKS": str(count),
    "SLURM_NTASKS": str(count),
    "SLURM_PROCID": str(me),
    "SLURM_LOCALID": str(me),
  }


def open_mpi(me, count=2, job=1):
  return {
    "OMPI_COMM_WORLD_SIZE": str(count),
    "OMPI_COMM_WORLD_RANK": str(me),
    "OMPI_COMM_WORLD_LOCAL_RANK": str(me),
    "OMPI_MCA_orte_hnp_uri": f"{job << 12}.0;tcp://127.0.0.1,10.9.8.7:34911",
  }


def open_mpi_in_slurm(me):
  """One daemon for each node is all that SLURM knows of mpirun's processes."""
  return slurm(0, count=1) | open_mpi(me, job=os.getpid() + 1)


@pytest.mark.parametrize("launcher", [slurm, open_mpi_in_slurm])
def test_launchers_join_processes(launcher):
  running = [start_member(**launcher(me)) for me in range(2)]
  assert_met(finish(running))


@pytest.mark.parametrize(
  ("environ", "address"),
  [
    (slurm(1) | {"SLURM_STEP_NODELIST": "n1,n2"}, "n1:61447"),
    (slurm(1) | {"SLURM_STEP_NODELIST": "a-[007-9,12],b"}, "a-007:61447"),
    (slurm(1) | {"SLURM_STEP_NODELIST": "a[3,5]"}, "a3:61447"),
    (slurm(1) | {"SLURM_STEP_ID": "2"}, "localhost:61641"),
    (slurm(1, job="4103"), "localhost:61447"),
    (
      open_mpi(1)
      | {
        "OMPI_MCA_orte_hnp_uri": "8192.0;tcp6://[fe80::1,2620::2]:4;tcp://h:5"
      },
      "[fe80::1]:61442",
    ),
  ],
)
def test_launchers_say_where_process_0_is(environ, address):
  """The first host, padded as SLURM writes it; a port by job and step."""
  group = hosts._from_environment(environ)
  assert group == (address, 2, 1, group.remedy, group.method)


# One alone.


def use(monkeypatch, environ):
  for name in list(os.environ):
    if name.startswith(LAUNCHERS):
      monkeypatch.delenv(name)
  for name, value in environ.items():
    monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
  "environ",
  [
    {},
    slurm(0, count=1),
    # A batch script; a shell of salloc; one that salloc runs as a step.
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},
    slurm(0, count=1) | {"SLURM_NTASKS": "4"},
    open_mpi(0, count=1),
    {"PMI_SIZE": "1", "PMI_RANK": "0"},
    {"WORLD_SIZE": "8"},
    {"JOB_COMPLETION_INDEX": "0"},
    {"TPU_WORKER_HOSTNAMES": "a,b"},
  ],
)
def test_one_process_waits_for_nobody(monkeypatch, environ):
  use(monkeypatch, environ)
  with hosts.initialize(None, None, None, 1):
    assert not jax.distributed.is_initialized()
    hosts.assert_same_on_all_hosts({"seed": 1})


def test_one_process_may_be_said_by_flags(monkeypatch):
  """So that a launcher of independent runs can be overruled."""
  use(monkeypatch, slurm(1))
  with hosts.initialize("localhost:1", 1, 0, 1):
    assert not jax.distributed.is_initialized()


# Bad input.


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (("h:1", None, None), "--num_processes and --process_id must be given"),
    ((None, 2, 0), "--coordinator must be given"),
    (("h:1", 2, None), "--process_id must be given"),
    (("h", 2, 0), "--coordinator='h' must be HOST:PORT"),
    ((":1", 2, 0), "--coordinator=':1' must be HOST:PORT"),
    (("h:0", 2, 0), "--coordinator='h:0' must be HOST:PORT"),
    (("h:65536", 2, 0), "must be HOST:PORT"),
    (("h:1", 0, 0), "--num_processes=0 must be 1 or more"),
    (("h:1", 2, 2), "--process_id=2 must be from 0 to 1"),
    (("h:1", 2, -1), "--process_id=-1 must be from 0 to 1"),
  ],
)
def test_bad_flags_are_one_line(flags, words):
  joined = hosts.initialize(*flags, 1)
  with pytest.raises(errors.InputError) as error, joined:
    pass
  assert words in str(error.value)
  assert "\n" not in str(error.value)


def test_the_command_refuses_bad_flags(tmp_path):
  flags = "--num_processes=2", "--process_id=0", f"--workdir={tmp_path / 'run'}"
  assert_refused(run_command("train", *flags), "--coordinator must be given")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("environ", "words"),
  [
    # Open MPI 5 sets no OMPI_MCA_orte_hnp_uri; SLURM counts its daemons.
    (
      {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
      | slurm(0, count=2),
      ["Open MPI started 4", "--process_id=$OMPI_COMM_WORLD_RANK, here 3"],
    ),
    (
      {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"},
      ["SLURM started 2", "SLURM_JOB_ID, SLURM_STEP_NODELIST is not set"],
    ),
    (
      {"PMI_SIZE": "3", "PMI_RANK": "0"},
      ["PMI_SIZE=3", "--num_processes=3 --process_id=$PMI_RANK"],
    ),
    ({"WORLD_SIZE": "2", "RANK": "0"}, ["WORLD_SIZE=2", "--process_id=$RANK"]),
    ({"JOB_COMPLETION_INDEX": "1"}, ["JOB_COMPLETION_INDEX=1"]),
  ],
)
def test_a_launcher_is_never_ignored(monkeypatch, environ, words):
  """As many equal runs would write into one workdir."""
  use(monkeypatch, environ)
  joined = hosts.initialize(None, None, None, 1)
  with pytest.raises(errors.InputError) as error, joined:
    pass
  for word in [*words, "--coordinator=HOST:PORT"]:
    assert word in str(error.value)
  assert "\n" not in str(error.value)


def test_a_tpu_slice_that_jax_cannot_join_is_refused():
  """No TPU is here: jax must be asked, and its answer is one line."""
  environ = {"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "tpu,cpu"}
  (result,) = finish([start_member(**environ)])
  assert_refused(result, "cannot be joined", "--coordinator=HOST:PORT")


# Processes that do not come.


def test_nobody_listens():
  address = free_address()
  started = time.monotonic()
  (result,) = finish(start_members(address, 2, [1], "--timeout_s=2"))
  assert time.monotonic() - started < 12
  assert_refused(result, "process 1 of 2", address, "--timeout_s=2", "start")


def test_a_process_never_comes():
  """Every process that did come names it."""
  address = free_address()
  started = time.monotonic()
  results = finish(start_members(address, 4, [0, 2], "--timeout_s=3"))
  assert time.monotonic() - started < 13
  for result in results:
    assert_refused(result, "processes 1, 3 of 4", address, "--timeout_s=3")


def test_a_process_with_another_count():
  address = free_address()
  running = start_members(address, 3, [1]) + start_members(address, 2, [0])
  for result in finish(running):
    assert_refused(result, "process 1", "one of 3", "one of 2")


def test_two_processes_with_one_number():
  """On which jax aborts, or waits."""
  for result in finish(start_members(free_address(), 3, [0, 1, 1])):
    assert_refused(result, "two processes", "as process 1", "--process_id")


def test_another_program_has_the_port():
  with socket.create_server(("", 0)) as other:
    address = f"localhost:{other.getsockname()[1]}"
    running = start_members(address, 2, range(2))
    connection, _ = other.accept()
    with connection:
      connection.sendall(b"SSH-2.0-\xff\n")
      first, second = finish(running)
  assert_refused(first, "cannot listen", address)
  assert_refused(second, address, "not process 0 of this run")


def test_strangers_are_let_pass():
  """Probes of a port that say nothing, or nonsense."""
  address = free_address()
  host, port = address.split(":")
  running = start_members(address, 2, [0])
  for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"[1, 2, 3]\n", b"\xff\n"):
    while True:
      try:
        stranger = socket.create_connection((host, int(port)))
        break
      except ConnectionRefusedError:
        assert running[0].poll() is None
        time.sleep(0.1)
    with stranger:
      stranger.sendall(said)
  assert_met(finish(running + start_members(address, 2, [1])))


# Agreement.


@pytest.mark.parametrize(
  ("numbers", "changes", "dropped", "words"),
  [
    (
      [2],
      {"seed": 2},
      [],
      "differ: seed is 1 in processes 0, 1 but 2 in process 2; start every",
    ),
    (
      [1],
      {"extra": "x" * 1000},
      ["warmup"],
      f'differ: extra is absent in process 0 but "{"x" * 59}... in process 1;'
      " warmup is null in process 0 but absent in process 1; start every",
    ),
  ],
)
def test_processes_that_differ_all_end(numbers, changes, dropped, words):
  address = free_address()
  count = max(numbers) + 1
  other = {k: v for k, v in FACTS.items() if k not in dropped} | changes
  running = start_members(address, count, range(count - 1), facts_flag(FACTS))
  running += start_members(address, count, numbers, facts_flag(other))
  for result in finish(running):
    assert_refused(result, words)


# What the files in launch/ run.


@pytest.fixture(name="python")
def fixture_python(tmp_path):
  """A python that runs MEMBER with the flags of the command it is given."""
  (tmp_path / "member.py").write_text(MEMBER)
  script = tmp_path / "python"
  script.write_text(
    f"#!/bin/sh\nexec {sys.executable} {tmp_path}/member.py $@\n"
  )
  script.chmod(0o755)
  return {
    "PATH": f"{tmp_path}:{os.environ['PATH']}",
    "PYTHON": str(script),
    "PYTHONPATH": str(ROOT),
  }


def test_pods_of_the_manifest_meet(python):
  """With the labels of JobSet, as Kubernetes would expand them."""
  manifest = yaml.safe_load((ROOT / "launch/jobset.yaml").read_text())
  name, spec = manifest["metadata"]["name"], manifest["spec"]
  (job,) = spec["replicatedJobs"]
  each = job["template"]["spec"]
  assert (each["completions"], each["parallelism"]) == (1, 1)
  (container,) = each["template"]["spec"]["containers"]
  first = f"{name}-{job['name']}-0-0.{spec['network']['subdomain']}"
  address = free_address()
  running = []
  for me in range(job["replicas"]):
    labels = {"replicatedjob-replicas": job["replicas"], "job-index": me}
    variables = {
      entry["name"]: str(labels[path.split("/")[1].rstrip("']")])
      for entry in container["env"]
      for path in [entry["valueFrom"]["fieldRef"]["fieldPath"]]
    }
    command = []
    for word in container["command"] + container["args"]:
      for variable, value in variables.items():
        word = word.replace(f"$({variable})", value)
      command.append(word.replace(f"{first}:29500", address))
    environ = python | variables
    environ |= {"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "k"}
    running.append(start([python["PYTHON"], *command[1:]], **environ))
  results = finish(running)
  for result in results:
    assert "Warning" not in result.stderr
  others = ["-m", "alexnet_jax", "train", "--config=configs/alexnet.py"]
  others += ["--config.data_dir=/shared/data/imagenet"]
  assert_met(results, [*others, "--workdir=/shared/runs/alexnet"])


SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
for id in 0 1; do
  SLURM_PROCID=$id SLURM_LOCALID=$id "$@" > "$RESULTS/$id" &
done
wait %1 && wait %2
"""


def test_tasks_of_the_batch_script_meet(tmp_path, python):
  """And take its flags."""
  srun = tmp_path / "srun"
  srun.write_text(SRUN)
  srun.chmod(0o755)
  environ = slurm(0, job=str(os.getpid())) | python
  environ |= {"RESULTS": str(tmp_path), "SLURM_CPUS_PER_TASK": "1"}
  command = ["bash", "launch/slurm.sbatch", "--config.seed=3"]
  (result,) = finish([start(command, **environ)])
  assert result.returncode == 0, result.stderr
  others = ["-m", "alexnet_jax", "train", "--config=configs/alexnet.py"]
  others += ["--workdir=runs/slurm", "--config.seed=3"]
  assert_met(
    [
      subprocess.CompletedProcess("", 0, (tmp_path / str(task)).read_text(), "")
      for task in range(2)
    ],
    others,
  )


def test_two_processes_that_fail_leave_none_behind(tmp_path):
  """Of the command itself: it compares configs before all else."""
  script = tmp_path / "python"
  script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" --config.seed=$$\n')
  script.chmod(0o755)
  command = ["bash", "launch/two_process.sh", f"--workdir={tmp_path / 'run'}"]
  (result,) = finish([start(command, PYTHON=str(script))])
  assert result.returncode == 1, result.stderr
  for me in range(2):
    assert f"{me}| error: the processes of this run differ: seed is" in (
      result.stdout
    )
  left = subprocess.run(
    ["pgrep", "-f", str(tmp_path)], capture_output=True, check=False
  )
  assert not left.stdout


@pytest.mark.slow
def test_survivors_leave(bereaved):
  """Within half a minute, not two, and with one line that says why."""
  (survivor, dead), seconds = bereaved.result()
  assert seconds < 30
  assert_refused(survivor, "process 1 of 2 was lost")
  assert dead.returncode == -signal.SIGKILL
