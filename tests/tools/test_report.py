"""The report's data: the numbers that were written, and nothing else."""

import json
import re

import numpy as np
import pytest
import scipy.stats
from commands import assert_refused, run_in_process
from hypothesis import given, settings
from hypothesis import strategies as st
from report_runs import record, write_experiment, write_run

from alexnet_jax.tools.report import curves, page, reader, tables

EVIL = "</script><script>alert(1)</script>\"'&<!--\u2028"


def collect(*folders):
  """Returns what was read, its groups of curves and its tables of errors."""
  found = reader.read(folders)
  groups = curves.groups_of(found.runs)
  return found, groups, tables.error_tables(found, groups)


def lines_of(losses):
  """Lines of one metric, a line a step."""
  steps = np.arange(len(losses), dtype=np.float64)
  nothing = np.full(len(losses), np.nan)
  metrics = dict.fromkeys(reader.METRICS, nothing) | {"loss": np.array(losses)}
  return {"step": steps, "epoch": steps / 4, **metrics}


def test_curves_and_table_hold_the_numbers_that_were_written(tmp_path):
  train = [
    record(s, loss=2.5 - s / 8, top1_error=0.5 - s / 32, learning_rate=0.01)
    for s in range(1, 9)
  ]
  tested = record(8, "test", loss=1.25, top1_error=0.375, top5_error=0.125)
  found, (group,), (table,) = collect(
    write_run(tmp_path / "plain", [*train, tested])
  )
  (seed,) = group.seeds
  assert group.name == seed.name == "plain"
  curve = seed.curves["train"]
  for metric in ("loss", "top1_error", "learning_rate"):
    for values in curve.values[metric]:
      assert values.tolist() == [r[metric] for r in train]
  assert curve.x["step"].tolist() == [r["step"] for r in train]
  assert curve.x["epoch"].tolist() == [r["epoch"] for r in train]
  assert seed.curves["test"].values["top5_error"][0].tolist() == [0.125]
  assert {k: cell.mean for k, cell in table.rows[0].cells.items()} == {
    "train loss": 1.5,
    "train top1_error": 0.25,
    "test loss": 1.25,
    "test top1_error": 0.375,
    "test top5_error": 0.125,
  }
  assert table.columns == [
    "train loss", "train top1_error", "test loss", "test top1_error",
    "test top5_error",
  ]  # fmt: skip
  assert found.notes == []


def test_a_run_without_a_test_split_shows_its_validation_and_says_so(tmp_path):
  seen = record(8, "validation", loss=1.25, top1_error=0.375)
  for test, told in (("", True), ("test", False)):
    config = {"test_split": test}
    folder = write_run(tmp_path / f"run{test}", [seen], config)
    found, _, (table,) = collect(folder)
    assert table.columns == ["validation loss", "validation top1_error"]
    assert len(found.notes) == told
    for note in found.notes:
      assert "has no test split; its validation errors may be too" in note


def test_nets_of_an_ensemble_are_one_group_and_their_average_another(tmp_path):
  lines = [
    record(1, "test", top1_error=error, **({} if m is None else {"member": m}))
    for m, error in ((0, 0.25), (1, 0.75), (None, 0.125))
  ]
  _, groups, (table,) = collect(write_run(tmp_path / "many", lines))
  errors = {
    group.name: [x.curves["test"].values["top1_error"][0] for x in group.seeds]
    for group in groups
  }
  assert errors == {
    "many, each net": [[0.25], [0.75]],
    "many, all together": [[0.125]],
  }
  means = [row.cells["test top1_error"].mean for row in table.rows]
  assert means == [0.5, 0.125]


def test_mean_of_seeds_ends_where_the_first_of_them_does(tmp_path):
  """Beyond it the mean would be one of other seeds; a failed one is not in."""
  runs = [
    (f"a-{seed}", [record(s, loss=loss) for s in range(1, count + 1)], None)
    for seed, (count, loss) in enumerate([(6, 3.0), (4, 1.0), (3, 90.0)])
  ]
  rows = [("a", 0, "finished", 0), ("a", 1, "finished", 0), ("a", 2, "lost", 0)]
  folder = write_experiment(tmp_path / "two", rows, runs=runs)
  _, (group,), _ = collect(folder)
  curve = group.means()["train"]
  assert curve.x["step"].tolist() == [1, 2, 3, 4]
  np.testing.assert_allclose(curve.x["epoch"], [0.1, 0.2, 0.3, 0.4])
  np.testing.assert_allclose(curve.values["loss"], [[2] * 4, [1] * 4, [3] * 4])


