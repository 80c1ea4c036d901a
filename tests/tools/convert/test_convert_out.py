"""Runs as files of other systems, which those compute with."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from drawn_runs import NAMES, small_config, write_run
from tiny_runs import run as command

import alexnet_jax
from alexnet_jax.runs import checkpoint
from alexnet_jax.runtime import errors
from alexnet_jax.tools.convert import command as convert
from alexnet_jax.tools.convert import exports

RNG = np.random.default_rng(0)
# Patches of one colour, which a net can tell apart.
IMAGES = RNG.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
IMAGES = IMAGES.repeat(18, axis=1).repeat(18, axis=2)
CENTRE = IMAGES[:, 2:69, 2:69].astype(np.float32)  # 67 of 72 pixels
# For what saturates: a small input, and weights that let it through.
SMALL = {
  "input_scale": (0.02, 0.01, 0.03),
  **{f"network.conv{n}.sigma": 0.3 for n in (2, 3, 4, 5)},
  **{f"network.fc{n}.sigma": 0.5 for n in (6, 7)},
}
# Every kind of layer, and where towers meet.
KINDS = {
  "paper": {},
  "caffe": {
    "network.lrn.across_towers": True,
    "network.lrn.k": 1.0,
    "network.lrn.alpha": 2e-3,
    "network.dropout_rescaled": True,
  },
  "one_tower": {
    "network.towers": 1,
    "network.activation": "scaled_tanh",
    **SMALL,
  },
  "apart": {
    "network.activation": "tanh",
    **SMALL,
    "network.conv3.sees_all_towers": False,
    "network.fc6.sees_all_towers": False,
    "network.fc7.sees_all_towers": False,
  },
  "map_norm": {
    "network.conv1.then": ("activation", "map_norm", "average_pool"),
    "network.layers": ("conv1", "fc8"),
    "network.map_norm.alpha": 0.001,
  },
  "sigmoid": {
    "network.activation": "sigmoid",
    "network.layers": ("conv1", "fc8"),
    **SMALL,
  },
  "floor": {
    "network.conv1.ceil_mode": False,
    "network.conv1.padding": 2,
    "network.activation": "none",
    "network.pool_window": 2,
    "input_scale": (0.5, 0.25, 2.0),
  },
}


def drawn(folder, **fields):
  """Writes a run, and returns its net opened and its logits of the images."""
  config = small_config(**fields)
  write_run(folder, config)
  model = alexnet_jax.load(folder)
  logits = model.features(IMAGES, "fc8")
  assert np.ptp(logits, axis=0).max() > 0.01  # It tells images apart.
  return model, logits


@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_gives_the_same_logits(kind, tmp_path):
  onnxruntime = pytest.importorskip("onnxruntime")
  model, logits = drawn(tmp_path / "run", **KINDS[kind])
  file = exports.write(model, "onnx", tmp_path)
  session = onnxruntime.InferenceSession(file)
  (found,) = session.run(["logits"], {"images": CENTRE.transpose(0, 3, 1, 2)})
  np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)


def test_stablehlo_runs_without_this_package(tmp_path):
  model, logits = drawn(tmp_path / "run", input_scale=(0.5, 0.25, 2.0))
  file = exports.write(model, "stablehlo", tmp_path)
  np.save(tmp_path / "images.npy", CENTRE)
  program = """
