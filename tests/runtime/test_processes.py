"""Runs in several processes, and of several nets: the command as users run it.

The oracle is a run of one net in one process on one device, and Orbax reads
what is compared.
"""

import shutil

import jax
import numpy as np
import pytest
from commands import assert_refused
from process_runs import (
  LIVELY,
  finish,
  saved_steps,
  start,
  start_run,
  succeed,
  wait_for,
)
from tiny_runs import COUNTS, newest_params, records

from alexnet_jax.data.prepare import shapes
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.tools.evaluate import evaluate_runs
from alexnet_jax.train import train_and_evaluate
from configs import quickstart

pytestmark = pytest.mark.slow
PLATEAU = {
  "schedule": "plateau",
  "plateau_patience": 1,
  "plateau_drops": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  directory = tmp_path_factory.mktemp("data") / "shapes"
  shapes.generate(directory, size_px=32, workers=0, **COUNTS)
  return directory


def marks(workdir):
  """What each record is of."""
  found = records(workdir)
  return [(r["step"], r["split"], r.get("member")) for r in found]


@pytest.fixture(scope="module")
def singles(data, tmp_path_factory):
  """Runs of one process on one device, of the seeds 0 and 1."""
  folder = tmp_path_factory.mktemp("runs")
  workdirs = [folder / "0", folder / "1"]
  running = [start_run(w, data, seed=seed) for seed, w in enumerate(workdirs)]
  for processes in running:
    succeed(processes)
  return workdirs


@pytest.fixture(scope="module")
def alone(singles):
  return singles[0]


def figures(workdir, member=None):
  """What a run has recorded but for its speed, of one net."""
  if not (workdir / "metrics.jsonl").exists():
    return []
  return [
    {
      name: value
      for name, value in record.items()
      if name not in ("images_per_second", "input_wait", "member")
    }
    for record in records(workdir)
    if record.get("member") == member
  ]


def assert_equal_params(found, expected, tolerance):
  for (path, ours), theirs in zip(
    jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
  ):
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error <= tolerance, jax.tree_util.keystr(path)


def assert_equal_figures(found, expected):
  assert [(r["step"], r["split"]) for r in found] == [
    (r["step"], r["split"]) for r in expected
  ]
  for ours, theirs in zip(found, expected, strict=True):
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=5e-6)
    assert ours == pytest.approx(theirs | {"loss": ours["loss"]})


def assert_equal_runs(workdir, expected):
  assert_equal_figures(figures(workdir), figures(expected))
  params = newest_params(expected)
  assert_equal_params(newest_params(workdir), params, 1e-6)


def go_back(workdir, step):
  """Leaves a run as if it had been killed after a checkpoint."""
  for saved in saved_steps(workdir):
    if saved > step:
      shutil.rmtree(workdir / f"checkpoints/{saved}")


def test_the_oracle_is_a_run_in_which_something_happens(alone):
  """Else all that follows would hold of nets that see nothing."""
  found = figures(alone)
  assert len({r["loss"] for r in found}) == len(found)
  assert len({r["top1_error"] for r in found}) > 4


# Layouts over processes.


@pytest.fixture(scope="module")
def shared(data, alone, tmp_path_factory):
  """Runs in several processes: workdir and results of each."""
  folder = tmp_path_factory.mktemp("runs")
  started = {}
  for layout, processes in (("data", 2), ("data", 4), ("towers", 2)):
    workdir = folder / f"{layout}{processes}"
    running = start_run(workdir, data, processes, layout=layout)
    started[layout, processes] = workdir, succeed(running)
  return started


RUNS = pytest.mark.parametrize(
  "which", [("data", 2), ("data", 4), ("towers", 2)]
)


@RUNS
def test_processes_compute_the_numbers_of_one(which, shared, alone):
  """Sixteen steps with dropout, noise, decay and momentum.

  Catches rows that a process reads twice or that none reads, and figures of a
  process's own examples.
  """
  workdir, _ = shared[which]
  assert_equal_runs(workdir, alone)


