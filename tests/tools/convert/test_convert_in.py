"""Other systems' files as runs, against torch's plain operations."""

import functools
import json
import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from commands import assert_refused, run_command
from PIL import Image
from tfds_files import encoded, write
from tiny_runs import run as command

import alexnet_jax
from alexnet_jax import networks
from alexnet_jax.runtime import errors
from alexnet_jax.tools.convert import command as convert
from alexnet_jax.tools.convert import exports, files, nets

torch = pytest.importorskip("torch")
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
    (
      "oldest.pth",
      functools.partial(foreign.write_legacy_pth, parameters=True),
    ),
    ("checkpoint.pth", foreign.write_checkpoint),
    (
      "parallel.pth",
      functools.partial(foreign.write_checkpoint, wrapped="all"),
    ),
    ("reference.pth", foreign.write_reference_checkpoint),
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
  ("order", "ceil", "raw"),
  [
    ("alexnet", foreign.ZOO_CEIL, True),
    ("alexnet", foreign.CAFFE_CEIL, False),
    ("caffenet", foreign.CAFFE_CEIL, True),
  ],
)
def test_onnx_files_give_the_logits_of_their_graph(order, ceil, raw, tmp_path):
  """The zoo's own is the first: only its last pooling passes the edge."""
  path = tmp_path / "net.onnx"
  foreign.write_bvlcalexnet_onnx(path, CAFFE, order, ceil, raw=raw)
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
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_wants_to_run_code_is_not_run(
  legacy, state, protocol, tmp_path, recwarn
):
  marker, path = tmp_path / "marker", tmp_path / "net.pth"
  foreign.write_evil_pth(path, marker, state, legacy, protocol)
  _refused(path, r"wants to run shutil\.copyfile")
  assert not marker.exists()
  assert not recwarn.list


def test_a_plain_pickle_that_wants_to_run_code_is_not_run(tmp_path):
  marker, path = tmp_path / "marker", tmp_path / "net.pth"
  path.write_bytes(pickle.dumps({"conv1": foreign._Evil(marker)}))
  _refused(path, r"wants to run shutil\.copyfile")
  assert not marker.exists()


def test_a_whole_module_is_refused_by_its_class(tmp_path):
  torch.save(torch.nn.Sequential(torch.nn.ReLU()), tmp_path / "net.pth")
  _refused(tmp_path / "net.pth", r"wants to run torch\.nn\.modules")


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_that_torch_will_not_read_are_said_to_be_no_more(
  legacy, tmp_path
):
  torch.save(
    {"conv1.weight": torch.ones(3)}, tmp_path / "net.pth", pickle_protocol=4,
    _use_new_zipfile_serialization=not legacy,
  )  # fmt: skip
  _refused(tmp_path / "net.pth", "pickle is not as torch.save writes it")


def test_names_from_a_file_do_not_break_the_line_of_an_error(tmp_path):
  tensors = {"a\nb\x1b[2J": torch.ones(3), "c" * 9000: torch.ones(3)}
  torch.save(tensors, tmp_path / "net.pth")
  result = run_command(
    "convert", f"--from={tmp_path}/net.pth", f"--output={tmp_path}/run"
  )
  assert_refused(result, "a\\nb\\x1b[2J is too many")
  assert len(result.stderr) < 4000


@pytest.mark.parametrize("weights", [None, CAFFE])
def test_a_dictionary_that_wants_to_run_code_is_not_run(weights, tmp_path):
  marker, path = tmp_path / "marker", tmp_path / "net.npy"
  foreign.write_evil_npy(path, marker, weights)
  _refused(path, r"wants to run shutil\.copyfile")
  assert not marker.exists()


class _ForgedDtype:
  """A record of a pointer, that says it holds none."""

  def __reduce__(self):
    fields = {"a": (np.dtype("O"), 0)}
    state = (3, "|", None, ("a",), fields, 8, 1, 0)
    return np.dtype, ("V8", False, True), state


class _ForgedArray:
  def __reduce__(self):
    return np.ndarray, ((1,), _ForgedDtype(), b"A" * 8)


