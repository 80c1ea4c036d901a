"""Saving in the background, and what a full disk does to it."""

import contextlib
import shutil

import jax.numpy as jnp
import pytest
from limits import no_file_grows_beyond
from small_states import Lines, save, saver, state_of

from alexnet_jax.configs import quickstart
from alexnet_jax.runs import checkpoint, run_files, saving
from alexnet_jax.runtime.errors import InputError, SavingError

# Threads of Orbax end with the error that is printed.
pytestmark = [
  pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
  ),
  pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PROGRESS = checkpoint.Progress({}, {})


def test_newest_and_best_are_kept(tmp_path):
  for steps, best, keep, expected in (
    ((1, 2, 3, 4, 5, 6), 2, 2, [2, 5, 6]),
    ((7,), 6, 2, [6, 7]),
    ((8, 9), 7, 1, [7, 9]),
  ):
    save(tmp_path, *steps, best=best, keep=keep)
    assert checkpoint.steps_of(tmp_path) == expected


def test_best_is_kept_until_a_better_one_is_on_disk(tmp_path):
  """Step 2 is the best, and so is step 3, which is not saved, and not 4."""
  with saver(tmp_path, keep=1) as saves:
    for step, best, room in ((2, 2, 2**20), (3, 3, 100), (4, 3, 2**20)):
      with no_file_grows_beyond(room):
        progress = checkpoint.Progress({}, {}, best_step=best)
        saves.save(state_of(step), progress)
        assert saves.wait() == (step != 3)
  assert checkpoint.steps_of(tmp_path) == [2, 4]


