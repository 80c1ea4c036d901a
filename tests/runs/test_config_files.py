"""Configs are found by name from anywhere, and every field has a range."""

import math
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from commands import command_line
from ml_collections import ConfigDict

from alexnet_jax.configs import ablations, alexnet, run131
from alexnet_jax.runs import config_files
from alexnet_jax.runtime import cli
from alexnet_jax.runtime.errors import InputError

ROOT = Path(__file__).parents[2]
MINE = """
from alexnet_jax.configs import cifar10

def get_config(name=""):
  config = cifar10.get_config().unlock()
  config.seed = 7
  config.data_dir = name
  return config
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
  """A folder with a config of the user's, and `configs` of another project."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "my").mkdir()
  (tmp_path / "my" / "base.py").write_text(MINE)
  (tmp_path / "configs").mkdir()
  for name in ("__init__", "alexnet", "quickstart"):
    (tmp_path / "configs" / f"{name}.py").write_text("raise SystemExit(9)\n")
  return tmp_path


def test_config_is_found_by_its_name_or_path(mine):
  def load(path):
    return config_files.load_config(path).to_dict()

  assert load("alexnet") == alexnet.get_config().to_dict()
  assert load("ablations:tanh") == ablations.get_config("tanh").to_dict()
  assert load("my/base.py")["seed"] == 7
  assert load(f"{mine}/my/base.py:here")["data_dir"] == "here"
  changed = load("ablations:tanh,no_mirror@my/base.py")
  assert (changed["seed"], changed["mirror"]) == (7, False)
  assert changed["network"]["activation"] == "tanh"
  assert changed["image_size_px"] == 32


@pytest.mark.parametrize(
  ("path", "words"),
  [
    ("alexnt", ["config='alexnt'", "Did you mean 'alexnet'?", "quickstart"]),
    ("", ["config=''", "alexnet"]),
    ("configs/alexnt.py", ["config='configs/alexnt.py' does not exist"]),
    ("my/base", ["config='my/base' does not exist", ".py file"]),
    ("alexnet:x", ["'alexnet:x'", "takes 0 positional arguments"]),
    ("ablations", ["'ablations'", "missing 1 required", "list"]),
    ("ablations:", ["'ablations:'", "missing 1 required"]),
    ("ablations:tahn", ["'ablations:tahn'", "no ablation 'tahn'"]),
    ("ablations:tanh@cifar1", ["no base 'cifar1'", "'cifar10'"]),
    ("ablations:tanh@my/bas.py", ["no base 'my/bas.py'"]),
    ("my/empty.py", ["'my/empty.py'", "get_config", "configs/alexnet.py"]),
    ("my/none.py", ["'my/none.py'", "returns None"]),
    ("my/cut.py", ["'my/cut.py' cannot be loaded (SyntaxError"]),
  ],
)
def test_config_that_cannot_be_loaded_is_refused(mine, path, words):
  (mine / "my" / "empty.py").touch()
  (mine / "my" / "none.py").write_text("def get_config(): pass")
  (mine / "my" / "cut.py").write_text("def get_config(")
  with pytest.raises(InputError) as error:
    config_files.load_config(path)
  assert all(word in str(error.value) for word in words), error.value
  assert "\n" not in str(error.value)


def read_flags(*words, default="quickstart"):
  """Returns config, name and overrides of a command line, or its error."""
  found = []

  def main(_):
    found.append((*config_files.config(), config_files.overridden()))

  with command_line("x", *words), pytest.raises(SystemExit) as end:
    cli.run(main, lambda: config_files.define_config(default))
  return found[0] if found else end.value.code


@pytest.mark.parametrize("given", [(), ("--config=cifar10",)])
def test_fields_are_overridden_on_the_command_line(given):
  config, name, overridden = read_flags(
    *given, "--config.seed=3", "--config.network.conv1.then=('activation',)"
  )
  assert name == ("cifar10" if given else "quickstart")
  assert overridden == {"seed": 3, "network.conv1.then": ("activation",)}
  assert config.seed == 3
  assert config.network.conv1.then == ("activation",)