def test_a_dictionary_cannot_lie_about_memory(tmp_path):
  """Numpy's own constructors take this, and a read of it is a crash."""
  layers = {"conv1": [_ForgedArray(), _ForgedArray()]}
  with (tmp_path / "net.npy").open("wb") as file:
    np.save(file, np.array(layers, dtype=object))
  _refused(tmp_path / "net.npy", "cannot be read .*type 'V8'")


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
    (lambda s: s.pop("classifier.4.bias"), r"classifier\.4\.bias is missing"),
    (lambda s: s.update(extra=np.zeros(3)), "extra is too many"),
    (
      lambda s: s.update({"features.0.weight": np.zeros((64, 3, 7, 7))}),
      r"features\.0\.weight is \[64, 3, 7, 7\], not \[64, 3, 11, 11\]",
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


@pytest.mark.parametrize("version", [1, 2])
def test_a_caffe_layer_that_computes_something_is_not_passed_over(
  version, tmp_path
):
  """TanH has no weights; Split only hands on what it is given."""
  path = tmp_path / "net.caffemodel"
  foreign.write_caffemodel(path, CAFFE, "alexnet", version)
  foreign.add_caffe_layer(path, version, 22, "Split")
  convert.bring_in(path, tmp_path / "run")
  foreign.add_caffe_layer(path, version, 23, "TanH")
  named = {1: "layer kind 23", 2: "TanH"}[version]
  _refused(path, f"step 21 is {named}, which no net here has, not the end")


def _with(op, **settings):
  """Returns what gives the first node of a kind other attributes."""

  def change(onnx, graph):
    node = next(node for node in graph.node if node.op_type == op)
    kept = [x for x in node.attribute if x.name not in settings]
    del node.attribute[:]
    made = [onnx.helper.make_attribute(k, v) for k, v in settings.items()]
    node.attribute.extend([*kept, *made])

  return change


def _softmax_inside(onnx, graph):
  last = graph.node[-1]
  softmax = onnx.helper.make_node("Softmax", [last.input[0]], ["inside"])
  last.input[0] = "inside"
  graph.node.insert(len(graph.node) - 1, softmax)


def _branch(onnx, graph):
  convs = [node for node in graph.node if node.op_type == "Conv"]
  convs[3].input[0] = convs[2].output[0]  # Past its activation.


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (_with("Gemm", alpha=5.0), "Gemm of settings"),
    (_with("Gemm", transA=1), "Gemm of settings"),
    (_with("Conv", dilations=[2, 2]), "Conv of settings"),
    (_with("Conv", pads=[2, 2, 2, 3]), "Conv of settings"),
    (_with("Conv", strides=[4, 2]), "Conv of settings"),
    (_with("MaxPool", pads=[0, 1, 0, 0]), "MaxPool of settings"),
    (_with("MaxPool", pads=[0, 0, 2, 2]), "MaxPool of settings"),
    (_with("MaxPool", pads=[0, 0, 0, 1]), "MaxPool of settings"),
    (_softmax_inside, "Softmax of settings"),
    (_branch, "it is no chain"),
  ],
)
def test_a_graph_that_computes_something_else_is_refused(
  change, words, tmp_path
):
  onnx = pytest.importorskip("onnx")
  path = tmp_path / "net.onnx"
  foreign.write_torchvision_onnx(path, TORCHVISION)
  model = onnx.load(path)
  change(onnx, model.graph)
  onnx.save(model, path)
  _refused(path, words)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda x: np.where(x == x.max(), np.nan, x), "that are not finite"),
    (lambda x: (100 * x).astype(np.int8), "is int8; weights must be floats"),
  ],
)
def test_what_are_no_weights_are_refused(change, words, tmp_path):
  state = dict(TORCHVISION)
  state["features.3.bias"] = change(state["features.3.bias"])
  foreign.write_safetensors(tmp_path / "net.safetensors", state)
  _refused(tmp_path / "net.safetensors", f"conv2.bias .*{words}")


def test_best_step_of_what_was_never_trained_is_refused(tmp_path):
  foreign.write_npy(tmp_path / "net.npy", CAFFE)
  convert.bring_in(tmp_path / "net.npy", tmp_path / "run")
  with pytest.raises(errors.InputError, match="take newest"):
    alexnet_jax.load(tmp_path / "run", "best")


def _write_data(folder, labels, names):
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
    ({"net": "bvlc_alexnett"}, "Did you mean 'bvlc_alexnet'"),
    ({"mean": "1,2"}, "--mean='1,2' is no mean image"),
    ({"mean": "nan,1,2"}, "not from 0 to 255"),
    ({"mean": "hwc.npy"}, r"no mean image .it is .256, 256, 3."),
    ({"mean": "missing.npy"}, "missing.npy' is no mean image"),
    ({"classes": "missing.txt"}, "missing.txt' cannot be read"),
    ({"classes": "six.txt"}, "has 6 class names, but the net 7 classes"),
    ({"data_dir": "missing"}, "does not exist"),
    ({"data_dir": "missing", "classes": "seven.txt"}, "does not exist"),
    (
      {"data_dir": "data", "classes": "seven.txt"},
      "has other classes than the net: label 5 is 'x', not 'f'",
    ),
    ({"data_dir": "six"}, "has 6 class names, but the net 7 classes"),
  ],
)
def test_options_that_do_not_fit_are_refused(
  options, words, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "six.txt").write_text("a\nb\nc\nd\ne\nf\n")
  (tmp_path / "seven.txt").write_text("a\nb\nc\nd\ne\nf\ng\n")
  _write_data(tmp_path / "data", [], "abcdexg")
  _write_data(tmp_path / "six", [], "abcdef")
  np.save(tmp_path / "hwc.npy", np.full((256, 256, 3), 100.0))
  foreign.write_npy(tmp_path / "net.npy", CAFFE)
  _refused(tmp_path / "net.npy", words, **options)


