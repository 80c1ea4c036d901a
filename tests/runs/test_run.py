"""What a run records, where it ends and what it saves, in this process.

The runs of this file compile their programs once.
"""

import dataclasses
import fractions
import json
import math
import re
import shutil
import types

import jax
import numpy as np
import pytest
from commands import run_in_process
from tfds_files import encoded, noise, write
from tiny_runs import QUICK, newest_params, records

from alexnet_jax import schedules, train
from alexnet_jax.configs import quickstart
from alexnet_jax.data import batches, statistics
from alexnet_jax.runs import checkpoint, setup
from alexnet_jax.runs.run import Run
from alexnet_jax.runtime import errors, platforms

pytestmark = [
  pytest.mark.slow,
  pytest.mark.usefixtures("quick_compilation", "kept_programs"),
]


def config_of(data, **fields):
  config = quickstart.get_config()
  fields = {**QUICK, "data_dir": str(data), **fields}
  config.update_from_flattened_dict(fields)
  return config


def stop_after(steps):
  """Asks a run to stop; a run asks once before each step."""
  asked = iter(range(10**6))
  return lambda: next(asked) >= steps


def timeless(workdir):
  times = {"images_per_second": 0, "input_wait": 0}
  return [{**record, **times} for record in records(workdir)]


def assert_same(params, expected):
  jax.tree.map(np.testing.assert_array_equal, params, expected)


# Bad examples.

COUNTS = {"train": 600, "validation": 300}


def write_data(directory, damage):
  """Writes the data set anew; `damage` has fields by split and index."""
  shutil.rmtree(directory, ignore_errors=True)
  splits = {
    split: [
      [
        {"image": encoded(noise(i, 32, 32, 3)), "label": i % 3}
        | damage.get((split, i), {})
        for i in range(count)
      ]
    ]
    for split, count in COUNTS.items()
  }
  write(directory, splits)
  mean = np.full((32, 32, 3), 127.5, np.float32)
  statistics.write(
    directory,
    statistics.Statistics(mean, np.eye(3, dtype=np.float32), np.ones(3)),
  )


def unsampled(split, indices):
  """The first of some examples that no check before the first step reads."""
  count = COUNTS[split]
  sample = np.linspace(0, count - 1, 256).astype(int)
  return next(int(i) for i in indices if i not in sample)


def test_run_that_meets_a_bad_example_is_saved_and_goes_on_without_it(tmp_path):
  """A cut image, one of the validation, and a label of no class, in turn."""
  fields = {
    "num_classes": 3,
    "test_split": "",
    "device_cache_fraction": 0.0,
    "checkpoint_every_steps": 10**6,
    "evaluate_every_epochs": 0.2,  # 7.5 steps
    "total_steps": 16,
    "log_every_steps": 5,
  }
  config = config_of(tmp_path / "data", **fields)
  order = batches.ShuffledBatches(COUNTS["train"], 16, config.seed)
  cut = {"image": encoded(noise(0, 32, 32, 3))[:-100]}
  damage = {
    ("train", unsampled("train", order[5])): cut,
    ("validation", unsampled("validation", range(300))): cut,
    ("train", unsampled("train", order[9])): {"label": 5},
  }
  workdir, whole = tmp_path / "run", tmp_path / "whole"
  for step, word in ((5, "train"), (8, "validation"), (9, "label 5 of 3")):
    write_data(tmp_path / "data", damage)
    with pytest.raises(errors.DataError, match=word):
      train.train_and_evaluate(config, workdir, accept_data=True)
    assert checkpoint.steps_of(workdir)[-1] == step
    damage.pop(next(iter(damage)))
  write_data(tmp_path / "data", damage)
  train.train_and_evaluate(config, workdir, accept_data=True)
  train.train_and_evaluate(config, whole)
  assert timeless(workdir) == timeless(whole)
  assert_same(newest_params(workdir), newest_params(whole))


# Last lines.


@pytest.fixture(scope="module")
def dropped(data, tmp_path_factory):
  """A run that ends with the validation at which its rate drops."""
  workdir = tmp_path_factory.mktemp("run") / "run"
  config = config_of(
    data,
    **{"network.fc8.sigma": 0.5},  # The loss is not that of chance.
    schedule="plateau",
    plateau_patience=1,
    plateau_drops=1,
    learning_rate=1e-30,
    evaluate_every_epochs=0.1,
    total_steps=2,
    log_every_steps=10,
  )
  train.train_and_evaluate(config, workdir)
  return config, workdir


def test_last_lines_have_the_rate_that_was_used(dropped, tmp_path):
  """Also that of a test which was stopped and resumed."""
  config, workdir = dropped
  found = records(workdir)
  splits = [(r["step"], r["split"]) for r in found]
  assert splits[1:] == [(2, "validation"), (2, "train"), (2, "test")]
  for record in found:
    assert record["learning_rate"] == pytest.approx(1e-30, rel=1e-6, abs=0)
  shutil.copytree(workdir, tmp_path / "run")
  text = "".join(json.dumps(record) + "\n" for record in found[:-1])
  (tmp_path / "run" / "metrics.jsonl").write_text(text)
  train.train_and_evaluate(config, tmp_path / "run")
  assert timeless(tmp_path / "run") == timeless(workdir)


