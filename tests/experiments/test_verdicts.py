"""Recorded results are of today's configs; verdicts find what was planted."""

import csv
import functools
import importlib
import json
import re
import shutil

import numpy as np
import pytest
from tiny_runs import ROOT, records

from alexnet_jax.runtime.errors import InputError
from experiments.figure1 import experiment as figure1
from experiments.harness import effects, plan, results, run


@pytest.mark.parametrize(
  "name", ["ablations", "ensemble", "figure1", "finetune"]
)
def test_recorded_rows_are_whole_and_of_their_configs(name):
  """Each row against experiment.py, its config, its metrics and its answers."""
  rows = results.whole(name)
  assert rows
  for row in rows:
    folder = results.folder_of(name, row["arm"], int(row["seed"]))
    config = json.loads((folder / "config.json").read_text())
    assert config["seed"] == int(row["seed"])
    assert row["digest"] == plan.digest_of_fields(plan.fields_of(config))
    trained = [x for x in records(folder) if x["split"] == "train"]
    # A net that diverges at once has no line.
    assert max((x["step"] for x in trained), default=0) == int(row["steps"])
    if row["outcome"] == "diverged":
      continue
    at_chance = trained[-1]["loss"] > 0.99 * np.log(config["num_classes"])
    assert row["outcome"] == ("stuck at chance" if at_chance else "finished")
    for metric in run.VIEWS:
      wrong = results.wrong(name, row["arm"], int(row["seed"]), metric)
      assert wrong.mean() == pytest.approx(float(row[metric]))


def test_finetuned_nets_are_better_than_drawn_ones_of_every_seed():
  """Classes that the net they start from never saw, at equal steps."""
  rows = results.whole("finetune")
  assert len({row["steps"] for row in rows}) == 1
  error = {(r["arm"], r["seed"]): float(r["ten_view_error"]) for r in rows}
  assert len(error) == 10
  for seed in map(str, range(5)):
    assert error["finetune", seed] < error["scratch", seed]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
  """Copies of the folders with verdicts, with all that they have recorded."""
  home = tmp_path_factory.mktemp("home")
  (home / "configs").symlink_to(ROOT / "configs")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(plan, "HERE", home / "experiments")
    for name in ("ablations", "ensemble", "figure1", "finetune"):
      shutil.copytree(ROOT / "experiments" / name, plan.HERE / name)
    for name in ("ensemble", "figure1"):
      verdict = importlib.import_module(f"experiments.{name}.verdict")
      patch.setattr(verdict, "HERE", plan.HERE / name)
    yield plan.HERE


@pytest.mark.parametrize(
  ("name", "table"),
  [
    ("ablations", "effects.csv"),
    ("finetune", "effects.csv"),
    ("ensemble", "averages.csv"),
    ("figure1", None),
  ],
)
def test_verdict_writes_what_is_recorded(name, table, recorded):
  files = ["README.md", *filter(None, [table])]
  for file in files:
    kept = (recorded / name / file).read_text()
    # Emptied between its marks, or of its rows.
    text = re.sub(r"(<!-- \w+ -->\n)[^!]*(<!-- end)", r"\1\2", kept)
    (recorded / name / file).write_text(text if file == "README.md" else "")
  if table == "effects.csv":
    effects.main(["", name])
  else:
    importlib.import_module(f"experiments.{name}.verdict").main()
  for file in files:
    expected = (ROOT / "experiments" / name / file).read_text()
    assert (recorded / name / file).read_text() == expected
  assert (recorded / name / f"{name}.pdf").stat().st_size


def test_effects_of_the_ablations_are_those_found_by_hand():
  with (ROOT / "experiments" / "ablations" / "effects.csv").open() as file:
    found = {row["arm"]: row for row in csv.DictReader(file)}

  def points(arm):
    return [float(found[arm][x]) for x in ("effect", "low", "high")]

  assert points("no_lrn") == pytest.approx([1.33, 0.42, 2.25], abs=0.011)
  assert points("no_overlap") == pytest.approx([-1.13, -2.16, -0.09], abs=0.011)
  verdicts = {
    "agrees, also in size": "no_lrn half_tower",
    "agrees, larger": "no_links no_conv2 one_view tanh",
    "smaller than the original": "one_tower no_colour_noise no_conv3 no_conv4",
    "undecided": "no_dropout no_crops no_mirror",
    "disagrees, confounded by its grids": "no_overlap",
    "disagrees (1 diverged, of 3)": "linear",
  }
  expected = {arm: x for x, arms in verdicts.items() for arm in arms.split()}
  compared = {arm: row for arm, row in found.items() if "none" not in arm}
  said = {arm: row["verdict"] for arm, row in compared.items()}
  assert {x: said[x] for x in expected} == expected
  rest = set(found) - set(expected) - {"sigmoid"}
  assert {said[arm] for arm in rest} == {"nothing to compare"}
  # Whoever is counted is claimed in a section of the paper.
  of_paper = {arm for arm, row in found.items() if row["of_paper"] == "True"}
  assert of_paper == set(expected) - {"tanh", "linear", "one_tower", "no_links"}


def test_original_points_are_those_of_the_words():
  for arm in plan.load("ablations").arms:
    number = re.search(r"(?<!\w)[+-]\d[\d.]*", arm.original)
    assert arm.points == (float(number[0]) if number else None)
    assert arm.sign == np.sign(arm.points or arm.sign)
    assert not arm.of_paper or re.search(r"\([3-7]", arm.original)


# On planted results.


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
  answers = results.folder_of("ablations", "no_lrn", 1) / "wrong.npz"
  whole = answers.read_bytes()
  answers.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(InputError, match=r"wrong\.npz cannot be read"):
    verdict()
  answers.write_bytes(whole)
  verdict()
  with (here / "effects.csv").open() as file:
    found = {row["arm"]: row for row in csv.DictReader(file)}
  assert found["no_lrn"]["verdict"] == "agrees, larger"
  assert float(found["no_lrn"]["effect"]) == pytest.approx(10, abs=2)
  assert found["no_mirror"]["verdict"] == "disagrees"
  counts = re.search(
    "paper's 11 effects: (.*)", (here / "README.md").read_text()
  )
  assert counts
  assert "agrees 1," in counts[1]
  assert counts[1].endswith("disagrees 1.")
  assert found["tanh"]["effect"] == ""
  assert found["tanh"]["verdict"] == "3 diverged, of 3"
  assert found["no_crops"]["nets"] == "2"
  assert "(1 diverged, of 3)" in found["no_crops"]["verdict"]


def test_figure1_takes_the_best_rate_of_each_row():
  grid = {
    (units, rate): abs(np.log(rate / chosen))
    for units, chosen in figure1.CHOSEN.items()
    for rate in figure1.RATES
  }
  verdict = importlib.import_module("experiments.figure1.verdict")
  verdict._check_rates(grid)
  grid["tanh", figure1.RATES[2]] = -1.0
  with pytest.raises(InputError, match=f"best rate, {figure1.RATES[2]:g}"):
    verdict._check_rates(grid)
  grid["tanh", figure1.RATES[2]] = "diverged"
  verdict._check_rates(grid)


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
  assert "16.4 % top-5 (6): agrees" in (here / "README.md").read_text()
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
