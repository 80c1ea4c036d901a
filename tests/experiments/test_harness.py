"""The harness: nets are trained, resumed and recorded; bad input is refused."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from commands import assert_refused
from tiny_runs import COUNTS, QUICK, ROOT, finish, records

from alexnet_jax import train
from alexnet_jax.data.prepare import shapes
from alexnet_jax.runtime.errors import DivergedError, InputError
from experiments.harness import plan, results, run, tables

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXPERIMENT = """
from experiments.harness.plan import Arm, Experiment

QUICK = {quick!r}
BASE = {root!r} + "/configs/quickstart.py"
EXPERIMENT = Experiment(
  arms=(
    Arm("base", BASE, fields=QUICK, seeds=2),
    Arm("hot", BASE, "hot", QUICK | {{"learning_rate": 1e6}}, seeds=2),
    Arm("centre", BASE, nets_of="base", metric="one_view_error"),
  ),
  metric="ten_view_error",
  keeps_answers=True,
)
"""
SEEDS = {"base": 2, "hot": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder of its own with the harness, one small experiment and its data."""
  place = tmp_path_factory.mktemp("project")
  data = place / "shapes"
  shapes.generate(data, size_px=32, workers=0, **COUNTS)
  folder = place / "experiments"
  shutil.copytree(ROOT / "experiments" / "harness", folder / "harness")
  (folder / "tiny").mkdir()
  quick = {**QUICK, "data_dir": str(data), "check_learning_after_steps": 0}
  quick |= {"total_steps": 20, "log_every_steps": 10}
  quick |= {"checkpoint_every_steps": 10, "evaluate_every_epochs": 2.0}
  text = EXPERIMENT.format(quick=quick, root=str(ROOT))
  (folder / "tiny" / "experiment.py").write_text(text)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(plan, "HERE", folder)
    patch.setattr(results, "WORKDIRS", place / "runs" / "experiments")
    yield place


def start(place, *words):
  """Starts the command in a process of its own."""
  return subprocess.Popen(
    [sys.executable, "-m", "experiments.harness.run", *words],
    cwd=place,
    env=os.environ | {
      "JAX_PLATFORMS": "cpu",
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      "PYTHONPATH": str(ROOT),
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )  # fmt: skip


def diverge_if_hot(config, workdir, should_stop):
  """Trains; what diverges at its first steps need not be compiled for it."""
  if config.learning_rate < 1e6:
    return train.train_and_evaluate(config, workdir, should_stop)
  (workdir / "metrics.jsonl").touch()
  raise DivergedError("the loss is nan")


@pytest.fixture(scope="module")
def finished(place):
  """Killed by kill -9, then stopped, then run to the end."""
  process = start(place, "tiny", "--seeds_at_once=2", "--only=base")
  deadline = time.monotonic() + 120
  lines = place / "runs" / "experiments"
  while time.monotonic() < deadline and process.poll() is None:
    if any(x.stat().st_size for x in lines.glob("*/*/metrics.jsonl")):
      break
    time.sleep(0.02)
  assert process.poll() is None, process.communicate()
  process.send_signal(signal.SIGKILL)
  finish(process)
  assert not results.read("tiny")
  asked = iter(range(100))
  run.train_missing("tiny", SEEDS, 2, lambda: next(asked) > 3)
  assert not results.read("tiny")
  fake = types.SimpleNamespace(train_and_evaluate=diverge_if_hot)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, "train", fake)
    run.train_missing("tiny", SEEDS, 2, lambda: False)
  return {(r["arm"], int(r["seed"])): r for r in results.read("tiny")}


def test_every_net_has_its_row_and_failures_keep_theirs(finished):
  assert set(finished) == {
    ("base", 0), ("base", 1), ("hot", 0), ("hot", 1),
  }  # fmt: skip
  for seed in (0, 1):
    assert finished["hot", seed]["outcome"] == "diverged"
    # The pair failed, so each was trained alone.
    assert finished["hot", seed]["nets_in_program"] == "1"
    assert finished["hot", seed]["ten_view_error"] == ""
    assert finished["base", seed]["nets_in_program"] == "2"
  (arm, _) = plan.select(plan.load("tiny"), ())
  digests = {finished["base", seed]["digest"] for seed in (0, 1)}
  assert digests == {plan.digest_of(plan.config_of(arm))}