@pytest.mark.parametrize(
  ("path", "expected"),
  [
    ("run145", "run145"),
    ("my/base.py:here", "base-here"),
    ("ablations:tanh,no_mirror@cifar10", "ablations-tanh+no_mirror@cifar10"),
    ("ablations:tanh@my/base.py", "ablations-tanh@base"),
  ],
)
def test_name_of_a_config_is_one_folder_and_one_workdir(mine, path, expected):
  """Catches a comma, which would part the workdirs of evaluate."""
  _, name, _ = read_flags(f"--config={path}")
  assert name == expected


@pytest.mark.parametrize(
  ("words", "line"),
  [
    (["--config=alexnt"], "--config='alexnt' is not known. Did you mean"),
    (["--config.sed=1"], "the config has no field 'sed' there; did you mean"),
    (["--config=alexnet", "--config.sed=1"], "the config has no field 'sed'"),
    (["--config.network.conv1.k=1"], "the config has no field 'k' there"),
    (["--config.seed=x"], "flag --config.seed=x: "),
    (["--config.seed=1", "--config=alexnet"], "Found --config.seed=1 in argv"),
  ],
)
def test_bad_config_flags_are_one_line(words, line, capsys):
  assert read_flags(*words) == 1
  err = capsys.readouterr().err
  assert err.startswith(f"error: {line}")
  assert err.count("\n") == 1


def test_list_prints_each_ablation_and_ends_well(capsys):
  assert not read_flags("--config=ablations:list")
  printed = capsys.readouterr().out
  for name, ablation in ablations.ABLATIONS.items():
    assert re.search(rf"^{name} +{re.escape(ablation.change)}$", printed, re.M)
    assert ablation.effect in printed


def test_wheel_finds_its_own_configs_beside_those_of_another(mine):
  """Catches `import configs`, which takes the folder that one works in."""
  setuptools = ROOT / "pyproject.toml"
  packages = tomllib.loads(setuptools.read_text())["tool"]["setuptools"]
  folders = [path.parent for path in ROOT.glob("alexnet_jax/**/__init__.py")]
  names = {".".join(path.relative_to(ROOT).parts) for path in folders}
  assert {*packages["packages"]} == names | {"alexnet_jax.configs"}

  source = mine / "source"
  source.mkdir()
  for name in ("alexnet_jax", "configs", *"pyproject.toml README.md".split()):
    (source / name).symlink_to(ROOT / name)
  build = "from setuptools import build_meta; build_meta.build_wheel('out')"
  subprocess.run(
    [sys.executable, "-c", build], cwd=source, check=True, capture_output=True
  )
  (wheel,) = (source / "out").glob("*.whl")
  zipfile.ZipFile(wheel).extractall(mine / "site")
  code = """if True:
    from alexnet_jax import configs
    from alexnet_jax.runs import config_files
    print(config_files.load_config("alexnet").batch_size)
    print(config_files.load_config("ablations:tanh@my/base.py").seed)
    print(configs.__file__)
  """
  result = subprocess.run(
    [sys.executable, "-c", code],
    cwd=mine,
    env=os.environ | {"PYTHONPATH": str(mine / "site")},
    capture_output=True,
    text=True,
  )
  installed = mine / "site" / "alexnet_jax" / "configs" / "__init__.py"
  assert result.stdout.split() == ["128", "7", str(installed)], result.stderr


def changed(fields, base=alexnet):
  """Returns a config with fields of any type, which a flag refuses."""
  tree = base.get_config().to_dict()
  for name, value in fields.items():
    *path, last = name.split(".")
    inner = tree
    for key in path:
      inner = inner[key]
    inner[last] = value
  return ConfigDict(tree)


def refusal(config):
  """Returns the one line in which `check` refuses a config.

  It begins with the flag of the field, which is left out here.
  """
  with pytest.raises(InputError) as error:
    config_files.check(config)
  line = str(error.value)
  assert "\n" not in line
  assert line.startswith("--config.")
  return line.removeprefix("--config.")


