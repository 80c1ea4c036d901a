"""The command that `prepare` prints: for each data set one that works."""

import re
import shlex

import drawn_runs
import numpy as np
import pytest
from commands import command_line, run_in_process
from PIL import Image
from tiny_runs import records

from alexnet_jax import networks
from alexnet_jax.runs import config_files, run_files
from alexnet_jax.runtime import cli
from alexnet_jax.tools import prepare

pytestmark = pytest.mark.usefixtures("quick_compilation")
SPLITS = {"validation": 100, "test": 100}


def flags(**fields):
  return [f"--config.{name}={value}" for name, value in fields.items()]


def first_line(size_px, train=1000, **splits):
  """The line with the command, before any step is timed."""
  counts = {"train": train, **(splits or SPLITS)}
  return next(prepare.advice("my data/x", size_px, counts, 5))


def config_of(line):
  """The config of a printed command, as `train` reads it."""
  words = shlex.split(line.removeprefix("to train: alexnet train "))
  found = []
  with command_line("train", *(w for w in words if "workdir" not in w)):
    with pytest.raises(SystemExit):
      cli.run(
        lambda _: found.extend(config_files.config()),
        config_files.define_config,
      )
  return found[0]


@pytest.mark.parametrize(
  ("size_px", "train", "name"),
  [
    (31, 10**6, ""), (32, 100, "small:32"), (63, 100, "small:63"),
    (64, 100, "finetune"), (64, 10**6, "finetune"), (65, 100, "small:65"),
    (223, 10**6, "small:223"), (224, 99_999, "small:224"),
    (224, 100_000, "alexnet"), (256, 99_999, "small:256"),
    (256, 10**6, "alexnet"), (257, 99_999, ""), (300, 10**6, "alexnet"),
  ],
)  # fmt: skip
def test_config_is_chosen_by_size_and_count(size_px, train, name):
  line = first_line(size_px, train)
  assert line.startswith("to train: ") == bool(name)
  if name:
    words = shlex.split(line.removeprefix("to train: "))
    assert words[:3] == ["alexnet", "train", f"--config={name}"]
  else:
    assert f"{size_px} px" in line
    assert "32 to 256" in line


@pytest.mark.parametrize("size_px", [*range(32, 257, 7), 64, 256])
def test_a_net_has_room_in_the_images_that_it_is_printed_for(size_px):
  """The paper's net on images of 32 px ends in a map of no pixel."""
  if size_px == 64:
    return  # The net is that of another run; it is trained on below.
  config = config_of(first_line(size_px))
  assert config.image_size_px == size_px
  assert config.num_classes == 5
  assert config.data_dir == "my data/x"
  config_files.check(config)
  networks.make_model(config)


def test_splits_that_are_missing_are_left_out_of_the_command():
  config = config_of(first_line(256, 10**6, test=10))
  assert (config.validation_split, config.schedule) == ("", "linear")
  config = config_of(first_line(100, 10**6, validation=10))
  assert (config.test_split, config.schedule) == ("", "linear")
  assert config.batch_size == 64


@pytest.mark.parametrize(("train", "batch"), [(64, 64), (63, 56), (7, 7)])
def test_a_batch_is_no_larger_than_the_data(train, batch):
  """And has as many images on each of the tests' 8 devices, if it can."""
  assert config_of(first_line(100, train)).batch_size == batch


def save(path, pixels, mode=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels, mode).save(path)


def add_pictures(folder, classes, count, size_px=40, seed=0):
  rng = np.random.default_rng(seed)
  for name in classes:
    for i in range(count):
      pixels = rng.integers(0, 256, (size_px, size_px + 9, 3), np.uint8)
      save(folder / name / f"{i}.png", pixels)
  return folder


