"""Experiments: what is run, resumed, refused, and what is made of it."""

import contextlib
import csv
import functools
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import assert_refused
from scipy import stats
from tiny_runs import CACHE, COUNTS, QUICK, ROOT, finish, records
from tiny_runs import run as command

from alexnet_jax.data.prepare import shapes
from alexnet_jax.runtime.errors import InputError
from experiments.harness import effects, intervals, plan, results, run, tables

EXPERIMENT = """
from experiments.plan import Arm, Experiment

QUICK = {quick!r}
BASE = {root!r} + "/configs/quickstart.py"
EXPERIMENT = Experiment(
  arms=(
    Arm("base", BASE, fields=QUICK),
    Arm("hot", BASE, "hot", QUICK | {{"learning_rate": 1e6}}, seeds=2),
    Arm("frozen", BASE, "frozen", QUICK | {{"learning_rate": 1e-9}}, seeds=1),
    Arm("centre", BASE, nets_of="base", metric="one_view_error"),
  ),
  metric="ten_view_error",
  keeps_answers=True,
)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A project of its own with one small experiment, and its data."""
  place = tmp_path_factory.mktemp("project")
  data = place / "shapes"
  shapes.generate(data, size_px=32, workers=0, **COUNTS)
  (place / "experiments" / "tiny").mkdir(parents=True)
  for file in (ROOT / "experiments").glob("*.py"):
    shutil.copy(file, place / "experiments")
  quick = {**QUICK, "data_dir": str(data), "check_learning_after_steps": 0}
  quick |= {"total_steps": 30, "log_every_steps": 10}
  text = EXPERIMENT.format(quick=quick, root=str(ROOT))
  (place / "experiments" / "tiny" / "experiment.py").write_text(text)
  return place