OURS = {path.stem for path in config_files.CONFIGS.glob("[a-z]*.py")}


@pytest.mark.parametrize("name", sorted(OURS - {"ablations"}))
def test_config_of_ours_is_accepted(name):
  """Also run131, whose rates name layers inside branches."""
  config_files.check(config_files.load_config(name))


def test_config_read_back_from_json_is_accepted():
  """There tuples are lists."""
  config = changed({
    "learning_rate_of_layers": [[67.0, "conv1", 1e-5], [72, "fc6/bias", 0]],
    "weight_decay_of_layers": [["fc6", 3.0]],
    "network.dropout_rate_of_layers": [["fc6", 0.25]],
    "network.conv1.then": ["activation", "lrn"],
    "learning_rate_drop_epochs": [25.0, 51],
    "learning_rate": 1,
  })  # fmt: skip
  config_files.check(config)


FIELDS = config_files.flatten(alexnet.get_config().to_dict())
ROW = re.compile(r"network\.(?:conv|fc)\d\.(\w+)")


def test_every_number_has_a_range_and_every_range_a_field():
  numbers, rows = set(config_files.MAY_BE_NONE), set()
  for name, value in FIELDS.items():
    if type(value) in (int, float):
      if row := ROW.fullmatch(name):
        rows.add(row[1])
      else:
        numbers.add(name)
  numbers -= set(config_files.CHOICES)
  assert set(config_files.RANGES) == numbers | set(config_files.TUPLES)
  assert set(config_files.ROW_RANGES) == rows
  assert set(config_files.CHOICES) <= set(FIELDS)
  # A whole number has whole bounds.
  for name, (low, high) in config_files.RANGES.items():
    value = FIELDS[name]
    if type(value) in (int, float):
      assert type(low) is type(value), name
    assert low < high


BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "true": True}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_what_is_no_number_is_refused_in_every_field(bad):
  rows = [name for name in FIELDS if ROW.fullmatch(name)]
  rows = [n for n in rows if ROW.fullmatch(n)[1] in config_files.ROW_RANGES]
  for name in (*config_files.RANGES, *rows):
    value = (bad,) * 3 if name in config_files.TUPLES else bad
    assert refusal(changed({name: value})).startswith(f"{name}={bad!r} must be")


def test_what_is_out_of_range_or_of_another_type_is_refused_in_every_field():
  for name, (low, high) in config_files.RANGES.items():
    whole = isinstance(low, int)
    out = (low - 1, high + 1, 2.5, 10**400) if whole else (-1.0, 3e9, 10**400)
    for bad in (*out, "2", None, (2,)):
      if bad is None and name in config_files.MAY_BE_NONE:
        continue
      value = (bad,) * 3 if name in config_files.TUPLES else bad
      line = refusal(changed({name: value}))
      assert line.startswith(f"{name}={bad!r} must be "), line


