"""Views and nets put together, against numpy on the stored images."""

import io
import re
import shutil
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import tensorflow_datasets as tfds
from commands import assert_refused, run_in_process
from drawn_runs import small_config, write_run
from PIL import Image
from tfds_files import encoded, noise, write

from alexnet_jax import augment, evaluate, model, networks, steps
from alexnet_jax.configs import quickstart
from alexnet_jax.data import records, statistics
from alexnet_jax.data.prepare import shapes
from alexnet_jax.parallel import placement
from alexnet_jax.runs import (
  checkpoint,
  logs,
  run_files,
  saving,
  states,
)
from alexnet_jax.runtime.errors import InputError
from alexnet_jax.tools.evaluate import evaluate_runs

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Net(NamedTuple):
  """A net with what it needs to see an image."""

  config: Any
  module: model.AlexNet
  params: Any
  mean: np.ndarray


class Part(NamedTuple):
  """What a net puts into a prediction."""

  weight: float
  views: int


@pytest.fixture(scope="module")
def nets():
  """Two of two layers, of other filters, crops and mean images."""
  made = []
  for seed, (filters, crop) in enumerate([(8, 28), (6, 23)]):
    config = quickstart.get_config()
    config.network.layers = ("conv1", "fc8")
    config.network.conv1.filters = filters
    config.update(image_size_px=32, crop_size_px=crop, batch_size=6)
    module = networks.make_model(config)
    rng = np.random.default_rng(seed)
    image = jnp.zeros((1, crop, crop, 3))
    params = jax.tree.map(
      lambda leaf, rng=rng: rng.normal(0, 0.02, leaf.shape).astype(np.float32),
      jax.eval_shape(module.init, jax.random.key(0), image)["params"],
    )
    mean = rng.uniform(90, 160, (32, 32, 3)).astype(np.float32)
    made.append(Net(config, module, params, mean))
  return made


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  directory = tmp_path_factory.mktemp("data") / "shapes"
  # 21 are no whole number of batches, nor of devices.
  counts = {"train": 2, "validation": 2, "test": 21}
  shapes.generate(directory, size_px=32, workers=0, **counts)
  return directory


@pytest.fixture(scope="module")
def expected(nets, data):
  """Makes the figures of an ensemble from the logits of each view."""
  decoders = {"image": tfds.decode.SkipDecoding()}
  found = tfds.builder_from_directory(data).as_data_source(
    "test", decoders=decoders
  )
  images = [
    np.asarray(Image.open(io.BytesIO(example["image"]))) for example in found
  ]
  labels = [example["label"] for example in found]
  logits = []  # [net][view]
  for net in nets:
    crop = net.config.crop_size_px
    seen = [oracles.ten_views(image - net.mean, crop) for image in images]
    crops = np.swapaxes(seen, 0, 1).reshape(-1, crop, crop, 3)
    found = net.module.apply({"params": net.params}, crops.astype(np.float32))
    logits.append(np.reshape(found, (10, len(images), -1)))

  def figures(parts):
    chosen, weights = [], []
    for views, part in zip(logits, parts, strict=False):
      chosen += list(views[4:5] if part.views == 1 else views)
      weights += [part.weight / part.views] * part.views
    p = oracles.average_softmax(chosen, weights)
    return {
      "loss": oracles.cross_entropy(np.log(p), labels).mean(),
      "top1_error": oracles.top_k_errors(p, labels, 1).mean(),
      "top5_error": oracles.top_k_errors(p, labels, 5).mean(),
    }

  return figures


@pytest.fixture(scope="module", params=[1, 8])
def evaluated(request, nets, data):
  """Evaluates an ensemble, on one device and on eight."""
  examples = records.open_split(records.open_directory(data), "test", "split")
  mesh = placement.make_mesh(request.param)
  members = []
  for net in nets:
    held = statistics.Statistics(net.mean, np.eye(3), np.ones(3))
    a = augment.from_config(net.config, held)
    view_step = steps.make_view_step(net.module, a, mesh)
    members.append((view_step, placement.replicate(mesh, net.params)))

  def figures(parts):
    chosen = [
      evaluate.Net(
        *member,
        augment.views(part.views, 32, net.config.crop_size_px),
        part.weight,
      )
      for net, member, part in zip(nets, members, parts, strict=False)
    ]
    return evaluate.evaluate_nets(chosen, examples, nets[0].config, mesh)[-1]

  return figures


