"""Batches of prepared shards: nothing lost, nothing twice, resumable."""

import dataclasses
import io
import itertools
import json

import numpy as np
import pytest
from directories import write_shards
from limits import no_file_grows_beyond
from ml_collections import ConfigDict
from PIL import Image

from alexnet_jax.data import batches, checks, records, statistics
from alexnet_jax.data.prepare import shards
from alexnet_jax.runs import run_files
from alexnet_jax.runtime import errors

SIZE_PX = 16
COUNTS = {"train": 23, "validation": 10, "test": 3}  # 23 is prime.
CLASSES = ["ant", "bee", "cat"]


def encode(item):
  """An image whose mean colour is its number and whose pixels are noisy."""
  digits = np.array([item // 144, item // 12 % 12, item % 12])
  noise = np.random.default_rng(item).integers(-9, 10, (SIZE_PX, SIZE_PX, 3))
  pixels = (10 + 20 * digits + noise).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
  return pixels, file.getvalue()


def as_pixels(item):
  """An item that is an image already, given as nested tuples."""
  pixels = np.array(item, np.uint8)
  return pixels, pixels.tobytes()


def item(image):
  digits = (image.mean((0, 1)) // 20).astype(int)
  return int(digits @ [144, 12, 1])


def items(batch):
  return [item(image) for image in batch["image"]]


def write(directory, splits, encoder=encode, size_px=SIZE_PX, raw=False):
  return write_shards(directory, splits, CLASSES, size_px, encoder, raw)


def write_pictures(directory, **splits):
  """Raw images [N, S, S, 3] of each split."""
  size_px = next(iter(splits.values())).shape[1]
  examples = {
    split: [(image.tolist(), i % len(CLASSES)) for i, image in enumerate(held)]
    for split, held in splits.items()
  }
  return write(directory, examples, as_pixels, size_px, raw=True)


@pytest.fixture(name="directory", scope="module")
def fixture_directory(tmp_path_factory):
  splits = {
    split: [(144 * number + i, i % len(CLASSES)) for i in range(count)]
    for number, (split, count) in enumerate(COUNTS.items())
  }
  return write(tmp_path_factory.mktemp("source") / "data", splits)


@pytest.fixture(name="dataset", scope="module")
def fixture_dataset(directory):
  return records.open_directory(directory)


@pytest.fixture(name="train", scope="module")
def fixture_train(dataset):
  return records.open_split(dataset, "train", "train_split")


def open_split(directory, split="train"):
  return records.open_split(
    records.open_directory(directory), split, "train_split"
  )


def in_file_order(examples):
  """(image, label) by Pillow, example after example."""
  pairs = []
  for i in range(len(examples)):
    with Image.open(io.BytesIO(examples[i].image)) as image:
      pairs.append((np.asarray(image), examples[i].label))
  return pairs


def batches_of(examples, **options):
  options = {"batch_size": 5, "seed": 0, "threads": 1} | options
  return batches.train_batches(examples, size_px=SIZE_PX, **options)


def passes(examples, count, **options):
  """The order of the images in each of the first passes."""
  size = len(examples)
  batches = itertools.islice(
    batches_of(examples, **options), count * size // 5 + 1
  )
  stream = [number for batch in batches for number in items(batch)]
  return [stream[i * size : (i + 1) * size] for i in range(count)]


def assert_same(batch, expected):
  assert batch.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_array_equal(batch[name], values)
    assert batch[name].dtype == values.dtype


# Training.


def test_every_pass_takes_each_example_once(train):
  """Batches span passes, as 5 does not divide 23."""
  for order in passes(train, 5):
    assert sorted(order) == list(range(COUNTS["train"]))


def test_passes_differ_in_order(train):
  """A shuffle repeated as it is would show the same batches in each pass."""
  orders = passes(train, 5)
  assert len(set(map(tuple, orders))) == 5
  in_order = [item(image) for image, _ in in_file_order(train)]
  assert in_order not in orders


def test_the_shuffle_is_global():
  """A shuffle of shards or of a window would leave neighbours together."""
  stream = batches.train_indices(100, batch_size=100, seed=0)
  orders = np.stack(list(itertools.islice(stream, 40)))
  places = np.argsort(orders, axis=1)
  gaps = np.abs(np.diff(places, axis=1))  # A third of 101 between neighbours.
  assert 31.5 < gaps.mean() < 36
  means = places.mean(0)  # 49.5 +- 4.6 of each example.
  assert np.abs(means - 49.5).max() < 5 * 4.6


def test_a_seed_fixes_the_order(train):
  assert passes(train, 3, seed=7) == passes(train, 3, seed=7)


def test_seeds_share_no_pass(train):
  """Grain's n-th pass of seed s is its first pass of seed s + n.

  Nets of an ensemble with seeds 0, 1, ... would see the same orders in turn.
  """
  seeds = [0, 1, 2, 3, 2**32 - 1]
  orders = [tuple(o) for seed in seeds for o in passes(train, 4, seed=seed)]
  assert len(set(orders)) == 20


def test_labels_stay_with_their_images(train):
  for batch in itertools.islice(batches_of(train, threads=4), 10):
    assert [i % len(CLASSES) for i in items(batch)] == batch["label"].tolist()


def test_training_images_are_those_of_the_files(train):
  """A buffer that two batches share would show one batch's images twice."""
  known = {item(image): image for image, _ in in_file_order(train)}
  taken = list(itertools.islice(batches_of(train, threads=4), 10))
  for batch in taken:
    for image in batch["image"]:
      np.testing.assert_array_equal(image, known[item(image)])


@pytest.mark.parametrize("batch_size", [1, 5, 23, 50])
def test_training_batches_are_full(train, batch_size):
  for batch in itertools.islice(batches_of(train, batch_size=batch_size), 6):
    assert batch["image"].shape == (batch_size, SIZE_PX, SIZE_PX, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].shape == (batch_size,)
    assert batch["label"].dtype == np.int32


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("position", range(11))
def test_a_restored_state_resumes_exactly(train, position, fresh):
  """Counting what is prefetched, not what was taken, would skip batches.

  The state goes through JSON, as in a checkpoint, at every step of two passes.
  """
  stream = batches_of(train, threads=2)
  for _ in range(position):
    next(stream)
  state = json.loads(json.dumps(stream.get_state()))
  expected = list(itertools.islice(stream, 8))
  state_after = stream.get_state()
  if fresh:
    stream = batches_of(train, threads=3)
    next(stream)
  stream.set_state(state)
  for batch, wanted in zip(itertools.islice(stream, 8), expected, strict=True):
    assert_same(batch, wanted)
  assert stream.get_state() == state_after


@pytest.mark.parametrize("threads", [0, 2, 3, 8])
def test_threads_change_nothing(train, threads):
  one, many = batches_of(train, threads=1), batches_of(train, threads=threads)
  for expected, batch in itertools.islice(zip(one, many, strict=True), 10):
    assert_same(batch, expected)


@pytest.mark.parametrize("position", [0, 3, 7])
def test_numbers_of_examples_are_those_of_the_batches(train, position):
  """In the same order, from the same states."""
  stream = batches_of(train, threads=2)
  for _ in range(position):
    next(stream)
  indices = batches.train_indices(len(train), batch_size=5, seed=0)
  indices.set_state(json.loads(json.dumps(stream.get_state())))
  known = in_file_order(train)
  for batch, index in itertools.islice(zip(stream, indices, strict=True), 9):
    assert items(batch) == [item(known[i][0]) for i in index]
  assert indices.get_state() == stream.get_state()


# Hosts.

BATCH = 8
HOSTS = {
  "one": [range(8)],
  "two": [range(4), range(4, 8)],
  "two, uneven": [range(7), range(7, 8)],
  "three, mixed": [[0, 3, 6], [1, 4, 7], [2, 5]],
  "eight": [[row] for row in range(8)],
  "one without rows": [range(8), []],
}


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS.keys())
def test_hosts_share_training_batches(train, hosts):
  """Together they see the batches of one host: nothing twice, nothing lost."""
  rows = [np.array(host, int) for host in hosts]
  whole = batches_of(train, batch_size=BATCH)
  parts = [batches_of(train, batch_size=BATCH, rows=mine) for mine in rows]
  for batch, *shares in itertools.islice(zip(whole, *parts, strict=True), 7):
    for mine, share in zip(rows, shares, strict=True):
      assert_same(share, {name: batch[name][mine] for name in batch})


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS.keys())
@pytest.mark.parametrize("split", ["validation", "test", "train"])
def test_hosts_share_evaluations(dataset, split, hosts):
  """Of the last batch, some hosts have padding alone; all see as many."""
  examples = records.open_split(dataset, split, "split")

  def evaluate(rows):
    return list(
      batches.eval_batches(
        examples, size_px=SIZE_PX, batch_size=BATCH, threads=2, rows=rows
      )
    )

  whole, rows = evaluate(None), [np.array(host, int) for host in hosts]
  for mine in rows:
    for batch, share in zip(whole, evaluate(mine), strict=True):
      assert_same(share, {name: batch[name][mine] for name in batch})


# Evaluation.


@pytest.mark.parametrize("threads", [0, 1, 4, 8])
@pytest.mark.parametrize("batch_size", [1, 5, 10, 16])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_takes_each_example_once_in_order(
  dataset, split, batch_size, threads
):
  """A dropped or an unmasked tail changes the error of a split."""
  examples = records.open_split(dataset, split, "split")
  stream = list(
    batches.eval_batches(
      examples, size_px=SIZE_PX, batch_size=batch_size, threads=threads
    )
  )
  count = COUNTS[split]
  assert len(stream) == -(-count // batch_size)
  for batch in stream:
    assert batch["image"].shape == (batch_size, SIZE_PX, SIZE_PX, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].shape == (batch_size,)
    assert batch["label"].dtype == np.int32
    assert batch["mask"].shape == (batch_size,)
    assert batch["mask"].dtype == np.float32
  images, labels, mask = (
    np.concatenate([batch[name] for batch in stream])
    for name in ["image", "label", "mask"]
  )
  assert mask.tolist() == [1.0] * count + [0.0] * (len(mask) - count)
  assert not images[count:].any()
  expected = in_file_order(examples)
  assert labels[:count].tolist() == [label for _, label in expected]
  np.testing.assert_array_equal(
    images[:count], np.stack([image for image, _ in expected])
  )
  base = 144 * list(COUNTS).index(split)
  assert sorted(map(item, images[:count])) == list(range(base, base + count))


# Splits.


@pytest.mark.parametrize("cut", ["50%", "90%", "7"])
def test_slices_are_disjoint_and_complete(dataset, cut):
  head, tail = (
    [item(image) for image, _ in in_file_order(examples)]
    for examples in (
      records.open_split(dataset, f"train[:{cut}]", "split"),
      records.open_split(dataset, f"train[{cut}:]", "split"),
    )
  )
  assert head
  assert tail
  assert sorted(head + tail) == list(range(COUNTS["train"]))


def test_splits_add_up(dataset):
  """As in the paper's test nets, trained on all images there are."""
  both = records.open_split(dataset, "train+validation", "train_split")
  (order,) = passes(both, 1)
  assert sorted(order) == [*range(23), *range(144, 154)]


# Sizes.


@pytest.mark.parametrize("size_px", [8, 40])
def test_images_of_another_size_are_scaled(train, size_px):
  found = batches.load(train, np.arange(5), size_px)["image"]
  for image, (stored, _) in zip(found, in_file_order(train)[:5], strict=True):
    expected = Image.fromarray(stored).resize(
      (size_px, size_px), Image.Resampling.BICUBIC
    )
    np.testing.assert_array_equal(image, np.asarray(expected))


@pytest.mark.parametrize("side", [8, 15, 24])
def test_a_jpeg_of_another_size_than_told_is_refused_or_scaled(tmp_path, side):
  """Its pixels in a corner of the buffer would leave those of another image."""

  def encode_odd(_):
    file = io.BytesIO()
    Image.new("RGB", (side, side), (200, 0, 0)).save(file, "JPEG", quality=95)
    return np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8), file.getvalue()

  data = write(tmp_path / "data", {"train": [(0, 0)]}, encode_odd)
  try:
    found = batches.load(open_split(data), np.array([0]), SIZE_PX)["image"]
  except errors.InputError as e:
    assert "example 0 " in str(e)  # noqa: PT017
  else:
    assert np.abs(found.astype(int) - [200, 0, 0]).max() < 5


# The check at the start.


def config(**changes):
  known = {
    "num_classes": len(CLASSES),
    "image_size_px": SIZE_PX,
    "reader_threads": 2,
    "input_timeout_s": 60,
  }
  return ConfigDict(known | changes)


def refused(directory, split="train", **changes):
  """The one line by which a check refuses."""
  with pytest.raises(errors.InputError) as error:
    checks.check(open_split(directory, split), config(**changes))
  assert "\n" not in str(error.value)
  assert str(directory) in str(error.value)
  return str(error.value)


def pictures(seed, count, low=0, high=256, size_px=SIZE_PX):
  shape = (count, size_px, size_px, 3)
  return np.random.default_rng(seed).integers(low, high, shape, np.uint8)


def test_a_check_returns_the_statistics_beside_the_shards(train, directory):
  held = checks.check(train, config())
  np.testing.assert_array_equal(
    held.mean_image, np.load(directory / "mean_image.npy")
  )
  axes = json.loads((directory / "colour_pca.json").read_text())
  np.testing.assert_allclose(held.colour_axes, axes["axes_in_columns"])
  np.testing.assert_allclose(held.colour_sds, axes["standard_deviations"])


@pytest.mark.parametrize("classes", [2, 4, 1000])
def test_another_number_of_classes_is_refused(directory, classes):
  line = refused(directory, num_classes=classes)
  assert f"num_classes={classes} " in line
  assert "--config.num_classes=3." in line


@pytest.mark.parametrize("size", [15, 32, 256])
def test_another_image_size_is_refused(directory, size):
  line = refused(directory, image_size_px=size)
  assert f"image_size_px={size} " in line
  assert "--config.image_size_px=16." in line


def test_a_mean_image_of_another_size_is_refused(tmp_path):
  data = write_pictures(tmp_path / "data", train=pictures(0, 20))
  np.save(data / "mean_image.npy", np.full((24, 24, 3), 127, np.float32))
  assert "24" in refused(data)


@pytest.mark.parametrize(
  "shape", [(), (16, 3), (16, 16), (16, 20, 3), (16, 16, 1), (16, 16, 4)]
)
def test_a_mean_image_of_another_shape_is_refused(tmp_path, shape):
  """Else it fails in the first step, or is broadcast."""
  data = write_pictures(tmp_path / "data", train=pictures(0, 20))
  np.save(data / "mean_image.npy", np.full(shape, 127, np.float32))
  refused(data)


@pytest.mark.parametrize("missing", statistics.FILES)
@pytest.mark.parametrize("data", [None, b"", b"{}"])
def test_half_of_the_statistics_is_refused(tmp_path, missing, data):
  """As a copy that was broken off leaves them; not measured anew."""
  directory = write_pictures(tmp_path / "data", train=pictures(0, 20))
  (directory / missing).unlink()
  if data is not None:
    (directory / missing).write_bytes(data)
  refused(directory)


MEANS = {
  "0 to 1": lambda mean: mean / 255,
  "0 to 65535": lambda mean: mean * 257,
  "centred": lambda mean: mean - mean,
  "blue first": lambda mean: mean[..., ::-1],
  "brighter": lambda mean: mean + 24,
  "darker green": lambda mean: mean - np.array([0, 24, 0], np.float32),
}


@pytest.mark.parametrize("change", MEANS.values(), ids=MEANS.keys())
def test_a_mean_of_other_images_is_refused(tmp_path, change):
  """The net would learn from images that lie elsewhere."""
  colours = np.array([90, 120, 160], np.uint8)
  images = pictures(0, 64, 0, 60) + colours
  data = write_pictures(tmp_path / "data", train=images)
  mean = np.load(data / "mean_image.npy")
  np.save(data / "mean_image.npy", change(mean))
  line = refused(data)
  assert "mean_image.npy" in line
  assert str(images.mean((0, 1, 2)).round(1).tolist()) in line


@pytest.mark.parametrize("shift", [-25, 25])
def test_a_mean_is_compared_as_closely_as_images_allow(tmp_path, shift):
  """Brightnesses of 256 images, 40 levels apart, have a mean known to 2.5."""
  rng = np.random.default_rng(0)
  levels = rng.uniform(50, 200, (256, 1, 1, 1))
  images = np.broadcast_to(levels, (256, 8, 8, 3)).astype(np.uint8)
  data = write_pictures(tmp_path / "data", train=images)
  mean = np.load(data / "mean_image.npy")
  np.save(data / "mean_image.npy", mean + np.float32(shift))
  assert "mean_image.npy" in refused(data, image_size_px=8)


def skewed(rng, count):
  """Images by turns of even, of long-tailed and of mostly dark brightness."""
  share = rng.choice([0.03, 0.1, 0.3])
  levels = (
    rng.normal(120, 40, count),
    rng.lognormal(2, 1.2, count),
    np.where(rng.random(count) < share, 255, 0),
    np.where(rng.random(count) < share, rng.uniform(150, 255, count), 10),
  )[rng.integers(4)]
  shape = (count, 8, 8, 3)
  images = levels[:, None, None, None] + rng.normal(0, 2, shape)
  return images.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(8))
