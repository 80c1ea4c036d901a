"""Batches of prepared shards: nothing lost, nothing twice, resumable."""

import io
import itertools
import json

import numpy as np
import pytest
from directories import training_batches, write_shards
from PIL import Image
from scipy import stats

from alexnet_jax.data import batches, records
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


def item(image):
  digits = (image.mean((0, 1)) // 20).astype(int)
  return int(digits @ [144, 12, 1])


def items(batch):
  return [item(image) for image in batch["image"]]


def write(directory, splits, encoder=encode):
  return write_shards(directory, splits, CLASSES, SIZE_PX, encoder)


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
  return training_batches(examples, size_px=SIZE_PX, **options)


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


def test_seeds_share_no_pass(train):
  """Grain's n-th pass of seed s is its first pass of seed s + n.

  Nets of an ensemble with seeds 0, 1, ... would see the same orders in turn.
  """
  seeds = [0, 1, 2, 3, 2**32 - 1]
  orders = [tuple(o) for seed in seeds for o in passes(train, 4, seed=seed)]
  assert len(set(orders)) == 20


def philox(key, count):
  """Numbers of Philox4x64-10, by the paper of Salmon et al. (2011)."""
  numbers, mask = [], 2**64 - 1
  for block in range(1, -(-count // 4) + 1):
    x, (k0, k1) = [block, 0, 0, 0], key
    for _ in range(10):
      a, b = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
      x = [b >> 64 ^ x[1] ^ k0, b & mask, a >> 64 ^ x[3] ^ k1, a & mask]
      k0 = (k0 + 0x9E3779B97F4A7C15) & mask
      k1 = (k1 + 0xBB67AE8584CAA73B) & mask
    numbers += x
  return numbers[:count]


def orders(count, epochs, seed=0):
  """The first passes over some examples, [epochs, count]."""
  order = batches.ShuffledBatches(count, count, seed)
  return np.array([order[epoch] for epoch in range(epochs)])


@pytest.mark.parametrize(("seed", "count"), [(0, 12), (3, 23), (2**32 - 1, 99)])
def test_the_order_is_that_of_a_published_generator(seed, count):
  """Of its definition, so that no release of a library changes a run."""
  for epoch, order in enumerate(orders(count, 3, seed)):
    numbers = philox((seed, epoch), count)
    assert order.tolist() == sorted(range(count), key=numbers.__getitem__)


def test_orders_stay_as_they_are():
  assert orders(12, 2).tolist() == [
    [0, 2, 11, 9, 1, 8, 5, 4, 3, 10, 6, 7],
    [5, 3, 7, 8, 11, 2, 4, 1, 10, 0, 6, 9],
  ]
  assert orders(12, 1, seed=1).tolist() == [
    [3, 5, 2, 9, 7, 10, 0, 8, 6, 11, 1, 4],
  ]


@pytest.mark.parametrize("count", [2, 3, 10])
def test_each_example_is_as_often_at_each_place(count):
  """By chi-squared, over passes and over seeds; not too evenly either."""
  passes = orders(count, 4000)
  first = np.array([orders(count, 1, seed)[0] for seed in range(4000)])
  for found in (passes, first):
    counts = [np.bincount(place, minlength=count) for place in found.T]
    expected = len(found) / count
    squared = ((np.array(counts) - expected) ** 2 / expected).sum()
    free = (count - 1) ** 2
    assert stats.chi2.ppf(1e-5, free) < squared < stats.chi2.isf(1e-5, free)


@pytest.mark.parametrize("count", [1, 65536, 65537])
def test_a_pass_of_any_length_is_a_permutation(count):
  """A cipher of 16 bits would map 0 and 65,536 to the same example."""
  for order in orders(count, 2, seed=7):
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_training_images_are_those_of_the_files(train):
  """A buffer that two batches share would show one batch's images twice."""
  known = {item(image): image for image, _ in in_file_order(train)}
  taken = list(itertools.islice(batches_of(train, threads=4), 10))
  for batch in taken:
    for image in batch["image"]:
      np.testing.assert_array_equal(image, known[item(image)])
    assert [i % len(CLASSES) for i in items(batch)] == batch["label"].tolist()


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("position", [0, 1, 4, 5, 9])
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


@pytest.mark.parametrize("threads", [0, 8])
def test_threads_change_nothing(train, threads):
  one, many = batches_of(train, threads=1), batches_of(train, threads=threads)
  for expected, batch in itertools.islice(zip(one, many, strict=True), 10):
    assert_same(batch, expected)


# Hosts.

BATCH = 8
HOSTS = {
  "one": [range(8)],
  "two, uneven": [range(7), range(7, 8)],
  "three, mixed": [[0, 3, 6], [1, 4, 7], [2, 5]],
  "one without rows": [range(8), []],
}


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS.keys())
def test_hosts_share_training_batches(train, hosts):
  """Together they see the batches of one host: nothing twice, nothing lost."""
  rows = [np.array(host, int) for host in hosts]
  on_one_host = batches_of(train, batch_size=BATCH)
  parts = [batches_of(train, batch_size=BATCH, rows=mine) for mine in rows]
  for batch, *shares in itertools.islice(
    zip(on_one_host, *parts, strict=True), 7
  ):
    for mine, share in zip(rows, shares, strict=True):
      assert_same(share, {name: batch[name][mine] for name in batch})


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS.keys())
@pytest.mark.parametrize("split", ["test", "train"])
def test_hosts_share_evaluations(dataset, split, hosts):
  """Of the last batch, some hosts have padding alone; all see as many."""
  examples = records.open_split(dataset, split, "split")

  def evaluate(rows):
    return list(
      batches.eval_batches(
        examples, size_px=SIZE_PX, batch_size=BATCH, threads=2, rows=rows
      )
    )

  on_one_host, rows = evaluate(None), [np.array(host, int) for host in hosts]
  for mine in rows:
    for batch, share in zip(on_one_host, evaluate(mine), strict=True):
      assert_same(share, {name: batch[name][mine] for name in batch})


# Evaluation.


@pytest.mark.parametrize("threads", [0, 4])
@pytest.mark.parametrize("batch_size", [1, 5, 16])
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


# Sizes.


@pytest.mark.parametrize("side", [8, 24])
def test_a_jpeg_of_another_size_than_the_metadata_is_refused_or_scaled(
  tmp_path, side
):
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


# Damage.


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
  with pytest.raises(
    errors.InputError, match="of train_split='test' in"
  ) as error:
    list(stream)
  assert "\n" not in str(error.value)