import sys
import jax.export
import numpy as np
net = jax.export.deserialize(open(sys.argv[1], "rb").read())
images = np.load(sys.argv[2])
each = [net.call(images[:1]), net.call(images)]  # Any number of images.
np.testing.assert_allclose(each[0], each[1][:1], rtol=1e-4, atol=1e-5)
assert net.platforms == ("cpu", "cuda", "tpu"), net.platforms
assert "alexnet_jax" not in sys.modules
np.save(sys.argv[3], each[1])
"""
  subprocess.run(
    [sys.executable, "-c", program, file, tmp_path / "images.npy",
     tmp_path / "logits.npy"],
    cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": ""},
  )  # fmt: skip
  found = np.load(tmp_path / "logits.npy")
  np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)


def test_torch_computes_with_the_state_dict(tmp_path):
  torch = pytest.importorskip("torch")
  functional = torch.nn.functional
  model, logits = drawn(tmp_path / "run", **KINDS["caffe"])
  file = exports.write(model, "torch", tmp_path)
  state = torch.load(file, weights_only=True)
  mean = np.load(tmp_path / "run" / "mean_image.npy")[2:69, 2:69]
  x = torch.tensor((CENTRE - mean).transpose(0, 3, 1, 2))
  # The paper's net in Caffe's manner; every window passes the edge or fits.
  for name, stride, padding, groups, normed, pooled in (
    ("conv1", 4, 0, 1, True, True),
    ("conv2", 1, 2, 2, True, True),
    ("conv3", 1, 1, 1, False, False),
    ("conv4", 1, 1, 2, False, False),
    ("conv5", 1, 1, 2, False, True),
  ):
    kernel, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    x = functional.conv2d(x, kernel, bias, stride, padding, groups=groups)
    x = torch.relu(x)
    if normed:
      x = functional.local_response_norm(x, 5, 5 * 2e-3, 0.75, 1.0)
    if pooled:
      x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
  x = x.flatten(1)
  for name in ("fc6", "fc7", "fc8"):
    x = functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
    x = x if name == "fc8" else torch.relu(x)
  np.testing.assert_allclose(x.numpy(), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "onnx"])
@pytest.mark.parametrize("net", ["paper", "apart"])
def test_what_goes_out_comes_back_bit_by_bit(kind, net, tmp_path):
  pytest.importorskip(kind)
  folders = [tmp_path / name for name in ("run", "out", "back")]
  run, out, back = folders
  model, logits = drawn(run, **KINDS[net])
  convert.send_out(run, out, kind)
  convert.bring_in(out / f"alexnet{exports.KINDS[kind].suffix}", back)
  again = alexnet_jax.load(back)
  digests = [checkpoint.digest(m.members[0]) for m in (model, again)]
  assert digests[0] == digests[1]
  assert again.config == model.config
  assert again.class_names == NAMES
  np.testing.assert_array_equal(again.features(IMAGES, "fc8"), logits)
  for file in ("mean_image.npy", "colour_pca.json"):
    assert (run / file).read_bytes() == (back / file).read_bytes()


def test_commands_tell_what_they_wrote_and_leave_nothing_of_a_failure(tmp_path):
  write_run(tmp_path / "run", small_config())
  flags = (f"--from={tmp_path}/run", f"--output={tmp_path}/out")
  done = command("convert", *flags, "--to=safetensors")
  assert done.returncode == 0, done.stderr
  assert "[N, 3, 67, 67]" in done.stdout
  assert json.loads((tmp_path / "out" / "config.json").read_text())["network"]
  before = sorted(tmp_path.rglob("*"))
  failed = command("convert", *flags, "--to=safetensors")
  assert failed.returncode == 1
  assert failed.stderr.startswith("error: output=")
  assert "exists; choose another" in failed.stderr
  assert len(failed.stderr.splitlines()) == 1
  with pytest.raises(errors.InputError, match="Did you mean 'safetensors'"):
    convert.send_out(tmp_path / "run", tmp_path / "new", "safetensor")
  assert sorted(tmp_path.rglob("*")) == before


def test_an_ensemble_is_no_single_net(tmp_path):
  write_run(tmp_path / "run", small_config(ensemble=2), seeds=(0, 1))
  with pytest.raises(errors.InputError, match="2 nets of an ensemble"):
    convert.send_out(tmp_path / "run", tmp_path / "out", "onnx")
  assert [path.name for path in tmp_path.iterdir()] == ["run"]