def test_no_sound_data_are_refused(tmp_path, seed):
  """Whole splits and small slices of sets whose images are unlike each other.

  The mean is that of the training split, whatever slice is trained on.
  """
  rng = np.random.default_rng(seed)
  for number in range(4):
    count = int(rng.integers(40, 320))
    images = skewed(rng, count + 40)
    data = write_pictures(
      tmp_path / str(number), train=images[:count], validation=images[count:]
    )
    for split in (
      "train", "train[:50%]", "train[50%:]", "train[:16]", "train[-20:]",
      "train+validation", "validation",
    ):  # fmt: skip
      checks.check(open_split(data, split), config(image_size_px=8))


def test_jpegs_of_low_quality_are_not_refused(tmp_path):
  """Their colours are some levels off, those of flat images all alike."""

  def encode_flat(_):
    pixels = np.full((SIZE_PX, SIZE_PX, 3), (203, 181, 158), np.uint8)
    return pixels, shards.encode_jpeg(pixels, quality=30)

  data = write(
    tmp_path / "data", {"train": [(i, 0) for i in range(20)]}, encode_flat
  )
  checks.check(open_split(data), config())


# Statistics measured at the start.


@pytest.mark.parametrize("threads", [1, 3])
def test_statistics_that_are_missing_are_measured(tmp_path, threads):
  """Over a count that is no multiple of a batch: no padding is counted."""
  images = pictures(0, 75) // np.array([1, 2, 4], np.uint8)
  images[..., 1] = images[..., 0] // 2 + images[..., 1] // 3
  data = write_pictures(tmp_path / "data", train=images)
  for name in statistics.FILES:
    (data / name).unlink()
  held = checks.check(open_split(data), config(reader_threads=threads))
  np.testing.assert_array_equal(
    held.mean_image, images.mean(0, dtype=np.float64).astype(np.float32)
  )
  assert held.mean_image.dtype == np.float32
  covariance = np.cov(images.reshape(-1, 3).T.astype(np.float64), bias=True)
  axes, sds = held.colour_axes, held.colour_sds
  np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
  np.testing.assert_allclose(
    axes * np.square(sds) @ axes.T, covariance, rtol=1e-4, atol=1e-2
  )
  assert sorted(sds) == list(sds)
  for name in statistics.FILES:
    assert not (data / name).exists()