def start(place, *words):
  environment = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": CACHE.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "PYTHONPATH": str(ROOT),
  }
  return subprocess.Popen(
    [sys.executable, "-m", "experiments.harness.run", *words],
    cwd=place,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def execute(place, *words):
  return finish(start(place, *words))


def rows_of(place):
  with (place / "experiments" / "tiny" / "results.csv").open() as file:
    return {(r["arm"], int(r["seed"])): r for r in csv.DictReader(file)}


@pytest.fixture(scope="module")
def finished(place):
  """Killed twice on the way, by kill -9 and by SIGTERM."""
  for number in (signal.SIGKILL, signal.SIGTERM):
    process = start(place, "tiny", "--seeds_at_once=2")
    lines = place / "runs" / "experiments"
    deadline = time.monotonic() + 120
    count = 0 if number == signal.SIGKILL else 1
    while time.monotonic() < deadline and process.poll() is None:
      begun = [x for x in lines.glob("*/*/metrics.jsonl") if x.stat().st_size]
      if len(begun) > count:
        break
      time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(number)
    finish(process)
  result = execute(place, "tiny", "--seeds_at_once=2")
  assert result.returncode == 0, result.stdout + result.stderr
  return place, result


def outcome_of(lines, classes):
  """A loss that is not a hundredth below ln(classes) is no better than it."""
  loss = [x["loss"] for x in lines if x["split"] == "train"][-1]
  return "stuck at chance" if loss > 0.99 * np.log(classes) else "finished"


def test_every_net_has_its_row_and_failures_keep_theirs(finished):
  place, result = finished
  rows = rows_of(place)
  assert set(rows) == {
    *(("base", seed) for seed in range(3)),
    ("hot", 0), ("hot", 1), ("frozen", 0),
  }  # fmt: skip
  outcomes = {key: row["outcome"] for key, row in rows.items()}
  assert outcomes.pop(("hot", 0)) == outcomes.pop(("hot", 1)) == "diverged"
  for key, outcome in outcomes.items():
    folder = results.folder_of("tiny", *key).name
    lines = records(place / "experiments" / "tiny" / "runs" / folder)
    assert outcome == outcome_of(lines, classes=10)
  assert outcomes["frozen", 0] == "stuck at chance"
  assert rows["hot", 1]["ten_view_error"] == ""
  assert rows["base", 0]["nets_in_program"] == "2"
  assert rows["base", 2]["nets_in_program"] == "1"
  assert {row["digest"] for (arm, _), row in rows.items() if arm == "base"} == {
    rows["base", 0]["digest"]
  }
  assert "tiny/results.csv has 6 of 6 nets" in result.stdout


def test_row_says_what_its_net_answered(finished):
  """Against the answers themselves, counted here."""
  place, _ = finished
  for (arm, seed), row in rows_of(place).items():
    folder = place / "experiments" / "tiny" / "runs" / f"{arm}-{seed}"
    lines = records(folder)
    assert all("member" not in line for line in lines)
    config = json.loads((folder / "config.json").read_text())
    assert (config["seed"], config["ensemble"]) == (seed, 1)
    if row["outcome"] == "diverged":
      continue
    assert row["steps"] == "30"
    trained = [x["step"] for x in lines if x["split"] == "train"]
    assert trained == [10, 20, 30]
    last = [x for x in lines if x["split"] == "train"][-1]
    assert float(row["train_error"]) == pytest.approx(last["top1_error"])
    # The run's own test took the config's one view.
    (test,) = (x for x in lines if x["split"] == "test")
    assert float(row["one_view_error"]) == pytest.approx(test["top1_error"])
    confusions = json.loads((folder / "confusions.json").read_text())
    missed = sum(n for label, best, n in confusions["counts"] if label != best)
    assert missed / COUNTS["test"] == pytest.approx(test["top1_error"])
    answers = np.load(folder / "answers.npz")
    with np.load(folder / "wrong.npz") as held:
      for metric in ("one_view_error", "ten_view_error"):
        wrong = np.unpackbits(held[metric], count=COUNTS["test"])
        assert wrong.mean() == pytest.approx(float(row[metric]))
        each, label = answers[metric], answers["labels"]
        np.testing.assert_allclose(np.exp(each).sum(axis=1), 1, atol=0.01)
        assert np.mean((each.argmax(axis=1) != label) != wrong) < 0.03


def test_printed_command_trains_the_same_net(finished, tmp_path):
  """A row of a program of two nets, again as the run of its seed alone."""
  place, result = finished
  (found,) = re.findall(
    r"base, seed 1: .*\n  again: python (.*)", result.stdout
  ) or [None]
  if found is None:  # It came before a kill, whose output is not at hand.
    arm = plan.select(_load(place), ["base"])[0]
    found = plan.command_of("tiny", arm, 1).removeprefix("python ")
  environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
  command = f"{sys.executable} {found.rpartition('--workdir=')[0]}"
  again = subprocess.run(
    f"{command} --workdir={tmp_path}/again",
    shell=True,
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert again.returncode == 0, again.stderr
  folder = place / "experiments" / "tiny" / "runs" / "base-1"
  for ours, theirs in zip(
    records(tmp_path / "again"), records(folder), strict=True
  ):
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def _load(place):
  here = plan.HERE
  plan.HERE = place / "experiments"
  try:
    return plan.load("tiny")
  finally:
    plan.HERE = here


def test_ten_views_are_those_of_the_command(finished):
  place, _ = finished
  row = rows_of(place)["base", 2]
  (workdir,) = (place / "runs" / "experiments" / row["digest"]).glob("2-1")
  found = command("evaluate", f"--workdir={workdir}", "--views=10")
  assert found.returncode == 0, found.stderr
  error = float(row["ten_view_error"])
  assert f"top-1 error {error:.2%}" in found.stdout


def test_second_call_trains_nothing(finished):
  place, _ = finished
  before = rows_of(place)
  result = execute(place, "tiny", "--seeds_at_once=2")
  assert result.returncode == 0
  assert "step" not in result.stdout
  assert rows_of(place) == before


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["tinny"], ["experiment='tinny'", "Did you mean 'tiny'?"]),
    (["tiny", "--only=base,hat"], ["--only='hat'", "Did you mean 'hot'?"]),
    (["tiny", "--only=centre"], ["--only='centre' trains nothing", "'base'"]),
    (["tiny", "--only="], ["--only='' must name an arm"]),
    (["tiny", "--seeds=0"], ["--seeds=0", "1 or more"]),
    (["tiny", "--seeds_at_once=0"], ["--seeds_at_once=0", "1 or more"]),
    ([], ["name of one experiment"]),
  ],
)
def test_bad_command_is_refused(words, said, finished):
  assert_refused(execute(finished[0], *words), *said)


