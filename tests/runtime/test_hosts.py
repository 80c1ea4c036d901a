"""Processes of one run: real ones on this machine, which do not train."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import yaml
from absl import flags
from commands import assert_refused, command_line
from PIL import Image
from process_runs import finish, flags_of, free_address, wait_for

from alexnet_jax.data.prepare import prepare
from alexnet_jax.runs import config_files
from alexnet_jax.runtime import hosts

ROOT = Path(__file__).parents[2]
MEMBER = ROOT / "tests/support/host_member.py"
pytestmark = pytest.mark.slow  # It starts processes.
LAUNCHERS = ("SLURM", "OMPI", "PMI", "TPU", "MEGASCALE", "KUBERNETES")


def start(command, **environ):
  clean = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(LAUNCHERS) and name != "XLA_FLAGS"
  }
  clean |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  return subprocess.Popen(
    command, cwd=ROOT, env=clean | environ, text=True, **pipes
  )


def start_member(*flags, **environ):
  return start([sys.executable, MEMBER, *flags], **environ)


def start_members(count, *flags, flags_of_each=((), (), ())):
  """Starts `count` processes that meet; each has some flags of its own."""
  address = free_address()
  return [
    start_member(*flags_of(address, count, me), *flags, *flags_of_each[me])
    for me in range(count)
  ]


def assert_met(results, others=()):
  """Each knows the count, its number and the sum, and hears from process 0."""
  count = len(results)
  for me, result in enumerate(results):
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found == [count, me, int("1" * count), 0, 11 - count, list(others)]


# Processes that connect.


def test_flags_connect_processes(tmp_path):
  """Equal facts in another order are equal, and a shared folder is left."""
  facts = {"seed": 1, "drops": [7.0, 8.5], "warmup": None}
  each = [
    [f"--facts={json.dumps(dict(items))}"]
    for items in (facts.items(), reversed(facts.items()))
  ]
  assert_met(
    finish(start_members(2, f"--folder={tmp_path}", flags_of_each=each))
  )
  assert not list(tmp_path.iterdir())


def slurm(me, count=2):
  return {
    "SLURM_JOB_ID": str(os.getpid()),
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_TASKS": str(count),
    "SLURM_NTASKS": str(count),
    "SLURM_PROCID": str(me),
    "SLURM_LOCALID": str(me),
  }


def open_mpi_in_slurm(me):
  """SLURM knows only the daemon that Open MPI starts on each node."""
  uri = f"{(os.getpid() + 1) << 12}.0;tcp://127.0.0.1,10.9.8.7:34911"
  return slurm(0, count=1) | {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": str(me),
    "OMPI_COMM_WORLD_LOCAL_RANK": str(me),
    "OMPI_MCA_orte_hnp_uri": uri,
  }


@pytest.mark.parametrize("launcher", [slurm, open_mpi_in_slurm])
def test_launchers_connect_processes(launcher):
  assert_met(finish([start_member(**launcher(me)) for me in range(2)]))


@pytest.mark.parametrize(
  ("environ", "platforms", "launcher"),
  [
    ({}, "cpu", None),
    (slurm(0), "cpu", "slurm"),
    (slurm(0, count=1), "cpu", None),
    # A batch script, and a shell that salloc runs as a step.
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, "cpu", None),
    (slurm(0) | {"SLURM_STEP_NUM_TASKS": "1"}, "cpu", None),
    (open_mpi_in_slurm(0), "cpu", "ompi"),
    (slurm(0) | {"OMPI_COMM_WORLD_SIZE": "1"}, "cpu", None),
    ({"PMI_SIZE": "1"}, "cpu", None),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "cpu", None),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "tpu,cpu", "gketpu"),
    ({"TPU_WORKER_HOSTNAMES": "a"}, "tpu,cpu", None),
    ({}, "tpu,cpu", "gcetpu"),
    ({"TPU_SKIP_MDS_QUERY": "1"}, "tpu,cpu", None),
  ],
)
def test_a_process_waits_only_for_those_that_were_started_with_it(
  environ, platforms, launcher, monkeypatch
):
  for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
    monkeypatch.delenv(name)
  for name, value in environ.items():
    monkeypatch.setenv(name, value)
  jax.config.update("jax_platforms", platforms)
  try:
    assert hosts._detect_launcher() == launcher
  finally:
    jax.config.update("jax_platforms", "cpu")


def test_one_process_needs_no_other(monkeypatch):
  """Not even where a launcher says so: its processes may be runs apart."""
  for name, value in slurm(1).items():
    monkeypatch.setenv(name, value)
  with hosts.initialize("localhost:1", 1, 0, 1):
    assert not jax.distributed.is_initialized()
    hosts.assert_same_on_all_hosts({"seed": 1})
    assert hosts.from_first([2]) == [2]


# Processes that cannot connect.


@pytest.mark.parametrize(
  ("flags", "environ", "words"),
  [
    (["--num_processes=2", "--process_id=0"], {}, ["coordinator_address"]),
    (["--coordinator=h:1", "--num_processes=2"], {}, ["process id"]),
    (flags_of("h:1", 2, 2), {}, ["process_id=2, num_processes=2"]),
    (flags_of("h:1", 1, 1), {}, ["process_id=1, num_processes=1"]),
    # Open MPI 5 and other MPIs do not say where process 0 is.
    ([], {"OMPI_COMM_WORLD_SIZE": "2"}, ["OMPI_MCA_orte_hnp_uri"]),
    ([], {"PMI_SIZE": "2"}, ["coordinator_address"]),
  ],
)
def test_bad_flags_are_one_line(flags, environ, words):
  (result,) = finish([start_member(*flags, **environ)])
  assert_refused(result, *words, "give each --coordinator=HOST:PORT")


def test_a_process_that_never_comes_is_missed_in_time():
  """By process 0 and by the others; jax would abort."""
  address = free_address()
  flags = [flags_of(address, 3, me) for me in range(2)]
  for result in finish([start_member(*x, "--timeout_s=5") for x in flags]):
    assert_refused(result, "not all connected within --timeout_s=5")


def test_two_processes_do_not_meet_three():
  """Left to jax, the two would compute something else than was asked."""
  address = free_address()
  flags = flags_of(address, 2, 0), flags_of(address, 3, 1)
  first, second = finish([start_member(*each) for each in flags])
  assert_refused(
    first, "process 1 is one of --num_processes=3", "0 is one of 2"
  )
  assert_refused(second, "process 0 is one of --num_processes=2", "is one of 3")


# Processes that differ or fail.


def test_processes_that_differ_all_end():
  facts = {"seed": 1, "warmup": None}, {"seed": 2, "extra": [3]}
  each = [[f"--facts={json.dumps(each)}"] for each in facts]
  words = [
    "differ: extra (absent in process 0, [3] in process 1)",
    "seed (1 in process 0, 2 in process 1)",
    "warmup (null in process 0, absent in process 1)",
  ]
  for result in finish(start_members(2, flags_of_each=each)):
    assert_refused(result, *words)


def test_a_folder_of_the_same_name_is_not_shared(tmp_path):
  for me in range(2):
    (tmp_path / str(me)).mkdir()
  each = [[f"--folder={tmp_path / str(me)}"] for me in range(2)]
  for result in finish(start_members(2, flags_of_each=each)):
    assert_refused(result, "process 1: workdir=", "all processes share")


def test_bad_input_of_one_process_ends_all_by_its_reason():
  for result in finish(start_members(3, "--bad=2")):
    assert_refused(result, "process 2: image 7 is damaged.")


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["error", "SIGKILL"])
def test_the_end_of_one_process_ends_the_others_in_one_line(ends):
  """In a computation over all processes, which gloo breaks off."""
  *others, last = finish(start_members(3, f"--ends={ends}"))
  for result in others:
    assert_refused(result, "if one has ended", "same command in all resumes")
  if ends == "error":
    assert_refused(last, "image 8 is damaged.")


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_others():
  """By the heartbeat of jax, as no connection breaks."""
  running = start_members(2, "--ends=SIGSTOP")
  try:
    (first,) = finish(running[:1])
  finally:
    running[1].kill()
    finish(running[1:])
  assert first.returncode == -signal.SIGABRT
  assert "stopped sending heartbeats" in first.stderr


# What the files in launch/ start.


@pytest.fixture(name="python")
def fixture_python(tmp_path):
  """A python that runs the member with the flags of the command it is given."""
  script = tmp_path / "python"
  script.write_text(f"#!/bin/sh\nexec {sys.executable} {MEMBER} $@\n")
  script.chmod(0o755)
  path = f"{tmp_path}:{os.environ['PATH']}"
  return {"PATH": path, "PYTHON": str(script)}


COMMAND = ["-m", "alexnet_jax", "train", "--config=alexnet"]
# What `alexnet prepare` makes of ImageNet has no other split to test on.
IMAGENET = ["test_split=validation"]


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
    command = []
    for word in container["command"] + container["args"]:
      for entry in container["env"]:
        path = entry["valueFrom"]["fieldRef"]["fieldPath"]
        value = labels[path.split("/")[1].rstrip("']")]
        word = word.replace(f"$({entry['name']})", str(value))
      command.append(word.replace(f"{first}:29500", address))
    environ = python | {"KUBERNETES_SERVICE_HOST": "k"}
    running.append(start([python["PYTHON"], *command[1:]], **environ))
  results = finish(running)
  for result in results:
    assert "Warning" not in result.stderr
  others = ["data_dir=/shared/data/imagenet", *IMAGENET, "reader_threads=32"]
  others = [*COMMAND, *(f"--config.{field}" for field in others)]
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
  environ = slurm(0) | {"SLURM_JOB_ID": str(os.getpid() + 2)} | python
  environ |= {"RESULTS": str(tmp_path), "SLURM_CPUS_PER_TASK": "1"}
  command = ["bash", "launch/slurm.sbatch", "--config.seed=3"]
  (result,) = finish([start(command, **environ)])
  assert result.returncode == 0, result.stderr
  said = [(tmp_path / str(task)).read_text() for task in range(2)]
  fields = [*IMAGENET, "reader_threads=1", "seed=3"]
  fields = [f"--config.{field}" for field in fields]
  others = [*COMMAND, "--workdir=runs/slurm", *fields]
  assert_met(
    [subprocess.CompletedProcess("", 0, text, "") for text in said], others
  )


@pytest.mark.parametrize("file", ["slurm.sbatch", "jobset.yaml"])
def test_launch_files_fit_the_data_that_prepare_makes_of_imagenet(
  file, tmp_path
):
  """Its splits, and more reader threads than the two of a CPU."""
  for place in ("train/n01", "train/n02", "val/n01", "val/n02"):
    (tmp_path / "source" / place).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "source" / place / "1.png")
  source, output = str(tmp_path / "source"), tmp_path / "data"
  counts, _, _ = prepare.prepare(source, output, size_px=8, workers=0)
  text = (ROOT / "launch" / file).read_text()
  text = re.sub("^#.*", "", text, flags=re.M)
  text = text.replace('"$SLURM_CPUS_PER_TASK"', "8")
  with command_line("train", *re.findall(r"--config[.=][^ #\\\n]+", text)):
    config_files.define_config()
    flags.FLAGS(sys.argv)
    config, _ = config_files.config()
  splits = {config[f"{of}_split"] for of in ("train", "validation", "test")}
  assert splits == set(counts)
  assert config.reader_threads >= 8


def test_two_processes_that_fail_leave_none_behind(tmp_path):
  """Of the command itself: it compares configs before all else."""
  script = tmp_path / "python"
  script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" --config.seed=$$\n')
  script.chmod(0o755)
  command = ["bash", "launch/two_process.sh", f"--workdir={tmp_path / 'run'}"]
  (result,) = finish([start(command, PYTHON=str(script))])
  assert result.returncode == 1, result.stderr
  for me in range(2):
    assert f"{me}| error: the processes differ: seed (" in result.stdout
  left = subprocess.run(
    ["pgrep", "-f", str(tmp_path)], capture_output=True, check=False
  )
  assert not left.stdout


def test_the_script_of_two_processes_passes_ctrl_c_on(tmp_path):
  """As SIGTERM; a terminal sends Ctrl-C to all that the script started."""
  stand_in = tmp_path / "python"
  stand_in.write_text(
    "#!/bin/sh\ntrap '' INT; trap 'echo stopped; exit 0' TERM\n"
    "[ $1 = -c ] && echo 1 && exit\n"
    f"touch {tmp_path}/$$; while :; do sleep 0.1; done\n"
  )
  stand_in.chmod(0o755)
  script = subprocess.Popen(
    ["bash", "launch/two_process.sh"],
    cwd=ROOT,
    env=os.environ | {"PYTHON": str(stand_in)},
    stdout=subprocess.PIPE,
    text=True,
    process_group=0,
  )
  wait_for(lambda: len(list(tmp_path.iterdir())) == 3, [script])
  os.killpg(script.pid, signal.SIGINT)
  (result,) = finish([script])
  assert result.returncode == 0
  assert sorted(result.stdout.split()) == ["0|", "1|", "stopped", "stopped"]