def test_measured_statistics_are_of_the_slice_that_is_trained_on(tmp_path):
  """Of the held-out rest they must know nothing."""
  images = np.concatenate([pictures(0, 40, 0, 50), pictures(1, 10, 200, 256)])
  data = write_pictures(tmp_path / "data", train=images)
  for name in statistics.FILES:
    (data / name).unlink()
  examples = open_split(data, "train[:30]")
  slice_images = batches.load(examples, np.arange(30), SIZE_PX)["image"]
  held = checks.check(examples, config())
  np.testing.assert_allclose(
    held.mean_image, slice_images.mean(0, dtype=np.float64), rtol=1e-6
  )


# What travels with a run.


def test_a_run_keeps_its_classes_and_statistics(tmp_path, directory):
  dataset = records.open_directory(directory)
  held = statistics.read(directory)
  run_files.check_run_metadata(tmp_path, dataset, held)
  class_names, known = run_files.read_run_metadata(tmp_path)
  assert class_names == tuple(CLASSES)
  for name in ("mean_image", "colour_axes", "colour_sds"):
    found, wanted = getattr(known, name), getattr(held, name)
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == wanted.dtype
  run_files.check_run_metadata(
    tmp_path, dataset, held
  )  # As a run that goes on does.


def test_what_a_run_keeps_is_whole_or_written_anew(tmp_path, directory):
  """A disk that fills up in any file of it."""
  dataset = records.open_directory(directory)
  # Longer than the mean image, which comes first.
  names = tuple(name * 2000 for name in CLASSES)
  dataset = dataclasses.replace(dataset, class_names=names)
  held = statistics.read(directory)
  (tmp_path / "whole").mkdir()
  run_files.check_run_metadata(tmp_path / "whole", dataset, held)
  expected = {
    path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
  }
  sizes = {len(data) for data in expected.values()}
  for room in sorted({0, 1} | {size - 1 for size in sizes}):
    workdir = tmp_path / str(room)
    workdir.mkdir()
    with no_file_grows_beyond(room), pytest.raises(OSError, match="too large"):
      run_files.check_run_metadata(workdir, dataset, held)
    run_files.check_run_metadata(workdir, dataset, held)
    found = {path.name: path.read_bytes() for path in workdir.iterdir()}
    assert found == expected


