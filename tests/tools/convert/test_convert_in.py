"""Files of other programs as runs, against torch's plain operations."""

import contextlib
import functools
import os
import pickle
import struct
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tfds_files import encoded, write
from tiny_runs import run

import alexnet_jax
from alexnet_jax import networks
from alexnet_jax.configs import finetune
from alexnet_jax.parallel import placement
from alexnet_jax.runs import trained
from alexnet_jax.runtime import errors
from alexnet_jax.tools.convert import command as convert
from alexnet_jax.tools.convert import nets, weight_files

torch = pytest.importorskip("torch")
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


def assert_logits(run, expected):
  """To 1e-4 of the largest; and the images are told apart."""
  found = alexnet_jax.load(run).features(IMAGES, "fc8")
  largest = np.abs(expected).max()
  assert np.ptp(expected, axis=0).max() > 0.1 * largest
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * largest)


def assert_same_arrays(found, expected):
  assert set(found) == set(expected)
  for name, values in expected.items():
    np.testing.assert_array_equal(found[name], values)


@pytest.fixture(scope="module")
def caffe_run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("caffe")
  foreign.write_caffemodel(folder / "net.caffemodel", CAFFE, "alexnet", 1)
  convert.import_file(folder / "net.caffemodel", folder / "run")
  return folder / "run"


def test_torchvisions_net_gives_torchs_logits(tmp_path):
  """Its file lies among those of another run, whose config is no matter."""
  (tmp_path / "config.json").write_text('{"architecture": "x"}')
  path = tmp_path / "model.safetensors"
  foreign.write_safetensors(path, TORCHVISION)
  lines = convert.import_file(path, tmp_path / "run")
  assert "is torchvision (config one_weird_trick)" in lines[0]
  assert "123.7, 116.3, 103.5" in lines[1]
  expected = foreign.torchvision_logits(TORCHVISION, centre(224))
  assert_logits(tmp_path / "run", expected)


@pytest.mark.parametrize(
  ("name", "write"),
  [
    ("new.pth", foreign.write_pth),
    ("old.pth", foreign.write_legacy_pth),
    (
      "oldest.pth",
      functools.partial(foreign.write_legacy_pth, parameters=True),
    ),
    ("checkpoint.pth", foreign.write_checkpoint),
    (
      "parallel.pth",
      functools.partial(foreign.write_checkpoint, wrapped="all"),
    ),
  ],
)
def test_every_file_of_torchvisions_net_holds_its_weights(
  name, write, tmp_path
):
  write(tmp_path / name, TORCHVISION)
  loaded = weight_files.read(tmp_path / name)
  expected = {}
  for key, values in TORCHVISION.items():
    number, _, part = key.rpartition(".")
    expected[f"{weight_files.TORCHVISION[number]}.{part}"] = values
  assert_same_arrays(loaded.arrays, expected)
  assert nets.detect(loaded)[0] == "torchvision"


@pytest.mark.parametrize(
  ("order", "version", "net"),
  [
    ("alexnet", 1, "bvlc_alexnet"),
    ("caffenet", 2, "bvlc_reference_caffenet"),
  ],
)
def test_caffes_nets_give_the_logits_of_their_definition(
  order, version, net, tmp_path
):
  path = tmp_path / "net.caffemodel"
  foreign.write_caffemodel(path, CAFFE, order, version)
  lines = convert.import_file(path, tmp_path / "run")
  assert f"is {net} (" in lines[0]
  expected = foreign.caffe_logits(CAFFE, centre(227), MEAN_BGR, order)
  assert_logits(tmp_path / "run", expected)
  foreign.write_caffemodel(path, CAFFE, order, 3 - version)
  loaded = weight_files.read(path)
  assert_same_arrays(loaded.arrays, CAFFE)
  assert nets.detect(loaded)[0] == net


def test_the_user_chooses_between_nets_whose_weights_look_the_same(tmp_path):
  """Caffe's two nets, in a file that does not say what they compute."""
  path = tmp_path / "net.safetensors"
  foreign.write_safetensors(path, CAFFE)
  words = "fits bvlc_alexnet and bvlc_reference_caffenet.* pass --net=NAME"
  refused(path, words)
  name, config = nets.detect(weight_files.read(path), "bvlc_reference_caffenet")
  assert name == "bvlc_reference_caffenet"
  assert config.network.conv1.then == ("activation", "max_pool", "lrn")


