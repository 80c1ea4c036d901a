"""The package as a library: its names, and nets made from configs."""

import copy
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alexnet_jax
from alexnet_jax.configs import alexnet
from alexnet_jax.runtime.errors import InputError

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_import_is_quick_and_offers_its_names():
  """It must not import jax, which takes seconds."""
  code = """if True:
    import sys, alexnet_jax
    assert not {"jax", "numpy", "flax"} & set(sys.modules)
    print(*alexnet_jax.__all__, alexnet_jax.__version__)
    from alexnet_jax import *
    assert {*alexnet_jax.__all__} <= set(globals())
  """
  result = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr
  names = ["AlexNet", "Model", "__version__", "from_config", "load"]
  assert result.stdout.split() == [*names, alexnet_jax.__version__]
  with pytest.raises(AttributeError, match="no attribute 'lod'"):
    _ = alexnet_jax.lod


def test_a_config_without_a_net_of_its_own_is_refused():
  """Its fields are those of the paper's net, which it does not train."""
  with pytest.raises(InputError, match=r"load\('pretrained'\).net"):
    alexnet_jax.from_config("finetune", num_classes=5)
  net = alexnet_jax.load("pretrained").net
  assert net.network.input_size_px == 56


def test_a_net_is_built_applied_and_differentiated():
  layers = {"network.layers": ("conv1", "fc6", "fc8")}
  net = alexnet_jax.from_config(
    "quickstart", num_classes=4, image_size_px=32, **layers
  )
  assert isinstance(net, alexnet_jax.AlexNet)
  size = net.network.input_size_px
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.normal(0, 60, (6, size, size, 3)), jnp.float32)
  labels = np.arange(6) % 4
  params = jax.jit(net.init)(jax.random.key(0), images)["params"]

  def loss(params):
    logits = net.apply({"params": params}, images)
    return -jax.nn.log_softmax(logits)[np.arange(6), labels].mean()

  before, grads = jax.jit(jax.value_and_grad(loss))(params)
  # The slope along the gradient, by two values of the loss.
  squares = sum(float((g**2).sum()) for g in jax.tree.leaves(grads))
  step = 1e-3 / squares
  lower = jax.tree.map(lambda w, g: w - step * g, params, grads)
  after = jax.jit(loss)(lower)
  assert float(before - after) == pytest.approx(1e-3, rel=0.1)


def test_fields_may_be_changed_and_the_config_stays_as_it_was():
  config = alexnet.get_config()
  before = copy.deepcopy(config)
  fields = {"num_classes": 7, "network.conv1.filters": 32}
  net = alexnet_jax.from_config(config, **fields)
  assert net.network.features[0].filters == 32
  assert net.network.classifier[-1].units == 7
  assert config == before
  assert config.is_locked
  assert alexnet_jax.from_config("alexnet", **fields) == net


@pytest.mark.parametrize(
  ("config", "fields", "said"),
  [
    ("alexnt", {}, "'alexnt' is not known. Did you mean 'alexnet'"),
    ("alexnet", {"num_clases": 3}, "no field 'num_clases'"),
    ("alexnet", {"num_classes": 1}, "num_classes=1 must be"),
    ("alexnet", {"crop_size_px": 20}, "enlarge crop_size_px"),
  ],
)
def test_a_bad_config_is_refused(config, fields, said):
  with pytest.raises(InputError, match=said):
    alexnet_jax.from_config(config, **fields)


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_pretrained_net(tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  for name in ("configs", *"pyproject.toml README.md LICENSE".split()):
    (source / name).symlink_to(ROOT / name)
  (source / "alexnet_jax").mkdir()
  for part in (ROOT / "alexnet_jax").iterdir():
    if part.name != "pretrained":
      (source / "alexnet_jax" / part.name).symlink_to(part)
  (source / "alexnet_jax" / "pretrained").mkdir()
  names = ["config.json", "weights.safetensors", "MODEL_CARD.md"]
  for name in names:
    (source / "alexnet_jax" / "pretrained" / name).write_text(name)
  build = """if True:
    from setuptools import build_meta
    build_meta.build_wheel("out")
    build_meta.build_sdist("out")
  """
  subprocess.run(
    [sys.executable, "-c", build], cwd=source, check=True, capture_output=True
  )
  (wheel,) = (source / "out").glob("*.whl")
  (sdist,) = (source / "out").glob("*.tar.gz")
  assert f"-{alexnet_jax.__version__}" in wheel.name
  with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as tar:
    for name in names:
      path = f"alexnet_jax/pretrained/{name}"
      assert archive.read(path).decode() == name
      assert f"{sdist.name.removesuffix('.tar.gz')}/{path}" in tar.getnames()