def test_row_says_what_its_net_answered(finished):
  """Against the answers themselves, counted here."""
  for (arm, seed), row in finished.items():
    folder = results.folder_of("tiny", arm, seed)
    lines = records(folder)
    assert all("member" not in line for line in lines)
    config = json.loads((folder / "config.json").read_text())
    assert (config["seed"], config["ensemble"]) == (seed, 1)
    if arm == "hot":
      continue
    assert row["steps"] == "20"
    trained = [x["step"] for x in lines if x["split"] == "train"]
    assert trained == [10, 20]
    last = [x for x in lines if x["split"] == "train"][-1]
    # A loss less than a hundredth below ln(classes) is no better than chance.
    at_chance = last["loss"] > 0.99 * np.log(10)
    assert row["outcome"] == ("stuck at chance" if at_chance else "finished")
    assert float(row["train_error"]) == pytest.approx(last["top1_error"])
    # The run's own test took the config's one view.
    (test,) = (x for x in lines if x["split"] == "test")
    assert float(row["one_view_error"]) == pytest.approx(test["top1_error"])
    answers = np.load(folder / "answers.npz")
    for metric in run.VIEWS:
      wrong = results.wrong("tiny", arm, seed, metric)
      assert wrong.mean() == pytest.approx(float(row[metric]))
      each, label = answers[metric], answers["labels"]
      np.testing.assert_allclose(np.exp(each).sum(axis=1), 1, atol=0.01)
      assert np.mean((each.argmax(axis=1) != label) != wrong) < 0.03


def test_second_call_trains_nothing(finished, capsys):
  run.train_missing("tiny", SEEDS, 2, lambda: False)
  assert "step" not in capsys.readouterr().out
  assert results.read("tiny") == list(finished.values())


def test_printed_command_has_all_that_the_arm_changes(place):
  arm = plan.load("tiny").arms[1]
  words = shlex.split(plan.command_of("tiny", arm, 1))
  assert words[:3] == ["alexnet", "train", f"--config={arm.config}"]
  assert words[-1] == "--workdir=runs/tiny/hot-1"
  given = dict(x.removeprefix("--config.").split("=", 1) for x in words[3:-1])
  expected = {**arm.fields, "seed": 1}
  assert given == {name: str(value) for name, value in expected.items()}


@pytest.mark.parametrize("field", ["batch_size", "network.fc6.units"])
def test_row_of_another_config_is_refused(field, place):
  arm = plan.load("tiny").arms[0]
  config = plan.config_of(arm)
  changed = config.copy_and_resolve_references()
  changed.update_from_flattened_dict({field: 48})
  row = {"arm": "base", "seed": "7", "digest": plan.digest_of(config)}
  results.check([row], {"base": config}, "tiny")
  message = f"'base'.*{plan.digest_of(config)}.*{plan.digest_of(changed)}"
  with pytest.raises(InputError, match=message):
    results.check([row], {"base": changed}, "tiny")


@pytest.mark.parametrize(
  ("field", "accepted"), [("momentum", True), ("batch_size", False)]
)
def test_row_may_lack_a_field_that_changes_nothing(field, accepted, place):
  """Momentum is as in configs/alexnet.py; 16 images a batch are not."""
  config = plan.config_of(plan.load("tiny").arms[0])
  recorded = {k: v for k, v in config.to_dict().items() if k != field}
  folder = results.folder_of("tiny", "base", 7)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(recorded))
  digest = plan.digest_of_fields(plan.fields_of(recorded))
  row = {"arm": "base", "seed": "7", "digest": digest}
  if accepted:
    results.check([row], {"base": config}, "tiny")
  else:
    with pytest.raises(InputError, match=f"digest {digest}"):
      results.check([row], {"base": config}, "tiny")
  with pytest.raises(InputError, match=r"digest 0{12}"):
    results.check([row | {"digest": "0" * 12}], {"base": config}, "tiny")


@pytest.mark.parametrize(
  ("line", "old", "new"),
  [
    (1, "seed", "sead"),
    (2, r"(.{30}).*", r"\1"),  # too few cells
    (2, r"^(\w+),\d", r"\1,-1"),
    (2, r"[^,]+$", "nan"),
    (2, r"[^,]+$", "7.5"),  # an error above 1
    (2, ",finished,", ",well,"),
    (3, r"^(\w+),\d", r"scratch,0"),  # twice
    (3, r"^(\w+,\d),", r'\1,"'),  # an open quote
    (11, r"\d$", ""),  # cut short
  ],
)
def test_damaged_results_are_refused(line, old, new, tmp_path, monkeypatch):
  text = (ROOT / "experiments" / "finetune" / "results.csv").read_text()
  monkeypatch.setattr(plan, "HERE", tmp_path)
  (tmp_path / "tiny").mkdir()
  lines = text.splitlines()
  lines[line - 1] = re.sub(old, new, lines[line - 1])
  end = "" if line == len(lines) else "\n"
  results.file_of("tiny").write_text("\n".join(lines) + end)
  with pytest.raises(InputError, match=r"results\.csv .*damaged in line \d+"):
    results.read("tiny")


