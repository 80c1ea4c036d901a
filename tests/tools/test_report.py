"""The report's data: what was written, and nothing else."""

import csv
import io
import json
import math
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from commands import assert_refused, run_command
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_runs import record, write_experiment, write_run

from alexnet_jax.runtime import cli
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.tools.figures import plots as drawing
from alexnet_jax.tools.report import command as report
from alexnet_jax.tools.report import reader

EVIL = "</script><script>alert(1)</script>\"'&<!--\u2028"


def collect(*folders):
  return report.collect(reader.read(folders))


def embedded(html):
  """Takes the data out as a browser does: up to the first end tag."""
  (_, rest) = html.split('<script type="application/json" id="data">')
  return json.loads(rest[: re.search(r"</script", rest, re.I).start()])


def test_page_holds_the_figures_that_were_written(tmp_path):
  train = [
    record(s, loss=2.5 - s / 8, top1_error=0.5 - s / 32, learning_rate=0.01)
    for s in range(1, 9)
  ]
  tested = record(8, "test", loss=1.25, top1_error=0.375, top5_error=0.125)
  folder = write_run(tmp_path / "plain", [*train, tested])
  data = embedded(report.page(collect(folder)))
  (run,) = data["runs"]
  assert run["name"] == "plain"
  assert run["rows"] == 9
  for metric in ("loss", "top1_error", "learning_rate"):
    curve = run["curves"]["train"][metric]
    assert curve["value"] == [r[metric] for r in train]
    assert curve["step"] == [r["step"] for r in train]
    assert curve["epoch"] == [r["epoch"] for r in train]
  assert run["curves"]["test"]["top5_error"]["value"] == [0.125]
  (table,) = data["tables"]
  last = {
    column["name"]: cell["mean"]
    for column, cell in zip(
      table["columns"], table["rows"][0]["cells"], strict=True
    )
  }
  assert last == {
    "train loss": 1.5,
    "train top1_error": 0.25,
    "test top1_error": 0.375,
    "test top5_error": 0.125,
  }
  assert data["notes"] == []


def test_lines_of_an_ensemble_are_told_apart(tmp_path):
  """Each net is a seed of one group; all together are another."""
  lines = [
    record(1, "test", top1_error=error, **({} if m is None else {"member": m}))
    for m, error in ((0, 0.25), (1, 0.75), (None, 0.125))
  ]
  data = collect(write_run(tmp_path / "many", lines))
  found = {
    group["name"]: [
      data["runs"][i]["curves"]["test"]["top1_error"]["value"]
      for i in group["runs"]
    ]
    for group in data["groups"]
  }
  assert found == {
    "many, each net": [[0.25], [0.75]],
    "many, all together": [[0.125]],
  }
  rows = {row["name"]: row for row in data["tables"][0]["rows"]}
  assert rows["many, each net"]["cells"][0]["mean"] == 0.5
  assert rows["many, all together"]["cells"][0]["values"] == [0.125]


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    ({"total_steps": 9, "total_epochs": 1.0}, "stands at step 8 of 9"),
    ({"total_steps": None, "total_epochs": 2.0}, "stands at epoch 0.80 of 2"),
    ({"total_steps": None, "total_epochs": 0.8}, None),
    ({"total_steps": 8, "total_epochs": 90.0}, None),
    ({}, None),
  ],
)
def test_run_that_is_not_finished_is_told_of(fields, said, tmp_path):
  lines = [record(step, loss=1.0) for step in range(1, 9)]
  folder = write_run(tmp_path / "half", lines, {"seed": 0, **fields})
  notes = collect(folder)["notes"]
  assert len(notes) == (said is not None)
  assert all(said in note and "half" in note for note in notes)
  # What was tested has ended, however soon.
  tested = [*lines, record(8, "test", loss=1.0)]
  folder = write_run(tmp_path / "ended", tested, {"seed": 0, **fields})
  assert collect(folder)["notes"] == []