def test_names_of_any_script_are_kept(tmp_path):
  """Written in the locale's encoding they would be lost on the way."""
  names = ["großer Panda", "熊猫", 'a "b"\\']
  with shards.claim(tmp_path / "data") as work:
    shards.write(
      work,
      tmp_path / "data",
      {"train": [(0, 0)]},
      class_names=names,
      size_px=SIZE_PX,
      encoder=encode,
      description="",
      workers=0,
    )
  dataset = records.open_directory(tmp_path / "data")
  run_files.check_run_metadata(
    tmp_path, dataset, statistics.read(tmp_path / "data")
  )
  assert run_files.read_run_metadata(tmp_path)[0] == tuple(names)


@pytest.mark.parametrize("what", ["classes", "order of classes", "mean image"])
def test_other_data_than_the_run_began_with_are_refused(tmp_path, what):
  """Labels would mean other classes, or the input lie elsewhere."""
  (tmp_path / "run").mkdir()
  first = write_pictures(tmp_path / "first", train=pictures(0, 20))
  held = statistics.read(first)
  run_files.check_run_metadata(
    tmp_path / "run", records.open_directory(first), held
  )
  before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
  images = pictures(1 if what == "mean image" else 0, 20)
  other = write_pictures(tmp_path / "other", train=images)
  names = {
    "classes": ["ant", "bee", "dog"],
    "order of classes": ["bee", "ant", "cat"],
    "mean image": CLASSES,
  }[what]
  (other / "label.labels.txt").write_text("\n".join(names) + "\n")
  with pytest.raises(errors.InputError) as error:
    run_files.check_run_metadata(
      tmp_path / "run",
      records.open_directory(other),
      statistics.read(other),
    )
  line = str(error.value)
  assert "\n" not in line
  for word in (what.split()[-1], str(other), str(tmp_path / "run")):
    assert word in line
  after = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
  assert after == before