def test_mean_of_seeds_with_one_point_each_is_in_their_middle():
  each = [
    curves.Curve(
      {"step": np.array([step]), "epoch": np.array([step / 10])},
      {"loss": np.full((3, 1), loss)},
    )
    for step, loss in ((6.0, 3.0), (4.0, 1.0))
  ]
  mean = curves.mean_of(each)
  assert (mean.x["step"], mean.values["loss"][0]) == ([5], [2])


@settings(max_examples=60, deadline=None)
@given(
  st.lists(st.floats(-1e4, 1e4, width=16), min_size=1, max_size=2000),
  st.integers(3, 60),
)
def test_reduction_keeps_the_smallest_the_largest_and_the_last(values, most):
  curve = curves.reduce(lines_of(values), most)
  mean, low, high = curve.values["loss"]
  assert (low.min(), high.max()) == (min(values), max(values))
  assert curve.x["step"][-1] == len(values) - 1
  assert mean[-1] == values[-1]
  assert (low <= mean + 1e-9).all()
  assert (mean <= high + 1e-9).all()
  assert len(mean) <= most + 2
  if len(values) <= most:
    assert mean.tolist() == values


def test_a_point_of_a_long_curve_is_the_mean_of_its_stretch():
  values = np.random.default_rng(0).normal(size=5000)
  values[1234], values[77] = 9, np.nan
  curve = curves.reduce(lines_of(values), 50)
  steps, (mean, low, high) = curve.x["step"], curve.values["loss"]
  begin = 0
  for number, middle in enumerate(steps):
    stretch = np.arange(begin, round(2 * middle - begin) + 1)
    own = values[stretch][np.isfinite(values[stretch])]
    assert mean[number] == pytest.approx(own.mean())
    assert (low[number], high[number]) == (own.min(), own.max())
    begin = stretch[-1] + 1
  assert begin == 5000


@pytest.mark.parametrize("n", [2, 5])
def test_interval_is_that_of_scipy(n):
  values = np.random.default_rng(n).normal(0.2, 0.05, n)
  mean, half, count = tables.cell(values.tolist())
  low, high = scipy.stats.t.interval(
    0.95, n - 1, loc=values.mean(), scale=scipy.stats.sem(values)
  )
  np.testing.assert_allclose([mean - half, mean + half], [low, high], 1e-9)
  assert count == n
  assert tables.cell([0.25]) == (0.25, None, 1)


def test_failed_runs_are_named_and_not_averaged(tmp_path):
  rows = [
    ("a", 0, "finished", 0.25, 3),
    ("a", 1, "finished", 0.75, ""),
    ("a", 2, "stuck at chance", 0.9, ""),
    ("b", 0, "diverged", "", ""),
  ]
  columns = ("test_error", "epochs_to_target")
  folder = write_experiment(tmp_path / "e", rows, columns)
  *_, (table,) = collect(folder)
  a, b = table.rows
  assert (a.count, a.failed) == (2, [("2", "stuck at chance")])
  # Of two seeds: t(0.975, 1) = 12.706, by sd / sqrt(2) = 0.25.
  half = pytest.approx(12.706 * 0.25, rel=1e-4)
  assert a.cells["test_error"] == (0.5, half, 2)
  assert a.cells["epochs_to_target"] == (3, None, 1)
  assert (b.count, b.failed, b.cells) == (0, [("0", "diverged")], {})


def test_nothing_in_the_data_acts_as_markup(tmp_path):
  folder = write_run(
    tmp_path / EVIL.replace("/", "\\"),
    [record(1, "test", top1_error=0.5)],
    {"name": EVIL},
  )
  other = write_run(tmp_path / "other", [], {"name": "plain"})
  html = page.render(reader.read([folder, other]))
  assert html.count("</script>") == 4  # The page's own.
  assert html.count("alert(1)") > 4
  assert "<script>alert(1)" not in html


def test_config_differences_are_those_between_arms(tmp_path):
  """Seeds that every arm has are none; nor is a field that some only lack."""
  base = {"batch_size": 128, "network": {"activation": "relu"}}
  configs = {
    "base": base,
    "tanh": base | {"network": {"activation": "tanh"}},
    "more": base | {"noise": True},
  }
  folder = write_experiment(
    tmp_path / "e",
    [(arm, seed, "finished", 0.5) for arm in configs for seed in range(2)],
    runs=[
      (f"{arm}-{seed}", [], config | {"seed": seed})
      for arm, config in configs.items()
      for seed in range(2)
    ],
  )
  assert tables.config_differences(reader.read([folder]).runs) == (
    ["base", "tanh", "more"],
    [("network.activation", "relu", ["relu", "tanh", "relu"])],
  )


