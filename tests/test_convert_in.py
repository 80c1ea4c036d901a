"""Other systems' files as runs, against torch's plain operations."""

import json
import shutil

import numpy as np
import pytest
from tiny_runs import run as command

import alexnet_jax
from alexnet_jax import errors
from alexnet_jax.convert import __main__ as convert
from alexnet_jax.convert import exports, files

pytest.importorskip("torch")
pytest.importorskip("onnx")
foreign = pytest.importorskip("foreign")

RNG = np.random.default_rng(0)
# Patches of one colour, which a net can tell apart.
IMAGES = RNG.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
IMAGES = IMAGES.repeat(16, axis=1).repeat(16, axis=2)
MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
FC, CLASSES = 32, 7
TORCHVISION = foreign.draw(foreign.torchvision_shapes(CLASSES, fc=FC))
CAFFE = foreign.draw(foreign.caffe_shapes(CLASSES, fc=FC))


def centre(size):
  start = (256 - size) // 2
  return IMAGES[:, start : start + size, start : start + size]


def logits_of(path, output, **options):
  lines = convert.bring_in(path, output, **options)
  return lines, alexnet_jax.load(output).features(IMAGES, "fc8")


def close(found, expected):
  """To 1e-4 of the largest; and the images are told apart."""
  assert np.ptp(expected, axis=0).max() > 0.1 * np.abs(expected).max()
  largest = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * largest)


@pytest.mark.parametrize(
  ("name", "write"),
  [
    ("new.pth", foreign.write_pth),
    ("old.pth", foreign.write_legacy_pth),
    ("checkpoint.pth", foreign.write_checkpoint),
    ("model.safetensors", foreign.write_safetensors),
    ("net.onnx", foreign.write_torchvision_onnx),
  ],
)
def test_torchvisions_net_gives_torchs_logits(name, write, tmp_path):
  write(tmp_path / name, TORCHVISION)
  lines, found = logits_of(tmp_path / name, tmp_path / "run")
  close(found, foreign.torchvision_logits(TORCHVISION, centre(224)))
  assert "torchvision (configs/one_weird_trick.py)" in lines[0]
  assert "123.7, 116.3, 103.5" in lines[1]


@pytest.mark.parametrize("order", ["alexnet", "caffenet"])
@pytest.mark.parametrize("version", [1, 2])
def test_caffes_nets_give_the_logits_of_their_definition(
  order, version, tmp_path
):
  path = tmp_path / "net.caffemodel"
  foreign.write_caffemodel(path, CAFFE, order, version)
  lines, found = logits_of(path, tmp_path / "run")
  close(found, foreign.caffe_logits(CAFFE, centre(227), MEAN_BGR, order))
  name = {"alexnet": "bvlc_alexnet", "caffenet": "bvlc_reference_caffenet"}
  assert f"is {name[order]} (" in lines[0]


@pytest.mark.parametrize(
  ("write", "options"),
  [
    (foreign.write_npy, {}),
    (foreign.write_npy, {"named": True}),
    (foreign.write_python2_npy, {}),
    (foreign.write_python2_npy, {"unicode_keys": True}),
  ],
)
def test_the_dictionary_in_circulation_is_caffes_alexnet(
  write, options, tmp_path
):
  write(tmp_path / "net.npy", CAFFE, **options)
  _, found = logits_of(tmp_path / "net.npy", tmp_path / "run")
  close(found, foreign.caffe_logits(CAFFE, centre(227), MEAN_BGR, "alexnet"))


def test_a_dictionary_is_of_the_net_that_is_named(tmp_path):
  foreign.write_npy(tmp_path / "net.npy", CAFFE)
  net = "bvlc_reference_caffenet"
  _, found = logits_of(tmp_path / "net.npy", tmp_path / "run", net=net)
  close(found, foreign.caffe_logits(CAFFE, centre(227), MEAN_BGR, "caffenet"))


@pytest.mark.parametrize(
  ("order", "ceil"), [("alexnet", "5"), ("alexnet", "125"), ("caffenet", "125")]
)
def test_onnx_files_give_the_logits_of_their_graph(order, ceil, tmp_path):
  """The zoo's own is the first: only its last pooling passes the edge."""
  path = tmp_path / "net.onnx"
  foreign.write_bvlcalexnet_onnx(path, CAFFE, order, ceil)
  _, found = logits_of(path, tmp_path / "run")
  expected = foreign.caffe_logits(CAFFE, centre(224), MEAN_BGR, order, ceil)
  close(found, expected)