def test_row_of_another_config_is_refused_and_kept(finished, tmp_path):
  place = tmp_path / "copy"
  shutil.copytree(finished[0], place)
  file = place / "experiments" / "tiny" / "experiment.py"
  file.write_text(file.read_text().replace("1e-9", "1e-8"))
  before = rows_of(place)
  digest = before["frozen", 0]["digest"]
  result = execute(place, "tiny")
  assert_refused(result, "'frozen'", digest)
  (other,) = set(re.findall(r"\b[0-9a-f]{12}\b", result.stderr)) - {digest}
  assert rows_of(place) == before
  # The digest shown is what the rows of the changed arm would have.
  (arm,) = plan.select(_load(place), ["frozen"])
  assert plan.digest_of(plan.config_of(arm)) == other


@pytest.mark.parametrize(
  ("line", "old", "new"),
  [
    (3, r"(.{30}).*", r"\1"),
    (2, r"^(\w+),\d", r"\1,first"),
    (2, r"[^,]+$", "low"),
    (2, r"[^,]+$", "nan"),
    (2, r"^(\w+),\d", r"\1,-1"),
    (2, r",(finished|diverged|stuck at chance),", ",well,"),
    (3, r"^(\w+),\d", r"base,0"),
    (7, r"\d$", ""),
    (1, "seed", "sead"),
    (3, r"^(\w+,\d),", r'\1,"'),
    (2, r"^", '"' + 200_000 * "x"),
    (2, r"[^,]+$", "7.5"),
  ],
)
def test_damaged_results_are_refused(line, old, new, finished, monkeypatch):
  place, _ = finished
  monkeypatch.setattr(plan, "HERE", place / "experiments")
  file = results.file_of("tiny")
  text = file.read_text()
  lines = text.splitlines()
  lines[line - 1] = re.sub(old, new, lines[line - 1])
  end = "" if line == 7 else "\n"  # The last one is cut.
  file.write_text("\n".join(lines) + end)
  try:
    with pytest.raises(InputError, match=rf"results\.csv .*line {line}\b"):
      results.read("tiny")
  finally:
    file.write_text(text)


@pytest.mark.parametrize(
  ("old", "new", "said"),
  [
    (
      "1e6",
      '1e6, "learning_rte": 1',
      ["'hot'", "'learning_rte'", "'learning_rate'"],
    ),
    ("1e6", '"high"', ["'hot'", "learning_rate", "high"]),
    ('"frozen", BASE', '"hot", BASE', ["'hot' twice"]),
    ("EXPERIMENT =", "OTHER =", ["experiment.py", "EXPERIMENT"]),
  ],
)
def test_bad_plan_is_refused(old, new, said, place, tmp_path):
  shutil.copytree(place / "experiments", tmp_path / "experiments")
  file = tmp_path / "experiments" / "tiny" / "experiment.py"
  text = file.read_text()
  assert old in text
  file.write_text(text.replace(old, new))
  assert_refused(execute(tmp_path, "tiny"), *said)
  assert not (tmp_path / "runs").exists()


def test_what_else_lies_among_the_workdirs_is_left_alone(tmp_path, monkeypatch):
  monkeypatch.setattr(results, "WORKDIRS", tmp_path)
  for name in ("0-2", "0-2-old", "copy-of-2", "2-x"):
    (tmp_path / "abc" / name).mkdir(parents=True)
  assert list(results.programs("abc")) == [(tmp_path / "abc" / "0-2", 0, 2)]


@pytest.mark.parametrize("text", ["", "{}", '{"commit": "a"', "[]"])
def test_damaged_note_of_a_program_is_refused(text, tmp_path):
  (tmp_path / "about.json").write_text(text)
  with pytest.raises(InputError, match=r"about\.json.* is damaged"):
    run._tell_of_program(tmp_path)
  assert (tmp_path / "about.json").read_text() == text


def test_row_names_every_commit_that_has_trained_its_net(tmp_path, monkeypatch):
  def told_of(commit):
    monkeypatch.setattr(run, "_commit", lambda: commit)
    run._tell_of_program(tmp_path)
    return json.loads((tmp_path / "about.json").read_text())

  assert told_of("first")["commit"] == "first"
  assert told_of("first")["commit"] == "first"
  assert told_of("other")["commit"] == "first, then other"
  assert told_of("fir")["commit"] == "first, then other, then fir"
  (tmp_path / "answers.npz").touch()  # What only looks at them does not count.
  assert told_of("third")["commit"] == "first, then other, then fir"
  assert set(told_of("third")) == {"commit", "device", "versions", "seconds"}