def train_as_printed(output, capsys, **fields):
  """Runs the command that `prepare` printed, for two steps."""
  (line,) = (x for x in output.splitlines() if x.startswith("to train: "))
  words = shlex.split(line.removeprefix("to train: alexnet "))
  fields = {"total_steps": 2, "test_views": 1, **fields}
  result = run_in_process(capsys, *words, *flags(**fields))
  assert result.returncode == 0, result.stderr
  (workdir,) = (w.split("=")[1] for w in words if w.startswith("--workdir="))
  return workdir


@pytest.mark.slow
def test_what_is_printed_trains_to_its_end(tmp_path, capsys, monkeypatch):
  """On images of all kinds, fewer than a batch; one is alone in its class.

  And what is said of the time and the disk is true.
  """
  monkeypatch.chdir(tmp_path)
  rng = np.random.default_rng(0)
  shapes = {"gray": (40, 40), "rgba": (40, 40, 4), "large": (512, 512, 3)}
  for name, shape in shapes.items():
    for i in range(10):
      pixels = rng.integers(0, 256, shape, np.uint8)
      save(tmp_path / "in" / name / f"{i}.png", pixels)
  add_pictures(tmp_path / "in", ["alone"], 1)
  words = ["--source=in", "--output=it's", "--size=32", "--workers=0"]
  prepared = run_in_process(capsys, "prepare", *words)
  assert prepared.returncode == 0, prepared.stderr
  for said in (
    "note: train has at most one image of each of: alone\n",
    "note: validation has no image of each of: alone\n",
    "note: test has no image of each of: alone\n",
    "prepare with --size=64",
    "--config.batch_size=24",
  ):
    assert said in prepared.stdout
  epoch = re.search(r"epoch takes about ([\d.]+) s on this", prepared.stdout)
  assert 0.01 < float(epoch[1]) < 60
  workdir = tmp_path / train_as_printed(prepared.stdout, capsys)
  assert (records(workdir)[-1]["split"], records(workdir)[-1]["step"]) == (
    "test", 2,
  )  # fmt: skip
  names, _ = run_files.read_run_metadata(workdir, 32)
  assert names == ("alone", "gray", "large", "rgba")
  (size,) = re.findall(r"checkpoint (\d+) MB", prepared.stdout)
  files = (workdir / "checkpoints" / "2").rglob("*")
  found = sum(file.stat().st_size for file in files if file.is_file())
  assert 0.8 < found / (int(size) * 1e6) < 1.25


@pytest.mark.slow
def test_what_is_printed_for_64_px_tunes_a_net(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  add_pictures(tmp_path / "in", "ab", 20)
  sizes = {"image_size_px": 64, "crop_size_px": 56}
  layers = {"network.layers": ("conv1", "fc8"), "network.conv1.kernel": 5}
  config = drawn_runs.small_config(**sizes, **layers)
  _, mean = drawn_runs.write_run(tmp_path / "net", config)
  words = ["--source=in", "--output=data", "--size=64", "--workers=0"]
  prepared = run_in_process(capsys, "prepare", *words)
  assert prepared.returncode == 0, prepared.stderr
  workdir = tmp_path / train_as_printed(
    prepared.stdout, capsys, init_from="net"
  )
  assert records(workdir)[-1]["split"] == "test"
  np.testing.assert_array_equal(np.load(workdir / "mean_image.npy"), mean)


def test_a_device_is_no_source(tmp_path, capsys):
  """/dev/zero has no end."""
  words = ["--source=/dev/zero", f"--output={tmp_path / 'out'}"]
  result = run_in_process(capsys, "prepare", *words)
  assert result.returncode == 1
  assert "source='/dev/zero' is no file or folder" in result.stderr
  (tmp_path / "in" / "a").mkdir(parents=True)
  (tmp_path / "in" / "a" / "0.png").symlink_to("/dev/zero")
  add_pictures(tmp_path / "in", "bc", 1)
  words = [f"--source={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
  result = run_in_process(capsys, "prepare", *words, "--workers=0")
  assert result.returncode == 1
  assert len(result.stderr) < 2000
  assert "Traceback" not in result.stderr
