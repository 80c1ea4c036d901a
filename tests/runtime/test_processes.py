"""Runs in several processes, and of several nets: the command as users run it.

The oracle is a run of one net in one process on one device, and Orbax reads
what is compared.
"""

import shutil
import signal
import time

import jax
import numpy as np
import pytest
from commands import assert_refused
from process_runs import LIVELY, finish, start_run, succeed, wait_for
from tiny_runs import COUNTS, newest_params, records

from alexnet_jax.configs import quickstart
from alexnet_jax.data.prepare import shapes
from alexnet_jax.runs import checkpoint
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.tools.evaluate import evaluate_runs
from alexnet_jax.train import train_and_evaluate

pytestmark = pytest.mark.slow
PLATEAU = {
  "schedule": "plateau",
  "plateau_patience": 1,
  "plateau_drops": 1,
  "log_every_steps": 3,
}


@pytest.fixture(scope="module")
def singles(data, tmp_path_factory):
  """Runs of one process on one device, of the seeds 1 and 2."""
  folder = tmp_path_factory.mktemp("runs")
  for seed in (1, 2):
    succeed(start_run(folder / str(seed), data, seed=seed))
  return [folder / "1", folder / "2"]


@pytest.fixture(scope="module")
def alone(singles):
  return singles[1]


def figures(workdir, member=None):
  """What a run has recorded but for its speed, of one net."""
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
  assert_equal_params(newest_params(workdir), params, 3e-6)


def test_the_oracle_is_a_run_in_which_something_happens(alone):
  """Else all that follows would hold of nets that see nothing."""
  found = figures(alone)
  assert len({r["loss"] for r in found}) == len(found)
  assert len({r["top1_error"] for r in found}) > 4


def test_best_checkpoint_is_of_the_lowest_validation_error(alone):
  validations = [r for r in records(alone) if r["split"] == "validation"]
  best = min(validations, key=lambda r: (r["top1_error"], r["step"]))
  assert checkpoint.find_step(alone, "best") == best["step"]


# Layouts over processes.


