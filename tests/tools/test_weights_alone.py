"""Folders with weights alone, as `convert` writes them, in place of runs."""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from commands import assert_refused, run_in_process
from drawn_runs import write_run_on_shapes
from PIL import Image

import alexnet_jax
from alexnet_jax import networks
from alexnet_jax.configs import finetune
from alexnet_jax.runs import run_data, run_files, states, trained
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.tools.convert import command, exports

WEIGHTS = "weights.safetensors"
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """data, a run on it, and net: the weights of the run."""
  place = tmp_path_factory.mktemp("place")
  write_run_on_shapes(place, 28, train=60, validation=20, test=30)
  command.export_run(place / "run", place / "net", "safetensors")
  return place


@pytest.fixture
def pretrained(place, monkeypatch):
  """The net as the one that ships with the package."""
  monkeypatch.setattr(run_files, "PRETRAINED", place / "net")
  return place / "net"


@pytest.fixture
def copy(place, tmp_path):
  return shutil.copytree(place / "net", tmp_path / "net")


def contents(folder):
  return {x.name: x.read_bytes() for x in folder.iterdir()}


def read(data):
  """Returns the metadata of weights, whose order is any, and the rest."""
  size = int.from_bytes(data[:8], "little")
  return json.loads(data[8 : 8 + size]), data[8 + size :]


def rewrite(folder, change, **metadata):
  """Writes the weights again after a change of each array."""
  arrays = safetensors.numpy.load_file(folder / WEIGHTS)
  arrays = {name: change(name, x) for name, x in arrays.items()}
  safetensors.numpy.save_file(arrays, folder / WEIGHTS, metadata)


@pytest.mark.slow
def test_commands_answer_as_for_the_run(place, tmp_path, capsys):
  assert {*contents(place / "net")} == {
    WEIGHTS, "config.json", "class_names.json", "mean_image.npy",
    "colour_pca.json",
  }  # fmt: skip
  Image.fromarray(IMAGES[0]).save(tmp_path / "picture.png")
  said = {}
  for name in ("run", "net"):
    flag, out = f"--workdir={place / name}", tmp_path / name
    results = [
      run_in_process(capsys, *words)
      for words in (
        ("evaluate", flag),
        ("predict", flag, tmp_path / "picture.png"),
        ("convert", f"--from={place / name}", "--to=safetensors",
         f"--output={out}"),
      )
    ]  # fmt: skip
    assert [x.stderr for x in results] == [""] * len(results)
    said[name] = [x.stdout.replace(str(out), "") for x in results]
    ours, theirs = contents(out), contents(place / "net")
    assert read(ours.pop(WEIGHTS)) == read(theirs.pop(WEIGHTS))
    assert ours == theirs
  assert said["net"] == said["run"]


def test_step_is_that_of_the_run(place, copy, tmp_path):
  rewrite(copy, lambda _, x: x, step="70", producer="alexnet_jax")
  model = alexnet_jax.load(copy)
  assert model.step == 70
  again = exports.write(model, "safetensors", tmp_path)
  assert read(contents(copy)[WEIGHTS]) == read(again.read_bytes())


def test_weights_of_16_bits_are_computed_with_in_32(place, copy):
  rewrite(copy, lambda _, x: x.astype(np.float16))
  whole, half = (alexnet_jax.load(x) for x in (place / "net", copy))
  (ours,), (theirs,) = half.members, whole.members

  def check(a, b):
    assert a.dtype == np.float32
    assert (np.asarray(a) == np.asarray(b).astype(np.float16)).all()

  jax.tree.map(check, ours, theirs)


def cut(folder):
  data = (folder / WEIGHTS).read_bytes()
  (folder / WEIGHTS).write_bytes(data[:-1])


def shorten(name, x):
  return x[:-1] if name == "fc8.bias" else x


def spoil(name, x):
  return x * np.float32("nan") if name == "fc8.bias" else x


@pytest.mark.parametrize(
  ("damage", "said"),
  [
    (cut, "weights.safetensors' cannot be used"),
    (lambda x: (x / WEIGHTS).write_bytes(b""), "cannot be used"),
    (lambda x: rewrite(x, lambda _, y: y, step="new"), "cannot be used .*new"),
    (lambda x: rewrite(x, shorten), "another net .*fc8.bias .*9.*there"),
    (lambda x: rewrite(x, spoil), "fc8.bias has numbers that are not finite"),
    (lambda x: rewrite(x, lambda _, y: y.astype(int)), "must be floats"),
    (lambda x: (x / WEIGHTS).unlink(), "no checkpoint yet"),
    (lambda x: (x / "class_names.json").write_text("[]"), "0 of its 10 class"),
  ],
)
def test_damage_is_told_of_in_a_line(damage, said, copy):
  damage(copy)
  with pytest.raises(InputError, match=said) as error:
    alexnet_jax.load(copy)
  assert str(copy) in str(error.value)
  assert "\n" not in str(error.value)