def test_what_is_not_finite_is_a_gap_and_a_cut_line_is_left_out(tmp_path):
  folder = write_run(tmp_path / "r", [])
  losses = (1, 2, float("nan"))
  good = [json.dumps(record(s, loss=x)) for s, x in enumerate(losses)]
  (folder / "metrics.jsonl").write_text("\n".join([*good, '{"step": 3, "sp']))
  found, (group,), _ = collect(folder)
  values = group.seeds[0].curves["train"].values["loss"][0]
  np.testing.assert_array_equal(values, losses)
  assert found.notes == []


def test_damaged_runs_are_left_out_and_noted(tmp_path):
  empty = write_run(tmp_path / "empty", None)
  cut = write_run(tmp_path / "cut", [record(1, loss=2)])
  (cut / "config.json").write_text('{"a": ')
  damaged = write_run(tmp_path / "damaged", [record(1, loss=2)])
  (damaged / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
  good = write_run(tmp_path / "good", [record(7, loss=2)])
  found = reader.read([empty, cut, damaged, good])
  assert [run.name for run in found.runs] == ["empty", "good"]
  for note, words in zip(
    found.notes,
    (
      "empty has no metrics",
      "cut is left out: .*holds no run",
      "damaged is left out: .*damaged in line 1",
    ),
    strict=True,
  ):
    assert re.match(words, note)


def test_a_run_is_read_once_in_whatever_order_it_is_named(tmp_path):
  rows = [("a", seed, "finished", 0.5) for seed in range(2)]
  each = [(f"a-{seed}", [record(1, loss=1)], {}) for seed in range(2)]
  folder = write_experiment(tmp_path / "e", rows, runs=each)
  for named in ((folder, folder / "runs" / "a-0"), (folder / "runs", folder)):
    for order in (named, named[::-1]):
      found = reader.read(order)
      names = [(run.name, run.group) for run in found.runs]
      assert names == [("e/a-0", "e/a"), ("e/a-1", "e/a")]


def test_runs_of_one_name_stay_two(tmp_path):
  folders = [
    write_run(tmp_path / place / "a", [record(1, "test", top1_error=error)])
    for place, error in (("x", 0.25), ("y", 0.75))
  ]
  _, groups, _ = collect(*folders)
  assert [group.name for group in groups] == ["x/a", "y/a"]


def test_command_writes_the_page(tmp_path, capsys):
  rows = [(arm, seed, "finished", 0.25) for arm in "ab" for seed in range(3)]
  lines = [record(s, "validation", top1_error=0.5) for s in range(3)]
  runs = [(f"{arm}-{seed}", lines, {"x": 1}) for arm, seed, *_ in rows]
  folder = write_experiment(tmp_path / "e", rows, runs=runs)
  own = write_run(tmp_path / "runs" / "own", None)
  output = tmp_path / "r.html"
  done = run_in_process(
    capsys, "report", folder, own.parent, f"--output={output}"
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr.count("\n") == done.stderr.count("note:") == 1
  assert "7 runs and 1 experiment" in output.read_text()


def test_bad_input_is_refused(tmp_path, capsys):
  run = write_run(tmp_path / "run", [record(1, loss=1)])
  (tmp_path / "bare").mkdir()
  experiment = write_experiment(tmp_path / "e", [])
  (experiment / "results.csv").write_text("arm,seed\n")
  cut = write_experiment(tmp_path / "cut", [("a", 0, "finished", 0.5)])
  with (cut / "results.csv").open("a") as file:
    file.write("a,1,ab")
  for folder, words in (
    (tmp_path / "gone", "gone.*is not a run"),
    (tmp_path / "bare", "bare.*is not a run"),
    (experiment, "results.csv.*no column outcome"),
    (cut, "damaged in line 3: it must have 5 cells"),
  ):
    with pytest.raises(ValueError, match=words):
      reader.read([folder])
  for arguments, words in (
    ([], "no run is named"),
    ([run, f"--output={run / 'metrics.jsonl'}"], "must end in .html"),
    ([run, f"--output={tmp_path / 'no' / 'r.html'}"], "cannot be written"),
  ):
    assert_refused(run_in_process(capsys, "report", *arguments), words)
