"""The data set of a run: bad data are found before it begins."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import drawn_runs
import numpy as np
import pytest
from commands import run_in_process
from directories import write_shards
from PIL import Image
from process_runs import free_address

from alexnet_jax.configs import quickstart
from alexnet_jax.data import batches, statistics
from alexnet_jax.runs import (
  checkpoint,
  config_files,
  run_data,
  run_files,
  trained,
)
from alexnet_jax.runtime import errors, machine
from alexnet_jax.tools.evaluate import evaluate_runs

SIZE_PX = 32
CLASSES = ["ant", "bee", "cat"]
COUNTS = {"train": 48, "validation": 12, "test": 15}


def encode(item):
  """A picture of its own for each item, perhaps cut."""
  number, cut = item
  rng = np.random.default_rng(number)
  pixels = rng.integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG")
  return pixels, file.getvalue()[: -300 if cut else None]


def write(directory, labels=None, cut="", first=0):
  """Three splits; some with other labels, or with an image that is cut."""
  splits, start = {}, first
  for split, count in COUNTS.items():
    of_split = (labels or {}).get(split, [i % 3 for i in range(count)])
    items = [
      ((start + i, cut == split and i == 5), of_split[i]) for i in range(count)
    ]
    splits[split], start = items, start + count
  return write_shards(directory, splits, CLASSES, SIZE_PX, encode)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return write(tmp_path_factory.mktemp("run_data") / "data")


@pytest.fixture
def unmeasured(tmp_path):
  directory = write(tmp_path / "data")
  for name in statistics.FILES:
    (directory / name).unlink()
  return directory


def config(directory, **changes):
  known = quickstart.get_config()
  with known.unlocked():
    known.update(
      data_dir=str(directory),
      num_classes=3,
      image_size_px=SIZE_PX,
      batch_size=16,
      reader_threads=2,
      **changes,
    )
  return known


def open_data(config, workdir="no/run", resumes=False):
  config_files.check(config)
  return run_data.open_data(config, Path(workdir), resumes)


def refused(config):
  with pytest.raises(errors.DataError) as error:
    open_data(config)
  assert "\n" not in str(error.value)
  return str(error.value)


def follow(config, text):
  """Passes the flags that an error names."""
  flags = re.findall(r"--config\.(\w+)=('[^']*'|\w+)", text)
  assert flags
  with config.unlocked():
    config.update({name: value.strip("'") for name, value in flags})
  return config


# Bad data.


@pytest.mark.parametrize("split", COUNTS)
@pytest.mark.parametrize("fault", ["label -1", "label 3", "cut"])
def test_bad_data_of_any_split_are_found_before_the_first_step(
  tmp_path, split, fault
):
  """A run would end by them after its last step, and strand there."""
  labels = [i % 3 for i in range(COUNTS[split])]
  if fault != "cut":
    labels[7] = int(fault.split()[1])
  cut = split if fault == "cut" else ""
  given = config(write(tmp_path / "data", {split: labels}, cut))
  text = refused(given)
  assert re.search(
    rf"example \d+ of --config.{split}_split='{split}' in ", text
  )
  if split == "train":
    assert text.count("--config") == 1
  else:
    assert split not in open_data(follow(given, text)).splits


@pytest.mark.parametrize(("bad", "found"), [(0, True), (1, False), (599, True)])
def test_a_bad_example_beyond_the_sample_is_found_at_its_step(
  tmp_path, bad, found
):
  """Of 600, a sample of 256 has the first and the last, but not the second."""
  images = [encode((i, False))[1] for i in range(600)]

  def make(name, labels):
    items = [((i, False), label) for i, label in enumerate(labels)]
    splits = {"train": items, "validation": items[1:13]}
    directory = write_shards(tmp_path / name, splits, CLASSES, SIZE_PX, encode)
    return config(directory, test_split="")

  good = [1] * 600
  shuffled = open_data(make("good", good)).splits["train"]
  good[images.index(shuffled[bad].image)] = 3
  given = make("bad", good)
  if found:
    assert f"example {bad} of --config.train_split=" in refused(given)
    return
  train = open_data(given).splits["train"]
  with pytest.raises(errors.DataError, match=f"example {bad} of --config.tra"):
    batches.load(train, np.arange(3), SIZE_PX)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_whose_labels_are_secret_is_said_to_have_none(tmp_path, split):
  data = write(tmp_path / "data", {split: [-1] * COUNTS[split]})
  given = config(data)
  text = refused(given)
  assert f"{split}_split='{split}' in {str(data)!r} has no labels" in text
  assert split not in open_data(follow(given, text)).splits


def test_the_test_split_may_change(data):
  """Only what training reads is compared when a run resumes."""
  with_test = open_data(config(data)).fingerprint
  assert with_test == open_data(config(data, test_split="")).fingerprint
  for split in COUNTS:
    assert any(f"-{split}." in file for file in with_test) == (split != "test")


# Splits that overlap.


def pictures(examples):
  return {examples[index].image for index in range(len(examples))}


@pytest.mark.parametrize(
  "splits",
  [
    ("train", "validation", "test"),
    ("train[:90%]", "train[90%:]", "train[90%:]"),
    ("train", "validation", "validation"),
    ("train[:90%]", "train[80%:]", "train[40:44]"),
    ("train+test[:3]", "test", "validation"),
    ("train", "train", ""),
  ],
)
def test_shared_examples_are_told_of(data, splits, capsys):
  """By the pictures, each of which is there once. Two equal splits may be."""
  fields = ("train_split", "validation_split", "test_split")
  opened = open_data(config(data, **dict(zip(fields, splits, strict=True))))
  line = capsys.readouterr().out
  train = pictures(opened.splits["train"])
  expected = {
    f"{name}_split='{opened.splits[name].split}'": len(shared)
    for name in ("validation", "test")
    if name in opened.splits
    and (shared := train & pictures(opened.splits[name]))
  }
  found = re.findall(
    r"(\w+_split='[^']*') has (\d+) examples of --config.tr", line
  )
  assert {name: int(count) for name, count in found} == expected
  assert line.count("\n") == bool(expected)


# The mean image.


@pytest.fixture
def decoded(monkeypatch):
  """Numbers of images that were decoded, call by call."""
  load, counts = batches.load, []

  def counting(examples, indices, size_px):
    counts.append(len(indices))
    return load(examples, indices, size_px)

  monkeypatch.setattr(batches, "load", counting)
  return counts


def begin(config, workdir):
  """Opens the data of a new run, and writes what it keeps of them."""
  opened = open_data(config, workdir)
  workdir.mkdir(exist_ok=True)
  run_files.write_run_metadata(workdir, opened.class_names, opened.statistics)
  return opened


def test_a_run_measures_its_data_once(unmeasured, tmp_path, decoded):
  """Hours of ImageNet, again at every start of a run that is killed early."""
  given, workdir = config(unmeasured), tmp_path / "run"
  first = begin(given, workdir)
  samples = sum(COUNTS.values())  # All are fewer than a sample.
  assert sum(decoded) == samples + COUNTS["train"]
  for resumes in (False, True):
    decoded.clear()
    again = open_data(given, workdir, resumes)
    assert sum(decoded) == samples
    for name, values in vars(first.statistics).items():
      np.testing.assert_array_equal(getattr(again.statistics, name), values)
  checkpoint.write_params(workdir, {"weights": np.zeros(3)})
  run_files.write_config(workdir, given)
  decoded.clear()
  open_data(config(unmeasured, init_from=str(workdir), init_inherits=True))
  assert sum(decoded) == samples


def test_a_run_that_lost_its_mean_image_measures_it_again(unmeasured, tmp_path):
  """Follows the remedy of the error for a damaged one."""
  given, workdir = config(unmeasured), tmp_path / "run"
  first = begin(given, workdir)
  np.save(workdir / "mean_image.npy", np.zeros(3, np.float32))
  with pytest.raises(errors.InputError, match="remove both"):
    open_data(given, workdir, resumes=True)
  for name in statistics.FILES:
    (workdir / name).unlink()
  again = open_data(given, workdir, resumes=True)
  for name, values in vars(first.statistics).items():
    np.testing.assert_array_equal(getattr(again.statistics, name), values)


def test_classes_in_another_order_are_other_data(tmp_path):
  directory = write(tmp_path / "data")
  before = open_data(config(directory)).fingerprint
  (directory / "label.labels.txt").write_text("bee\nant\ncat\n")
  after = open_data(config(directory)).fingerprint
  assert {k for k in before if before[k] != after[k]} == {"class names"}


@pytest.mark.parametrize("what", ["split", "files"])
def test_other_images_are_measured_anew(unmeasured, tmp_path, what):
  """What a killed run has left is not the mean of these."""
  begin(config(unmeasured), tmp_path / "run")
  split = "train[:50%]" if what == "split" else "train"
  if what == "files":
    other = write(tmp_path / "other" / "data", first=1000)
    for file in other.glob("*-train.*"):
      file.replace(unmeasured / file.name)
  opened = begin(config(unmeasured, train_split=split), tmp_path / "run")
  train = opened.splits["train"]
  images = batches.load(train, np.arange(len(train)), SIZE_PX)["image"]
  np.testing.assert_allclose(opened.statistics.mean_image, images.mean(0), 1e-6)


SHAPES = {
  "another size": lambda mean: mean[:16, :16],
  "a wider one": lambda mean: np.repeat(mean, 4, 1),
  "float64": lambda mean: mean.astype(np.float64),
  "not finite": lambda mean: np.where(mean > mean.min(), mean, np.nan),
}


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES.keys())
def test_a_mean_image_of_another_kind_is_refused_wherever(
  tmp_path, data, change
):
  """A mean of 128 px in a run of 64 px made 80.35 % of error 87.75 %."""
  workdir = tmp_path / "run"
  opened = begin(config(data), workdir)
  file = workdir / "mean_image.npy"
  np.save(file, change(opened.statistics.mean_image))
  with pytest.raises(errors.InputError) as error:
    open_data(config(data), workdir, resumes=True)
  assert "\n" not in str(error.value)
  assert "copy both from the data set" in str(error.value)
  file.write_bytes((data / "mean_image.npy").read_bytes())
  open_data(config(data), workdir, resumes=True)


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES.keys())
def test_a_mean_image_of_another_kind_in_a_data_set_is_refused(
  tmp_path, change
):
  directory = write(tmp_path / "data")
  mean = np.load(directory / "mean_image.npy")
  np.save(directory / "mean_image.npy", change(mean))
  with pytest.raises(errors.InputError, match="remove both") as error:
    open_data(config(directory))
  assert "\n" not in str(error.value)
  for name in statistics.FILES:
    (directory / name).unlink()
  measured = open_data(config(directory)).statistics.mean_image
  assert np.abs(measured - mean).mean() < 10  # JPEG changes noise.


@pytest.mark.parametrize("size_px", [16, 260])
def test_data_of_another_size_than_a_trained_net_are_refused(
  data, tmp_path, capsys, size_px
):
  """Crops of another scale, under a mean image that was cut to fit.

  The remedy works as it is printed, for training and for evaluation.
  """
  layers = {"network.layers": ("conv1", "fc8"), "network.conv1.kernel": 5}
  sizes = {"image_size_px": size_px, "crop_size_px": size_px - 4}
  source = tmp_path / "source"
  _, mean = drawn_runs.write_run(
    source, drawn_runs.small_config(num_classes=3, **layers, **sizes), CLASSES
  )
  given = config(data, init_from=str(source), init_inherits=True)
  inherited = trained.with_pretrained_net(given, {}, tmp_path / "run")
  texts = []
  with pytest.raises(errors.InputError) as error:
    open_data(inherited)
  texts.append(str(error.value))
  with pytest.raises(errors.InputError) as error:
    evaluate_runs([source], data_dir=str(data))
  texts.append(str(error.value))
  assert texts[0] == texts[1]
  assert f"={size_px} but the images in {str(data)!r} have 32 px" in texts[0]
  assert "--config.image_size_px" not in texts[0]
  words = shlex.split(texts[0].partition("alexnet prepare ")[2].rstrip("."))
  result = run_in_process(capsys, "prepare", *words, "--workers=0")
  assert result.returncode == 0, result.stderr
  with inherited.unlocked():
    inherited.data_dir = words[-1].removeprefix("--output=")
  opened = open_data(inherited)
  np.testing.assert_array_equal(opened.statistics.mean_image, mean)
  assert {k: len(x) for k, x in opened.splits.items()} == COUNTS
  shutil.rmtree(inherited.data_dir)


def test_a_size_that_is_not_the_inherited_mean_image_s_is_refused(
  data, tmp_path
):
  source = tmp_path / "source"
  drawn_runs.write_run(source, drawn_runs.small_config())
  given = config(data, init_from=str(source), init_inherits=True)
  with pytest.raises(errors.InputError) as error:
    open_data(given)
  line = str(error.value)
  assert line.startswith("--config.image_size_px=32 but ")
  assert "are for 72 px; leave --config.image_size_px out." in line


def test_a_batch_larger_than_the_data_is_refused(data):
  """The flag in the message is the remedy."""
  given = config(data, **{"train_split": "train[:9]"})
  with pytest.raises(errors.InputError, match=r"batch_size=16 .*=9,") as error:
    open_data(given)
  with given.unlocked():
    given.batch_size = int(re.search("size=(9)", str(error.value))[1])
  open_data(given)


PROCESS = """
import json, sys
from pathlib import Path
import numpy as np
from alexnet_jax.data import batches, feed
from alexnet_jax.parallel import layouts, placement
from alexnet_jax.runs import run_data
from alexnet_jax.runtime import hosts
from ml_collections import ConfigDict