def test_a_pipe_is_no_file_of_weights(copy):
  (copy / WEIGHTS).unlink()
  os.mkfifo(copy / WEIGHTS)
  with pytest.raises(InputError, match="no checkpoint yet"):
    alexnet_jax.load(copy)


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (("evaluate", "--step=best"), "--step=best names a checkpoint"),
    (("predict", "--step=3", "x.png"), "--step=3 names a checkpoint"),
    (("checkpoint", "verify"), "no checkpoint yet"),
    (("train",), "no run can resume"),
    (("train", "--config=finetune"), "no run can resume"),
  ],
)
def test_what_needs_checkpoints_is_refused(words, said, place, capsys):
  before = contents(place / "net")
  if words[0] == "train":
    words += (f"--config.data_dir={place / 'data'}", "--config.num_classes=10")
  name, *more = words
  result = run_in_process(capsys, name, f"--workdir={place / 'net'}", *more)
  assert_refused(result, said)
  assert contents(place / "net") == before  # Not even a lock.


def test_a_run_starts_from_the_pretrained_net(pretrained, place, tmp_path):
  config = finetune.get_config().unlock()
  config.update(
    init_from="pretrained", data_dir=str(place / "data"), num_classes=10,
    batch_size=8,
  )  # fmt: skip
  config = trained.with_pretrained_net(config, {}, tmp_path / "run")
  assert config.init_from == "pretrained"  # On another machine too.
  source = alexnet_jax.load(pretrained)
  net = networks.make_model(config)
  drawn = jax.device_get(states.init_params(net, 1))
  (params,), said = trained.load_pretrained(config, [drawn])
  assert said == "conv1, fc6 from pretrained; fc8 drawn anew"
  for half, name, expected in (
    ("features", "conv1", source.members[0]),
    ("classifier", "fc6", source.members[0]),
    ("classifier", "fc8", drawn),
  ):
    np.testing.assert_array_equal(
      params[half][name]["kernel"], expected[half][name]["kernel"]
    )
  # Its own data have another.
  data = run_data.open_data(config, tmp_path / "run", resumes=False)
  mean = data.statistics.mean_image
  np.testing.assert_array_equal(mean, source.statistics.mean_image)


def test_the_word_is_not_a_folder_of_that_name(
  pretrained, place, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  own = shutil.copytree(place / "net", "pretrained")
  names = [f"own {n}" for n in range(10)]
  (tmp_path / own / "class_names.json").write_text(json.dumps(names))
  shipped = alexnet_jax.load()
  assert shipped.class_names[0] == "disk"
  assert alexnet_jax.load("pretrained").class_names == shipped.class_names
  for path in ("./pretrained", Path("pretrained"), tmp_path / "pretrained"):
    assert alexnet_jax.load(path).class_names == tuple(names)
  Image.fromarray(IMAGES[0]).save("x.png")
  said = [
    run_in_process(capsys, "predict", "x.png", "--format=jsonl", *words).stdout
    for words in ([], ["--workdir=pretrained"], ["--workdir=./pretrained"])
  ]
  assert said[0] == said[1]
  assert [y["class"] for y in json.loads(said[2])["top"]] == [
    names[y["label"]] for y in json.loads(said[0])["top"]
  ]


def test_nothing_trains_in_the_package(pretrained, place, capsys):
  before = contents(pretrained)
  data = f"--config.data_dir={place / 'data'}"
  result = run_in_process(capsys, "train", "--workdir=pretrained", data)
  assert_refused(result, str(pretrained), "--config.init_from=")
  assert contents(pretrained) == before


@pytest.mark.parametrize(
  "words", [("predict", "x.png"), ("train", "--workdir=pretrained")]
)
def test_an_installation_without_the_net_says_so(
  words, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(run_files, "PRETRAINED", tmp_path / "none")
  result = run_in_process(capsys, *words)
  assert_refused(result, f"workdir='{tmp_path / 'none'}'", "another --workdir")
  assert not (tmp_path / "none").exists()
