"""Runs as files of other programs, which compute the same with them."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import assert_refused, run_in_process
from drawn_runs import NAMES, small_config, write_run

import alexnet_jax
from alexnet_jax import networks
from alexnet_jax.configs import run131
from alexnet_jax.runs import checkpoint, run_files, torch_layout
from alexnet_jax.runtime import errors
from alexnet_jax.tools.convert import command as convert
from alexnet_jax.tools.convert import exports, onnx_graph

ROOT = Path(__file__).parents[3]
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
TWO_LAYERS = {"network.layers": ("conv1", "fc8")}
# Together, every kind of layer.
KINDS = {
  "paper": {},
  "caffe": {
    "network.lrn.across_towers": True,
    "network.lrn.k": 1.0,
    "network.lrn.alpha": 2e-3,
    "network.dropout_rescaled": True,
  },
  "one_tower": {
    **SMALL,
    "network.towers": 1,
    "network.activation": "scaled_tanh",
    "network.conv1.ceil_mode": False,
    "network.conv1.padding": 2,
    "network.pool_window": 2,
  },
  "apart": {
    **SMALL,
    "network.layers": ("conv1", "conv3", "fc6", "fc7", "fc8"),
    "network.activation": "tanh",
    "network.conv3.sees_all_towers": False,
    "network.fc6.sees_all_towers": False,
    "network.fc7.sees_all_towers": False,
  },
  "map_norm": {
    **SMALL,
    **TWO_LAYERS,
    "network.activation": "sigmoid",
    "network.conv1.then": ("activation", "map_norm", "average_pool"),
    "network.map_norm.alpha": 0.001,
  },
  "linear": {
    **TWO_LAYERS,
    "network.activation": "none",
    "input_scale": (0.5, 0.25, 2.0),
  },
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  """Returns a function from a key of KINDS to a run's folder and its net."""
  runs = {}

  def of(kind):
    if kind not in runs:
      folder = tmp_path_factory.mktemp(kind) / "run"
      write_run(folder, small_config(**KINDS[kind]))
      runs[kind] = folder, alexnet_jax.load(folder)
    return runs[kind]

  return of


def assert_logits(found, model):
  logits = model.features(IMAGES, "fc8")
  assert np.ptp(logits, axis=0).max() > 0.01  # It tells images apart.
  np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_gives_the_same_logits(kind, drawn, tmp_path):
  onnxruntime = pytest.importorskip("onnxruntime")
  _, model = drawn(kind)
  file = exports.write(model, "onnx", tmp_path)
  session = onnxruntime.InferenceSession(file)
  (found,) = session.run(["logits"], {"images": CENTRE.transpose(0, 3, 1, 2)})
  assert_logits(found, model)