def test_mean_of_seeds_ends_where_the_first_of_them_does(tmp_path):
  """Beyond it the mean of the others would be one of other nets."""
  runs = [
    (f"a-{seed}", [record(s, loss=loss) for s in range(1, count + 1)], None)
    for seed, (count, loss) in enumerate([(6, 3.0), (4, 1.0)])
  ]
  rows = [("a", seed, "finished", 0.5) for seed in range(2)]
  folder = write_experiment(tmp_path / "two", rows, runs=runs)
  (axes,) = drawing.draw_curves(collect(folder), "loss").axes
  (line,) = axes.lines
  np.testing.assert_allclose(line.get_xdata(), [0.1, 0.2, 0.3, 0.4])
  np.testing.assert_allclose(line.get_ydata(), [2, 2, 2, 2])


def test_mean_of_seeds_with_one_point_each_is_in_their_middle(tmp_path):
  runs = [
    (f"a-{seed}", [record(step, "test", loss=loss)], None)
    for seed, (step, loss) in enumerate([(6, 3.0), (4, 1.0)])
  ]
  rows = [("a", seed, "finished", 0.5) for seed in range(2)]
  folder = write_experiment(tmp_path / "two", rows, runs=runs)
  (axes,) = drawing.draw_curves(collect(folder), "loss").axes
  (line,) = axes.lines
  assert (line.get_xdata(), line.get_ydata()) == ([0.5], [2])


def test_runs_of_one_name_stay_two(tmp_path):
  folders = [
    write_run(tmp_path / place / "a", [record(1, "test", top1_error=error)])
    for place, error in (("x", 0.25), ("y", 0.75))
  ]
  folders.append(write_run(tmp_path / "x" / "y" / "a", [record(1, loss=1.0)]))
  data = collect(*folders)
  names = [row["name"] for row in data["tables"][0]["rows"]]
  assert names == ["a", "y/a", "x/y/a"]
  assert [len(group["runs"]) for group in data["groups"]] == [1, 1, 1]


@settings(max_examples=60, deadline=None)
@given(
  st.lists(st.floats(-1e4, 1e4, width=16), min_size=1, max_size=2000),
  st.integers(3, 60),
)
def test_reduction_keeps_smallest_largest_and_last(values, most):
  value = np.array(values)
  step = np.arange(len(value), dtype=np.float64)
  curve = report.reduce(step, step / 4, value, most)
  rounded = [float(f"{v:.5g}") for v in values]
  assert min(curve["value"]) == min(rounded)
  assert max(curve["value"]) == max(rounded)
  assert curve["step"][-1] == len(values) - 1
  assert len(curve["value"]) <= 2 * most + 3
  for s, v in zip(curve["step"], curve["value"], strict=True):
    assert v == rounded[s]
  if len(values) <= 2 * most:
    assert curve["value"] == rounded


def test_every_bucket_keeps_its_smallest_and_largest():
  """A peak of one step, wherever it is, is seen."""
  for at in range(0, 5000, 37):
    value = np.zeros(5000)
    value[at], value[at - 1] = 7, -7
    curve = report.reduce(np.arange(5000.0), np.arange(5000.0), value, 50)
    points = dict(zip(curve["step"], curve["value"], strict=True))
    assert points[at] == 7
    assert points[(at - 1) % 5000] == -7
    mean = np.array(curve["mean"]["value"])
    assert np.abs(mean).max() <= 7


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_interval_is_that_of_scipy(n):
  values = np.random.default_rng(n).normal(0.2, 0.05, n)
  mean, half = report.interval(values.tolist())
  low, high = scipy.stats.t.interval(
    0.95, n - 1, loc=values.mean(), scale=scipy.stats.sem(values)
  )
  np.testing.assert_allclose([mean - half, mean + half], [low, high], 1e-9)


def test_one_seed_has_no_interval():
  assert report.interval([0.25]) == (0.25, None)


def test_failed_runs_are_named_and_not_averaged(tmp_path):
  rows = [
    ("a", 0, "finished", 0.25, 3),
    ("a", 1, "finished", 0.75, ""),
    ("a", 2, "stuck at chance", 0.9, ""),
    ("b", 0, "diverged", "", ""),
  ]
  folder = write_experiment(
    tmp_path / "e", rows, ("test_error", "epochs_to_target")
  )
  (table,) = collect(folder)["tables"]
  a, b = table["rows"]
  assert (a["n"], a["failed"]) == (2, [["2", "stuck at chance"]])
  assert a["cells"][0]["values"] == [0.25, 0.75]
  assert a["cells"][0]["mean"] == 0.5
  # Of two seeds: t(0.975, 1) = 12.706, by sd / sqrt(2) = 0.25.
  assert a["cells"][0]["half"] == pytest.approx(12.706 * 0.25, rel=1e-4)
  assert a["cells"][1] == {"mean": 3, "half": None, "values": [3]}
  assert (b["n"], b["failed"]) == (0, [["0", "diverged"]])
  assert b["cells"] == [None, None]
  assert [c["percent"] for c in table["columns"]] == [True, False]


