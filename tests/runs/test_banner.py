"""What a run shows: what it is, that it has compiled, and how it stands."""

import re
import shlex
import time

import jax
import pytest
from commands import run_in_process
from tiny_runs import COUNTS, QUICK, newest_params, records

from alexnet_jax import train
from alexnet_jax.configs import quickstart
from alexnet_jax.runs import banner, config_files, logs
from alexnet_jax.schedules import step_of_epoch

FIELDS = {
  **QUICK,
  "network.layers": ("conv1", "fc6", "fc8"),
  "total_steps": 8,
  "log_every_steps": 5,
  "checkpoint_every_steps": 8,
  "evaluate_every_epochs": 9.0,
}


def timeless(workdir):
  times = {"images_per_second": 0, "input_wait": 0}
  return [{**record, **times} for record in records(workdir)]


def start(data, workdir, **fields):
  config = quickstart.get_config()
  fields = {"data_dir": str(data), **FIELDS, **fields}
  config.update_from_flattened_dict(fields)
  train.train_and_evaluate(config, workdir)


@pytest.mark.slow
def test_run_says_what_it_is_and_when_finished_only_that(
  data, tmp_path, capsys, quick_compilation, kept_programs, monkeypatch
):
  """Its log does not depend on what the clock adds to the screen."""
  began = time.monotonic()
  start(data, tmp_path / "run")
  lasted = time.monotonic() - began
  shown = capsys.readouterr().out
  params = newest_params(tmp_path / "run")
  count = sum(x.size for x in jax.tree.leaves(params))
  (head,) = (x for x in shown.splitlines() if x.startswith("net "))
  assert "conv1, fc6, fc8" in head
  assert f" {count:,} parameters" in head
  counts = ", ".join(f"{n} {split}" for split, n in COUNTS.items())
  assert f"{data}: 10 classes; {counts} images" in shown
  assert "16 images each; 10 an epoch, 8 in all" in shown
  assert "8 cpu, layout data; float32" in shown
  files = (tmp_path / "run/checkpoints/8").rglob("*")
  on_disk = sum(file.stat().st_size for file in files if file.is_file())
  (told,) = re.findall(r"checkpoint +(.*) MB", shown)
  assert on_disk == pytest.approx(1e6 * float(told), rel=0.2, abs=1e5)
  (seconds,) = re.findall(r"^compiled in (.*) s$", shown, re.MULTILINE)
  assert 0 < float(seconds) < lasted
  lines = re.findall(r"^step (\d)/8 .* train ", shown, re.MULTILINE)
  assert lines == ["5", "8"]

  start(data, tmp_path / "run")
  again = capsys.readouterr().out.splitlines()
  assert len(again) == 1
  assert f"the run in {tmp_path / 'run'} is finished; alexnet" in again[0]

  monkeypatch.setattr(logs, "_SHOW_EVERY_S", 0)
  start(data, tmp_path / "clock")
  shown = capsys.readouterr().out
  lines = re.findall(
    r"^step (\d)/8 .* train +loss \d.* error ", shown, re.MULTILINE
  )
  assert lines == ["1", "2", "3", "4", "5", "6", "7", "8"]
  assert timeless(tmp_path / "clock") == timeless(tmp_path / "run")


@pytest.mark.parametrize(
  ("drops", "epochs", "what"),
  [
    ((7.0, 8.5), 9.0, ""),
    ((7.0, 8.5), 8.5, "never happen"),  # The step at 8.5 is not taken.
    ((7.0, 8.5), 8.0, "never happen"),
    ((7.0, 8.5), 4.0, "never happen"),
    ((7.0, 8.5), 18.0, ""),
    ((7.0, 8.5), 20.0, "lowest rate"),
    ((8.0,), 90.0, "lowest rate"),
    ((0.01,), 1.0, "lowest rate"),
    ((7.0, 8.5), 0.001, ""),  # A trial.
  ],
)
@pytest.mark.parametrize("count", [999, 50_000])
def test_drops_that_do_not_fit_are_told_of_with_some_that_do(
  count, drops, epochs, what
):
  config = quickstart.get_config()
  config.learning_rate_drop_epochs = drops
  steps = step_of_epoch(epochs, count, config.batch_size)
  note = banner.misfit(config, count, steps)
  assert what in note
  assert bool(note) == bool(what)
  if note:
    (flag,) = shlex.split(note.partition("these would: ")[2])
    name, _, value = flag.partition("=")
    assert name == "--config.learning_rate_drop_epochs"
    config.learning_rate_drop_epochs = fitting = eval(value)
    assert banner.misfit(config, count, steps) == ""
    assert len(fitting) == len(drops)
    for new, old in zip(fitting, drops, strict=True):
      assert new / fitting[-1] == pytest.approx(old / drops[-1], rel=0.01)
  config.schedule = "linear"
  assert banner.misfit(config, count, steps) == ""


def test_drops_of_the_configs_that_ship_fit():
  files = {file.stem for file in config_files.CONFIGS.glob("[a-z]*.py")}
  assert len(files) > 20
  with_drops = 0
  for name in files - {"ablations"}:
    config = config_files.load_config(name)
    for count in (8_000, 50_000, 1_281_167):
      steps = config.total_steps or step_of_epoch(
        config.total_epochs, count, config.batch_size
      )
      assert banner.misfit(config, count, steps) == "", name
    with_drops += len(config.learning_rate_drop_epochs) > 0
  assert with_drops > 10


def test_drops_that_fit_are_a_flag_to_paste(capsys):
  config = quickstart.get_config()
  for drops in ((7.0, 8.5), (8.0,)):
    config.learning_rate_drop_epochs = drops
    note = banner.misfit(config, 1000, 50)
    words = shlex.split(note.partition("these would: ")[2])
    result = run_in_process(capsys, "summary", *words)
    assert result.returncode == 0, result.stderr
