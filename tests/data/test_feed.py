"""Streamed or resident, on any mesh: the same training batches."""

import itertools
import json
import os
import shutil
import tracemalloc

import jax
import numpy as np
import pytest
from directories import training_batches, write_shards
from ml_collections import ConfigDict

from alexnet_jax.data import feed, records
from alexnet_jax.parallel import layouts, placement
from alexnet_jax.runtime import errors, hosts

SIZE_PX = 8
CLASSES = ["ant", "bee", "cat"]
COUNT, BATCH = 250, 72  # Neither divides the other: batches span passes.
SHARES = {"streamed": 0, "resident": 1}


def encode(item):
  """An image whose first pixel is its number."""
  pixels = np.random.default_rng(item).integers(0, 256, (SIZE_PX, SIZE_PX, 3))
  pixels[0, 0] = item
  pixels = pixels.astype(np.uint8)
  return pixels, pixels.tobytes()


@pytest.fixture(name="directory", scope="module")
def fixture_directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp("feed") / "data"
  splits = {"train": [(i, i % len(CLASSES)) for i in range(COUNT)]}
  return write_shards(directory, splits, CLASSES, SIZE_PX, encode, raw=True)


@pytest.fixture(name="train", scope="module")
def fixture_train(directory):
  dataset = records.open_directory(directory)
  return records.open_split(dataset, "train", "train_split")


def config(share, **changes):
  known = {
    "batch_size": BATCH,
    "device_cache_fraction": share,
    "input_timeout_s": 60,
    "image_size_px": SIZE_PX,
    "reader_threads": 2,
    "seed": 3,
  }
  return ConfigDict(known | changes)


def open_feed(examples, kind, devices=1, **changes):
  options = config(SHARES[kind], **changes)
  layout = layouts.Layout("data", devices, 1, options.batch_size)
  return feed.Feed(examples, options, layout, placement.make_mesh(devices))


def take(batches, count):
  return [jax.device_get(next(batches)) for _ in range(count)]


def assert_same(batches, expected):
  for batch, wanted in zip(batches, expected, strict=True):
    assert batch.keys() == wanted.keys() == {"image", "label"}
    for name, values in wanted.items():
      np.testing.assert_array_equal(batch[name], values)
      assert batch[name].dtype == values.dtype


def streams(examples, **changes):
  """What the iterator of the host gives, whose tests are in test_batches."""
  options = config(0, **changes)
  return training_batches(
    examples,
    size_px=options.image_size_px,
    batch_size=options.batch_size,
    seed=options.seed,
    threads=1,
  )


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("kind", SHARES)
def test_feeds_give_the_batches_of_the_host(train, kind, devices):
  """Through two passes; a shard in another's place would mix the rows."""
  batches = take(open_feed(train, kind, devices), 9)
  expected = list(itertools.islice(streams(train), 9))
  assert_same(batches, expected)
  numbers = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])
  labels = np.concatenate([batch["label"] for batch in batches])
  assert (numbers % len(CLASSES) == labels).all()
  for order in (numbers[:COUNT], numbers[COUNT : 2 * COUNT]):
    assert sorted(order.tolist()) == list(range(COUNT))


@pytest.mark.parametrize(
  "changes",
  [
    {"batch_size": 8},
    {"image_size_px": 12, "seed": 9},
  ],
)
def test_a_config_changes_both_feeds_alike(train, changes):
  expected = list(itertools.islice(streams(train, **changes), 5))
  for kind in SHARES:
    assert_same(take(open_feed(train, kind, **changes), 5), expected)


@pytest.mark.parametrize("kind", SHARES)
def test_members_of_an_ensemble_have_different_orders(train, kind):
  """Each sees what a single net of its seed sees."""
  options = config(SHARES[kind])
  layout = layouts.Layout("data", 1, 2, BATCH, members=2)
  mesh = placement.make_mesh(2, 2)
  batches = take(feed.Feed(train, options, layout, mesh), 5)
  for member in range(2):
    expected = list(itertools.islice(streams(train, seed=3 + member), 5))
    ours = [{k: v[member] for k, v in batch.items()} for batch in batches]
    assert_same(ours, expected)


@pytest.mark.parametrize(
  ("before", "after"), [("streamed", "resident"), ("resident", "streamed")]
)
def test_feeds_resume_exactly_at_every_step(train, before, after):
  """Over two passes, in the other kind of feed.

  A run whose share of memory changes, or that goes on on other devices, must
  see the same batches. The state goes through JSON, as in a checkpoint.
  """
  steps = 2 * COUNT // BATCH + 1
  expected = list(itertools.islice(streams(train), steps + 3))
  first = open_feed(train, before)
  second = open_feed(train, after, 8, reader_threads=1)
  for step in range(steps):
    second.set_state(json.loads(json.dumps(first.get_state())))
    assert second.get_state() == first.get_state()
    assert_same(take(second, 3), expected[step : step + 3])
    assert_same(take(first, 1), expected[step : step + 1])


@pytest.mark.parametrize("kind", SHARES)
def test_settings_of_a_host_program_change_no_batch(train, kind):
  expected = list(itertools.islice(streams(train), 5))
  with jax.enable_x64(True), jax.default_device(jax.devices()[3]):
    assert_same(take(open_feed(train, kind), 5), expected)


def test_a_pool_is_not_built_in_the_memory_of_the_host(tmp_path):
  """Two pools at once, in each of four processes, were too much."""
  black = np.zeros((64, 64, 3), np.uint8)
  items = {"train": [(i, i % len(CLASSES)) for i in range(1600)]}
  directory = write_shards(
    tmp_path / "data",
    items,
    CLASSES,
    64,
    lambda _: (black, black.tobytes()),
    raw=True,
  )
  dataset = records.open_directory(directory)
  examples = records.open_split(dataset, "train", "train_split")
  tracemalloc.start()
  try:
    batches = open_feed(examples, "resident", image_size_px=64)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert batches.pool["image"].nbytes == 1600 * black.nbytes
  assert peak < 1600 * black.nbytes / 2


@pytest.mark.parametrize("other", [0, 1e30])
def test_hosts_of_unequal_memory_choose_the_same_feed(
  train, monkeypatch, other
):
  """With a pool on one host and a stream on the other, the run would hang."""
  monkeypatch.setattr(hosts, "gather", lambda mine: [mine, other])
  is_streamed = open_feed(train, "resident").pool is None
  assert is_streamed == (other == 0)


@pytest.mark.parametrize("share", [1e-30, 1])
def test_a_split_lives_on_the_device_where_it_fits(
  tmp_path, directory, train, share
):
  """Known by the files: what lives on the device reads none of them later."""
  shutil.copytree(directory, tmp_path / "data")
  dataset = records.open_directory(tmp_path / "data")
  examples = records.open_split(dataset, "train", "train_split")
  layout, mesh = layouts.Layout("data", 2, 1, BATCH), placement.make_mesh(2)
  batches = feed.Feed(examples, config(share), layout, mesh)
  for file in (tmp_path / "data").glob("*.array_record-*"):
    os.truncate(file, 0)
  if share == 1:
    assert_same(take(batches, 5), list(itertools.islice(streams(train), 5)))
  else:
    with pytest.raises(errors.InputError, match="cannot be used"):
      take(batches, 5)