# Refusals.


def refused(path, words, **options):
  before = sorted(path.parent.rglob("*"))
  with pytest.raises(errors.InputError, match=words) as caught:
    convert.import_file(path, path.parent / "run", **options)
  assert "\n" not in str(caught.value)
  assert sorted(path.parent.rglob("*")) == before


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_torch_file_with_code_is_refused_and_not_run(
  legacy, protocol, tmp_path
):
  marker, path = tmp_path / "marker", tmp_path / "net.pth"
  foreign.write_evil_pth(path, marker, legacy, protocol)
  refused(path, r"names shutil\.copyfile.*Nothing in it was run")
  assert not marker.exists()


def test_tensors_of_any_kind_are_read_as_torch_reads_them(tmp_path):
  """Types, views of one storage, other strides, both formats."""
  base = torch.arange(48.0).reshape(2, 4, 6)
  state = {
    "turned": base.permute(2, 0, 1),
    "part": base[1, 1:, ::2],
    "last": base.to(memory_format=torch.contiguous_format)[-1],
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 3),
    "bfloat16": base.to(torch.bfloat16),
    **{
      str(dtype): (base - 20).to(dtype)
      for dtype in (torch.float64, torch.float16, torch.int8, torch.int64)
    },
  }
  for legacy in (False, True):
    path = tmp_path / f"{legacy}.pth"
    torch.save(
      {"model": state}, path, _use_new_zipfile_serialization=not legacy
    )
    found = weight_files.read(path).arrays
    assert set(found) == set(state)
    for name, tensor in state.items():
      kind = str(tensor.dtype).removeprefix("torch.")
      assert found[name].dtype.name == kind
      np.testing.assert_array_equal(
        found[name].astype(np.float64), tensor.double().numpy()
      )


def number(value):
  return b"\x8a\x08" + struct.pack("<q", value)  # LONG1


def tensor_pickle(count=4, offset=0, shape=(4,), strides=(1,)):
  """A state dict of one float16 tensor, written by hand."""

  def items(values):
    return b"(" + b"".join(map(number, values)) + b"t"

  return b"".join([
    b"\x80\x02}X\x01\x00\x00\x00a",
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage",
    b"ctorch\nHalfStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu",
    number(count), b"tQ", number(offset), items(shape), items(strides),
    b"\x89NtRs.",
  ])  # fmt: skip


def torch_zip(path, pickled, stored=bytes(8), compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", compression) as archive:
    archive.writestr("net/data.pkl", pickled)
    archive.writestr("net/data/0", stored)


HUGE = 2**33
GREEDY = {
  "memo": b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".",
  "bytearray8": b"\x80\x05\x96" + struct.pack("<Q", HUGE) + b".",
  "frame": b"\x80\x04\x95" + struct.pack("<Q", HUGE) + b".",
  "text": b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b".",
  "long4": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
  "call": b"cbuiltins\nbytearray\n" + number(HUGE) + b"\x85R.",
  "storage": tensor_pickle(count=HUGE, shape=(HUGE,)),
  "no stride": tensor_pickle(shape=(HUGE,), strides=(0,)),
  "beyond": tensor_pickle(offset=1),
  "before": tensor_pickle(strides=(-1,)),
}


@pytest.mark.parametrize("kind", ["plain", "old", "zip"])
def test_a_small_torch_file_asks_for_no_memory(kind, tmp_path):
  """8.6 GB, say, by one number in a file of 137 bytes."""
  path = tmp_path / "net.pth"
  magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
  about = pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
  end = pickle.dumps(["0"], 2) + struct.pack("<q", HUGE) + bytes(8)
  torch_zip(path, tensor_pickle())  # It is written right.
  assert weight_files.read(path).arrays["a"].shape == (4,)
  tracemalloc.start()
  try:
    for name, data in GREEDY.items():
      if kind == "zip":
        torch_zip(path, data)
      else:
        parts = [data] if kind == "plain" else [magic, about, data, end]
        path.write_bytes(b"".join(parts))
      with contextlib.suppress(errors.InputError):
        assert not weight_files.read(path).arrays, name
    assert tracemalloc.get_traced_memory()[1] < 2**24
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["plain", "zip"])
def test_a_torch_file_of_many_objects_asks_for_little_memory(kind, tmp_path):
  """4 MB of sets, each written as one byte, would take a gigabyte."""
  path, data = tmp_path / "net.pth", b"\x80\x04" + b"\x8f" * 2**22 + b"."
  torch_zip(path, data) if kind == "zip" else path.write_bytes(data)
  tracemalloc.start()
  try:
    with pytest.raises(errors.InputError):
      weight_files.read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**27
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize(
  "compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]
)
def test_a_compressed_torch_file_is_refused(compression, tmp_path):
  """A gigabyte of zeros takes a megabyte."""
  path = tmp_path / "net.pth"
  torch_zip(path, tensor_pickle(), bytes(10**6), compression)
  refused(path, "it is compressed")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_not_waited_for(kind, tmp_path):
  path = tmp_path / "net.pth"
  os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
  refused(path, "is no file")
  foreign.write_safetensors(tmp_path / "net.safetensors", TORCHVISION)
  refused(
    tmp_path / "net.safetensors",
    "net.pth' cannot be read .*no regular file",
    classes=str(path),
  )