@pytest.mark.parametrize(
  ("old", "new", "words"),
  [
    ("1e6", '1e6, "learning_rte": 1', "'hot'.*learning_rte.*learning_rate"),
    ("1e6", '"high"', "'hot'.*high"),
    ('"hot", BASE', '"base", BASE', "two arms 'base'"),
    ("EXPERIMENT =", "OTHER =", "must define EXPERIMENT"),
  ],
)
def test_bad_experiment_is_refused(
  old, new, words, place, tmp_path, monkeypatch
):
  text = (plan.HERE / "tiny" / "experiment.py").read_text()
  monkeypatch.setattr(plan, "HERE", tmp_path)
  (tmp_path / "tiny").mkdir()
  file = tmp_path / "tiny" / "experiment.py"
  file.write_text(text.replace(old, new, 1))
  assert file.read_text() != text
  with pytest.raises(InputError, match=words):
    run.train_missing("tiny", SEEDS, 1, lambda: False)


def test_unknown_names_are_refused(place):
  assert_refused(finish(start(place, "tinny")), "'tinny'", "'tiny'")
  experiment = plan.load("tiny")
  with pytest.raises(InputError, match=r"--only='hat'.*'hot'"):
    plan.select(experiment, ["base", "hat"])
  with pytest.raises(InputError, match=r"'centre' trains no nets.*'base'"):
    plan.select(experiment, ["centre"])
  with pytest.raises(InputError, match="name of one experiment"):
    run.experiment_name([""], "run")


def test_other_folders_among_the_workdirs_are_left_alone(tmp_path, monkeypatch):
  monkeypatch.setattr(results, "WORKDIRS", tmp_path)
  for name in ("0-2", "0-2-old", "copy-of-2", "2-x"):
    (tmp_path / "abc" / name).mkdir(parents=True)
  assert list(results.programs("abc")) == [(tmp_path / "abc" / "0-2", 0, 2)]


def test_record_of_a_program_names_every_commit(tmp_path, monkeypatch):
  def commits_after(commit):
    monkeypatch.setattr(run, "_commit", lambda: commit)
    run._record_program(tmp_path)
    return json.loads((tmp_path / "program.json").read_text())["commit"]

  assert commits_after("first") == "first"
  assert commits_after("first") == "first"
  assert commits_after("fir") == "first, then fir"
  (tmp_path / "answers.npz").touch()  # the nets are trained
  assert commits_after("third") == "first, then fir"
  (tmp_path / "answers.npz").unlink()
  with pytest.raises(ZeroDivisionError), run._timing(tmp_path):
    1 / 0  # noqa: B018
  (tmp_path / "program.json").write_text('{"commit": "a"')
  with pytest.raises(InputError, match=r"program\.json is damaged"):
    run._record_program(tmp_path)


def test_target_is_met_on_the_line_between_the_middles_of_the_stretches():
  rng = np.random.default_rng(0)
  ends = np.cumsum(rng.uniform(0.1, 0.4, 40))
  errors = np.linspace(0.8, 0.1, 40) + rng.normal(0, 0.02, 40)
  lines = [
    {"epoch": end, "top1_error": error}
    for end, error in zip(ends, errors, strict=True)
  ]
  found = run.epochs_to(0.25, lines)
  middles = (ends + np.concatenate([[0], ends[:-1]])) / 2
  fine = np.linspace(0, ends[-1], 400_001)
  drawn = np.interp(fine, [0, *middles], [1, *errors])
  assert found == pytest.approx(fine[np.argmax(drawn <= 0.25)], abs=1e-4)
  assert run.epochs_to(0.01, lines) is None


def test_table_goes_between_its_marks_alone(tmp_path):
  readme = tmp_path / "README.md"
  readme.write_text(
    "a\n<!-- x -->\nold\n<!-- end -->\nb\n<!-- y -->\n<!-- end -->\n"
  )
  tables.fill(readme, "x", ["| new |"])
  assert readme.read_text() == (
    "a\n<!-- x -->\n| new |\n<!-- end -->\nb\n<!-- y -->\n<!-- end -->\n"
  )
  with pytest.raises(InputError, match=r"README\.md must have .* <!-- z -->"):
    tables.fill(readme, "z", [])