@pytest.mark.parametrize(
  "write", [foreign.write_mean_npy, foreign.write_binaryproto]
)
def test_caffes_mean_image_is_kept(write, tmp_path):
  mean = RNG.uniform(80, 150, (3, 256, 256)).astype(np.float32)
  name = "mean.npy" if write is foreign.write_mean_npy else "mean.binaryproto"
  write(tmp_path / name, mean)
  foreign.write_npy(tmp_path / "net.npy", CAFFE)
  file = str(tmp_path / name)
  _, found = logits_of(tmp_path / "net.npy", tmp_path / "run", mean=file)
  cut = mean[:, 14:241, 14:241]
  close(found, foreign.caffe_logits(CAFFE, centre(227), cut, "alexnet"))
  kept = np.load(tmp_path / "run" / "mean_image.npy")
  np.testing.assert_array_equal(kept, mean[::-1].transpose(1, 2, 0))


@pytest.mark.parametrize("kind", ["safetensors", "torch", "onnx"])
def test_torchvisions_weights_come_out_as_they_went_in(kind, tmp_path):
  foreign.write_pth(tmp_path / "in.pth", TORCHVISION)
  convert.bring_in(tmp_path / "in.pth", tmp_path / "run")
  convert.send_out(tmp_path / "run", tmp_path / "out", kind)
  file = tmp_path / "out" / f"alexnet{exports.KINDS[kind].suffix}"
  held = files.read(file).arrays
  for name, values in TORCHVISION.items():
    layer, _, part = name.rpartition(".")
    again = held[f"{files.TORCHVISION[layer]}.{part}"]
    np.testing.assert_array_equal(again, values)


def test_torchvisions_class_takes_its_own_net_back(tmp_path):
  """With the names and the order that torchvision's class has."""
  import torch

  state = foreign.draw(foreign.torchvision_shapes(5))
  foreign.write_pth(tmp_path / "in.pth", state)
  convert.bring_in(tmp_path / "in.pth", tmp_path / "run")
  convert.send_out(tmp_path / "run", tmp_path / "out", "torch")
  again = torch.load(tmp_path / "out" / "alexnet.pth", weights_only=True)
  assert list(again) == list(state)
  for name, values in state.items():
    np.testing.assert_array_equal(again[name].numpy(), values)


def _refused(path, words, **options):
  before = sorted(path.parent.rglob("*"))
  with pytest.raises(errors.InputError, match=words) as caught:
    convert.bring_in(path, path.parent / "run", **options)
  assert "\n" not in str(caught.value)
  assert sorted(path.parent.rglob("*")) == before


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("state", [None, TORCHVISION])
def test_a_pickle_that_wants_to_run_code_is_not_run(legacy, state, tmp_path):
  marker, path = tmp_path / "marker", tmp_path / "net.pth"
  foreign.write_evil_pth(path, marker, state, legacy)
  _refused(path, r"wants to run shutil\.copyfile")
  assert not marker.exists()


@pytest.mark.parametrize("weights", [None, CAFFE])
def test_a_dictionary_that_wants_to_run_code_is_not_run(weights, tmp_path):
  marker, path = tmp_path / "marker", tmp_path / "net.npy"
  foreign.write_evil_npy(path, marker, weights)
  _refused(path, r"wants to run shutil\.copyfile")
  assert not marker.exists()