def test_a_plain_pickle_with_code_is_refused_and_not_run(tmp_path):
  marker, path = tmp_path / "marker", tmp_path / "net.pth"
  path.write_bytes(pickle.dumps({"conv1": foreign.Evil(marker)}))
  refused(path, "Nothing in it was run. Save the net's state dict alone")
  assert not marker.exists()


def test_a_whole_module_is_refused(tmp_path):
  torch.save(torch.nn.Sequential(torch.nn.ReLU()), tmp_path / "net.pth")
  refused(tmp_path / "net.pth", r"torch\.nn\.modules.* Save the net's state")


@pytest.mark.parametrize(
  ("kind", "write", "options"),
  [
    ("pth", foreign.write_pth, [TORCHVISION]),
    ("safetensors", foreign.write_safetensors, [TORCHVISION]),
    ("caffemodel", foreign.write_caffemodel, [CAFFE, "alexnet", 1]),
  ],
)
def test_half_a_file_is_refused(kind, write, options, tmp_path):
  path = tmp_path / f"net.{kind}"
  write(path, *options)
  data = path.read_bytes()
  for share in (0, 0.5, 0.99):
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "cannot be read .* get the file again")


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (
      lambda s: s.pop("classifier.4.bias"),
      r"fc7\.bias .absent in the file",
    ),
    (lambda s: s.update(extra=np.zeros(3)), "extra .* absent in the net"),
    (
      lambda s: s.update({"features.0.weight": np.zeros((64, 3, 7, 7))}),
      r"conv1\.weight .* 7, 7. in the file, .* 11, 11. in the net",
    ),
  ],
)
def test_weights_of_another_net_are_told_apart(change, words, tmp_path):
  state = dict(TORCHVISION)
  change(state)
  foreign.write_safetensors(tmp_path / "net.safetensors", state)
  words = f"Compared with torchvision: .*{words}"
  refused(tmp_path / "net.safetensors", words)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda x: np.where(x == x.max(), np.nan, x), "that are not finite"),
    (lambda x: (100 * x).astype(np.int8), "is int8; weights must be floats"),
  ],
)
def test_arrays_that_are_no_weights_are_refused(change, words, tmp_path):
  state = dict(TORCHVISION)
  state["features.3.bias"] = change(state["features.3.bias"])
  foreign.write_safetensors(tmp_path / "net.safetensors", state)
  refused(tmp_path / "net.safetensors", f"conv2.bias .*{words}")


def test_another_graph_of_the_same_weights_is_another_net(tmp_path):
  path = tmp_path / "net.caffemodel"
  foreign.write_caffemodel(path, CAFFE, "caffenet", version=2)
  words = "step 03 .max pool 3 x 3, stride 2 in the file, norm over"
  refused(path, words, net="bvlc_alexnet")