def test_row_counts_the_seconds_of_every_try(tmp_path):
  run._tell_of_program(tmp_path)
  start = time.perf_counter()
  for _ in range(2):
    with contextlib.suppress(KeyboardInterrupt), run._timing(tmp_path):
      time.sleep(0.2)
      raise KeyboardInterrupt
  most = time.perf_counter() - start
  seconds = json.loads((tmp_path / "about.json").read_text())["seconds"]
  assert 0.4 <= seconds <= most + 0.1


def test_time_to_a_target_is_where_the_straight_lines_cross_it():
  rng = np.random.default_rng(0)
  ends = np.cumsum(rng.uniform(0.1, 0.4, 40))
  errors = np.linspace(0.9, 0.1, 40) + rng.normal(0, 0.01, 40)
  lines = [
    {"epoch": e, "top1_error": x} for e, x in zip(ends, errors, strict=True)
  ]
  found = run.epochs_to(0.25, lines)
  middles = (ends + np.concatenate([[0], ends[:-1]])) / 2
  fine = np.linspace(0, ends[-1], 400_001)
  drawn = np.interp(fine, [0, *middles], [1, *errors])
  assert found == pytest.approx(fine[np.argmax(drawn <= 0.25)], abs=1e-4)
  assert run.epochs_to(0.01, lines) is None


def test_interval_of_a_mean_is_students():
  values = np.array([0.21, 0.24, 0.2, 0.26, 0.23])
  low, high = stats.t.interval(
    0.95, 4, loc=values.mean(), scale=stats.sem(values)
  )
  assert intervals.of_mean(values) == pytest.approx((values.mean(), low, high))
  assert intervals.of_mean(values[:1])[1:] == (-np.inf, np.inf)


@pytest.mark.parametrize("of_seeds", [0.0, 0.01, 0.03])
@pytest.mark.parametrize("of_images", [0.0, 1.0])
def test_paired_intervals_hold_the_truth_as_often_as_they_say(
  of_seeds, of_images
):
  """Simulated nets: luck of seeds, images that one arm finds harder, noise."""
  rng = np.random.default_rng(0)
  seeds, images, trials, truth = 3, 1000, 400, 0.02
  held = 0
  for _ in range(trials):
    rates = 0.2 + rng.normal(0, of_seeds, (2, seeds, 1)) + [[[truth]], [[0]]]
    hard = rng.normal(0, of_images, (2, 1, images))
    noise = rng.normal(0, 0.6, (2, seeds, images))
    scale = (of_images**2 + 0.36) ** 0.5
    wrong, base = hard + noise > stats.norm.isf(rates, scale=scale)
    _, low, high = intervals.of_paired_difference(wrong, base)
    held += low <= truth <= high
  # Within three binomial deviations; two quantiles together may be too wide.
  deviation = (0.95 * 0.05 / trials) ** 0.5
  assert 0.95 - 3 * deviation <= held / trials <= 0.995


def test_paired_variance_is_what_two_bootstraps_come_to():
  rng = np.random.default_rng(1)
  chances = np.linspace(0.3, 0.32, 5)[:, None] + rng.choice([-0.25, 0.25], 3000)
  wrong = rng.random((5, 3000)) < chances
  base = rng.random((5, 3000)) < 0.2
  mean, low, high = intervals.of_paired_difference(wrong, base)
  difference = wrong.astype(float) - base
  assert mean == pytest.approx(difference.mean())
  seeds = [
    difference.mean(axis=1)[rng.integers(0, 5, 5)].mean() for _ in range(8000)
  ]
  images = [
    difference.mean(axis=0)[rng.integers(0, 3000, 3000)].mean()
    for _ in range(4000)
  ]
  # The chances are known here, and so is the luck of one net with one image.
  noise = ((chances * (1 - chances)).mean() + 0.2 * 0.8) / (5 * 3000)
  by_seeds = np.var(seeds) * 5 / 4
  half = np.hypot(
    stats.t.ppf(0.975, 4) * by_seeds**0.5,
    stats.norm.ppf(0.975) * (np.var(images) - noise) ** 0.5,
  )
  assert (high - low) / 2 == pytest.approx(half, rel=0.08)