def test_step_that_is_saved_again_is_replaced(tmp_path):
  """After a resume, when the validation of the step is done."""
  with saver(tmp_path) as saves:
    for evaluated in (False, True):
      progress = checkpoint.Progress({}, {}, evaluated=evaluated)
      saves.save(state_of(1), progress, wait=True)
      _, found = checkpoint.restore(tmp_path, 1, state_of(1))
      assert found == progress
  assert [x.name for x in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_progress_may_change_while_it_is_saved(tmp_path):
  progress = checkpoint.Progress({"epoch": 1}, {})
  with saver(tmp_path) as saves:
    saves.save(state_of(1), progress)
    progress.batches["epoch"] = progress.skipped = 2
  _, found = checkpoint.restore(tmp_path, 1, state_of(1))
  assert found == checkpoint.Progress({"epoch": 1}, {})


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
  state = state_of(2)
  state.params["features"]["conv1"]["bias"] = jnp.full(8, jnp.nan)
  with saver(tmp_path) as saves:
    saves.save(state_of(1), PROGRESS)
    with pytest.raises(InputError, match=r"not finite .* step 1"):
      saves.save(state, PROGRESS)
  assert checkpoint.steps_of(tmp_path) == [1]


def test_failed_save_is_reported_and_tried_again(tmp_path, monkeypatch):
  log = Lines()
  with saver(tmp_path, log) as saves:
    assert saves.save(state_of(1), PROGRESS, wait=True)
    with no_file_grows_beyond(100):
      for _ in range(5):
        saves.save(state_of(2), PROGRESS)
        assert not saves.wait()
    assert checkpoint.steps_of(tmp_path) == [1]
    assert len(log.lines) == 5
    for line in log.lines:
      assert line.startswith("WARNING: step 2 could not be saved")
      assert f"Make room in {tmp_path};" in line
      assert str(tmp_path) in line
      assert "The newest checkpoint is that of step 1." in line
    assert not saves.is_due()
    monkeypatch.setattr(saving, "_SAVE_AGAIN_S", 0)
    assert saves.is_due()
    assert saves.save(state_of(3), PROGRESS, wait=True)
    assert not saves.is_due()
  assert checkpoint.latest_valid(tmp_path) == 3
  left = sorted(x.name for x in (tmp_path / "checkpoints").iterdir())
  assert left == ["1", "3"]


@pytest.mark.parametrize("is_stopped", [False, True])
def test_save_that_is_waited_for_is_tried_until_it_succeeds(
  is_stopped, tmp_path, monkeypatch
):
  """Room is made while the run asks for the second time whether to stop."""
  monkeypatch.setattr(saving, "_RETRY_S", 0)
  saved_when_asked = []
  with contextlib.ExitStack() as disk:

    def should_stop():
      saved_when_asked.append(checkpoint.steps_of(tmp_path))
      if len(saved_when_asked) == 2:
        disk.close()
      return is_stopped and len(saved_when_asked) == 2

    disk.enter_context(no_file_grows_beyond(100))
    with saver(tmp_path, should_stop=should_stop) as saves:
      if is_stopped:
        with pytest.raises(InputError, match=r"step 1 could not .* no check"):
          saves.save(state_of(1), PROGRESS, wait=True)
      else:
        assert saves.save(state_of(1), PROGRESS, wait=True)
  assert saved_when_asked == [[], []]
  assert checkpoint.steps_of(tmp_path) == ([] if is_stopped else [1])


@pytest.fixture
def blocked(tmp_path):
  """A file stands where the checkpoints would be."""
  (tmp_path / "checkpoints").write_text("")
  return tmp_path


@pytest.mark.parametrize("wait", [False, True])
def test_save_that_room_does_not_mend_ends_the_run(wait, blocked, monkeypatch):
  """After the third failure in a row; no line speaks of room."""
  monkeypatch.setattr(saving, "_RETRY_S", 0)
  log = Lines()
  with saver(blocked, log) as saves:
    for step in () if wait else (1, 2, 3):
      assert not saves.save(state_of(step), PROGRESS)
    with pytest.raises(SavingError, match=r"three times in a row .* no check"):
      saves.save(state_of(4), PROGRESS, wait=wait)
  assert len(log.lines) == 3
  for line in log.lines:
    assert str(blocked / "checkpoints") in line
    assert "Make room" not in line


def test_failures_that_are_not_in_a_row_end_no_run(blocked):
  log = Lines()
  with saver(blocked, log) as saves:
    for step in range(1, 7):
      if step == 3:
        (blocked / "checkpoints").unlink()
      if step == 4:
        shutil.move(blocked / "checkpoints", blocked / "aside")
        (blocked / "checkpoints").write_text("")
      saves.save(state_of(step), PROGRESS)
      saves.wait()
    assert len(log.lines) == 5
    with pytest.raises(SavingError, match="three times in a row"):
      saves.save(state_of(7), PROGRESS)


@pytest.mark.parametrize("moment", ["before", "while it is saved"])
def test_workdir_that_another_run_took_is_left_to_it(
  moment, tmp_path, monkeypatch
):
  """Removed under a live run; a second program holds the new one."""
  workdir, config = tmp_path / "run", quickstart.get_config()
  log = Lines()
  with contextlib.ExitStack() as stack:

    def take():
      shutil.rmtree(workdir)
      stack.enter_context(run_files.claim_workdir(workdir, config, 9))
      (workdir / "checkpoints/2.unfinished").mkdir(parents=True)

    claim = run_files.claim_workdir(workdir, config, 9)
    _, is_held = stack.enter_context(claim)
    with saver(workdir, log, is_held=is_held) as saves:
      assert saves.save(state_of(1), PROGRESS, wait=True)
      if moment == "before":
        take()
      else:
        monkeypatch.setattr(log, "sync", take)  # Before the commit.
        saves.save(state_of(1), PROGRESS)
        assert not saves.wait()
        assert log.lines == []
      with pytest.raises(SavingError, match=r"removed, moved .* at step 2;"):
        saves.save(state_of(2), PROGRESS)
    left = [x.name for x in (workdir / "checkpoints").iterdir()]
    assert left == ["2.unfinished"]


def test_log_is_written_before_the_checkpoint(tmp_path, monkeypatch):
  """Else a kill in between would lose the lines that lead to the step."""
  events = []
  log = Lines()
  monkeypatch.setattr(log, "flush", lambda: events.append("flush") or True)
  monkeypatch.setattr(log, "sync", lambda: events.append("sync"))
  monkeypatch.setattr(checkpoint, "commit", lambda *_: events.append("commit"))
  with saver(tmp_path, log) as saves:
    saves.save(state_of(1), PROGRESS)
  assert events == ["flush", "sync", "commit"]