@pytest.mark.parametrize(
  "parts",
  [
    [Part(1, 1)],
    [Part(1, 10)],
    [Part(1, 10), Part(1, 10)],
    [Part(2, 1), Part(1, 1)],
    [Part(2, 10), Part(1, 10)],
    [Part(0.5, 1), Part(3, 10)],
  ],
)
def test_prediction_is_the_weighted_mean_of_the_softmaxes(
  parts, evaluated, expected
):
  """Catches a mean of logits, and padding or devices that count."""
  found = evaluated(parts)
  assert found.pop("images_per_second") > 0
  assert found == pytest.approx(expected(parts), rel=1e-5)


@pytest.mark.parametrize("count", [1, 8])
def test_batch_is_as_large_as_the_split_and_compiling_takes_no_time(
  count, nets, data, expected
):
  """A batch of 4,096 for 21 images; the first evaluation is told as quick."""
  examples = records.open_split(records.open_directory(data), "test", "split")
  mesh = placement.make_mesh(count)
  net = nets[0]
  held = statistics.Statistics(net.mean, np.eye(3), np.ones(3))
  a = augment.from_config(net.config, held)
  view_step = steps.make_view_step(net.module, a, mesh)
  each = evaluate.Net(
    view_step,
    placement.replicate(mesh, net.params),
    augment.views(1, 32, net.config.crop_size_px),
  )
  config = net.config.copy_and_resolve_references()
  config.batch_size = 4096
  masks, seconds = [], []
  for _ in range(2):
    start = time.perf_counter()
    (figures,) = evaluate.evaluate_nets(
      [each], examples, config, mesh,
      on_batch=lambda batch, _: masks.append(np.asarray(batch["mask"])),
    )  # fmt: skip
    told = len(examples) / figures.pop("images_per_second")
    seconds.append((time.perf_counter() - start, told))
    assert figures == pytest.approx(expected([Part(1, 1)]), rel=1e-5)
  assert [(len(mask), mask.sum()) for mask in masks] == [
    (21 if count == 1 else 24, 21)
  ] * 2
  (first, told_first), (second, told_second) = seconds
  assert told_first < 0.5 * first
  assert 0.5 * second < told_second <= second


@pytest.fixture(scope="module")
def workdirs(nets, data, tmp_path_factory):
  """Runs of the two nets, as training leaves them, each with its own mean."""
  folder = tmp_path_factory.mktemp("runs")
  dataset = records.open_directory(data)
  made = []
  for name, net, views in zip("AB", nets, (1, 10), strict=True):
    net.config.update(data_dir=str(data), test_views=views)
    with run_files.claim_workdir(folder / name, net.config, 1):
      held = statistics.Statistics(net.mean, np.eye(3), np.ones(3))
      names = dataset.class_names
      run_files.write_run_metadata(folder / name, names, held)
      state = states.init_state([net.params], optax.trace(0.9))
      log = logs.Logger(folder / name, 0, True, 1, is_first=False)
      with saving.Saver(folder / name, net.config, log) as saver:
        saver.save(state, checkpoint.Progress({}, {}))
    made.append(folder / name)
  return made


@pytest.fixture(scope="module")
def other_classes(workdirs):
  """The second run again, but its ten classes have other names."""
  workdir = workdirs[1].with_name("C")
  shutil.copytree(workdirs[1], workdir)
  names = workdir / "class_names.json"
  names.write_text(names.read_text().swapcase())
  return workdir


def command(capsys, *workdirs, **options):
  options = {"workdir": ",".join(map(str, workdirs)), **options}
  flags = [f"--{name}={value}" for name, value in options.items()]
  return run_in_process(capsys, "evaluate", *flags)


def test_command_prints_the_figures_of_an_ensemble(capsys, workdirs, expected):
  result = command(capsys, *workdirs, views=10)
  assert result.returncode == 0, result.stderr
  (found,) = re.findall(
    r"^test, 21 images, 2 nets, ten views, step 0, 0: top-1 error (.*)%,"
    r" top-5 error (.*)%, loss (.*)$",
    result.stdout,
  )
  figures = expected([Part(1, 10), Part(1, 10)])
  errors = [100 * figures["top1_error"], 100 * figures["top5_error"]]
  np.testing.assert_allclose(
    np.array(found, float), [*errors, figures["loss"]], atol=0.0051
  )


