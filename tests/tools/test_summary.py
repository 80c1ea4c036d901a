"""The architecture table and the comparison, as printed."""

import importlib

import pytest
from commands import assert_refused, run_in_process

from alexnet_jax import networks
from alexnet_jax.runs import config_files
from alexnet_jax.tools import summary


def layers_and_totals(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  *layers, total, conv, fc = summary.lines(networks.from_config(config))
  return layers, (total, conv, fc)


@pytest.mark.parametrize(
  ("name", "parameters", "macs", "conv", "fc"),
  [
    ("alexnet", "60,965,224", "724,406,816", (3.8, 91.9), (96.2, 8.1)),
    ("run145", "60,965,224", "724,406,816", (3.8, 91.9), (96.2, 8.1)),
    ("one_tower", "62,378,344", "1,135,256,096", (6.0, 94.8), (94.0, 5.2)),
    ("one_weird_trick", "61,100,840", "714,188,480", (4.0, 91.8), (96.0, 8.2)),
    ("run145_half", "59,798,312", "391,514,384", (2.0, 85.0), (98.0, 15.0)),
    ("run146", "61,555,304", "745,640,480", (4.8, 92.1), (95.2, 7.9)),
  ],
)
def test_totals_are_those_of_the_original(name, parameters, macs, conv, fc):
  """The shares, in per cent, are counted by hand."""
  _, totals = layers_and_totals(name)
  assert totals == (
    ("total", "", "", parameters, macs),
    ("  conv layers", "", "", *(f"{share}%" for share in conv)),
    ("  fc layers", "", "", *(f"{share}%" for share in fc)),
  )


def test_layers_inside_branches_are_listed_and_counted():
  layers, totals = layers_and_totals("run131")
  assert [line[:3] for line in layers[:3]] == [
    ("input", "224 x 224 x 3", ""),
    ("  blur", "56 x 56 x 3", "sigma 4, window 9, stride 4"),
    ("conv2_image", "27 x 27 x 256", "kernel 5, stride 2"),
  ]
  assert "  sum" in [line[0] for line in layers]
  counts = [int(x[3].replace(",", "")) for x in layers if x[3]]
  assert f"{sum(counts):,}" == totals[0][3]
  assert f"{sum(counts[:6]) / sum(counts):.1%}" == totals[1][3]


def test_lines_of_the_paper_show_grids_towers_and_counts():
  lines, _ = layers_and_totals("alexnet")
  assert lines[0] == ("input", "224 x 224 x 3", "", "", "")
  assert [line for line in lines[1:] if line[3]] == [
    ("conv1", "55 x 55 x 96", "kernel 11, stride 4", "34,944", "105,415,200"),
    ("conv2", "27 x 27 x 256", "towers 2, kernel 5, padding 2", "307,456",
     "223,948,800"),
    ("conv3", "13 x 13 x 384", "kernel 3, padding 1", "885,120",
     "149,520,384"),
    ("conv4", "13 x 13 x 384", "towers 2, kernel 3, padding 1", "663,936",
     "112,140,288"),
    ("conv5", "13 x 13 x 256", "towers 2, kernel 3, padding 1", "442,624",
     "74,760,192"),
    ("fc6", "4096", "", "37,752,832", "37,748,736"),
    ("fc7", "4096", "", "16,781,312", "16,777,216"),
    ("fc8", "1000", "", "4,097,000", "4,096,000"),
  ]  # fmt: skip


NORM = "towers 2, k 2, alpha 2e-05, beta 0.75, window 5"


def test_lines_between_name_the_layer_and_its_settings():
  lines, _ = layers_and_totals("run145")
  assert [(x[0].strip(), x[2]) for x in lines[2:11] if not x[3]] == [
    ("local response norm", NORM),
    ("max pool", "window 3, stride 2"),
    ("activation", "relu"),
    ("activation", "relu"),
    ("local response norm", NORM),
    ("map norm", "alpha 4e-05, beta 0.75, window 5"),
    ("max pool", "window 3, stride 2"),
    ("join", ""),
  ]


def test_what_is_not_the_default_shows():
  lines, _ = layers_and_totals("caffenet")
  assert ("dropout", "rate 0.5, rescaled True") in [
    (line[0].strip(), line[2]) for line in lines
  ]
  lines, _ = layers_and_totals("run150")
  assert ("fc7", "4096", "towers 2") in [line[:3] for line in lines]


def cells(table):
  return list(zip(*(column.cells for column in table.columns), strict=True))


def difference(*paths):
  return [
    cells(t) for t in summary.difference(*map(config_files.load_config, paths))
  ]


def test_difference_has_each_field_and_layer_that_changed_and_no_other():
  fields, layers = difference("alexnet", "run145")
  drops = "(24.0, 50.0, 78.0)"
  of_layers = "((66.0, 'conv1', 1e-05), (71.0, 'conv1', 0.0))"
  normed = "('activation', 'lrn', 'max_pool')"
  assert fields == [
    ("colour_noise_divisor", "1.0", "1.1"),
    ("colour_noise_epochs", "None", "66.0"),
    ("images_per_view", "1", "32"),
    ("learning_rate_drop_epochs", "()", drops),
    ("learning_rate_of_biases", "1.0", "2.0"),
    ("learning_rate_of_layers", "()", of_layers),
    ("mean_crop", "own place", "centre"),
    ("network.conv1.then", normed, "('lrn', 'max_pool', 'activation')"),
    ("network.conv2.then", normed,
     "('activation', 'lrn', 'map_norm', 'max_pool')"),
    ("network.conv3.sigma", "0.01", "0.03"),
    ("network.conv4.sigma", "0.01", "0.03"),
    ("network.conv5.sigma", "0.01", "0.03"),
    ("network.conv5.then", "('activation', 'max_pool')",
     "('max_pool', 'activation')"),
    ("network.lrn.alpha", "0.0001", "2e-05"),
    ("schedule", "plateau", "epochs"),
    ("schedule_of_biases", "weights", "constant"),
    ("weight_decay_of_biases", "True", "False"),
  ]  # fmt: skip
  assert [
    (sign, name.strip(), output) for sign, name, output, *_ in layers
  ] == [
    ("-", "activation", "55 x 55 x 96"),
    ("-", "local response norm", "55 x 55 x 96"),
    ("+", "local response norm", "55 x 55 x 96"),
    ("+", "activation", "27 x 27 x 96"),
    ("-", "local response norm", "27 x 27 x 256"),
    ("+", "local response norm", "27 x 27 x 256"),
    ("+", "map norm", "27 x 27 x 256"),
    ("-", "activation", "13 x 13 x 256"),
    ("+", "activation", "6 x 6 x 256"),
  ]


def test_difference_ends_in_both_totals_where_they_differ():
  fields, layers = difference("run146", "run145")
  assert layers == [
    ("-", "conv6", "6 x 6 x 256", "kernel 3, padding 1", "590,080",
     "21,233,664"),
    ("-", "  activation", "6 x 6 x 256", "relu", "", ""),
    ("-", "  join", "6 x 6 x 256", "", "", ""),
    ("-", "total", "", "", "61,555,304", "745,640,480"),
    ("-", "  conv layers", "", "", "4.8%", "92.1%"),
    ("-", "  fc layers", "", "", "95.2%", "7.9%"),
    ("+", "total", "", "", "60,965,224", "724,406,816"),
    ("+", "  conv layers", "", "", "3.8%", "91.9%"),
    ("+", "  fc layers", "", "", "96.2%", "8.1%"),
  ]  # fmt: skip
  assert ("network.conv6.filters", "256", "no such field") in fields


def test_difference_of_fields_alone_has_no_layers():
  fields, layers = difference("alexnet", "ablations:no_mirror")
  assert fields == [("mirror", "True", "False")]
  assert not layers


@pytest.fixture
def run(capsys):
  return lambda *words: run_in_process(capsys, "summary", *words)


def test_command_prints_the_whole_table(run):
  result = run("--config=alexnet")
  assert result.returncode == 0, result.stderr
  printed = {"".join(line.split()) for line in result.stdout.splitlines()}
  layers, totals = layers_and_totals("alexnet")
  for line in (*layers, *totals):
    assert "".join("".join(line).split()) in printed


def test_brackets_in_a_value_are_printed(run, tmp_path):
  """They are no markup of rich's."""
  file = tmp_path / "config.py"
  file.write_text(
    "from alexnet_jax.configs import alexnet\n"
    "def get_config():\n"
    "  config = alexnet.get_config().unlock()\n"
    "  config.data_dir = 'a[bold]b[/x]'\n"
    "  return config.lock()\n"
  )
  assert "a[bold]b[/x]" in run("--diff", "alexnet", str(file)).stdout


def test_command_prints_a_difference(run):
  assert run("--diff", "run145", "run145").stdout == "no field differs\n"
  printed = run("--diff", "run145", "run146").stdout
  assert "network.conv6.filters" in printed
  assert "61,555,304" in printed
  assert "…" not in printed


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["run145"], "1 configs are named"),
    (["--diff", "run145"], "1 configs are named"),
    (["--diff", "run145", "run146", "--config.batch_size=3"], "drop --config."),
  ],
)
def test_bad_command_is_refused(words, said, run):
  result = run(*words)
  assert_refused(result, said)
  assert not result.stdout
