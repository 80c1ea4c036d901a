"""Which file of a source goes to which split and class.

Archives are in test_archives.py, hold-out in test_splits.py.
"""

import os
import pickle
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image
from source_files import (
  classes,
  contents,
  find,
  images,
  pack,
  paths,
  refuse,
  sizes,
  tar_of,
  write,
)
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data.prepare import prepare

# Layouts.


def test_class_folders_become_sorted_labels(tmp_path):
  """In the order of the disk, two computers would make other shards."""
  names = [*images("Mole", 3), *images("ant", 4), *images("zebra", 5)]
  shuffled = random.Random(0).sample(names, len(names))
  found = find(write(tmp_path / "in", *shuffled), "validation=0")
  assert found.class_names == ["Mole", "ant", "zebra"]
  assert [label for _, label in found.splits["train"]] == (
    [0] * 3 + [1] * 4 + [2] * 5
  )
  assert [item.read().decode() for item, _ in found.splits["train"]] == names
  assert found.notes == []


@pytest.mark.parametrize("names", [["2", "9", "10"], ["10", "9", "a"]])
def test_numbers_sort_as_numbers_if_all_are(tmp_path, names):
  """As text, class 10 would get the label of class 2."""
  found = find(classes(tmp_path / "in", **dict.fromkeys(names, 1)))
  assert found.class_names == names


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
@pytest.mark.parametrize(
  "names",
  [
    ("train", "val", "test"),
    ("Train", "Validation", "TEST"),
    ("training", "dev", "testing"),
  ],
)
def test_split_folders_keep_their_images(tmp_path, names, kind):
  counts = {"a": 12, "b": 3}
  given = {n: [p for c in counts for p in images(c, counts[c])] for n in names}
  everything = [f"{n}/{p}" for n in names for p in given[n]]
  found = find(pack(write(tmp_path / "in", *everything), kind))
  assert found.class_names == ["a", "b"]
  assert list(found.splits) == ["train", "validation", "test"]
  for name, split in zip(names, found.splits, strict=True):
    assert paths(found, split) == {f"{name}/{path}" for path in given[name]}


def test_a_lone_train_folder_is_a_split_and_no_wrapper(tmp_path):
  """As a wrapper it would have a fifth of its images held out."""
  source = classes(tmp_path / "in", **{"train/a": 10, "train/b": 10})
  assert sizes(find(source)) == {"train": 20}