def test_runs_are_seen_as_their_configs_say_and_weigh_the_same(
  workdirs, expected
):
  runs, examples, found = evaluate_runs(workdirs)
  assert [run.step for run in runs] == [0, 0]
  assert len(examples) == 21
  figures = expected([Part(1, 1), Part(1, 10)])
  assert {name: found[name] for name in figures} == pytest.approx(figures)


def test_split_and_data_may_be_others_than_the_runs(
  workdirs, data, tmp_path, expected
):
  """Two parts of the test split come to the whole of it."""
  moved = shutil.copytree(data, tmp_path / "data")
  loss = 0
  for split, size in (("test[:10]", 10), ("test[10:]", 11)):
    _, examples, found = evaluate_runs(
      workdirs[:1], data_dir=str(moved), split=split
    )
    assert len(examples) == size
    loss += size * found["loss"]
  whole = expected([Part(1, 1)])["loss"]
  assert loss / 21 == pytest.approx(whole, rel=1e-5)


def with_config(workdir, place, **fields):
  """Returns a copy of a run with another config."""
  copy = shutil.copytree(workdir, place / "copy")
  config = run_files.read_config(copy).unlock()
  config.update(fields)
  run_files.write_config(copy, config)
  return copy


def test_without_a_test_split_it_is_validation_and_the_user_is_told(
  capsys, workdirs, tmp_path
):
  for name, test in (("none", ""), ("same", "validation")):
    copy = with_config(workdirs[0], tmp_path / name, test_split=test)
    told = command(capsys, copy)
    assert told.returncode == 0
    (note,) = told.stderr.splitlines()
    assert note.startswith("note: errors on validation may be too low")
    asked = command(capsys, copy, split="validation")
    assert asked.stdout == told.stdout
    assert asked.stdout.startswith("validation, 2 images")
    assert asked.stderr == ""


def test_of_five_classes_there_is_no_top_5_error(capsys, tmp_path):
  for count in (5, 6):
    place = tmp_path / str(count)
    examples = [
      {"image": encoded(noise(label, 32, 32, 3)), "label": label}
      for label in range(count)
    ]
    image = tfds.features.Image(encoding_format="png")
    label = tfds.features.ClassLabel(num_classes=count)
    features = {"image": image, "label": label}
    write(place / "data", {"test": [examples]}, features)
    names = records.open_directory(place / "data").class_names
    fields = {
      "network.layers": ("conv1", "fc8"),
      "num_classes": count,
      "data_dir": str(place / "data"),
      **{"image_size_px": 32, "crop_size_px": 28},
    }
    write_run(place / "run", small_config(**fields), names)
    printed = command(capsys, place / "run").stdout
    assert ("top-5" in printed) == (count == 6)
    assert re.search(r"top-1 error [\d.]+%, .*loss [\d.]+$", printed)


def test_without_any_split_there_is_one_error(capsys, workdirs, tmp_path):
  none = with_config(workdirs[0], tmp_path, test_split="", validation_split="")
  assert_refused(command(capsys, none), "no test and no validation", "--split=")
  assert command(capsys, none, split="train").returncode == 0


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"views": 3}, ["--views=3", "1 or 10"]),
    ({"views": 0}, ["--views=0", "1 or 10"]),
    ({"split": "tset"}, ["--split='tset'", "validation"]),
    ({"data_dir": "nowhere"}, ["data_dir='nowhere' cannot be opened"]),
  ],
)
def test_bad_options_are_refused(options, words, workdirs):
  with pytest.raises(InputError) as error:
    evaluate_runs(workdirs, **options)
  for word in words:
    assert word in str(error.value)


def test_no_workdir_is_refused():
  with pytest.raises(InputError, match="names no run"):
    evaluate_runs([])


def test_runs_of_other_classes_are_refused(capsys, workdirs, other_classes):
  result = command(capsys, workdirs[0], other_classes)
  assert_refused(result, str(other_classes), "classes")


@pytest.mark.parametrize("name", ["class_names.json", "mean_image.npy"])
def test_run_without_what_it_knew_of_its_data_is_refused(
  name, workdirs, tmp_path
):
  """The data set's own mean may be another by now."""
  shutil.copytree(workdirs[0], tmp_path / "run")
  (tmp_path / "run" / name).unlink()
  with pytest.raises(InputError, match=name):
    evaluate_runs([tmp_path / "run"])