def test_nothing_in_the_data_ends_its_script(tmp_path):
  config = {"name": EVIL}
  folder = write_run(
    tmp_path / EVIL.replace("/", "\\"),
    [record(1, "test", top1_error=0.5)],
    config,
    class_names=[EVIL, "b"],
    confusions={"split": EVIL, "views": 1, "counts": [[0, 1, 2]]},
  )
  other = write_run(tmp_path / "other", [], {"name": "plain"})
  html = report.page(collect(folder, other))
  assert html.count("</script>") == 3  # The page's own.
  assert "alert(1)</script>" not in html
  data = embedded(html)
  assert data["runs"][0]["name"] == folder.name
  assert data["confusions"][0]["rows"][0][:2] == [EVIL, "b"]
  assert data["config"]["rows"] == [
    ["name", [[json.dumps(EVIL, ensure_ascii=False)], ['"plain"']]]
  ]


def test_config_differences_are_those_between_columns(tmp_path):
  """Seeds that every arm has are none; a field may be absent."""
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
  assert collect(folder)["config"] == {
    "columns": ["base", "tanh", "more"],
    "rows": [
      ["network.activation", [['"relu"'], ['"tanh"'], ['"relu"']]],
      ["noise", [[None], [None], ["true"]]],
    ],
  }


def test_confusions_are_in_order_and_of_the_finished_runs(tmp_path):
  held = [
    ("a-0", [[0, 0, 6], [0, 1, 3], [0, 2, 1], [1, 2, 1], [1, 1, 9]]),
    ("a-1", [[0, 0, 7], [0, 2, 3], [1, 2, 6], [1, 1, 4]]),
    ("a-2", [[0, 1, 1000]]),
  ]
  folder = write_experiment(
    tmp_path / "e",
    [("a", 0, "finished", 0), ("a", 1, "finished", 0), ("a", 2, "diverged", 0)],
  )
  for name, counts in held:
    write_run(
      folder / "runs" / name,
      [],
      class_names=["cat", "dog"],
      confusions={"split": "test", "step": 9, "views": 1, "counts": counts},
    )
  (worst,) = collect(folder)["confusions"]
  assert worst["rows"] == [
    ["dog", "class 2", 7, 0.35],
    ["cat", "class 2", 4, 0.2],
    ["cat", "dog", 3, 0.15],
  ]
  assert (worst["runs"], worst["images"], worst["wrong"]) == (2, 40, 14)


def test_twenty_confusions_at_most(tmp_path):
  counts = [[0, label, label] for label in range(1, 50)]
  folder = write_run(
    tmp_path / "r", [], confusions={"split": "test", "counts": counts}
  )
  (worst,) = collect(folder)["confusions"]
  assert [row[2] for row in worst["rows"]] == list(range(49, 29, -1))


def test_a_red_filter_is_red_at_its_place():
  """The 37th of 48, of two towers: 24 above, a gap, 24 below."""
  kernel = np.zeros((5, 5, 3, 48), np.float32)
  kernel[1:4, 1:4, 0, 36] = 0.01
  png, width, height = report.draw_filters(kernel, 2)
  with Image.open(io.BytesIO(png)) as image:
    pixels = np.asarray(image)
  assert pixels.shape == (height, width, 4)
  red = (pixels == (255, 0, 0, 255)).all(axis=-1)
  # 16 to a row: two rows of 5 + 1 in a tower, the 13th of the first row below.
  tower = 2 * 6 - 1
  top, left = tower + (height - 2 * tower), 12 * 6
  expected = np.zeros_like(red)
  expected[top + 1 : top + 4, left + 1 : left + 4] = True
  np.testing.assert_array_equal(red, expected)
  assert (pixels[tower:top, :, 3] == 0).all()
  assert (pixels[0, 0] == (128, 128, 128, 255)).all()