# One value for each rule and side, and what is said of it.
REFUSED = [
  ({"total_epochs": 0.0}, "total_epochs=0.0 must be at least 1e-38"),
  ({"total_steps": 0}, "total_steps=0 must be whole, at least 1"),
  ({"total_steps": 2**31}, "total_steps=2147483648 .* at most 2147483647"),
  ({"images_per_view": 2**31}, "images_per_view"),
  ({"batch_size": 0}, "batch_size=0 must be whole, at least 1"),
  ({"microbatches": 0}, "microbatches=0"),
  ({"ensemble": 0}, "ensemble=0"),
  ({"device_cache_fraction": 1.5}, "device_cache_fraction=1.5 .* at most 1"),
  ({"seed": 2**31}, "seed=2147483648 .* at most 2147483647"),
  ({"momentum": 1.0}, "momentum=1.0 .* at most 0.999999"),
  ({"stop_at_train_error": 1.0}, "stop_at_train_error=1.0"),
  ({"dexp_rates": 10**9}, "dexp_rates=1000000000 .* at most 1000"),
  ({"target_factor": 0.5}, "target_factor=0.5 must be at least 1"),
  ({"num_classes": 1}, "num_classes=1 must be whole, at least 2"),
  ({"test_views": 5}, "test_views=5 is not known.* Known: 1, 10"),
  ({"learning_rate_drop_epochs": ("a",)}, "learning_rate_drop_epochs='a'"),
  ({"input_scale": (1.0, 2.0)}, "input_scale=.* three numbers"),
  ({"input_scale": (1.0, 2.0, 0.0)}, "input_scale=0.0"),
  ({"crop_size_px": 0}, "crop_size_px=0"),
  ({"crop_size_px": 257}, "crop_size_px=257 .* --config.image_size_px=256"),
  ({"schedule": "plateu"}, "schedule='plateu' .* 'plateau'"),
  ({"schedule": "plateau", "validation_split": ""}, "=.*schedule=linear"),
  ({"optimizer": "adam"}, "optimizer='adam' .* lars, sgd"),
  ({"batch_scaling": "sqr"}, "batch_scaling='sqr' .* 'sqrt'"),
  ({"compute_dtype": "float8"}, "compute_dtype='float8' .* bfloat16"),
  ({"layout": "ring"}, "layout='ring' .* towers"),
  ({"network.activation": "rleu"}, "network.activation='rleu' .* 'relu'"),
  ({"network.towers": 0}, "network.towers=0 must be whole, at least 1"),
  ({"network.pool_window": 1}, "network.pool_window=1 .* 2, at most 11"),
  ({"network.pool_window": 12}, "network.pool_window=12"),
  ({"network.pool_stride": 0}, "network.pool_stride=0"),
  ({"network.dropout_rate": 1.5}, "network.dropout_rate=1.5 .* most 0.999"),
  ({"network.dropout_rate": -0.1}, "network.dropout_rate=-0.1 .* least 0"),
  ({"network.lrn.k": 0.0}, "network.lrn.k=0.0"),
  ({"network.lrn.alpha": -1e-4}, "network.lrn.alpha=-0.0001"),
  ({"network.map_norm.beta": -1.0}, "network.map_norm.beta=-1.0"),
  ({"network.lrn.window": 0}, "network.lrn.window=0"),
  ({"network.lrn.window": 10**9 + 1}, "network.lrn.window=.* at most 99"),
  ({"network.lrn.window": 4}, "network.lrn.window=4 must be odd"),
  ({"network.map_norm.window": 2}, "network.map_norm.window=2 must be odd"),
  ({"network.conv1.filters": -96}, "network.conv1.filters=-96"),
  ({"network.conv1.filters": 9.5}, "network.conv1.filters=9.5 must be whole"),
  ({"network.conv1.kernel": 0}, "network.conv1.kernel=0"),
  ({"network.conv1.stride": 0}, "network.conv1.stride=0"),
  ({"network.conv1.padding": -1}, "network.conv1.padding=-1 .* at least 0"),
  ({"network.conv1.sigma": 0.0}, "network.conv1.sigma=0.0"),
  ({"network.conv1.bias": 2e6}, "network.conv1.bias=2000000.0"),
  ({"network.fc6.units": 0}, "network.fc6.units=0"),
  ({"network.fc6.bias": None}, "network.fc6.bias=None must be at least"),
  ({"network.conv1.then": ("lnr",)}, "network.conv1.then='lnr' .* 'lrn'"),
  ({"network.conv1.then": (3, None)}, "network.conv1.then=3 is not known"),
  ({"network.fc6.then": ("activation", "")}, "network.fc6.then='' .* dropout"),
  ({"network.layers": ("conv1", "conv9", "fc8")}, "network.layers='conv9'"),
  ({"network.layers": ("lrn", "fc8")}, "network.layers='lrn' is not known"),
  ({"network.layers": (1, "fc8")}, "network.layers=1 is not known"),
  ({"network.layers": ()}, "network.layers=\\(\\) .*num_classes=1000"),
  ({"network.layers": ("conv1", "fc7")}, "'fc7'\\) .*num_classes=1000"),
  ({"network.layers": ("conv1", "conv2")}, "end in a fully connected layer"),
  ({"network.layers": ("conv1", "fc6", "fc6", "fc8")}, "'fc6' twice"),
  ({"reinit_layers": ("fc9",)}, "reinit_layers='fc9' is not .* 'fc8'"),
  ({"weight_decay_of_layers": ("fc6",)}, "'fc6', which is not .layer, decay"),
  ({"weight_decay_of_layers": (("fc6/bias", 3.0),)}, "='fc6/bias' is not"),
  ({"weight_decay_of_layers": (("fc6", -3.0),)}, "layers: decay=-3.0"),
  ({"network.dropout_rate_of_layers": (("fc9", 0.2),)}, "layers='fc9' is not"),
  ({"network.dropout_rate_of_layers": (("fc6", 1),)}, ": rate=1 .* most 0.999"),
  ({"network.dropout_rate_of_layers": ("fc6",)}, "'fc6', which is not .layer,"),
]  # fmt: skip
REFUSED += [
  ({"learning_rate_of_layers": entries}, f"learning_rate_of_layers{words}")
  for entries, words in (
    (((67.0, "conv1"),), " holds .*, which is not .epoch, layer, rate."),
    ((67.0, "conv1", 0.0), " holds 67.0, which is not .epoch, layer, rate."),
    (((67.0, "conv9", 0.0),), "='conv9' .* Known: conv1, .*fc6/bias"),
    (((67.0, "conv1/bais", 0.0),), "='conv1/bais' .* 'conv1/bias'"),
    (((67.0, 1, 0.0),), "=1 is not known"),
    (((67.0, "conv1", -1e-5),), ": rate=-1e-05 must be at least 0"),
    (((67.0, "conv1", "low"),), ": rate='low'"),
    (((67.0, "conv1", math.nan),), ": rate=nan"),
    (((-1.0, "conv1", 0.0),), ": epoch=-1.0"),
    (((math.inf, "conv1", 0.0),), ": epoch=inf"),
  )
]