def test_a_split_may_lack_a_class(tmp_path):
  """Labels counted within a split would call class b of the test split 0."""
  source = classes(tmp_path / "in", **{"train/a": 2, "train/b": 2, "test/b": 2})
  assert [label for _, label in find(source).splits["test"]] == [1, 1]


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("wrapper", ["data/inner", "train"])
def test_a_wrapper_around_splits_says_nothing(tmp_path, wrapper, kind):
  folder = tmp_path / "in" / wrapper
  classes(folder, **{"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
  found = find(pack(tmp_path / "in", kind))
  assert sizes(found) == {"train": 4, "validation": 2}
  assert found.class_names == ["a", "b"]
  assert paths(found, "validation") == {"val/a/0.png", "val/b/0.png"}


@pytest.mark.parametrize("kind", ["folder", "gz", "zip"])
def test_other_files_are_left_alone(tmp_path, kind):
  """A Mac leaves ._x.jpg files, which are no images, in archives."""
  folder = classes(tmp_path / "in", a=2, b=2)
  strays = ["README.txt", "a/labels.csv", "b/x.txt", "b/Makefile"]
  hidden = ["a/.DS_Store", "a/._0.jpg", ".cache/c/0.jpg", "__MACOSX/a/._0.png"]
  write(folder, *strays, *hidden)
  found = find(pack(folder, kind))
  assert sizes(found) == {"train": 4}
  (note,) = found.notes
  assert "4 files" in note


# Names.


@pytest.mark.parametrize("name", [" ", "a ", "a\nb"])
def test_class_names_that_a_text_file_does_not_keep_are_refused(tmp_path, name):
  """TFDS keeps them one a line, stripped."""
  source = classes(tmp_path / "in", **dict.fromkeys(["a", "b", name], 1))
  refuse(source, "source=", repr(name), "blank", "rename")


# List files.


def listed(folder, text, name="list.txt", encoding="utf-8"):
  write(folder, "x/0.png", "x/1.png", "x/2 b.png", "x/3,c.png", "x/ä.png")
  (folder / name).write_bytes(text.encode(encoding))
  return folder / name


def rows(found):
  """{split: {file: class}}."""
  return {
    split: {
      Path(i.read().decode()).name: found.class_names[y] for i, y in items
    }
    for split, items in found.splits.items()
  }


BOTH = {"train": {"0.png": "cat", "2 b.png": "dog"}}


@pytest.mark.parametrize(
  ("name", "text", "expected"),
  [
    ("l.txt", "x/0.png cat\nx/2 b.png dog\n", BOTH),
    ("l.TXT", "\n  x/0.png cat  \n \t \n  x/2 b.png\tdog\n\n", BOTH),
    ("l.csv", 'x/0.png, cat\n"x/2 b.png","dog"\n', BOTH),
    ("l.txt", "\ufeffx/0.png cat\nx/2 b.png dog\n", BOTH),
    (
      "l.csv",
      '"x/3,c.png","big, ""old"" cat"\nx/0.png,dog\n',
      {"train": {"3,c.png": 'big, "old" cat', "0.png": "dog"}},
    ),
    (
      "l.tsv",
      "x/2 b.png\tbig cat\nx/ä.png\t猫, wet\n",
      {"train": {"2 b.png": "big cat", "ä.png": "猫, wet"}},
    ),
    (
      "l.csv",
      "x/0.png,cat,Train\nx/1.png,dog,Train\nx/ä.png,cat,val\n",
      {
        "train": {"0.png": "cat", "1.png": "dog"},
        "validation": {"ä.png": "cat"},
      },
    ),
  ],
)
def test_a_list_names_path_and_label(tmp_path, name, text, expected):
  assert rows(find(listed(tmp_path, text, name))) == expected


def test_splits_of_a_list_are_chosen_by_name_or_share(tmp_path):
  text = "x/0.png,a,one\nx/1.png,b,one\nx/ä.png,a,two\nx/3 b.png,b,three\n"
  source = listed(tmp_path, text, "list.csv")
  assert rows(find(source, "train=one,test=two")) == {
    "train": {"0.png": "a", "1.png": "b"},
    "test": {"ä.png": "a"},
  }
  refuse(source, "'four'", "one, three, two", wanted="train=one,test=four")
  lines = [f"{path} {path[0]}" for path in images("a", 20) + images("b", 20)]
  classes(tmp_path, a=20, b=20)
  (tmp_path / "all.txt").write_text("\n".join(lines))
  found = find(tmp_path / "all.txt")
  assert sizes(found) == {"train": 32, "validation": 4, "test": 4}


@pytest.mark.parametrize(
  ("name", "text", "words"),
  [
    ("l.txt", "x/0.png a\nx/1.png\n", ["line 2", "x/1.png", "PATH and LABEL"]),
    ("l.csv", "x/0.png,a\n\nx/1.png b\n", ["line 3", "commas"]),
    ("l.tsv", "x/0.png\ta\ttrain\tmore\n", ["line 1", "SPLIT"]),
    ("l.csv", "x/0.png,a,train\nx/1.png,b\n", ["some lines", "all or in none"]),
    ("l.txt", "\n \n", ["lists no images"]),
    ("l.csv", "x/0.png,a,val\nx/1.png,b,val\n", ["0 classes", "at least 2"]),
    ("l.txt", "x/0.png a\nx/\0.png b\n", ["line 2"]),
  ],
)
def test_a_bad_list_is_refused(tmp_path, name, text, words):
  refuse(listed(tmp_path, text, name), name, *words)


def test_a_list_that_is_not_utf8_is_refused(tmp_path):
  source = listed(tmp_path, "x/ä.png a\n", encoding="latin-1")
  refuse(source, "source=", "UTF-8")


# Files of synsets.

WORDS = "n02 tench, Tinca tinca\nn10 great white shark\nn01 cock\n"


def synsets(folder, text, name="synset_words.txt"):
  (folder / name).write_text(text, encoding="utf-8")
  return str(folder / name)


def test_synsets_give_labels_and_names(tmp_path):
  """In the order of the file, also of classes that are absent."""
  file = synsets(tmp_path, "\ufeff" + WORDS.replace("\n", "\r\n\r\n"))
  found = find(classes(tmp_path / "in", n01=1, n02=2), synsets=file)
  assert found.class_names == WORDS.splitlines()
  assert [label for _, label in found.splits["train"]] == [2, 0, 0]


@pytest.mark.parametrize("text", ["", "n01 a\nn02 b\nn01 c\n"])
def test_a_bad_file_of_synsets_is_refused(tmp_path, text):
  source = classes(tmp_path / "in", n01=1, n02=1)
  refuse(source, "synsets=", "classes", synsets=synsets(tmp_path, text))
  refuse(source, "cannot be read", synsets=str(tmp_path / "nowhere.txt"))


def test_a_class_that_is_not_in_the_synsets_is_refused(tmp_path):
  names = ["train/n01", "train/n02", "test/n77"]
  source = classes(tmp_path / "in", **dict.fromkeys(names, 1))
  refuse(source, "'n77'", "test", "remove it", synsets=synsets(tmp_path, WORDS))


# TFDS.


@pytest.fixture(name="catalogue", scope="module")
def fixture_catalogue(tmp_path_factory):
  """A prepared directory where TFDS looks for a data set called pets."""
  folder = tmp_path_factory.mktemp("catalogue")
  for label, name in enumerate(["zoo ä", "ant"]):
    for index in range(10):
      file = folder / "in" / name / f"{index}.png"
      file.parent.mkdir(parents=True, exist_ok=True)
      Image.new("RGB", (12, 10), (200 * label, 20 * index, 9)).save(file)
  prepare.prepare(
    str(folder / "in"),
    folder / "pets" / "1.0.0",
    size_px=8,
    splits="validation=0.2,test=0.1,extra=0.1",
    workers=0,
  )
  return folder


@pytest.fixture(name="pets")
def fixture_pets(catalogue):
  return catalogue / "pets" / "1.0.0"


def stored(directory, split):
  """(JPEG, class) of each example, as TFDS itself reads them."""
  builder = tfds.builder_from_directory(directory)
  names = builder.info.features["label"].names
  source = builder.as_data_source(
    split, decoders={"image": tfds.decode.SkipDecoding()}
  )
  return [(names[int(e["label"])], e["image"]) for e in source]


def test_a_tfds_directory_keeps_its_splits_and_labels(pets):
  found = find(pets)
  assert found.class_names == ["ant", "zoo ä"]
  assert sizes(found) == {"train": 12, "validation": 4, "test": 2}
  for split, items in contents(found).items():
    assert Counter(items) == Counter(stored(pets, split))
  (note,) = found.notes
  assert "extra" in note
  assert "--splits" in note
  for item, _ in found.splits["test"]:
    assert str(pets) in item.name
    assert pickle.loads(pickle.dumps(item)).read() == item.read()


def test_synsets_that_lack_a_class_of_tfds_are_refused(tmp_path, pets):
  refuse(pets, "'zoo ä'", "list", synsets=synsets(tmp_path, "ant\nzoo\n"))


@pytest.mark.parametrize(
  ("wanted", "sources"),
  [
    ("train,test=extra", {"train": "train", "test": "extra"}),
    (
      "train=train[:75%],validation=train[75%:]",
      {"train": "train[:75%]", "validation": "train[75%:]"},
    ),
  ],
)
def test_splits_of_tfds_may_be_named_and_sliced(pets, wanted, sources):
  found = find(pets, wanted)
  assert list(found.splits) == list(sources)
  for split, items in contents(found).items():
    assert Counter(items) == Counter(stored(pets, sources[split]))
  assert found.notes == []


@pytest.mark.parametrize("labels", [(-1, -1), (1, -1), (1, 2)])
def test_tfds_labels_of_no_class_are_left_out_or_refused(
  tmp_path, pets, labels
):
  """Test splits of the catalogue have label -1 where theirs are secret."""
  folder = shutil.copytree(pets, tmp_path / "in")
  (file,) = folder.glob("*-test.array_record-*")
  records = array_record_module.ArrayRecordReader(str(file)).read_all()
  writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
  for record, label in zip(records, labels, strict=True):
    example = tf_example_pb2.Example.FromString(record)
    example.features.feature["label"].int64_list.value[0] = label
    writer.write(example.SerializeToString())
  writer.close()
  if labels == (-1, -1):
    found = find(folder)
    assert list(found.splits) == ["train", "validation"]
    assert any("no labels" in note and "test" in note for note in found.notes)
  else:
    refuse(folder, "test[1]", f"label {labels[1]}", "0 to 1")


def test_a_name_is_found_where_tfds_keeps_its_data(catalogue, pets):
  """The variable is read when TFDS is imported."""
  code = """
import sys
from pathlib import Path
from alexnet_jax.data.prepare import sources
found = sources.find("tfds:pets:1.0.0", "", Path("spool"))
print("\\n".join(i.read().hex() for i, _ in found.splits["train"]))
"""
  read = subprocess.run(
    [sys.executable, "-c", code],
    cwd=Path(__file__).parents[3],
    env=os.environ | {"TFDS_DATA_DIR": str(catalogue)},
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split()
  assert Counter(read) == Counter(x.hex() for _, x in stored(pets, "train"))


# Bad sources.


def of_classes(*names):
  return lambda folder: classes(folder, **dict.fromkeys(names, 2))


def of_bytes(data):
  return lambda folder: folder.write_bytes(data)


def of_files(*names):
  return lambda folder: write(folder, *names)


PAIR = ("a/0.png", "b/0.png")
LAYOUT = ["source=", "stray.jpg", "CLASS/IMAGE"]
BAD_SOURCES = {  # Words of the value and of the remedy.
  "nothing": (lambda folder: None, ["source=", "opened", "give"]),
  "empty folder": (lambda folder: folder.mkdir(), ["no images", "CLASS/IMAGE"]),
  "one class": (of_classes("lonely"), ["lonely", "at least 2"]),
  "no training split": (of_classes("val/a", "val/b", "test/a"), ["train/"]),
  "an image in the root": (of_files(*PAIR, "stray.jpg"), LAYOUT),
  "mixed depths": (of_files(*PAIR, "c/deep/stray.jpg"), LAYOUT),
  "splits without classes": (of_classes("train", "val"), ["no classes"]),
  "unknown split": (
    of_classes("train/a", "train/b", "holdback/a"),
    ["source=", "holdback", "validation", "--splits"],
  ),
  "class only in test": (
    of_classes("train/a", "train/b", "test/newcomer"),
    ["newcomer", "test", "remove it"],
  ),
  "garbage": (of_bytes(random.Random(0).randbytes(50_000)), ["tar", "give"]),
  "empty tar": (tar_of, ["source=", "no images", "CLASS/IMAGE"]),
}


@pytest.mark.parametrize("kind", BAD_SOURCES)
def test_a_bad_source_is_named(tmp_path, kind):
  make, words = BAD_SOURCES[kind]
  make(tmp_path / "in")
  refuse(tmp_path / "in", *words)