load, counts = batches.load, []
def counting(examples, indices, size_px):
  counts.append(len(indices))
  return load(examples, indices, size_px)
batches.load = counting
address, me, config, output = sys.argv[1:]
with hosts.initialize(address, 2, int(me), 60):
  config = ConfigDict(json.loads(config))
  opened = run_data.open_data(config, Path("no/run"), False)
  decoded = sum(counts)
  layout, mesh = layouts.Layout("data", 2, 1, 16), placement.make_mesh()
  batches_ = feed.Feed(opened.splits["train"], config, layout, mesh)
  pool = {k: v.addressable_data(0) for k, v in batches_.pool.items()}
  mean = opened.statistics.mean_image
  memory = feed._device_memory(mesh)
  np.savez(output, decoded=decoded, mean=mean, memory=memory, **pool)
"""


@pytest.mark.slow
def test_one_process_measures_and_all_hold_the_pool(unmeasured, tmp_path):
  """Those of one machine share its memory."""
  address, given = free_address(), config(unmeasured)
  outputs = [tmp_path / f"{me}.npz" for me in range(2)]
  running = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, address, str(me), given.to_json(), file],
      env=os.environ | {"XLA_FLAGS": ""},  # One device each.
    )
    for me, file in enumerate(outputs)
  ]
  for process in running:
    assert process.wait(timeout=120) == 0
  samples, count = sum(COUNTS.values()), COUNTS["train"]
  examples = open_data(given).splits["train"]
  expected = batches.load(examples, np.arange(count), SIZE_PX)
  expected["mean"] = expected["image"].mean(0, np.float64).astype(np.float32)
  for file, measured in zip(outputs, (count, 0), strict=True):
    with np.load(file) as found:
      assert found["decoded"] == samples + measured
      assert found["memory"] == machine.memory_bytes() / 2
      for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