@pytest.mark.parametrize(
  ("name", "write", "weights"),
  [
    ("net.pth", foreign.write_pth, TORCHVISION),
    ("net.safetensors", foreign.write_safetensors, TORCHVISION),
    ("net.onnx", foreign.write_torchvision_onnx, TORCHVISION),
    ("net.npy", foreign.write_npy, CAFFE),
  ],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_half_a_file_is_refused(name, write, weights, share, tmp_path):
  write(tmp_path / "whole", weights)
  foreign.truncate(tmp_path / "whole", tmp_path / name, share)
  _refused(tmp_path / name, "cannot be read .* Get it anew")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_half_a_caffemodel_is_refused(share, tmp_path):
  foreign.write_caffemodel(tmp_path / "whole", CAFFE, "alexnet", 1)
  path = tmp_path / "net.caffemodel"
  foreign.truncate(tmp_path / "whole", path, share)
  _refused(path, "cannot be read .* Get it anew")


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda s: s.pop("classifier.4.bias"), "fc7.bias is missing"),
    (lambda s: s.update(extra=np.zeros(3)), "extra is too many"),
    (
      lambda s: s.update({"features.0.weight": np.zeros((64, 3, 7, 7))}),
      r"conv1.weight is \[64, 3, 7, 7\], not \[64, 3, 11, 11\]",
    ),
  ],
)
def test_weights_of_another_net_are_told_apart(change, words, tmp_path):
  state = dict(TORCHVISION)
  change(state)
  foreign.write_safetensors(tmp_path / "net.safetensors", state)
  _refused(tmp_path / "net.safetensors", f"Beside torchvision: .*{words}")


def test_another_graph_of_the_same_weights_is_another_net(tmp_path):
  foreign.write_caffemodel(
    tmp_path / "net.caffemodel", CAFFE, "caffenet", version=2
  )
  words = "step 3 is max pool 3 x 3, stride 2, not norm over 5"
  _refused(tmp_path / "net.caffemodel", words, net="bvlc_alexnet")


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"net": "bvlc_alexnett"}, "Did you mean 'bvlc_alexnet'"),
    ({"mean": "1,2"}, "--mean='1,2' is no mean image"),
    ({"mean": "missing.npy"}, "missing.npy' is no mean image"),
    ({"classes": "missing.txt"}, "missing.txt' cannot be read"),
    ({"classes": "six.txt"}, "has 6 class names, but the net 7 classes"),
    ({"data_dir": "missing"}, "does not exist"),
  ],
)
def test_options_that_do_not_fit_are_refused(
  options, words, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "six.txt").write_text("a\nb\nc\nd\ne\nf\n")
  foreign.write_npy(tmp_path / "net.npy", CAFFE)
  _refused(tmp_path / "net.npy", words, **options)


def test_a_config_of_other_weights_is_told(tmp_path):
  foreign.write_pth(tmp_path / "in.pth", TORCHVISION)
  convert.bring_in(tmp_path / "in.pth", tmp_path / "run")
  convert.send_out(tmp_path / "run", tmp_path / "out", "safetensors")
  foreign.write_npy(tmp_path / "out" / "net.npy", CAFFE)
  _refused(tmp_path / "out" / "net.npy", "is not what .* describes")


def test_a_config_of_another_program_is_no_matter(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"architecture": "x"}))
  foreign.write_safetensors(tmp_path / "model.safetensors", TORCHVISION)
  lines, _ = logits_of(tmp_path / "model.safetensors", tmp_path / "run")
  assert "is torchvision" in lines[0]


def test_an_imported_net_is_a_run_like_any_other(tmp_path):
  """Asked by the command, with its classes; a bad file costs one line."""
  foreign.write_npy(tmp_path / "net.npy", CAFFE)
  names = [f"name {n}" for n in range(CLASSES)]
  (tmp_path / "classes.txt").write_text("\n".join(names))
  done = command(
    "convert", f"--from={tmp_path}/net.npy", f"--output={tmp_path}/run",
    f"--classes={tmp_path}/classes.txt",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "its filters are turned to take RGB" in done.stdout
  assert "7 classes" in done.stdout
  np.save(tmp_path / "image.npy", IMAGES[0])
  from PIL import Image

  Image.fromarray(IMAGES[0]).save(tmp_path / "image.png")
  asked = command(
    "predict", f"--workdir={tmp_path}/run", "--format=jsonl",
    str(tmp_path / "image.png"),
  )  # fmt: skip
  assert asked.returncode == 0, asked.stderr
  best = json.loads(asked.stdout)["top"][0]
  scores = foreign.caffe_logits(CAFFE, centre(227), MEAN_BGR, "alexnet")[0]
  assert best["class"] == names[scores.argmax()]
  shutil.copy(tmp_path / "image.png", tmp_path / "net.pth")
  failed = command(
    "convert", f"--from={tmp_path}/net.pth", f"--output={tmp_path}/new"
  )
  assert failed.returncode == 1
  assert failed.stderr.startswith("error: ")
  assert len(failed.stderr.splitlines()) == 1
