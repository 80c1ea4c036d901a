"""The architecture table and the comparison, as printed."""

import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

from alexnet_jax import networks
from alexnet_jax.runs import config_files
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.tools import summary
from configs import alexnet


def layers_and_totals(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  return summary.lines(networks.from_config(config))


@pytest.mark.parametrize(
  ("name", "parameters", "macs"),
  [
    ("alexnet", "60,965,224", "724,406,816"),
    ("run145", "60,965,224", "724,406,816"),
    ("one_tower", "62,378,344", "1,135,256,096"),
    ("one_weird_trick", "61,100,840", "714,188,480"),
    ("run145_half", "59,798,312", "391,514,384"),
    ("run146", "61,555,304", "745,640,480"),
  ],
)
def test_totals_are_those_of_the_original(name, parameters, macs):
  _, totals = layers_and_totals(name)
  assert totals == ("total", "", "", parameters, macs)


def test_lines_of_the_paper_show_towers_grids_and_counts():
  lines, _ = layers_and_totals("alexnet")
  assert lines[0] == ("input", "224 x 224 x 3", "", "", "")
  assert [line for line in lines[1:] if line[3]] == [
    ("conv1", "55 x 55 x 96", "96 of 11 x 11 / 4", "34,944", "105,415,200"),
    ("conv2", "27 x 27 x 256", "2 x 128 of 5 x 5 / 1 pad 2", "307,456",
     "223,948,800"),
    ("conv3", "13 x 13 x 384", "384 of 3 x 3 / 1 pad 1", "885,120",
     "149,520,384"),
    ("conv4", "13 x 13 x 384", "2 x 192 of 3 x 3 / 1 pad 1", "663,936",
     "112,140,288"),
    ("conv5", "13 x 13 x 256", "2 x 128 of 3 x 3 / 1 pad 1", "442,624",
     "74,760,192"),
    ("fc6", "4096", "", "37,752,832", "37,748,736"),
    ("fc7", "4096", "", "16,781,312", "16,777,216"),
    ("fc8", "1000", "", "4,097,000", "4,096,000"),
  ]  # fmt: skip


def test_lines_between_name_what_is_done():
  lines, _ = layers_and_totals("run145")
  assert [(line[0].strip(), line[1]) for line in lines[1:12]] == [
    ("conv1", "55 x 55 x 96"),
    ("lrn 2 towers, k 2, alpha 2e-05", "55 x 55 x 96"),
    ("max pool 3 / 2", "27 x 27 x 96"),
    ("relu", "27 x 27 x 96"),
    ("conv2", "27 x 27 x 256"),
    ("relu", "27 x 27 x 256"),
    ("lrn 2 towers, k 2, alpha 2e-05", "27 x 27 x 256"),
    ("map norm 5 x 5", "27 x 27 x 256"),
    ("max pool 3 / 2", "13 x 13 x 256"),
    ("towers join", "13 x 13 x 256"),
    ("conv3", "13 x 13 x 384"),
  ]


def test_units_of_two_towers_show_as_such():
  lines, _ = layers_and_totals("run150")
  assert ("fc7", "8192", "2 x 4096") in [line[:3] for line in lines]


def cells(table):
  return list(zip(*(column.cells for column in table.columns), strict=True))


def difference(*paths):
  return [
    cells(t) for t in summary.difference(*map(config_files.load_config, paths))
  ]


def test_difference_has_each_field_and_layer_that_changed_and_no_other():
  fields, layers = difference("configs/alexnet.py", "configs/run145.py")
  drops = "(25.0, 51.0, 79.0)"
  of_layers = "((67.0, 'conv1', 1e-05), (72.0, 'conv1', 0.0))"
  normed = "('activation', 'lrn', 'max_pool')"
  assert fields == [
    ("biases_follow_schedule", "True", "False"),
    ("colour_noise_divisor", "1.0", "1.1"),
    ("colour_noise_epochs", "None", "67.0"),
    ("images_per_view", "1", "32"),
    ("learning_rate_drop_epochs", "()", drops),
    ("learning_rate_of_biases", "1.0", "2.0"),
    ("learning_rate_of_layers", "()", of_layers),
    ("network.conv1.then", normed, "('lrn', 'max_pool', 'activation')"),
    ("network.conv2.then", normed,
     "('activation', 'lrn', 'map_norm', 'max_pool')"),
    ("network.conv3.sigma", "0.01", "0.03"),
    ("network.conv4.sigma", "0.01", "0.03"),
    ("network.conv5.then", "('activation', 'max_pool')",
     "('max_pool', 'activation')"),
    ("network.conv5.sigma", "0.01", "0.03"),
    ("network.lrn.alpha", "0.0001", "2e-05"),
    ("schedule", "plateau", "epochs"),
    ("total_epochs", "90.0", "91.0"),
    ("weight_decay_of_biases", "True", "False"),
  ]  # fmt: skip
  assert [
    (sign, name.strip(), output) for sign, name, output, *_ in layers
  ] == [
    ("-", "relu", "55 x 55 x 96"),
    ("-", "lrn 2 towers, k 2, alpha 0.0001", "55 x 55 x 96"),
    ("+", "lrn 2 towers, k 2, alpha 2e-05", "55 x 55 x 96"),
    ("+", "relu", "27 x 27 x 96"),
    ("-", "lrn 2 towers, k 2, alpha 0.0001", "27 x 27 x 256"),
    ("+", "lrn 2 towers, k 2, alpha 2e-05", "27 x 27 x 256"),
    ("+", "map norm 5 x 5", "27 x 27 x 256"),
    ("-", "relu", "13 x 13 x 256"),
    ("+", "relu", "6 x 6 x 256"),
  ]


def test_difference_ends_in_both_totals_where_they_differ():
  _, layers = difference("configs/run145.py", "configs/run146.py")
  assert layers == [
    ("+", "conv6", "6 x 6 x 256", "256 of 3 x 3 / 1 pad 1", "590,080",
     "21,233,664"),
    ("+", "  relu", "6 x 6 x 256", "", "", ""),
    ("+", "  towers join", "6 x 6 x 256", "", "", ""),
    ("-", "total", "", "", "60,965,224", "724,406,816"),
    ("+", "total", "", "", "61,555,304", "745,640,480"),
  ]  # fmt: skip


def test_difference_marks_a_field_that_one_config_lacks():
  fields, _ = difference("configs/run146.py", "configs/run145.py")
  assert ("network.conv6.filters", "256", "no such field") in fields


def test_difference_of_fields_alone_has_no_layers():
  fields, layers = difference(
    "configs/alexnet.py", "configs/ablations.py:no_mirror"
  )
  assert fields == [("mirror", "True", "False")]
  assert not layers


@pytest.fixture
def diff(monkeypatch):
  """Runs `--diff` in this process."""
  flags = types.SimpleNamespace(FLAGS=types.SimpleNamespace(diff=True))
  monkeypatch.setattr(summary, "flags", flags)
  return lambda *paths: summary.main(["summary", *paths])


def test_equal_configs_say_so(diff, capsys):
  diff("configs/run145.py", "configs/run135.py")
  assert capsys.readouterr().out == "no field differs\n"


def test_both_tables_of_a_difference_are_printed_whole(diff, capsys):
  diff("configs/run145.py", "configs/run146.py")
  printed = capsys.readouterr().out
  assert "network.conv6.filters" in printed
  assert "61,555,304" in printed
  assert "…" not in printed


@pytest.mark.parametrize("count", [0, 1, 3])
def test_difference_of_not_two_files_is_refused(diff, count):
  with pytest.raises(InputError, match=f"{count} config files were given"):
    diff(*["configs/alexnet.py"] * count)


def run(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "alexnet_jax", "summary", *arguments],
    cwd=Path(__file__).parents[2],
    capture_output=True,
    text=True,
  )


def test_command_prints_the_whole_table():
  result = run("--config=configs/alexnet.py")
  assert result.returncode == 0, result.stderr
  printed = [line.strip() for line in result.stdout.splitlines()]
  layers, totals = summary.lines(networks.from_config(alexnet.get_config()))
  for line in (*layers, totals):
    words = "".join(line).split()
    assert any("".join(p.split()) == "".join(words) for p in printed), line


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--diff", "configs/alexnet.py"], "error: 1 config files were given"),
    (["configs/run145.py"], "error: 1 config files were given"),
    (["--config.network.conv1.filters=9.5"], "invalid literal for int()"),
    (["--config.network.conv9.filters=3"], "no field 'conv9'"),
    (
      ["--config=configs/run145.py", "--config.num_clases=3"],
      "no field 'num_clases' there; did you mean 'num_classes'?",
    ),
  ],
)
def test_bad_command_line_ends_without_a_traceback(arguments, words):
  result = run(*arguments)
  assert result.returncode == 1
  assert words in result.stderr
  assert "Traceback" not in result.stderr
  assert not result.stdout
