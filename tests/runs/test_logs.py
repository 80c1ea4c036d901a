"""What a run records: each line once and whole, also when the disk is full."""

import fcntl
import json
import os

import pytest
from limits import no_file_grows_beyond
from tensorboardX.proto import event_pb2

from alexnet_jax.runs import logs, tensorboard
from alexnet_jax.runtime.errors import InputError

# TensorBoard's file is dropped with what it could not write.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)
FIGURES = (
  "epoch", "loss", "top1_error", "top5_error", "learning_rate",
  "images_per_second", "input_wait",
)  # fmt: skip


def record(step, split="train"):
  return {"step": step, "split": split, **dict.fromkeys(FIGURES, 0.5)}


def lines(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("room", [0, 100])
def test_lines_wait_for_room_and_none_is_cut(room, tmp_path, capsys):
  file = tmp_path / "metrics.jsonl"
  with logs.Logger(tmp_path, 0, True, 9) as log:
    log.record(record(1))
    before = file.read_bytes()
    with no_file_grows_beyond(len(before) + room):
      for step in (2, 3):
        log.record(record(step))
        assert file.read_bytes() == before
      assert not log.flush()
    assert "WARNING: 2 lines of" in capsys.readouterr().out
    log.record(record(4))
    assert log.flush()
  assert lines(tmp_path) == [record(n) for n in range(1, 5)]


def test_log_that_cannot_be_written_ends_the_run(tmp_path, capsys):
  """A file that is sealed, which room does not mend."""
  sealed = os.memfd_create("log", os.MFD_ALLOW_SEALING)
  fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
  with logs.Logger(tmp_path, 0, True, 9) as log:
    os.dup2(sealed, log._file.fileno())
    with pytest.raises(InputError, match=r"metrics\.jsonl cannot .*permitted"):
      log.record(record(1))
  os.close(sealed)
  assert "room" not in capsys.readouterr().out


@pytest.mark.parametrize("evaluated", [False, True])
def test_resumed_run_drops_the_lines_after_its_checkpoint(evaluated, tmp_path):
  """They are written again; a validation that is still due is, too."""
  before = [record(5), record(10), record(10, "validation"), record(15)]
  with logs.Logger(tmp_path, 0, True, 20) as log:
    for each in before:
      log.record(each)
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 16, "spl')  # A kill.
  for is_first in (True, False):
    with logs.Logger(tmp_path, 10, evaluated, 20, is_first) as log:
      assert log.has(10, "train")
      assert log.has(10, "validation") == evaluated
      assert not log.has(15, "train")
      if not is_first:
        log.record(record(15))
        assert log.flush()
  assert lines(tmp_path) == before[: 3 if evaluated else 2]


MEMBERS = [record(5) | {"member": 0}, record(5) | {"member": 1}, record(5)]


@pytest.mark.parametrize(
  ("kept", "told", "left"),
  [
    ((0, 1, 2, 3, 4), None, (0, 1, 2, 3, 4)),
    ((0, 1, 2, 3), None, (0, 1, 2, 3)),  # A test follows the checkpoint.
    ((0, 2, 3), "1 are missing and 0 ", (0, 2, 3)),
    ((), "4 are missing and 0 ", ()),
    ((0, 1, 1, 2, 3), "0 are missing and 1 ", (0, 1, 2, 3)),
    ((0, 1, 2, 0, 1, 2), "1 are missing and 3 ", (0, 1, 2)),
  ],
)
def test_lines_that_are_missing_or_doubled_are_told_of(
  kept, told, left, tmp_path, capsys
):
  """Four lines led to the checkpoint; a line after it counts for nothing."""
  known = [*MEMBERS, record(10), record(10, "test")]
  with logs.Logger(tmp_path, 0, True, 20) as log:
    for each in known:
      log.record(each)
    assert log.count == 4
  text = [json.dumps(known[i]) + "\n" for i in kept]
  text.append(json.dumps(record(15)) + "\n")
  (tmp_path / "metrics.jsonl").write_text("".join(text))
  capsys.readouterr()
  with logs.Logger(tmp_path, 10, True, 20, count=4) as log:
    assert log.count == len([i for i in left if i < 4])
  said = capsys.readouterr().out.splitlines()
  assert len(said) == (told is not None)
  assert (told or "") in "".join(said)
  assert lines(tmp_path) == [known[i] for i in left]


BAD_LINES = ["{", "{}", "[]", "3", '{"step": 1}']


@pytest.mark.parametrize("line", BAD_LINES)
def test_last_line_that_is_cut_is_left_out(line, tmp_path):
  good = json.dumps(record(1))
  (tmp_path / "metrics.jsonl").write_text(f"{good}\n{line}\n")
  assert logs.read_metrics(tmp_path) == [record(1)]


@pytest.mark.parametrize("line", BAD_LINES)
def test_damaged_line_is_refused_if_it_is_not_the_last(line, tmp_path):
  good = json.dumps(record(1))
  (tmp_path / "metrics.jsonl").write_text(f"{good}\n{line}\n{good}\n")
  with pytest.raises(InputError, match=r"metrics\.jsonl is damaged in line 2"):
    logs.read_metrics(tmp_path)


def events(file):
  """The whole events of a file; the format is TFRecord."""
  data = file.read_bytes()
  while len(data) >= 12:  # length, its CRC, event, its CRC
    end = 16 + int.from_bytes(data[:8], "little")
    if len(data) < end:
      return
    yield event_pb2.Event.FromString(data[12 : end - 4])
    data = data[end:]


def test_tensorboard_goes_on_after_a_full_disk(tmp_path):
  """SummaryWriter of tensorboardX would block at the tenth event."""
  scalars = tensorboard.ScalarWriter(tmp_path, 7)
  scalars.write(7, {"train/loss": 7.0})
  with no_file_grows_beyond(200):
    for step in range(8, 30):
      scalars.write(step, {"train/loss": step})
  scalars.write(30, {"train/loss": 30.0})
  scalars.close()
  found, starts = {}, []
  for file in sorted(tmp_path.iterdir()):
    for event in events(file):
      if event.session_log.status == event_pb2.SessionLog.START:
        starts.append(event.step)
      for value in event.summary.value:
        found[value.tag, event.step] = value.simple_value
  assert starts == [7]  # From here on readers drop what was there before.
  for step in (7, 30):
    assert found["train/loss", step] == step


def test_a_test_of_an_ensemble_is_there_with_its_last_record(tmp_path):
  """A kill between the members' records leaves the test to be done again."""
  for extra, found in (({"member": 0}, False), ({}, True)):
    with logs.Logger(tmp_path, 3, True, 9) as log:
      log.record(record(3, "test") | extra)
    with logs.Logger(tmp_path, 3, True, 9) as log:
      assert log.has(3, "test") == found


@pytest.mark.parametrize(
  ("wait", "end"),
  [(0.12, "images/s, 12% waiting for images\n"), (0.02, "images/s\n")],
)
def test_a_line_of_training_says_how_long_it_waited(
  wait, end, tmp_path, capsys
):
  with logs.Logger(tmp_path, 0, True, 9) as log:
    log.record(record(1) | {"input_wait": wait})
  assert capsys.readouterr().out.endswith(end)


def test_a_name_does_not_act_on_the_terminal(tmp_path, capsys):
  with logs.Logger(tmp_path, 0, True, 9) as log:
    log.print("runs/\x1b[2Ja\nb")
  assert capsys.readouterr().out == "runs/\\x1b[2Ja\\nb\n"