def test_interval_is_never_narrower_than_its_images_allow():
  """Seeds may agree by luck; the images are still a sample."""
  rng = np.random.default_rng(2)
  wrong, base = np.zeros((2, 3, 10_000), bool)
  for seed in range(3):  # 420 lost, 380 won: 0.4 points with every seed.
    images = rng.permutation(10_000)
    wrong[seed, images[:420]] = base[seed, images[420:800]] = True
  mean, low, high = intervals.of_paired_difference(wrong, base)
  each = (wrong.astype(float) - base).mean(axis=0)
  means = [each[rng.integers(0, 10_000, 10_000)].mean() for _ in range(4000)]
  assert mean == pytest.approx(0.004)
  assert (high - low) / 2 == pytest.approx(1.96 * np.std(means), rel=0.05)


def test_ratio_and_its_interval_do_not_depend_on_who_is_on_top():
  tanh, relu = np.array([30.0, 31, 29, 33]), np.array([5.0, 6, 5.5, 5.2])
  ratio, low, high = intervals.of_ratio(tanh, relu)
  assert ratio == pytest.approx(stats.gmean(tanh) / stats.gmean(relu))
  inverse = intervals.of_ratio(relu, tanh)
  assert inverse == pytest.approx((1 / ratio, 1 / high, 1 / low))
  # Welch's, written out.
  a, b = np.log(tanh), np.log(relu)
  parts = a.var(ddof=1) / 4, b.var(ddof=1) / 4
  freedom = sum(parts) ** 2 / sum(part**2 / 3 for part in parts)
  half = stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5
  assert (low, high) == pytest.approx(
    (ratio * np.exp(-half), ratio * np.exp(half))
  )


@pytest.mark.parametrize(
  ("low", "high", "sign", "said"),
  [
    (0.1, 0.4, 1, "agrees"),
    (-0.4, -0.1, 1, "disagrees"),
    (-0.1, 0.4, 1, "undecided"),
    (-0.4, -0.1, -1, "agrees"),
    (0.1, 0.4, 0, "nothing to compare"),
  ],
)
def test_verdict_follows_the_interval(low, high, sign, said):
  assert intervals.verdict(low, high, sign) == said


@pytest.mark.parametrize(
  "name", ["figure1", "ablations", "ensemble", "finetune"]
)
def test_results_of_the_experiments_are_those_of_their_configs(name):
  """What stands in results.csv was trained by what stands in experiment.py."""
  experiment = plan.load(name)
  arms = plan.select(experiment, ())
  configs = {arm.name: plan.config_of(arm) for arm in arms}
  rows = results.read(name)
  results.check(rows, configs, name)
  for row in rows:
    folder = results.folder_of(name, row["arm"], int(row["seed"]))
    config = json.loads((folder / "config.json").read_text())
    assert config["seed"] == int(row["seed"])
    # What diverges at once may have no line.
    steps = [x["step"] for x in records(folder) if x["split"] == "train"]
    assert max(steps, default=0) == int(row["steps"])
    if row["outcome"] == "diverged":
      continue
    assert row["outcome"] == outcome_of(records(folder), config["num_classes"])
    with np.load(folder / "wrong.npz") as held:
      for metric in run.VIEWS:
        wrong = np.unpackbits(held[metric], count=int(held["images"]))
        assert wrong.mean() == pytest.approx(float(row[metric]))


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


@pytest.fixture
def copied(tmp_path, monkeypatch):
  """Returns what writes a verdict, on a copy of its folder without results."""

  def copy(name):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    here = tmp_path / "experiments" / name
    here.mkdir(parents=True)
    for file in ("experiment.py", "README.md"):
      shutil.copy(ROOT / "experiments" / name / file, here)
    monkeypatch.setattr(plan, "HERE", here.parent)
    monkeypatch.setattr(results, "WORKDIRS", tmp_path / "runs")
    if name == "ablations":
      return functools.partial(effects.main, ["", name]), here
    verdict = importlib.import_module(f"experiments.{name}.verdict")
    monkeypatch.setattr(verdict, "HERE", here)
    return verdict.main, here

  return copy


@functools.cache
def digests(name):
  arms = plan.select(plan.load(name), ())
  return {arm.name: plan.digest_of(plan.config_of(arm)) for arm in arms}


def row_of(name, arm, seed, outcome="finished", **figures):
  about = {"arm": arm, "seed": seed, "digest": digests(name)[arm]}
  return {**about, "outcome": outcome, **figures}