@pytest.mark.parametrize(("fields", "line"), REFUSED)
def test_bad_field_is_refused_with_its_rule(fields, line):
  assert re.match(f".*{line}", refusal(changed(fields)))


def test_a_word_for_a_truth_value_is_refused():
  """As `"no"`, which Python takes for true."""
  config = changed({"mirror": "no"})
  assert "mirror='no' must be True or False" in refusal(config)


def test_config_that_lacks_a_field_is_refused():
  config = changed({})
  del config.momentum
  with pytest.raises(InputError, match="no field 'momentum'"):
    config_files.check(config)


IN_BRANCHES = [
  ({"network.conv2_sum.branches": (("conv9",),)}, "branches='conv9' is not"),
  ({"network.conv2_sum.branches": ("conv1",)}, "branches='conv1' .* a comma"),
  ({"network.conv2_sum.branches": ()}, "conv2_sum.branches names no row"),
  ({"network.dropout_rate_of_layers": (("conv3", 0.2),)}, "='conv3' is not "),
  ({"network.blur.window": 8}, "network.blur.window=8 must be odd"),
  ({"network.conv2_sum.branches": ((), ("conv3",))}, "'conv3' twice"),
  ({"network.conv2_sum.branches": (("conv2_sum",),)}, "'conv2_sum' twice"),
  ({"network.conv2.then": ("lnr",)}, "network.conv2.then='lnr' .* 'lrn'"),
  ({"network.conv2_image.filters": 0}, "network.conv2_image.filters=0"),
  ({"network.blur0.then": ("blurr",)}, "network.blur0.then='blurr' .* 'blur'"),
  ({"weight_decay_of_layers": (("blur0", 0.0),)}, "='blur0' is not .* conv1, "),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "line"), IN_BRANCHES)
def test_bad_row_inside_branches_is_refused(fields, line):
  assert re.match(f".*{line}", refusal(changed(fields, base=run131)))