# Other packages may be installed here, but not by `make setup`.
ONLY_PINNED = """
import importlib.metadata, re, sys
def plain(name): return re.sub("[-_.]+", "-", name).lower()
pinned = {plain(line.split("==")[0]) for line in open("requirements.lock")}
installed = importlib.metadata.packages_distributions()
class Refusing:
  def find_spec(self, name, *_):
    of = {plain(x) for x in installed.get(name, ["alexnet-jax"])}
    if not of & (pinned | {"alexnet-jax"}):
      raise ModuleNotFoundError(f"{name} is not in requirements.lock")
sys.meta_path.insert(0, Refusing())
"""
WRITE = """
from pathlib import Path
from alexnet_jax.tools.convert import command
command.export_run(sys.argv[1], Path(sys.argv[2]), "stablehlo")
"""
READ = """
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


def run_pinned(program, *words):
  result = subprocess.run(
    [sys.executable, "-c", ONLY_PINNED + program, *words],
    cwd=ROOT, capture_output=True, text=True,
  )  # fmt: skip
  assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_stablehlo_is_written_as_set_up_and_runs_without_this_package(
  drawn, tmp_path
):
  folder, model = drawn("linear")
  run_pinned(WRITE, folder, tmp_path / "out")
  np.save(tmp_path / "images.npy", CENTRE)
  file, logits = tmp_path / "out/alexnet.stablehlo", tmp_path / "logits.npy"
  run_pinned(READ, file, tmp_path / "images.npy", logits)
  assert_logits(np.load(logits), model)


def test_torch_computes_with_the_state_dict(drawn, tmp_path):
  torch = pytest.importorskip("torch")
  functional = torch.nn.functional
  folder, model = drawn("caffe")
  file = exports.write(model, "torch", tmp_path)
  state = torch.load(file, weights_only=True)
  mean = np.load(folder / "mean_image.npy")[2:69, 2:69]
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
  assert_logits(x.numpy(), model)


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
@pytest.mark.parametrize("net", ["paper", "apart"])
def test_a_net_is_the_same_to_the_bit_when_imported_again(
  kind, net, drawn, tmp_path
):
  pytest.importorskip(kind)
  run, model = drawn(net)
  out, back = tmp_path / "out", tmp_path / "back"
  convert.export_run(run, out, kind)
  file = out / exports.KINDS[kind].file
  convert.import_file(file, back)
  again = alexnet_jax.load(back)
  digests = [checkpoint.digest(m.members[0]) for m in (model, again)]
  assert digests[0] == digests[1]
  assert again.config == model.config
  assert again.class_names == NAMES
  for name in ("mean_image.npy", "colour_pca.json"):
    assert (run / name).read_bytes() == (back / name).read_bytes()
  # Without its config, channels of Caffe's nets would be turned once more.
  shutil.copy(file, tmp_path)
  for path, options, words in (
    (
      tmp_path / file.name,
      {},
      "this package wrote .* needs what it wrote beside",
    ),
    (file, {"net": "torchvision"}, "drop --net"),
  ):
    with pytest.raises(errors.InputError, match=words):
      convert.import_file(path, tmp_path / "new", **options)
  config = run_files.read_config(out).unlock()
  config.network.fc8.units = config.num_classes = 7
  run_files.write_config(out, config)
  with pytest.raises(errors.InputError, match=r"another net: fc8\.bias "):
    convert.import_file(file, tmp_path / "new")
  assert not (tmp_path / "new").exists()


def test_commands_print_what_they_wrote_and_leave_nothing_of_a_failure(
  drawn, tmp_path, capsys
):
  flags = (f"--from={drawn('linear')[0]}", f"--output={tmp_path}/out")
  done = run_in_process(capsys, "convert", *flags, "--to=safetensors")
  assert done.returncode == 0, done.stderr
  assert "[N, 3, 67, 67]" in done.stdout
  before = sorted(tmp_path.rglob("*"))
  failed = run_in_process(capsys, "convert", *flags, "--to=safetensors")
  assert_refused(failed, "output=", "exists; choose another")
  assert sorted(tmp_path.rglob("*")) == before


def test_an_ensemble_cannot_be_exported(tmp_path):
  config = small_config(ensemble=2, **TWO_LAYERS)
  write_run(tmp_path / "run", config, seeds=(0, 1))
  with pytest.raises(errors.InputError, match="ensemble of 2 nets"):
    convert.export_run(tmp_path / "run", tmp_path / "out", "onnx")
  assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_net_with_branches_is_refused_by_onnx_alone(tmp_path):
  pytest.importorskip("onnx")
  network = networks.from_config(run131.get_config())
  mean = np.zeros((224, 224, 3), np.float32)
  with pytest.raises(errors.InputError, match=r"Blur .* --to=safetensors"):
    onnx_graph.write(tmp_path / "x.onnx", network, {}, mean, (1.0, 1.0, 1.0))
  shapes = torch_layout.shapes(network)
  assert shapes["conv2_image.weight"] == (256, 3, 5, 5)
  assert "conv2_image.bias" not in shapes