@RUNS
def test_the_first_process_alone_writes(which, shared, alone):
  workdir, (first, *others) = shared[which]
  assert "step 16/16" in first.stdout
  for other in others:
    # What gloo says of itself is not ours.
    said = [x for x in other.stdout.splitlines() if "[Gloo]" not in x]
    assert [x for x in said if x] == []
    assert other.stderr == ""
  assert len(list((workdir / "tensorboard").iterdir())) == 1
  held = sorted(path.name for path in workdir.iterdir())
  assert held == sorted(path.name for path in alone.iterdir())


@pytest.fixture(scope="module")
def handed_over(data, alone, tmp_path_factory):
  """A run of one device, then four in towers, then one; and its results."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  shutil.copytree(alone, workdir)
  go_back(workdir, 8)
  four = succeed(start_run(workdir, data, 2, devices=2, layout="towers"))
  kept = workdir.with_name("four")
  shutil.copytree(workdir, kept)
  go_back(workdir, 12)
  evaluation = start("evaluate", f"--workdir={kept}")
  one = succeed(start_run(workdir, data))
  return (kept, four), (workdir, one), succeed([evaluation])


@pytest.mark.parametrize(("which", "step"), [(0, 8), (1, 12)])
def test_a_run_goes_on_on_other_devices(which, step, handed_over, alone):
  """On four of two processes what one began, and the other way.

  Catches a state that is restored as it lay, a position in the data that
  counts a process's own rows, and records that stand there twice.
  """
  workdir, results = handed_over[which]
  assert f"going on from step {step} of 16" in results[0].stdout
  assert_equal_runs(workdir, alone)


def test_a_run_of_four_devices_is_evaluated_on_one(handed_over):
  (workdir, _), _, (result,) = handed_over
  (record,) = (r for r in figures(workdir) if r["split"] == "test")
  assert f"top-1 error {record['top1_error']:.2%}" in result.stdout
  assert f"top-5 error {record['top5_error']:.2%}" in result.stdout
  assert f"loss {record['loss']:.4f}" in result.stdout


# Processes that do not belong together.


@pytest.fixture(scope="module")
def refused(data, alone, tmp_path_factory):
  """What two processes say that are not of one run, and where they ran."""
  folder = tmp_path_factory.mktemp("hosts")
  hosts = [folder / "0", folder / "1"]
  for seed, host in enumerate(hosts):
    shapes.generate(host / "own", size_px=32, seed=seed, workers=0, **COUNTS)
  shutil.copytree(data, hosts[0] / "missing")
  shutil.copytree(alone, hosts[0] / "source")
  shutil.copytree(alone, hosts[1] / "old")
  cwds = [{"cwd": host} for host in hosts]
  cases = {
    "field": ((folder / "run", data), [{}, {"momentum": 0.8}]),
    "data": ((folder / "run", "own"), cwds),
    "no data": ((folder / "run", "missing"), cwds),
    "old workdir": (("old", data), cwds),
    "no source": (
      (folder / "run", data),
      [cwd | {"init_from": "source"} for cwd in cwds],
    ),
  }
  running = {
    name: start_run(*places, 2, each=each)
    for name, (places, each) in cases.items()
  }
  return folder, {name: finish(both) for name, both in running.items()}


@pytest.mark.parametrize(
  ("case", "words"),
  [
    (
      "field",
      ["differ: momentum is 0.9 in process 0 but 0.8 in process 1", "same"],
    ),
    ("data", ["differ: file ", " of data_dir is ", "more", "data"]),
    ("no data", ["process 1: data_dir='missing' does not exist"]),
    ("old workdir", ["process 1: workdir='old'", "process 0", "share"]),
    ("no source", ["process 1: workdir='source' holds no run"]),
  ],
)
def test_processes_that_do_not_fit_all_end(case, words, refused):
  """Each with one line that says who, before any step."""
  folder, results = refused
  assert len(results[case]) == 2
  for result in results[case]:
    assert_refused(result, *words)
  assert not (folder / "run").exists()
  assert not (folder / "0" / "old" / "checkpoints").exists()


# Ensembles.


@pytest.fixture(scope="module")
def ensemble(data, tmp_path_factory):
  """A run of both seeds, killed after a checkpoint, and what it said then."""
  workdir = tmp_path_factory.mktemp("runs") / "ensemble"
  running = start_run(workdir, data, ensemble=2)
  wait_for(lambda: list(workdir.glob("checkpoints/4")), running)
  running[0].kill()
  finish(running)
  (result,) = succeed(start_run(workdir, data, ensemble=2))
  return workdir, result.stdout


@pytest.mark.parametrize("member", [0, 1])
def test_members_of_a_killed_ensemble_are_the_single_runs(
  member, ensemble, singles
):
  """Catches members that see the same pictures, masks or first weights."""
  workdir, said = ensemble
  assert "going on from step" in said
  assert_equal_figures(figures(workdir, member), figures(singles[member]))
  params = jax.tree.map(lambda w: w[member], newest_params(workdir))
  # Rounded otherwise, near ties in pools send gradients elsewhere.
  assert_equal_params(params, newest_params(singles[member]), 1e-3)


def test_lines_of_an_ensemble_stand_once(ensemble, alone):
  """One of each member and one of all, each time that a single run has one."""
  workdir, _ = ensemble
  assert marks(workdir) == [
    (step, split, member)
    for step, split, _ in marks(alone)
    for member in (0, 1, None)
  ]


def test_lines_without_a_member_are_of_all_together(ensemble, singles):
  """Of training the mean; else of what the nets say together."""
  workdir, _ = ensemble
  together = figures(workdir)
  for ours, a, b in zip(together, *map(figures, singles), strict=True):
    assert ours["learning_rate"] == pytest.approx(a["learning_rate"])
    for name in ("loss", "top1_error", "top5_error"):
      if ours["split"] == "train":
        mean = (a[name] + b[name]) / 2
        assert ours[name] == pytest.approx(mean, rel=1e-6)
    if ours["split"] != "train":
      # The mean of softmaxes that differ is better than they are on average.
      assert ours["loss"] < (a["loss"] + b["loss"]) / 2


def test_an_ensemble_is_evaluated_as_its_single_runs_are(ensemble, singles):
  """Its record of the test, its checkpoint, and the checkpoints of the two."""
  workdir, _ = ensemble
  (record,) = (r for r in figures(workdir) if r["split"] == "test")
  for workdirs in ([workdir], singles):
    _, count, found = evaluate_runs(workdirs)
    assert count == COUNTS["test"]
    for name in ("loss", "top1_error", "top5_error"):
      assert found[name] == pytest.approx(record[name], rel=1e-5)


def test_no_run_starts_from_an_ensemble(ensemble, data, tmp_path):
  config = quickstart.get_config()
  fields = {"data_dir": str(data), "init_from": str(ensemble[0])}
  config.update_from_flattened_dict({**LIVELY, **fields})
  with pytest.raises(InputError, match="2 nets of an ensemble"):
    train_and_evaluate(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_members_end_on_plateaus_of_their_own(data, tmp_path):
  """A net in each of two processes; the first to end waits for the other."""
  both, *workdirs = (tmp_path / name for name in ("both", "1", "2"))
  running = [
    start_run(workdir, data, seed=int(workdir.name), **PLATEAU)
    for workdir in workdirs
  ]
  first, _ = succeed(start_run(both, data, 2, seed=1, ensemble=2, **PLATEAU))
  for processes in running:
    succeed(processes)
  ends = [figures(workdir)[-1]["step"] for workdir in workdirs]
  assert len(set(ends)) == 2
  assert max(ends) < LIVELY["total_steps"]
  assert figures(both)[-1]["step"] == max(ends)
  params = newest_params(both)
  for member, (workdir, end) in enumerate(zip(workdirs, ends, strict=True)):
    assert f"member {member}: no lower validation error" in first.stdout
    mine = jax.tree.map(lambda w, m=member: w[m], params)
    assert_equal_params(mine, newest_params(workdir), 3e-6)
    *expected, expected_test = figures(workdir)
    *found, test = figures(both, member)
    assert_equal_figures(
      [r for r in found if r["step"] <= end and r["split"] == "validation"],
      [r for r in expected if r["split"] == "validation"],
    )
    assert test["split"] == expected_test["split"] == "test"
    assert test["loss"] == pytest.approx(expected_test["loss"], abs=5e-6)
    assert test["learning_rate"] == expected_test["learning_rate"]