def test_a_filter_is_scaled_on_its_own():
  kernel = np.zeros((2, 2, 3, 8), np.float32)
  for number in range(8):
    kernel[0, 0, :, number] = -(10.0**number)
    kernel[1, 1, :, number] = 10.0**number
  with Image.open(io.BytesIO(report.draw_filters(kernel, 1)[0])) as image:
    pixels = np.asarray(image)
  for left in range(0, 24, 3):
    assert pixels[0, left, :3].tolist() == [0, 0, 0]
    assert pixels[1, left + 1, :3].tolist() == [255, 255, 255]
    assert pixels[0, left + 1, :3].tolist() == [128, 128, 128]


def test_a_cut_last_line_is_told_and_the_rest_shown(tmp_path):
  folder = write_run(tmp_path / "r", [record(1, loss=2), record(2, loss=1)])
  with (folder / "metrics.jsonl").open("a") as file:
    file.write('{"step": 3, "spl')
  data = collect(folder)
  assert data["runs"][0]["curves"]["train"]["loss"]["value"] == [2, 1]
  (note,) = data["notes"]
  assert "cut line (3)" in note


@pytest.mark.parametrize(
  "line",
  ["{", "[1]", '{"step": true, "split": "train"}', "\ufffd" * 3, "1e999"],
)
def test_a_damaged_line_is_numbered_and_the_rest_shown(tmp_path, line):
  folder = write_run(tmp_path / "r", [])
  good = [json.dumps(record(step, loss=step)) for step in (1, 2)]
  (folder / "metrics.jsonl").write_text("\n".join([good[0], line, good[1], ""]))
  data = collect(folder)
  assert data["runs"][0]["curves"]["train"]["loss"]["value"] == [1, 2]
  (note,) = data["notes"]
  assert "line 2 " in note


@pytest.mark.parametrize(
  ("fields", "told"),
  [
    ({"total_steps": 9}, "step 2 of 9"),
    ({"total_steps": None, "total_epochs": 9.0}, "epoch 0.20 of 9"),
    ({"total_steps": 2}, None),
    ({"total_steps": 9, "schedule": "plateau"}, None),
    ({"total_steps": 9, "stop_at_train_error": 0.25}, None),
    (
      {"total_steps": 9, "schedule": "plateau", "test_split": "test"},
      "step 2 of 9",
    ),
  ],
)
def test_a_run_that_stands_still_is_told_unless_it_may_have_ended(
  fields, told, tmp_path
):
  """A plateau or an error that is low enough ends a run before its length."""
  lines = [record(1, loss=2), record(2, loss=1)]
  fields = {"schedule": "epochs", "test_split": ""} | fields
  notes = collect(write_run(tmp_path / "r", lines, fields))["notes"]
  assert len(notes) == bool(told)
  assert not told or notes[0].endswith(f"is not finished: it stands at {told}.")


def test_figures_that_are_no_numbers_are_left_out(tmp_path):
  folder = write_run(
    tmp_path / "r",
    [record(1, loss=math.nan), record(2, loss="2"), record(3, loss=3)],
  )
  data = collect(folder)
  assert data["runs"][0]["curves"]["train"]["loss"]["value"] == [3]
  (note,) = data["notes"]
  assert "2 figures" in note


def test_a_run_without_metrics_is_told(tmp_path):
  empty = write_run(tmp_path / "empty", None, {"x": 1})
  full = write_run(tmp_path / "full", [record(1, loss=2)], {"x": 2})
  data = collect(empty, full)
  (note,) = data["notes"]
  assert "empty" in note
  assert "no metrics" in note
  assert data["config"]["rows"] == [["x", [["1"], ["2"]]]]
  assert [run["name"] for run in data["runs"]] == ["full"]


def test_a_cut_row_of_results_is_told(tmp_path):
  rows = [("a", 0, "finished", 0.25), ("a", 1, "finished", 0.5)]
  folder = write_experiment(tmp_path / "e", rows)
  with (folder / "results.csv").open("a") as file:
    file.write("a,2,ab")
  data = collect(folder)
  assert data["tables"][0]["rows"][0]["cells"][0]["values"] == [0.25, 0.5]
  assert any("3 of 5 cells in line 4" in note for note in data["notes"])


