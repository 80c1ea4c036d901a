"""A run that is made longer, where that changes no step that was taken."""

import json
import re
import shlex
import shutil

import jax
import numpy as np
import pytest
from commands import run_in_process
from tiny_runs import QUICK, newest_params, records

from alexnet_jax import train
from alexnet_jax.configs import quickstart
from alexnet_jax.runs import checkpoint, digests
from alexnet_jax.runtime.errors import InputError

pytestmark = [
  pytest.mark.slow,
  pytest.mark.usefixtures("quick_compilation", "kept_programs"),
]
FIELDS = {
  **QUICK,
  "network.layers": ("conv1", "fc6", "fc8"),
  "total_steps": None,
  "log_every_steps": 5,
  "checkpoint_every_steps": 100,
  "evaluate_every_epochs": 1.0,
}
SCHEDULES = {  # Epochs have 10 steps.
  "epochs": {"schedule": "epochs", "learning_rate_drop_epochs": (1.5, 2.2)},
  # At this rate nothing improves: it drops after epochs 3, 5, ...
  "plateau": {
    "schedule": "plateau", "plateau_patience": 2, "learning_rate": 1e-30,
  },
}  # fmt: skip


def config_of(data, schedule="epochs", **fields):
  config = quickstart.get_config()
  own = SCHEDULES.get(schedule, {})
  fields = {**FIELDS, "data_dir": str(data), **own, **fields}
  config.update_from_flattened_dict(fields)
  return config


def start(workdir, data, *args, stop=lambda: False, **fields):
  train.train_and_evaluate(config_of(data, *args, **fields), workdir, stop)


def stop_after(steps):
  asked = iter(range(10**6))
  return lambda: next(asked) >= steps


def timeless(workdir):
  times = {"images_per_second": 0, "input_wait": 0}
  return [{**record, **times} for record in records(workdir)]


def assert_same(workdir, expected):
  jax.tree.map(
    np.testing.assert_array_equal,
    newest_params(workdir),
    newest_params(expected),
  )


def test_run_of_another_length_is_the_one_that_had_it_from_the_start(
  data, tmp_path, capsys
):
  """Shorter than at first, then longer than its end, with all its records."""
  run, whole = tmp_path / "run", tmp_path / "whole"
  start(run, data, stop=stop_after(12), total_epochs=6.0)
  assert checkpoint.steps_of(run) == [10]
  before = (run / "config.json").read_bytes()
  for epochs in (0.9, 1.0):
    words = rf"total_epochs \(6.0 there, {epochs} here\).*taken 10 steps"
    with pytest.raises(InputError, match=words):
      start(run, data, total_epochs=epochs)
  assert (run / "config.json").read_bytes() == before
  start(run, data, total_epochs=2.0)
  assert [r["step"] for r in records(run) if r["split"] == "test"] == [20]
  # It is stopped before it has saved anything of its new length.
  capsys.readouterr()
  start(run, data, stop=lambda: True, total_epochs=3.0)
  assert "resuming from step 20 of 30" in capsys.readouterr().out
  start(run, data, total_epochs=3.0)
  start(whole, data, total_epochs=3.0)
  assert timeless(run) == timeless(whole)
  assert_same(run, whole)
  assert len({r["learning_rate"] for r in records(run)}) == 3
  assert json.loads((run / "config.json").read_text())["total_epochs"] == 3
  about = run / "checkpoints/30/progress/metadata"
  assert json.loads(about.read_text())["config"]["total_epochs"] == 3


def test_earlier_end_within_a_period_does_not_act_on_the_rate(data, tmp_path):
  """Its validation would be the second without a lower error, of two."""
  run, whole = tmp_path / "run", tmp_path / "whole"
  for steps in (25, 45):
    start(run, data, "plateau", total_steps=steps)
  start(whole, data, "plateau", total_steps=45)

  def validations(workdir):
    return {
      r["step"]: r["learning_rate"]
      for r in records(workdir)
      if r["split"] == "validation"
    }

  expected = validations(whole)
  found = validations(run)
  assert [*found] == [10, 20, 25, 30, 40, 45]  # The net of step 25 was tried.
  assert found.pop(25) == found[20]
  assert found == expected
  assert expected[40] < expected[30]
  assert_same(run, whole)
  tests = [r["step"] for r in records(run) if r["split"] == "test"]
  assert tests == [45]


def test_run_that_its_plateau_has_ended_stays_so(data, tmp_path, capsys):
  fields = {"plateau_drops": 0, "plateau_patience": 1}
  start(tmp_path, data, "plateau", total_epochs=3.0, **fields)
  before = records(tmp_path)
  capsys.readouterr()
  start(tmp_path, data, "plateau", total_epochs=4.0, **fields)
  (line,) = capsys.readouterr().out.splitlines()
  assert "is finished for good at step 20, by its plateau or" in line
  assert records(tmp_path) == before


@pytest.fixture(scope="module")
def taken(data, tmp_path_factory, quick_compilation):
  """A workdir of a run of two steps, for each schedule that is relative."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  start(workdir, data, total_steps=2, test_split="", validation_split="")
  return workdir


@pytest.mark.parametrize(
  "fields",
  [
    {"schedule": "linear", "reinit_layers": ("fc8",)},
    {"schedule": "exp"},
    {"schedule": "dexp"},
    {"schedule_of_biases": "dexp"},
  ],
)
def test_rates_that_depend_on_the_length_fix_it(
  fields, data, taken, tmp_path, capsys
):
  """And the remedy works as it is printed."""
  workdir = shutil.copytree(taken, tmp_path / "a run")
  file = workdir / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))
  inside = workdir / "checkpoints/2/progress/metadata"
  about = json.loads(inside.read_text())
  about["config"] |= fields
  inside.write_text(json.dumps(about))
  folder = inside.parents[1]
  digests.write(folder)
  name = next(iter(fields))
  new = config_of(data, total_steps=3, test_split="", validation_split="")
  new.update_from_flattened_dict(fields)
  with pytest.raises(InputError) as refusal:
    train.train_and_evaluate(new, workdir)
  text = str(refusal.value)
  assert f"{name}='{fields[name]}'" in text
  assert "total_steps (2 there, 3 here)" in text
  if fields[name] != "linear":
    return
  (remedy,) = re.findall(r" by (--config\.init_from=.*)\.$", text)
  words = [
    f"--config.{name}={value}"
    for name, value in {
      **FIELDS,
      "data_dir": data,
      "total_steps": 3,
      "test_split": "",
      name: fields[name],
    }.items()
  ]
  words += shlex.split(remedy.replace("NEW", str(tmp_path / "new")))
  result = run_in_process(capsys, "train", *words)
  assert result.returncode == 0, result.stderr
  assert "starting with conv1, fc6, fc8 from" in result.stdout
  assert "no layer drawn anew" in result.stdout