@pytest.mark.parametrize("data", [None, b"", b"{", b"3", b"\xff"])
@pytest.mark.parametrize(
  "name", ["class_names.json", "mean_image.npy", "colour_pca.json"]
)
def test_a_run_that_lost_what_it_kept_is_refused(
  tmp_path, directory, name, data
):
  dataset = records.open_directory(directory)
  run_files.check_run_metadata(tmp_path, dataset, statistics.read(directory))
  (tmp_path / name).unlink()
  if data is not None:
    (tmp_path / name).write_bytes(data)
  with pytest.raises(errors.InputError) as error:
    run_files.read_run_metadata(tmp_path)
  assert str(tmp_path) in str(error.value)
  assert "\n" not in str(error.value)


# Damage.


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_a_truncated_shard_is_one_line(tmp_path, share, threads):
  """A copy that was broken off, found by the threads that decode."""
  data = write(tmp_path / "data", {"train": [(i, 0) for i in range(70)]})
  file = max(data.glob("*-train.array_record-*"))
  whole = file.read_bytes()
  file.write_bytes(whole[: int(len(whole) * share)])
  with pytest.raises(errors.InputError) as error:
    for _ in itertools.islice(
      batches_of(open_split(data), threads=threads), 14
    ):
      pass
  line = str(error.value)
  assert "\n" not in line
  for word in ("example ", "'train'", str(data), "make the data set again"):
    assert word in line


@pytest.mark.parametrize("threads", [0, 2])
def test_an_evaluation_of_damaged_data_is_one_line(tmp_path, threads):
  """Never a shorter evaluation."""

  def encode_one_broken(item):
    pixels, jpeg = encode(item)
    return pixels, jpeg[:-100] if item == 7 else jpeg

  data = write(
    tmp_path / "data",
    {"train": [(0, 0)], "test": [(i, 0) for i in range(12)]},
    encode_one_broken,
  )
  examples = open_split(data, "test")
  stream = batches.eval_batches(
    examples, size_px=SIZE_PX, batch_size=5, threads=threads
  )
  with pytest.raises(errors.InputError, match="of 'test' in") as error:
    list(stream)
  assert "\n" not in str(error.value)