@pytest.mark.parametrize("line", ['a,1,"abc,finished,0.5', 'a,1,abc",f,"0.5'])
def test_a_lost_quote_costs_its_own_row(line, tmp_path):
  rows = [("a", seed, "finished", seed / 4) for seed in range(4)]
  folder = write_experiment(tmp_path / "e", rows)
  file = folder / "results.csv"
  lines = file.read_text().splitlines()
  lines[2] = line
  file.write_text("\r\n".join([*lines, ""]))
  data = collect(folder)
  (cell,) = data["tables"][0]["rows"][0]["cells"]
  assert cell["values"] == [0, 0.5, 0.75]
  assert "line 3;" in data["notes"][0]


def test_a_run_is_read_once_in_whatever_order_it_is_named(tmp_path):
  rows = [("a", seed, "finished", 0.5) for seed in range(2)]
  each = [(f"a-{seed}", [record(1, loss=1)], {}) for seed in range(2)]
  folder = write_experiment(tmp_path / "e", rows, runs=each)
  for named in ((folder, folder / "runs" / "a-0"), (folder / "runs", folder)):
    assert len(collect(*named)["runs"]) == 2
    assert len(collect(*reversed(named))["runs"]) == 2


def test_runs_that_lie_deeper_are_told(tmp_path):
  write_run(tmp_path / "a", [record(1, loss=1)])
  for name in ("b", "c"):
    write_run(tmp_path / "deeper" / name, [record(1, loss=1)])
  rows = [("a", 0, "finished", 0.5)]
  each = [("a-0", [record(1, loss=1)], {})]
  write_experiment(tmp_path / "e", rows, runs=each)
  (tmp_path / "none").mkdir()
  data = collect(tmp_path)
  assert [run["name"] for run in data["runs"]] == ["a"]
  (note,) = data["notes"]
  assert str(tmp_path / "deeper") in note
  assert str(tmp_path / "e") in note
  assert "none" not in note
  assert collect(tmp_path / "a")["notes"] == []


def test_rows_and_folders_that_have_no_other_half_are_told(tmp_path):
  folder = write_experiment(
    tmp_path / "e",
    [("a", 0, "finished", 0.25)],
    runs=[("a-1", [record(1, loss=2)], {})],
  )
  notes = " ".join(collect(folder)["notes"])
  assert "'a-1' in no whole row" in notes
  assert "'a-0' without a folder" in notes


def test_effects_are_shown_as_they_are(tmp_path):
  folder = write_experiment(tmp_path / "e", [("a", 0, "finished", 0.25)])
  rows = [["arm", "effect"], ["a", "+1.40 (P 3.3)"]]
  with (folder / "effects.csv").open("w", newline="") as file:
    csv.writer(file).writerows(rows)
  assert collect(folder)["effects"] == [{"title": "e", "rows": rows}]


def test_a_checkpoint_that_cannot_be_read_is_told(tmp_path):
  folder = write_run(tmp_path / "r", [record(1, loss=2)])
  (folder / "checkpoints" / "12").mkdir(parents=True)
  data = collect(folder)
  assert data["filters"] == []
  assert "checkpoint cannot be read" in data["notes"][0]


def test_training_time_is_that_of_the_images(tmp_path):
  """64 steps of 30 images at 8 a second are 4 minutes."""
  lines = [record(s, loss=1, images_per_second=8) for s in (32, 64)]
  timed = write_run(tmp_path / "timed", lines, {"batch_size": 30})
  bare = write_run(tmp_path / "bare", [record(1, loss=1)], {"batch_size": 30})
  one, two = collect(timed, bare)["runs"]
  assert one["time"] == [[0, 32, 64], [0, 2, 4]]
  assert two["time"] is None


