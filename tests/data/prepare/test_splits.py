"""Splits by name and by share: each image in one, by a reproducible draw."""

import os
from collections import Counter

import pytest
from source_files import (
  classes,
  contents,
  find,
  images,
  pack,
  paths,
  refuse,
  sizes,
)
from source_files import write as write_files

from alexnet_jax.data.prepare import splits


def test_splits_are_parsed_as_names_and_shares():
  spec = splits.SplitSpec.parse("train=Part 1, test,validation=0.25,x=", 7)
  assert spec.named == {"train": "Part 1", "test": "test", "x": "x"}
  assert spec.shares == {"validation": 0.25}
  assert spec.seed == 7


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("test=0.1,test=x", ["'test=x'", "write for example"]),
    ("a/b", ["'a/b'", "NAME"]),
    ("test=-0.1", ["0 or more", "below 1"]),
    ("test=nan", ["below 1"]),
    ("test=0.5,validation=0.5", ["below 1 together"]),
    ("train=0.8", ["train has none"]),
  ],
)
def test_bad_splits_are_refused(tmp_path, text, words):
  source = classes(tmp_path / "in", a=2, b=2)
  refuse(source, f"splits={text!r}", *words, wanted=text)


@pytest.fixture(name="parts", scope="module")
def fixture_parts(tmp_path_factory):
  counts = {"1": 10, "two": 3, "3rd": 2, "val": 1}
  return classes(
    tmp_path_factory.mktemp("parts") / "in",
    **{f"{part}/{c}": n for part, n in counts.items() for c in "ab"},
  )


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
  ("wanted", "folders"),
  [
    ("train=two,test=3rd", {"train": "two", "test": "3rd"}),
    ("train=two,mine=3rd,val", {"train": "two", "val": "val", "mine": "3rd"}),
  ],
)
def test_named_splits_are_taken_and_no_others(parts, wanted, folders, kind):
  listing = find(pack(parts, kind), wanted)
  assert {
    split: {os.fsdecode(data).split("/")[0] for _, data in items}
    for split, items in contents(listing).items()
  } == {split: {folder} for split, folder in folders.items()}


def test_a_split_that_is_not_there_is_refused(tmp_path, parts):
  refuse(parts, "source=", "'four'", "two", wanted="train=two,test=four")
  source = classes(tmp_path / "in", a=10, b=10)
  refuse(source, "no splits", "validation=0.1", wanted="train,test,x=0.1")


@pytest.mark.parametrize("around", ["", "Test/"])
def test_a_test_split_may_be_all_there_is(tmp_path, around):
  """Classes that are other people's test set, or one split among others."""
  source = classes(tmp_path / "in", **{f"{around}b": 2, f"{around}a": 1})
  if around:
    classes(source, **{"train/a": 3, "train/c": 3})
  listing = find(source, "test")
  assert listing.class_names == ["a", "b"]
  assert sizes(listing) == {"test": 3}
  assert paths(listing, "test") == {
    f"{around}{c}.png" for c in ("a/0", "b/0", "b/1")
  }
  refuse(source, "has no split 'Held'", wanted="test=Held")


def test_a_data_set_without_train_is_asked_for(tmp_path):
  """Otherwise train is missing, as is what a share is of."""
  counts = {f"{s}/{c}": 2 for s in ("val", "test") for c in "ab"}
  source = classes(tmp_path / "in", **counts)
  refuse(source, "0 classes to train on", "--splits=test")
  assert sizes(find(source, "test,validation")) == {"validation": 4, "test": 4}
  refuse(source, "'test,x=0.5'", "train", wanted="test,x=0.5")


def test_a_share_is_held_out_of_train_alone(tmp_path):
  """And in place of the source's own split of that name."""
  counts = {"train": 10, "val": 3, "test": 2}
  source = classes(
    tmp_path / "in", **{f"{s}/{c}": n for s, n in counts.items() for c in "ab"}
  )
  listing = find(source, "validation=0.2")
  assert sizes(listing) == {"train": 16, "validation": 4, "test": 4}
  assert {p.split("/")[0] for p in paths(listing, "validation")} == {"train"}
  assert {p.split("/")[0] for p in paths(listing, "test")} == {"test"}


@pytest.mark.parametrize(
  ("wanted", "shares"),
  [
    ("", {"train": [16, 9, 1], "validation": [2, 1, 0], "test": [2, 1, 0]}),
    ("x=0.5,y=0.25", {"train": [5, 4, 1], "x": [10, 5, 0], "y": [5, 2, 0]}),
    ("test=0", {"train": [20, 11, 1]}),
  ],
)
def test_the_held_out_splits_are_a_stratified_partition(
  tmp_path, wanted, shares
):
  listing = find(classes(tmp_path / "in", a=20, b=11, c=1), wanted)
  drawn = [path for split in shares for path in paths(listing, split)]
  everything = [*images("a", 20), *images("b", 11), *images("c", 1)]
  assert Counter(drawn) == Counter(everything)
  assert {
    split: [sum(y == label for _, y in items) for label in range(3)]
    for split, items in listing.splits.items()
  } == shares


def test_a_share_of_a_hundred_is_a_percentage(tmp_path):
  """0.29 * 100 is 28.999999999999996."""
  source = classes(tmp_path / "in", a=100, b=100)
  assert sizes(find(source, "test=0.29"))["test"] == 58


def test_the_seed_chooses_and_classes_are_drawn_apart(tmp_path):
  """One draw for all classes would hold the same names out of each."""
  source = classes(tmp_path / "in", a=40, b=40)
  one, again, two = (
    paths(find(source, "test=0.25", seed=seed), "test") for seed in (1, 1, 2)
  )
  assert one == again
  assert one != two
  names = [{p[2:] for p in one if p[0] == class_name} for class_name in "ab"]
  assert names[0] != names[1]


def test_a_new_class_or_image_moves_few_others(tmp_path):
  """A draw over all files would put yesterday's test images into train."""
  source = classes(tmp_path / "in", b=40, c=40)
  old = find(source, "validation=0.25,test=0.25")
  classes(source, a=12)
  new = find(source, "validation=0.25,test=0.25")
  for split in ["train", "validation", "test"]:
    kept = {path for path in paths(new, split) if path[0] != "a"}
    assert kept == paths(old, split)
  old = paths(find(source, "test=0.25"), "test")
  write_files(source, "b/00.png")
  assert len(old - paths(find(source, "test=0.25"), "test")) <= 1