@pytest.mark.parametrize(("size", "fits"), [(224, True), (112, False)])
def test_a_net_of_small_images_is_not_of_torchvisions_class(size, fits):
  """Which has 9,216 inputs in classifier.1, whatever it looks at."""
  asked = files.Found({}, None, size, [True] * 3)
  config = nets.config_of(nets.NETS["torchvision"], asked)
  network = networks.from_config(config)
  assert nets.is_torchvisions(network, config) == fits


@pytest.mark.parametrize("kind", ["safetensors", "torch", "onnx"])
def test_what_was_written_here_is_nothing_without_its_config(kind, tmp_path):
  """Else a net of Caffe's, in RGB by now, would be turned a second time."""
  foreign.write_caffemodel(tmp_path / "n.caffemodel", CAFFE, "caffenet", 1)
  convert.bring_in(tmp_path / "n.caffemodel", tmp_path / "run")
  convert.send_out(tmp_path / "run", tmp_path / "out", kind)
  file = f"alexnet{exports.KINDS[kind].suffix}"
  shutil.copy(tmp_path / "out" / file, tmp_path)
  _refused(tmp_path / file, "written here, with files that must be beside it")
  ours = tmp_path / "out" / file
  with pytest.raises(errors.InputError, match="drop --net"):
    convert.bring_in(ours, tmp_path / "b", net="torchvision")
  with pytest.raises(errors.InputError, match="does not exist"):
    convert.bring_in(ours, tmp_path / "b", data_dir=str(tmp_path / "missing"))
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  config["network"]["fc7"]["units"] += 1
  (tmp_path / "out" / "config.json").write_text(json.dumps(config))
  _refused(ours, "not what the config .*fc7.weight is")


def test_a_foreign_file_among_those_of_a_run_is_foreign(tmp_path):
  foreign.write_npy(tmp_path / "net.npy", CAFFE)
  convert.bring_in(tmp_path / "net.npy", tmp_path / "run")
  foreign.write_pth(tmp_path / "run" / "net.pth", TORCHVISION)
  lines, _ = logits_of(tmp_path / "run" / "net.pth", tmp_path / "other")
  assert "is torchvision" in lines[0]


def test_weights_that_two_nets_have_are_said_to_be(tmp_path):
  foreign.write_npy(tmp_path / "net.npy", CAFFE)
  lines = convert.bring_in(tmp_path / "net.npy", tmp_path / "run")
  assert "pass --net=bvlc_reference_caffenet if it is" in lines[1]


def test_a_config_of_another_program_is_no_matter(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"architecture": "x"}))
  foreign.write_safetensors(tmp_path / "model.safetensors", TORCHVISION)
  lines, _ = logits_of(tmp_path / "model.safetensors", tmp_path / "run")
  assert "is torchvision" in lines[0]


def test_an_imported_net_is_a_run_like_any_other(tmp_path):
  """Asked, evaluated and fine-tuned by the commands, on images of its own."""
  foreign.write_npy(tmp_path / "net.npy", CAFFE)
  names = [f"name {n}" for n in range(CLASSES)]
  (tmp_path / "classes.txt").write_text("\n".join(names))
  scores = foreign.caffe_logits(CAFFE, centre(227), MEAN_BGR, "alexnet")
  best = scores.argmax(axis=1)
  # The first label is right, the others are wrong.
  labels = [best[0], *((best[1:] + 1) % CLASSES)]
  _write_data(tmp_path / "data", labels, names)
  done = command(
    "convert", f"--from={tmp_path}/net.npy", f"--output={tmp_path}/run",
    f"--classes={tmp_path}/classes.txt", f"--data_dir={tmp_path}/data",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "its filters are turned to take RGB" in done.stdout
  assert "7 classes" in done.stdout
  Image.fromarray(IMAGES[0]).save(tmp_path / "image.png")
  asked = command(
    "predict", f"--workdir={tmp_path}/run", "--format=jsonl",
    str(tmp_path / "image.png"),
  )  # fmt: skip
  assert asked.returncode == 0, asked.stderr
  assert json.loads(asked.stdout)["top"][0]["class"] == names[best[0]]
  evaluated = command("evaluate", f"--workdir={tmp_path}/run")
  assert evaluated.returncode == 0, evaluated.stderr
  error = 1 - 1 / len(IMAGES)
  assert f"top-1 error {error:.2%}" in evaluated.stdout
  tuned = command(
    "train", "--config=configs/finetune.py", f"--workdir={tmp_path}/tuned",
    init_from=tmp_path / "run", data_dir=tmp_path / "data",
    num_classes=CLASSES, total_steps=1, batch_size=2, test_views=1,
    test_split="validation",
  )  # fmt: skip
  assert tuned.returncode == 0, tuned.stderr
  assert "fc7 from" in tuned.stdout
  shutil.copy(tmp_path / "image.png", tmp_path / "net.pth")
  failed = command(
    "convert", f"--from={tmp_path}/net.pth", f"--output={tmp_path}/new"
  )
  assert failed.returncode == 1
  assert failed.stderr.startswith("error: ")
  assert len(failed.stderr.splitlines()) == 1