@pytest.fixture(scope="module")
def shared(data, tmp_path_factory):
  """A run in two processes, and what they said."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  return workdir, succeed(start_run(workdir, data, 2))


def test_processes_compute_the_numbers_of_one(shared, alone):
  """Sixteen steps with dropout, noise, decay and momentum.

  Catches rows that a process reads twice or that none reads, and figures of a
  process's own examples.
  """
  workdir, _ = shared
  assert_equal_runs(workdir, alone)


def test_the_first_process_alone_writes(shared, alone):
  workdir, (first, other) = shared
  assert "step 16/16" in first.stdout
  # Gloo prints a line of its own.
  assert not [x for x in other.stdout.splitlines() if x and "[Gloo]" not in x]
  assert other.stderr == ""
  assert len(list((workdir / "tensorboard").iterdir())) == 1
  names = sorted(path.name for path in workdir.iterdir())
  assert names == sorted(path.name for path in alone.iterdir())


def test_a_run_resumes_on_other_devices(data, alone, tmp_path):
  """On four of two processes, as pairs of towers, what one began; and back.

  Catches a state that is restored as it lay, a position in the data that
  counts a process's own rows, and records that stand there twice.
  """
  workdir = tmp_path / "run"
  shutil.copytree(alone, workdir)
  for step, others in (
    (8, {"processes": 2, "devices": 2, "layout": "towers"}),
    (12, {}),
  ):
    # As if the run had been killed after this step.
    for saved in checkpoint.steps_of(workdir):
      if saved > step:
        shutil.rmtree(workdir / f"checkpoints/{saved}")
    first, *_ = succeed(start_run(workdir, data, **others))
    assert f"resuming from step {step} of 16" in first.stdout
    assert_equal_runs(workdir, alone)


def test_processes_with_other_data_are_refused(tmp_path):
  """Each with one line, before anything is written."""
  cwds = [tmp_path / "0", tmp_path / "1"]
  for seed, cwd in enumerate(cwds):
    shapes.generate(cwd / "own", size_px=32, seed=seed, workers=0, **COUNTS)
  for result in finish(start_run(tmp_path / "run", "own", 2, cwds=cwds)):
    assert_refused(result, "differ: file ", " of data_dir (", "more", "data")
  assert not (tmp_path / "run").exists()


# Runs that are stopped or lose a process.


@pytest.fixture(scope="module")
def interrupted(data, tmp_path_factory):
  """A run of two processes that is stopped, loses one, and then ends.

  The folder, and the results and newest step of each of the three.
  """
  folder = tmp_path_factory.mktemp("runs")

  def start_until_saved(workdir, step):
    running = start_run(workdir, data, 2)
    wait_for((workdir / f"checkpoints/{step}").exists, running)
    return running

  def end(workdir, running):
    return finish(running), checkpoint.latest_valid(workdir)

  def attempts(copied=None):
    """Yields new folders: a run may be quicker than a signal to it."""
    for _ in range(5):
      workdir = folder / str(len(list(folder.iterdir())))
      if copied:
        shutil.copytree(copied, workdir)
      yield workdir

  for workdir in attempts():
    first, second = running = start_until_saved(workdir, 4)
    # Stopped, so that few steps pass before jax has informed both.
    first.send_signal(signal.SIGSTOP)
    second.send_signal(signal.SIGINT)
    time.sleep(2)
    first.send_signal(signal.SIGCONT)
    stopped = end(workdir, running)
    if stopped[1] < 12:
      break
  for killed in attempts(copied=workdir):
    running = start_until_saved(killed, 12)
    running[1].kill()
    lost = end(killed, running)
    if lost[1] == 12:
      break
  ended = end(killed, start_run(killed, data, 2))
  return killed, [stopped, lost, ended]


def test_ctrl_c_to_one_stops_both_after_the_same_step(interrupted):
  _, [(results, step), *_] = interrupted
  assert [result.returncode for result in results] == [0, 0]
  assert f"stopped after step {step};" in results[0].stdout
  assert step < 12


def test_a_process_that_is_killed_ends_the_other(interrupted):
  _, [_, ((survivor, killed), step), _] = interrupted
  assert killed.returncode == -signal.SIGKILL
  # By a broken connection or by jax, whichever is seen first.
  assert survivor.returncode in (1, -signal.SIGABRT)
  assert step == 12


def test_the_same_command_resumes_as_if_nothing_had_happened(
  interrupted, shared
):
  """Bit for bit, and with each record once."""
  workdir, [*_, (results, step)] = interrupted
  assert [result.returncode for result in results] == [0, 0]
  assert "resuming from step 12 of 16" in results[0].stdout
  assert step == 16
  assert figures(workdir) == figures(shared[0])
  assert_equal_params(newest_params(workdir), newest_params(shared[0]), 0)


# Ensembles.


@pytest.fixture(scope="module")
def ensemble(data, tmp_path_factory):
  """A run of both seeds, killed after a checkpoint, and what it said then."""
  workdir = tmp_path_factory.mktemp("runs") / "ensemble"
  running = start_run(workdir, data, seed=1, ensemble=2)
  wait_for((workdir / "checkpoints/4").exists, running)
  running[0].kill()
  finish(running)
  (result,) = succeed(start_run(workdir, data, seed=1, ensemble=2))
  return workdir, result.stdout


@pytest.mark.parametrize("member", [0, 1])
def test_members_of_a_killed_ensemble_are_the_single_runs(
  member, ensemble, singles
):
  """Catches members that see the same pictures, masks or first weights."""
  workdir, said = ensemble
  assert "resuming from step" in said
  assert_equal_figures(figures(workdir, member), figures(singles[member]))
  params = jax.tree.map(lambda w: w[member], newest_params(workdir))
  # Rounded otherwise, near ties in pools send gradients elsewhere.
  assert_equal_params(params, newest_params(singles[member]), 1e-3)


def test_lines_without_a_member_are_of_all_together(ensemble, singles):
  """Of training the mean; else of what the nets say together."""
  workdir, _ = ensemble
  assert [r.get("member") for r in records(workdir)][:3] == [0, 1, None]
  together = figures(workdir)
  for ours, a, b in zip(together, *map(figures, singles), strict=True):
    assert ours["learning_rate"] == pytest.approx(a["learning_rate"])
    if ours["split"] == "train":
      for name in ("loss", "top1_error", "top5_error"):
        mean = (a[name] + b[name]) / 2
        assert ours[name] == pytest.approx(mean, rel=1e-6)
    else:
      # The mean of softmaxes that differ is better than they are on average.
      assert ours["loss"] < (a["loss"] + b["loss"]) / 2


def test_an_ensemble_is_evaluated_as_its_single_runs_are(ensemble, singles):
  """Its record of the test, its checkpoint, and the checkpoints of the two."""
  workdir, _ = ensemble
  (record,) = (r for r in figures(workdir) if r["split"] == "test")
  for workdirs in ([workdir], singles):
    _, examples, found = evaluate_runs(workdirs)
    assert len(examples) == COUNTS["test"]
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
  both, *workdirs = (tmp_path / name for name in ("both", "4", "5"))
  for workdir in workdirs:
    succeed(start_run(workdir, data, seed=int(workdir.name), **PLATEAU))
  first, _ = succeed(start_run(both, data, 2, seed=4, ensemble=2, **PLATEAU))
  ends = [figures(workdir)[-1]["step"] for workdir in workdirs]
  assert len(set(ends)) == 2
  assert max(ends) < LIVELY["total_steps"]
  assert figures(both)[-1]["step"] == max(ends)
  params = newest_params(both)
  for member, workdir in enumerate(workdirs):
    assert f"member {member}: no lower validation error" in first.stdout
    mine = jax.tree.map(lambda w, m=member: w[m], params)
    assert_equal_params(mine, newest_params(workdir), 3e-6)
    # To their last lines, which tell of the steps since the third.
    assert_equal_figures(figures(both, member), figures(workdir))
    assert [r["split"] for r in figures(workdir)][-2:] == ["train", "test"]