def test_run_that_is_past_its_end_ends(dropped):
  """Catches a run that would train for ever."""
  config, workdir = dropped
  with setup.open_run(config, workdir, lambda: False) as run:
    run.step = run.total_steps + 1
    assert train.train(run)


# When a run ends, and what is due.


def test_net_at_chance_is_told_of_and_keeps_its_rate(data, tmp_path, capsys):
  """After a tenth of the run, once, and at its end."""
  config = config_of(
    data,
    **{"network.fc6.sigma": 1e-9, "network.fc8.sigma": 1e-9},
    schedule="plateau",
    plateau_patience=1,
    plateau_drops=1,
    learning_rate=1e-30,
    evaluate_every_epochs=0.2,
    total_steps=20,
    log_every_steps=1,
  )
  train.train_and_evaluate(config, tmp_path / "run")
  found = records(tmp_path / "run")
  steps = [r["step"] for r in found if r["split"] == "validation"]
  assert steps == [*range(2, 21, 2)]
  assert len({r["learning_rate"] for r in found}) == 1
  said = capsys.readouterr().out.splitlines()
  warnings = [line for line in said if line.startswith("WARNING")]
  for line, step in zip(warnings, (2, 20), strict=True):
    assert f"at step {step} of 20 its loss is 2.3026, and ln(num_cl" in line
    for flag in re.findall(r"--config[^ ,;]+", line):
      assert run_in_process(capsys, "summary", flag).returncode == 0


@pytest.mark.parametrize("period", [0.01, 0.2, 0.7, 1.1, 2.2])
@pytest.mark.parametrize("examples", [160, 8000, 1000])
def test_periods_end_where_exact_arithmetic_says(period, examples):
  """Catches floats: three times 0.7 is less than 2.1."""
  steps = schedules.steps_in(period, examples, 16).as_integer_ratio()
  run = types.SimpleNamespace(steps_of_periods=steps)
  found = [step for step in range(1, 4000) if Run.ends_period(run, step)]
  hundredths = round(100 * period)
  ends = {
    math.ceil(fractions.Fraction(k * hundredths * examples, 1600))
    for k in range(1, 50_000)
  }
  assert found == sorted(end for end in ends if end < 4000)


def test_net_stops_by_the_error_of_a_period_whatever_is_logged(data, tmp_path):
  """It is stopped within a period too, and resumed with other lines."""
  fields = {
    "total_steps": 30,
    "evaluate_every_epochs": 0.3,
    "checkpoints_to_keep": 16,
    "validation_split": "",
    "test_split": "",
  }
  free = config_of(data, log_every_steps=1, **fields)
  train.train_and_evaluate(free, tmp_path / "free")
  found = [r for r in records(tmp_path / "free") if r["split"] == "train"]
  errors_of_periods = np.array([r["top1_error"] for r in found]).reshape(10, 3)
  means = errors_of_periods.mean(axis=1)
  best = 1 + int(np.argmin(means[1:9]))
  target = means[best] + 1e-6
  end = 3 * (1 + int(np.argmax(means < target)))
  config = config_of(
    data, log_every_steps=7, stop_at_train_error=float(target), **fields
  )
  workdir = tmp_path / "run"
  train.train_and_evaluate(config, workdir, stop_after(end - 2))
  assert checkpoint.steps_of(workdir)[-1] == end - 2
  config.log_every_steps = 4
  train.train_and_evaluate(config, workdir)
  assert records(workdir)[-1]["step"] == end
  expected = checkpoint.read_params(tmp_path / "free", end)
  assert_same(newest_params(workdir), expected)


# Options of the compiler.


@pytest.mark.parametrize("unrolling", [("cpu",), ()])
def test_deterministic_programs_have_the_options_for_it(
  unrolling, data, dropped, tmp_path, monkeypatch
):
  """Those of the step, of many steps and of the evaluation."""
  options = {"cpu": {"xla_no_such_option": True}}
  monkeypatch.setattr(platforms, "DETERMINISTIC_OPTIONS", options)
  monkeypatch.setattr(platforms, "UNROLLING", unrolling)
  config = config_of(data, deterministic=True)
  with pytest.raises(Exception, match="xla_no_such_option"):
    train.train_and_evaluate(config, tmp_path / "run")
  before, workdir = dropped
  with setup.open_run(before, workdir, lambda: False) as run:
    run = dataclasses.replace(run, config=config)
    with pytest.raises(Exception, match="xla_no_such_option"):
      train.evaluate_split(run, "test", views=1)
