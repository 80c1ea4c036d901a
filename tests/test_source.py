"""Batches of prepared shards: nothing lost, nothing twice, resumable."""

import io
import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import errors
from alexnet_jax.data import shards, source

SIZE_PX = 16
COUNTS = {"train": 23, "validation": 10, "test": 3}  # 23 is prime.
CLASSES = ["ant", "bee", "cat"]


def encode(item, size_px):
  """An image whose mean colour is its number and whose pixels are noisy."""
  digits = np.array([item // 144, item // 12 % 12, item % 12])
  noise = np.random.default_rng(item).integers(-9, 10, (size_px, size_px, 3))
  pixels = (10 + 20 * digits + noise).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
  return file.getvalue()


def item(image):
  digits = (image.mean((0, 1)) // 20).astype(int)
  return int(digits @ [144, 12, 1])


def items(batch):
  return [item(image) for image in batch["image"]]


@pytest.fixture(name="directory", scope="module")
def fixture_directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp("source") / "data"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shards, "EXAMPLES_PER_SHARD", 5)
    splits = {
      split: [(144 * number + i, i % len(CLASSES)) for i in range(count)]
      for number, (split, count) in enumerate(COUNTS.items())
    }
    shards.write(
      directory,
      splits,
      class_names=CLASSES,
      size_px=SIZE_PX,
      encoder=encode,
      description="",
      workers=0,
    )
  return directory


@pytest.fixture(name="dataset", scope="module")
def fixture_dataset(directory):
  return source.open_dataset(directory)


@pytest.fixture(name="train", scope="module")
def fixture_train(dataset):
  return source.open_split(dataset, "train_split", "train")


def in_file_order(examples):
  """(image, label) by Pillow, example after example."""
  pairs = []
  for i in range(len(examples)):
    with Image.open(io.BytesIO(examples[i]["image"])) as image:
      pairs.append((np.asarray(image), int(examples[i]["label"])))
  return pairs


def batches_of(examples, **options):
  options = {"batch_size": 5, "seed": 0, "threads": 1} | options
  return source.train_batches(examples, **options)


def passes(examples, count, **options):
  """The order of the images in each of the first passes."""
  size = len(examples)
  batches = itertools.islice(
    batches_of(examples, **options), count * size // 5 + 1
  )
  stream = [number for batch in batches for number in items(batch)]
  return [stream[i * size : (i + 1) * size] for i in range(count)]


def test_a_dataset_knows_its_classes_and_statistics(dataset, directory):
  assert dataset.class_names == tuple(CLASSES)
  assert dataset.image_size_px == SIZE_PX
  np.testing.assert_array_equal(
    dataset.statistics.mean_image, np.load(directory / "mean_image.npy")
  )


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


def test_a_seed_fixes_the_order(train):
  assert passes(train, 3, seed=7) == passes(train, 3, seed=7)


def test_seeds_share_no_pass(train):
  """Grain's n-th pass of seed s is its first pass of seed s + n.

  Nets of an ensemble with seeds 0, 1, ... would see the same orders in turn.
  """
  orders = [tuple(o) for seed in range(4) for o in passes(train, 4, seed=seed)]
  assert len(set(orders)) == 16


def test_labels_stay_with_their_images(train):
  for batch in itertools.islice(batches_of(train), 10):
    assert [i % len(CLASSES) for i in items(batch)] == batch["label"].tolist()


@pytest.mark.parametrize("batch_size", [1, 5, 23, 50])
def test_training_batches_are_full(train, batch_size):
  for batch in itertools.islice(batches_of(train, batch_size=batch_size), 6):
    assert batch["image"].shape == (batch_size, SIZE_PX, SIZE_PX, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].shape == (batch_size,)
    assert batch["label"].dtype == np.int32


@pytest.mark.parametrize("position", [0, 1, 4, 5, 9, 14])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_restored_state_resumes_exactly(train, position, fresh):
  """Counting what is prefetched, not what was taken, would skip batches.

  The state goes through JSON, as in a checkpoint; 5 and 9 are just behind the
  ends of passes.
  """
  batches = batches_of(train, threads=2)
  for _ in range(position):
    next(batches)
  state = json.loads(json.dumps(batches.get_state()))
  expected = list(itertools.islice(batches, 8))
  state_after = batches.get_state()
  if fresh:
    batches = batches_of(train, threads=2)
    next(batches)
  batches.set_state(state)
  for batch, wanted in zip(itertools.islice(batches, 8), expected, strict=True):
    np.testing.assert_array_equal(batch["image"], wanted["image"])
    np.testing.assert_array_equal(batch["label"], wanted["label"])
  assert batches.get_state() == state_after


@pytest.mark.parametrize("threads", [0, 2, 8])
def test_threads_change_nothing(train, threads):
  one, many = batches_of(train, threads=1), batches_of(train, threads=threads)
  for expected, batch in itertools.islice(zip(one, many, strict=True), 10):
    np.testing.assert_array_equal(batch["image"], expected["image"])
    np.testing.assert_array_equal(batch["label"], expected["label"])


# Evaluation.


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("batch_size", [1, 5, 10, 16])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_takes_each_example_once_in_order(
  dataset, split, batch_size, threads
):
  """A dropped or an unmasked tail changes the error of a split."""
  examples = source.open_split(dataset, "split", split)
  batches = list(
    source.eval_batches(examples, batch_size=batch_size, threads=threads)
  )
  count = COUNTS[split]
  assert len(batches) == -(-count // batch_size)
  for batch in batches:
    assert batch["image"].shape == (batch_size, SIZE_PX, SIZE_PX, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].shape == (batch_size,)
    assert batch["label"].dtype == np.int32
    assert batch["mask"].dtype == np.float32
  images, labels, mask = (
    np.concatenate([batch[name] for batch in batches])
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
      source.open_split(dataset, "split", f"train[:{cut}]"),
      source.open_split(dataset, "split", f"train[{cut}:]"),
    )
  )
  assert head
  assert tail
  assert sorted(head + tail) == list(range(COUNTS["train"]))


def test_splits_add_up(dataset):
  """As in the paper's test nets, trained on all images there are."""
  both = source.open_split(dataset, "train_split", "train+validation")
  (order,) = passes(both, 1)
  assert sorted(order) == [*range(23), *range(144, 154)]


@pytest.mark.parametrize("split", ["dev", "", "train[:x]", "train[:200%]"])
def test_an_unknown_split_names_those_there_are(dataset, directory, split):
  with pytest.raises(errors.InputError) as error:
    source.open_split(dataset, "valid_split", split)
  assert f"valid_split={split!r}" in str(error.value)
  assert str(directory) in str(error.value)
  assert "test, train, validation" in str(error.value)


def test_an_empty_slice_is_an_error(dataset):
  """A tenth of a percent of 23 images is none of them, but no unknown split."""
  with pytest.raises(errors.InputError, match="no examples"):
    source.open_split(dataset, "train_split", "train[:1%]")


def test_an_empty_split_is_an_error(tmp_path):
  shards.write(
    tmp_path / "data",
    {"train": [(0, 0), (1, 1)], "test": []},
    class_names=CLASSES,
    size_px=SIZE_PX,
    encoder=encode,
    description="",
    workers=0,
  )
  dataset = source.open_dataset(tmp_path / "data")
  with pytest.raises(errors.InputError, match="test_split='test'"):
    source.open_split(dataset, "test_split", "test")


# Directories.


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_no_dataset_is_an_error_with_the_remedy(tmp_path, kind):
  path = tmp_path / "data"
  if kind == "file":
    path.write_text("no directory")
  elif kind == "empty":
    path.mkdir()
  with pytest.raises(errors.InputError, match=r"alexnet_jax\.data\.prepare"):
    source.open_dataset(path)


@pytest.mark.parametrize("data", [None, b"{"])
@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_a_directory_without_its_metadata_is_an_error(
  directory, tmp_path, name, data
):
  """As a copy that was broken off leaves it."""
  shutil.copytree(directory, tmp_path / "data")
  (tmp_path / "data" / name).unlink()
  if data is not None:
    (tmp_path / "data" / name).write_bytes(data)
  with pytest.raises(errors.InputError, match="data_dir="):
    source.open_dataset(tmp_path / "data")