def test_command_reads_a_folder_of_runs_and_draws(tmp_path):
  """Quickly: neither jax nor a plot's library is there for the page."""
  write_run(tmp_path / "runs" / "a", [record(1, "validation", top1_error=0.5)])
  write_run(tmp_path / "runs" / "b", None)
  (tmp_path / "runs" / "no run").mkdir()
  output = tmp_path / "r.html"
  done = run_command(
    "report",
    str(tmp_path / "runs"),
    f"--output={output}",
    f"--figures={tmp_path / 'new' / 'plots'}",
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr.count("\n") == done.stderr.count("note:") == 1
  assert embedded(output.read_text())["counts"]["runs"] == 2
  assert {path.name for path in (tmp_path / "new" / "plots").iterdir()} == {
    "curves_top1_error.png",
    "curves_top1_error.pdf",
  }


def test_plots_of_an_experiment_fit_a_column(tmp_path):
  rows = [
    (arm, seed, "diverged" if (arm, seed) == ("_$b", 2) else "finished", 0.25)
    for arm in ("a", "_$b")
    for seed in range(3)
  ]
  lines = [record(s, "validation", top1_error=0.5) for s in range(3)]
  folder = write_experiment(
    tmp_path / "e", rows, runs=[(f"{r[0]}-{r[1]}", lines, {}) for r in rows]
  )
  plots = tmp_path / "plots"
  plots.mkdir()
  names = drawing.draw_all(collect(folder), plots)
  assert {"errors_test_error.pdf", "curves_top1_error.png"} <= set(names)
  with Image.open(plots / "errors_test_error.png") as image:
    assert image.width / 300 * 25.4 == pytest.approx(85, abs=0.5)
  for name in names:
    if name.endswith(".pdf"):
      content = (plots / name).read_bytes()
      assert b"/Type0" in content  # Type 42, embedded.
      assert b"/Type3" not in content


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_a_plot_drawn_again_is_the_same_file(suffix, tmp_path):
  run = write_run(tmp_path / "run", [record(s, loss=s) for s in (1, 2)])
  file = tmp_path / f"plot{suffix}"
  found = []
  for moment in (0, 1.1):  # A date would be of another second.
    time.sleep(moment)
    drawing.save(drawing.draw_curves(collect(run), "loss"), file)
    found.append(file.read_bytes())
  assert found[0] == found[1]


def test_a_page_is_replaced_only_by_a_whole_one(tmp_path):
  output = tmp_path / "r.html"
  output.write_text("old")

  def fail():
    with cli.replacing(output) as new:
      new.write_text("half")
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fail()
  assert output.read_text() == "old"
  assert list(tmp_path.iterdir()) == [output]
  with cli.replacing(output) as new:
    new.write_text("new")
    assert output.read_text() == "old"
  assert output.read_text() == "new"
  assert list(tmp_path.iterdir()) == [output]


def test_what_is_no_ordinary_file_is_not_replaced(tmp_path):
  """A pipe, a device or a folder stays; of a link, what it leads to is new."""
  pipe, link, page = (tmp_path / x for x in ("p.html", "l.html", "r.html"))
  os.mkfifo(pipe)
  page.write_text("old")
  link.symlink_to(page.name)
  for file in (pipe, tmp_path, Path(os.devnull)):
    with pytest.raises(InputError, match="no ordinary file"):
      with cli.replacing(file):
        raise AssertionError
  assert pipe.is_fifo()
  with cli.replacing(link) as new:
    new.write_text("new")
  assert link.is_symlink()
  assert page.read_text() == "new"
  assert len(list(tmp_path.iterdir())) == 3


def test_bad_input_is_refused(tmp_path):
  run = write_run(tmp_path / "run", [record(1, loss=1)])
  os.mkfifo(tmp_path / "pipe.html")
  (tmp_path / "bare").mkdir()
  experiment = write_experiment(tmp_path / "e", [])
  (experiment / "results.csv").write_text("arm,seed\n")
  good = f"--output={tmp_path / 'r.html'}"
  for arguments, words in (
    ([], ["no run is named", "runs/quickstart"]),
    ([str(tmp_path / "gone")], ["gone", "does not exist"]),
    ([str(tmp_path / "bare")], ["bare", "no folder of runs"]),
    ([str(experiment)], ["results.csv", "outcome"]),
    ([str(run), f"--output={tmp_path / 'no' / 'r.html'}"], ["no/r.html"]),
    ([str(run), f"--output={tmp_path}"], ["must be", "file"]),
    ([str(run), f"--output={run / 'metrics.jsonl'}"], ["must be", ".html"]),
    ([str(run), f"--output={tmp_path / 'pipe.html'}"], ["must be", "file"]),
    ([str(run), f"--figures={run / 'config.json'}"], ["figures", "cannot be"]),
    ([str(run), "--figures="], ["--figures='' must name a folder"]),
  ):
    assert_refused(run_command("report", good, *arguments), *words)
  assert not (tmp_path / "r.html").exists()
  assert (tmp_path / "pipe.html").is_fifo()
  assert reader.read([run]).notes == []
  shutil.rmtree(run)