def test_ablations_verdict_finds_what_was_planted(copied):
  verdict, here = copied("ablations")
  rng = np.random.default_rng(0)
  rates = {"no_lrn": 0.30, "no_mirror": 0.10}  # The rest: 0.2, as the base.
  rows = []
  for arm in plan.select(plan.load("ablations"), ()):
    for seed in range(arm.seeds):
      if arm.name == "tanh" or (arm.name == "no_crops" and not seed):
        rows.append(row_of("ablations", arm.name, seed, results.DIVERGED))
        continue
      rate = rates.get(arm.name, 0.2)
      wrong = {m: rng.random(2000) < rate for m in run.VIEWS}
      folder = results.folder_of("ablations", arm.name, seed)
      folder.mkdir(parents=True)
      bits = {m: np.packbits(w) for m, w in wrong.items()}
      np.savez(folder / "wrong.npz", images=2000, **bits)
      errors = {m: w.mean() for m, w in wrong.items()}
      rows.append(row_of("ablations", arm.name, seed, **errors))
  results.add("ablations", rows[:-1])
  with pytest.raises(InputError, match=r"no row of 'run145', seeds 2"):
    verdict()
  results.add("ablations", rows)
  stale = results.file_of("ablations").read_text()
  fresh = digests("ablations")["no_lrn"]
  results.file_of("ablations").write_text(stale.replace(fresh, "0" * 12))
  with pytest.raises(InputError, match=f"digest 0{{12}}, and .* is {fresh}"):
    verdict()
  results.file_of("ablations").write_text(stale)
  readme = (here / "README.md").read_text()
  (here / "README.md").write_text(readme.replace("<!-- effects -->", ""))
  with pytest.raises(InputError, match=r"README\.md must have .*effects"):
    verdict()
  (here / "README.md").write_text(readme)
  answers = results.folder_of("ablations", "no_lrn", 1) / "wrong.npz"
  whole = answers.read_bytes()
  for damaged in (whole[: len(whole) // 2], b"", None):
    if damaged is None:
      answers.unlink()
    else:
      answers.write_bytes(damaged)
    with pytest.raises(InputError, match=r"wrong\.npz cannot be read"):
      verdict()
  answers.write_bytes(whole)
  verdict()
  with (here / "effects.csv").open() as file:
    found = {row["arm"]: row for row in csv.DictReader(file)}
  assert found["no_lrn"]["verdict"] == "agrees"
  assert float(found["no_lrn"]["effect"]) == pytest.approx(10, abs=2)
  assert found["no_mirror"]["verdict"] == "disagrees"
  assert found["tanh"]["effect"] == ""
  assert found["tanh"]["verdict"] == "3 diverged, of 3"
  assert found["no_crops"]["pairs"] == "2"
  assert "(1 diverged, of 3)" in found["no_crops"]["verdict"]
  readme = (here / "README.md").read_text()
  assert re.search(r"\| `no_lrn` \|.*\| agrees \|", readme)
  base = [r["ten_view_error"] for r in rows if r["arm"] == "base"]
  assert f"Base, ten views: {np.mean(base):.2%} (" in readme
  assert (here / "ablations.pdf").stat().st_size


@pytest.mark.parametrize(
  ("field", "good"), [("momentum", 1), ("batch_size", 0)]
)
def test_row_may_lack_a_field_that_changes_nothing(field, good, copied):
  """Momentum is as in configs/alexnet.py, which is what was done without it."""
  copied("ablations")
  arm = plan.load("ablations").arms[0]
  config = plan.config_of(arm)
  held = {k: v for k, v in config.to_dict().items() if k != field}
  folder = results.folder_of("ablations", "base", 0)
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(held))
  digest = plan.digest_of_fields(plan.fields_of(held))
  row = row_of("ablations", "base", 0) | {"digest": digest}
  if good:
    results.check([row], {"base": config}, "ablations")
  else:
    with pytest.raises(InputError, match=rf"digest {digest}"):
      results.check([row], {"base": config}, "ablations")
  with pytest.raises(InputError, match=r"digest 0{12}"):
    results.check([row | {"digest": "0" * 12}], {"base": config}, "ablations")


@pytest.mark.parametrize(
  "name", ["ablations", "ensemble", "figure1", "finetune"]
)
def test_rows_that_are_kept_are_of_the_configs_beside_them(name):
  rows = results.read(name)
  assert rows
  for row in rows:
    folder = results.folder_of(name, row["arm"], int(row["seed"]))
    held = json.loads((folder / "config.json").read_text())
    assert held["seed"] == int(row["seed"])
    assert row["digest"] == plan.digest_of_fields(plan.fields_of(held))
  arms = plan.select(plan.load(name), ())
  configs = {arm.name: plan.config_of(arm) for arm in arms}
  results.check(rows, configs, name)


def test_figure1_verdict_takes_the_best_rates_and_divides(copied):
  verdict, here = copied("figure1")
  from experiments.figure1 import experiment

  passes = {"relu": 5.0, "tanh": 20.0, "scaled_tanh": 15.0, "sigmoid": None}
  rows = []
  for arm in plan.select(plan.load("figure1"), ()):
    units, _, rate = arm.name.partition("-")
    for seed in range(arm.seeds):
      folder = results.folder_of("figure1", arm.name, seed)
      folder.mkdir(parents=True)
      line = {"step": 1, "split": "train", "epoch": 0.5, "top1_error": 0.5}
      (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
      if rate:
        far = abs(np.log(float(rate) / experiment.CHOSEN[units]))
        # What diverges may have been ahead before.
        bad = float(rate) == max(experiment.RATES)
        rows.append(
          row_of("figure1", arm.name, seed, "diverged", train_error=0.1)
          if bad
          else row_of("figure1", arm.name, seed, train_error=0.4 + far / 10)
        )
      elif passes[units]:
        reached = passes[units] * (1 + 0.02 * seed)
        rows.append(row_of("figure1", arm.name, seed, epochs_to_target=reached))
      else:
        rows.append(row_of("figure1", arm.name, seed, results.CHANCE))
  results.add("figure1", rows)
  verdict()
  readme = (here / "README.md").read_text()
  assert "| tanh | 5 | 20.80 (" in readme
  assert re.search(r"\| tanh \|.*\| 4\.00 \(3\.\d\d to 4\.\d\d\) \|", readme)
  assert re.search(r"\| tanh \|.* \| agrees \|", readme)
  assert "| sigmoid | 5 | 0 of 5 within 20; 5 stuck at chance, of 5 |" in readme
  chosen = f"{experiment.CHOSEN['tanh']:g}"
  other = next(r for r in experiment.RATES[1:] if f"{r:g}" != chosen)
  for changed in rows:
    if changed["arm"] == f"tanh-{other:g}":
      changed["train_error"] = 0.01
  results.file_of("figure1").unlink()
  results.add("figure1", rows)
  with pytest.raises(InputError, match=rf"must be the best rate, {other:g}"):
    verdict()


def test_ensemble_verdict_averages_every_choice(copied):
  verdict, here = copied("ensemble")
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 10, 300)
  chances, rows = [], []
  for seed in range(7):
    logits = rng.normal(0, 1, (300, 10)) + 1.5 * np.eye(10)[labels]
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    chances.append(share)
    folder = results.folder_of("ensemble", "base", seed)
    folder.mkdir(parents=True)
    logs = {m: np.log(share) for m in run.VIEWS}
    np.savez(folder / "answers.npz", labels=labels, **logs)
    rows.append(
      row_of("ensemble", "base", seed, one_view_error=0.5, ten_view_error=0.5)
    )
  results.add("ensemble", rows)
  verdict()
  assert "16.4 % top-5 (6): agrees." in (here / "README.md").read_text()
  with (here / "averages.csv").open() as file:
    found = {row["seeds"]: row for row in csv.DictReader(file)}
  assert len(found) == 7 + 35 + 21 + 1
  for chosen in ("3", "0+2+5", "0+1+2+3+4+5+6"):
    missed = 0
    for image, label in enumerate(labels):
      total = sum(chances[int(seed)][image] for seed in chosen.split("+"))
      missed += total.argmax() != label
    assert float(found[chosen]["ten_view_error"]) == pytest.approx(
      missed / 300, abs=1e-4
    )


def test_finetuned_nets_are_better_than_drawn_ones_of_every_seed():
  """Classes that the net they start from never saw, at equal steps."""
  rows = results.whole("finetune")
  steps = {row["steps"] for row in rows}
  error = {(r["arm"], r["seed"]): float(r["ten_view_error"]) for r in rows}
  assert len(error) == 10
  assert len(steps) == 1
  for seed in map(str, range(5)):
    assert error["finetune", seed] < error["scratch", seed]