@pytest.mark.parametrize("version", [1, 2])
def test_a_caffe_layer_that_computes_something_is_not_passed_over(
  version, tmp_path
):
  """TanH has no weights; Split only hands on what it is given."""
  path = tmp_path / "net.caffemodel"
  foreign.write_caffemodel(path, CAFFE, "alexnet", version)
  foreign.add_caffe_layer(path, version, 22, "Split")
  assert nets.detect(weight_files.read(path))[0] == "bvlc_alexnet"
  foreign.add_caffe_layer(path, version, 23, "TanH")
  named = {1: "kind 23", 2: "TanH"}[version]
  refused(
    path, f"step 21 .an unsupported {named} in the file, absent in the net"
  )


def test_a_caffe_file_of_too_many_layers_is_refused(tmp_path):
  """A million empty ones in 2 MB would take a gigabyte as text."""
  path = tmp_path / "net.caffemodel"
  path.write_bytes(b"\x12\x00" * 1001)
  refused(path, "more than 1,000 layers")


def write_data(folder, labels, names):
  """Writes the first of IMAGES under labels, as both of two splits."""
  examples = [
    {"image": encoded(image), "label": int(label)}
    for image, label in zip(IMAGES, labels, strict=False)
  ]
  features = {
    "image": tfds.features.Image(encoding_format="png"),
    "label": tfds.features.ClassLabel(names=list(names)),
  }
  write(folder, {"train": [examples], "validation": [examples]}, features)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"classes": "missing.txt"}, "missing.txt' cannot be read"),
    ({"classes": "six.txt"}, "has 6 class names, but the net has 7 classes"),
    ({"data_dir": "missing"}, "data_dir=.missing. cannot be opened"),
  ],
)
def test_options_that_do_not_fit_are_refused(
  options, words, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "six.txt").write_text("a\nb\nc\nd\ne\nf\n")
  foreign.write_safetensors(tmp_path / "net.safetensors", TORCHVISION)
  refused(tmp_path / "net.safetensors", words, **options)


def test_best_step_of_an_imported_net_is_refused(caffe_run):
  with pytest.raises(errors.InputError, match="newest"):
    alexnet_jax.load(caffe_run, "best")


def test_an_imported_net_starts_a_finetuned_one(caffe_run):
  config = finetune.get_config().unlock()
  config.init_from, config.num_classes = str(caffe_run), 3
  config = trained.with_pretrained_net(config, {}, caffe_run.parent / "tuned")
  net = networks.from_config(config)
  assert networks.rows(net)[-1].output_shape == (3,)
  (drawn,) = trained.load_run(caffe_run, placement.make_mesh(1)).members
  drawn = jax.tree.map(np.zeros_like, drawn)
  (params,), origin = trained.load_pretrained(config, [drawn])
  assert origin.endswith("; fc8 drawn anew")
  kernel = params["features"]["conv1"]["kernel"]
  # Here it takes red first, in Caffe blue.
  expected = CAFFE["conv1.weight"].transpose(2, 3, 1, 0)[:, :, ::-1]
  np.testing.assert_array_equal(kernel, expected)


def test_commands_import_a_net_and_evaluate_it_on_its_data(tmp_path):
  path = tmp_path / "net.caffemodel"
  foreign.write_caffemodel(path, CAFFE, "alexnet", 2)
  names = [f"name {n}" for n in range(CLASSES)]
  (tmp_path / "classes.txt").write_text("\n".join(names))
  scores = foreign.caffe_logits(CAFFE, centre(227), MEAN_BGR, "alexnet")
  best = scores.argmax(axis=1)
  # The first label is right, the others are wrong.
  labels = [best[0], *((best[1:] + 1) % CLASSES)]
  write_data(tmp_path / "data", labels, names)
  done = run(
    "convert", f"--from={path}", f"--output={tmp_path}/run",
    f"--classes={tmp_path}/classes.txt", f"--data_dir={tmp_path}/data",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "its filters now take RGB" in done.stdout
  assert "7 classes" in done.stdout
  evaluated = run("evaluate", f"--workdir={tmp_path}/run")
  assert evaluated.returncode == 0, evaluated.stderr
  error = 1 - 1 / len(IMAGES)
  assert f"top-1 error {error:.2%}" in evaluated.stdout
