"""Which file of a source goes to which split and class, and its bytes.

A file's content is its own path, so that what is read tells where it was; no
test here needs pixels, except those of TFDS directories.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from alexnet_jax.data.prepare import command as prepare
from alexnet_jax.data.prepare import sources
from alexnet_jax.runtime import errors

REPOSITORY = Path(__file__).parents[3]
TARS = ["tar", "gz", "bz2", "xz"]
KINDS = ["folder", *TARS, "zip"]


def write(folder, *paths):
  """Writes files that each hold their own path."""
  for path in paths:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(os.fsencode(path))
  return folder


def images(class_name, count, suffix="png"):
  return [f"{class_name}/{index}.{suffix}" for index in range(count)]


def classes(folder, **counts):
  return write(folder, *(p for c, n in counts.items() for p in images(c, n)))


def pack(folder, kind):
  """Makes an archive of a folder, or leaves it as it is."""
  if kind == "folder":
    return folder
  file = folder.with_name(f"{folder.name}.{kind}")
  if kind == "zip":
    with zipfile.ZipFile(file, "w") as archive:
      for path in sorted(folder.rglob("*")):
        archive.write(path, path.relative_to(folder))
  else:
    with tarfile.open(file, f"w:{kind.removesuffix('tar')}") as archive:
      archive.add(folder, ".")
  return file


def tar_of(file, *members, mode="w", **options):
  """Writes a tar of (name, bytes), (name, None) folders or (name, kind, of)."""
  with tarfile.open(file, mode, **options) as archive:
    for name, *value in members:
      info = tarfile.TarInfo(name)
      if len(value) == 2:
        info.type, info.linkname = value
        archive.addfile(info)
      elif value[0] is None:
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
      else:
        info.size = len(value[0])
        archive.addfile(info, io.BytesIO(value[0]))
  return file


def zip_of(file, *members, compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(file, "w", compression) as archive:
    for name, data in members:
      archive.writestr(zipfile.ZipInfo(name), data, compression)
  return file


def find(source, wanted="", **options):
  spool = Path(source).parent / "spool"
  return sources.find(str(source), wanted, spool, **options)


def held(found):
  """{split: [(class, bytes)]}."""
  return {
    split: [(found.class_names[label], item.read()) for item, label in items]
    for split, items in found.splits.items()
  }


def paths(found, split):
  """The paths that a split's files hold, and no other class than theirs."""
  for class_name, data in held(found)[split]:
    assert os.fsdecode(data).split("/")[-2] == class_name
  names = [os.fsdecode(data) for _, data in held(found)[split]]
  assert len(set(names)) == len(names)
  return set(names)


def sizes(found):
  return {split: len(items) for split, items in found.splits.items()}


def refuse(source, *words, wanted="", **options):
  """Asserts that a source is refused in one line that holds the words."""
  with pytest.raises(errors.InputError) as error:
    find(source, wanted, **options)
  assert len(str(error.value).splitlines()) == 1
  for word in words:
    assert word in str(error.value)


def python(code, *arguments, **options):
  """Runs code in a process of its own, and returns the JSON that it prints."""
  done = subprocess.run(
    [sys.executable, "-c", code, *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
    **options,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


# Layouts.


@pytest.mark.parametrize("kind", KINDS)
def test_class_folders_become_sorted_labels(tmp_path, kind):
  source = pack(classes(tmp_path / "in", zebra=5, Mole=3, ant=4), kind)
  found = find(source, "validation=0")
  assert found.class_names == ["Mole", "ant", "zebra"]
  assert [label for _, label in found.splits["train"]] == (
    [0] * 3 + [1] * 4 + [2] * 5
  )
  everything = {*images("Mole", 3), *images("ant", 4), *images("zebra", 5)}
  assert paths(found, "train") == everything
  assert found.notes == []


def test_numbers_sort_as_numbers(tmp_path):
  """As text, class 10 would get the label of class 2."""
  found = find(classes(tmp_path / "in", **{"10": 1, "9": 1, "2": 1}))
  assert found.class_names == ["2", "9", "10"]


def test_numbers_among_names_sort_as_names(tmp_path):
  found = find(classes(tmp_path / "in", **{"10": 1, "9": 1, "a": 1}))
  assert found.class_names == ["10", "9", "a"]


def test_the_order_is_that_of_the_names(tmp_path):
  """In the order of the disk, two computers would make other shards."""
  names = [f"{c}/{index:03}.png" for c in "ab" for index in range(40)]
  shuffled = random.Random(0).sample(names, len(names))
  found = find(write(tmp_path / "in", *shuffled), "validation=0")
  read = [item.read().decode() for item, _ in found.splits["train"]]
  assert read == names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
  "names",
  [
    ("train", "val", "test"),
    ("training", "valid", "testing"),
    ("Train", "Validation", "TEST"),
    ("train", "dev", "test"),
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


def test_a_split_may_lack_a_class(tmp_path):
  """Labels counted within a split would call class b of the test split 0."""
  source = classes(tmp_path / "in", **{"train/a": 2, "train/b": 2, "test/b": 2})
  found = find(source)
  assert [label for _, label in found.splits["test"]] == [1, 1]


def test_a_lone_train_folder_is_a_split_and_no_wrapper(tmp_path):
  """As a wrapper it would have a fifth of its images held out."""
  source = classes(tmp_path / "in", **{"train/a": 10, "train/b": 10})
  assert sizes(find(source)) == {"train": 20}


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
@pytest.mark.parametrize("wrapper", ["data", "data/inner", "train"])
def test_a_wrapper_around_splits_says_nothing(tmp_path, wrapper, kind):
  folder = tmp_path / "in" / wrapper
  classes(folder, **{"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
  found = find(pack(tmp_path / "in", kind))
  assert sizes(found) == {"train": 4, "validation": 2}
  assert found.class_names == ["a", "b"]
  assert paths(found, "validation") == {"val/a/0.png", "val/b/0.png"}


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
@pytest.mark.parametrize("wrapper", ["data", "data/inner"])
def test_a_wrapper_around_classes_changes_nothing(tmp_path, wrapper, kind):
  """Even what is held out."""
  plain = find(classes(tmp_path / "plain", a=10, b=10))
  classes(tmp_path / "in" / wrapper, a=10, b=10)
  assert held(find(pack(tmp_path / "in", kind))) == held(plain)


@pytest.mark.parametrize("kind", [*TARS, "zip"])
def test_an_archive_equals_its_folder(tmp_path, kind):
  """In order and in what is held out."""
  folder = classes(tmp_path / "in", a=12, b=11, c=10)
  found, packed = find(folder), find(pack(folder, kind))
  assert sizes(found) == {"train": 27, "validation": 3, "test": 3}
  assert held(packed) == held(found)
  assert packed.class_names == found.class_names
  names = [item.name for item, _ in packed.splits["test"]]
  assert names == [data.decode() for _, data in held(packed)["test"]]


@pytest.mark.parametrize("kind", KINDS)
def test_items_survive_a_pickle(tmp_path, kind):
  """Worker processes get them so."""
  found = find(pack(classes(tmp_path / "in", a=2, b=2), kind))
  for item, _ in found.splits["train"]:
    assert pickle.loads(pickle.dumps(item)).read() == item.read()


@pytest.mark.parametrize("kind", ["folder", "tar", "gz", "zip"])
def test_other_files_are_left_alone(tmp_path, kind):
  """A Mac leaves ._x.jpg files, which are no images, in archives."""
  folder = classes(tmp_path / "in", a=2, b=2)
  strays = ["README.txt", "a/labels.csv", "b/x.txt", "b/Makefile"]
  hidden = ["a/.DS_Store", "a/._0.jpg", ".cache/c/0.jpg", "__MACOSX/a/._0.png"]
  write(folder, *strays, *hidden)
  found = find(pack(folder, kind))
  assert sizes(found) == {"train": 4}
  (note,) = found.notes
  assert "2 .txt, 1" in note
  assert "1 .csv" in note
  assert "1 without suffix" in note


def test_suffixes_may_be_capitals(tmp_path):
  """ImageNet's files end in .JPEG."""
  suffixes = "JPEG Jpg png BMP gif WebP tif TIFF ppm pgm jfif".split()
  names = [f"{c}/0.{suffix}" for c in "ab" for suffix in suffixes]
  found = find(write(tmp_path / "in", *names), "validation=0")
  assert paths(found, "train") == set(names)


def test_one_name_with_two_suffixes_is_two_images(tmp_path):
  names = ["a/0.png", "a/0.jpg", "b/0.png", "b/0.PNG"]
  found = find(write(tmp_path / "in", *names))
  assert paths(found, "train") == set(names)


# Names.

SCRIPTS = "Ålesund 猫 кошка قطة बिल्ली 🐈 a'b\"c %20 -n".split()


@pytest.mark.parametrize("kind", KINDS)
def test_names_may_be_in_any_script(tmp_path, kind):
  """The list of classes ends up in a text file, so it must be exact."""
  scripts = [*SCRIPTS, "two words"]
  names = [f"{c}/{image}.png" for c in scripts for image in scripts]
  found = find(pack(write(tmp_path / "in", *names), kind), "validation=0")
  assert found.class_names == sorted(scripts)
  assert paths(found, "train") == set(names)


@pytest.mark.parametrize("kind", ["folder", *TARS])
def test_names_need_not_be_text(tmp_path, kind):
  """Old archives hold names in Latin-1 or Shift JIS."""
  names = [os.fsdecode(b"caf\xe9/\x83\x4c.png"), "b/0.png"]
  found = find(pack(write(tmp_path / "in", *names), kind), "validation=0")
  assert found.class_names == ["b", "caf\N{REPLACEMENT CHARACTER}"]
  assert [data for _, data in held(found)["train"]] == (
    [b"b/0.png", b"caf\xe9/\x83\x4c.png"]
  )


def test_accents_are_composed(tmp_path):
  """A Mac's é is two letters; a class name would differ by computer."""
  decomposed = unicodedata.normalize("NFD", "café")
  found = find(classes(tmp_path / "in", **{decomposed: 1, "b": 1}))
  assert found.class_names == ["b", "café"]
  assert "café" != decomposed


@pytest.mark.parametrize(
  ("names", "words"),
  [
    (["café", unicodedata.normalize("NFD", "café")], ["café", "rename"]),
    ([os.fsdecode(b"\xfe"), os.fsdecode(b"\xff")], ["2 classes", "rename"]),
    (["a b", "a  b"], ["'a b'", "rename"]),
    (["b", "a\nb"], [r"a\nb", "rename"]),
    (["b", "a\u2028b"], ["one line", "rename"]),
    (["b", " "], ["' '", "rename"]),
  ],
)
def test_class_names_that_a_text_file_cannot_tell_apart_are_refused(
  tmp_path, names, words
):
  """TFDS keeps them one a line, stripped."""
  source = classes(tmp_path / "in", **dict.fromkeys(names, 1))
  refuse(source, "source=", *words)


# Links, and files that are none.


def test_linked_classes_count(tmp_path):
  """Path.rglob does not enter links: a class would be missing in silence."""
  classes(tmp_path / "far", c=2)
  folder = classes(tmp_path / "in", a=2, b=2)
  (folder / "c").symlink_to(tmp_path / "far" / "c")
  assert find(folder).class_names == ["a", "b", "c"]


def test_links_to_files_are_files(tmp_path):
  folder = write(tmp_path / "in", "a/0.png", "b/0.png")
  (folder / "a" / "1.png").symlink_to("0.png")
  (folder / "b" / "1.png").symlink_to(folder / "a" / "0.png")
  found = held(find(folder, "validation=0"))
  assert found["train"] == [
    ("a", b"a/0.png"),
    ("a", b"a/0.png"),
    ("b", b"b/0.png"),
    ("b", b"a/0.png"),
  ]


@pytest.mark.parametrize("target", [".", "..", "../..", "../a"])
def test_links_to_folders_above_are_not_followed(tmp_path, target):
  """The walk would go on until the path is too long."""
  folder = classes(tmp_path / "in" / "data", a=2, b=2)
  (folder / "a" / "loop").symlink_to(target)
  (tmp_path / "linked").symlink_to(folder)
  for source in [folder, tmp_path / "linked"]:
    assert sizes(find(source)) == {"train": 4}


def test_folders_that_link_to_each_other_end(tmp_path):
  """Each is found in the other once, where no class may lie."""
  folder = classes(tmp_path / "in", a=2, b=2)
  (folder / "a" / "b").symlink_to("../b")
  (folder / "b" / "a").symlink_to("../a")
  refuse(folder, "source=", "CLASS/IMAGE")


@pytest.mark.parametrize(
  ("target", "reason"),
  [
    ("x.jpg", "Too many levels"),
    ("nowhere", "No such file"),
    ("0.png/x", "Not a directory"),
  ],
)
def test_a_link_to_nothing_is_told_when_it_is_read(tmp_path, target, reason):
  """One bad image must not hide the others, nor be lost in silence."""
  folder = classes(tmp_path / "in", a=2, b=2)
  (folder / "a" / "x.jpg").symlink_to(target)
  found = find(folder, "validation=0")
  assert sizes(found) == {"train": 5}
  (bad,) = (i for i, _ in found.splits["train"] if i.name.endswith("x.jpg"))
  with pytest.raises(OSError, match=reason):
    bad.read()


def test_a_file_that_goes_is_told_when_it_is_read(tmp_path):
  folder = classes(tmp_path / "in", a=2, b=2)
  found = find(folder)
  shutil.rmtree(folder)
  for item, _ in found.splits["train"]:
    with pytest.raises(FileNotFoundError):
      item.read()


FIND = """
import json, os, sys
from pathlib import Path
from alexnet_jax import errors
from alexnet_jax.data import listing

def outcome(source):
  try:
    found = listing.find(source, "validation=0", Path("spool"))
  except errors.InputError as error:
    return f"InputError: {error}"
  except Exception as error:
    return f"{type(error).__name__}: {error}"
  read = []
  for items in found.splits.values():
    for item, _ in items:
      try:
        read.append(item.read().decode())
      except OSError as error:
        read.append(f"{item.name}: {type(error).__name__}: {error}")
  return read

os.chdir(sys.argv[1])
outcome("warm-up")
if os.getuid() == 0 and sys.argv[2] == "nobody":
  os.setgroups([])
  os.setgid(65534)
  os.setuid(65534)
print(json.dumps([outcome(source) for source in sys.argv[3:]]))
"""


def test_a_pipe_is_told_and_not_waited_for(tmp_path):
  folder = classes(tmp_path / "in", a=1, b=1)
  os.mkfifo(folder / "a" / "x.jpg")
  os.mkfifo(tmp_path / "pipe.txt")
  (tmp_path / "list.txt").write_text("in/a/x.jpg a\nin/b/0.png b\n")
  read, listed = python(
    FIND, tmp_path, "root", folder, tmp_path / "list.txt", cwd=REPOSITORY
  )
  assert read[0] == "a/0.png"
  assert "a/x.jpg: OSError: no regular file" in read[1]
  assert "a/x.jpg: OSError: no regular file" in listed[0]


def test_a_source_that_is_no_file_is_refused(tmp_path):
  """To open a pipe would be to wait for ever."""
  pipes = ["pipe", "pipe.txt", "pipe.tar"]
  for name in pipes:
    os.mkfifo(tmp_path / name)
  for read in python(
    FIND, tmp_path, "root", "/dev/null", *pipes, cwd=REPOSITORY
  ):
    assert read.startswith("InputError: source=")


@pytest.fixture(name="forbidden", scope="module")
def fixture_forbidden(tmp_path_factory):
  """What a user without permissions is told, by source."""
  folder = tmp_path_factory.mktemp("forbidden") / "open"
  for name in ["file", "class", "search", "root", "closed/in", "link"]:
    classes(folder / name, a=1, b=1)
  (folder / "link" / "a" / "x.jpg").symlink_to("../../closed/in/a/0.png")
  (folder / "link" / "b" / "x").symlink_to("../../closed/in")
  pack(folder / "file", "tar").chmod(0)
  (folder / "list.txt").write_text("file/a/0.png a")
  for path, mode in {
    "file/a/0.png": 0,
    "class/a": 0,
    "search/a": 0o444,
    "root": 0,
    "closed": 0,
    "list.txt": 0,
  }.items():
    (folder / path).chmod(mode)
  sources = "file class search root closed/in link file.tar list.txt".split()
  read = python(FIND, folder, "nobody", *sources, cwd=REPOSITORY)
  for path in [folder, *folder.glob("*/"), *folder.glob("*/*/")]:
    path.chmod(0o755)  # So that pytest can remove them.
  return dict(zip(sources, read, strict=True))


def test_a_forbidden_image_is_told_when_it_is_read(forbidden):
  (bad, good) = forbidden["file"]
  assert bad.startswith("file/a/0.png: PermissionError: ")
  assert good == "b/0.png"
  assert forbidden["search"][0].startswith("search/a/0.png: ")
  assert forbidden["search"][1] == "b/0.png"


@pytest.mark.parametrize(
  ("source", "words"),
  [
    ("class", ["'class/a'", "ermission"]),
    ("root", ["'root'", "ermission"]),
    ("closed/in", ["'closed/in'", "ermission"]),
    ("file.tar", ["file.tar", "ermission"]),
    ("list.txt", ["list.txt", "ermission"]),
  ],
)
def test_a_forbidden_source_is_refused(forbidden, source, words):
  assert forbidden[source][:12] == "InputError: "
  for word in words:
    assert word in forbidden[source]


def test_a_link_into_a_forbidden_folder_is_told_when_it_is_read(forbidden):
  read = forbidden["link"]
  assert [line for line in read if "x.jpg" not in line] == [
    "a/0.png",
    "b/0.png",
  ]
  assert len(read) == 3


# Splits by name and by share.


def test_splits_are_read_as_names_and_shares():
  wanted = sources.SplitSpec.parse("train=Part 1, test,validation=0.25,x=", 7)
  assert wanted.named == {"train": "Part 1", "test": "test", "x": "x"}
  assert wanted.shares == {"validation": 0.25}
  assert wanted.seed == 7


def test_no_splits_are_no_wishes():
  wanted = sources.SplitSpec.parse("")
  assert (wanted.named, wanted.shares, wanted.seed) == ({}, {}, 0)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("train,train", ["'train'", "write for example"]),
    ("test=0.1,test=x", ["'test=x'", "write for example"]),
    ("my split=x", ["'my split=x'", "write for example"]),
    ("=x", ["'=x'", "NAME"]),
    (" ", ["' '", "NAME"]),
    ("a/b", ["'a/b'", "NAME"]),
    ("test=-0.1", ["0 or more", "below 1"]),
    ("test=1", ["below 1"]),
    ("test=nan", ["below 1"]),
    ("test=inf", ["below 1"]),
    ("test=0.5,validation=0.5", ["below 1 together"]),
    ("train=0.8", ["train", "drop"]),
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


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
@pytest.mark.parametrize(
  ("wanted", "folders"),
  [
    ("train=two", {"train": "two"}),
    ("train=two,test=3rd", {"train": "two", "test": "3rd"}),
    ("train=two,validation", {"train": "two", "validation": "val"}),
    ("train=two,mine=3rd,val", {"train": "two", "val": "val", "mine": "3rd"}),
  ],
)
def test_named_splits_are_taken_and_no_others(
  tmp_path, parts, wanted, folders, kind
):
  source = pack(shutil.copytree(parts, tmp_path / "in"), kind)
  found = find(source, wanted)
  assert {
    split: {os.fsdecode(data).split("/")[0] for _, data in items}
    for split, items in held(found).items()
  } == {split: {folder} for split, folder in folders.items()}
  assert list(found.splits) == [
    *(s for s in ("train", "validation", "test") if s in folders),
    *sorted(folders.keys() - {"train", "validation", "test"}),
  ]


def test_a_split_may_be_taken_by_any_usual_name(tmp_path):
  source = classes(
    tmp_path / "in", **{"Training/a": 2, "Training/b": 2, "dev/a": 1}
  )
  found = find(source, "train,test=validation")
  assert sizes(found) == {"train": 4, "test": 1}


@pytest.mark.parametrize(
  ("wanted", "words"),
  [
    ("train=two,test=four", ["'four'", "two"]),
    ("train=TWO", ["--splits"]),
  ],
)
def test_a_split_that_is_not_there_is_refused(parts, wanted, words):
  refuse(parts, "source=", *words, wanted=wanted)


def test_a_split_cannot_be_named_where_there_are_none(tmp_path):
  source = classes(tmp_path / "in", a=10, b=10)
  refuse(
    source, "no splits", "test", "validation=0.1", wanted="train,test,x=0.1"
  )
  assert sizes(find(source, "train,x=0.1")) == {"train": 18, "x": 2}


def test_a_share_is_held_out_of_train_alone(tmp_path):
  """And in place of the source's own split of that name."""
  counts = {"train": 10, "val": 3, "test": 2}
  source = classes(
    tmp_path / "in", **{f"{s}/{c}": n for s, n in counts.items() for c in "ab"}
  )
  found = find(source, "validation=0.2")
  assert sizes(found) == {"train": 16, "validation": 4, "test": 4}
  assert {p.split("/")[0] for p in paths(found, "validation")} == {"train"}
  assert {p.split("/")[0] for p in paths(found, "test")} == {"test"}
  assert sizes(find(source, "train,x=0.3")) == {"train": 14, "x": 6}


# What is held out.


@pytest.mark.parametrize(
  ("wanted", "shares"),
  [
    ("", {"train": [16, 9, 1], "validation": [2, 1, 0], "test": [2, 1, 0]}),
    ("validation=0.3", {"train": [14, 8, 1], "validation": [6, 3, 0]}),
    (
      "x=0.5,y=0.25",
      {"train": [5, 4, 1], "x": [10, 5, 0], "y": [5, 2, 0]},
    ),
    ("test=0", {"train": [20, 11, 1]}),
  ],
)
def test_the_held_out_splits_are_a_stratified_partition(
  tmp_path, wanted, shares
):
  found = find(classes(tmp_path / "in", a=20, b=11, c=1), wanted)
  drawn = [path for split in shares for path in paths(found, split)]
  assert Counter(drawn) == Counter(
    [*images("a", 20), *images("b", 11), *images("c", 1)]
  )
  counts = {
    split: [sum(y == label for _, y in items) for label in range(3)]
    for split, items in found.splits.items()
  }
  assert counts == shares


@pytest.mark.parametrize("percent", [7, 14, 28, 29, 55, 56, 57, 58])
def test_a_share_of_a_hundred_is_a_percentage(tmp_path, percent):
  """0.29 * 100 is 28.999999999999996."""
  source = classes(tmp_path / "in", a=100, b=100)
  found = find(source, f"test={percent / 100}")
  assert sizes(found)["test"] == 2 * percent


@pytest.mark.parametrize("share", [0, 0.25])
def test_the_seed_chooses_what_is_held_out(tmp_path, share):
  source = classes(tmp_path / "in", a=40, b=40)
  wanted = f"validation={share},test=0.25"
  one, again, two = (
    paths(find(source, wanted, seed=seed), "test") for seed in (1, 1, 2)
  )
  assert one == again
  assert one != two


def test_classes_are_drawn_apart(tmp_path):
  """One draw for all would hold 0.png out of every class."""
  found = find(classes(tmp_path / "in", a=40, b=40), "test=0.25")
  names = [set(), set()]
  for item, label in found.splits["test"]:
    names[label].add(Path(item.name).name)
  assert names[0] != names[1]


def test_the_choice_is_the_same_in_every_process(tmp_path):
  """Python's own hash of a text is another in each."""
  source = classes(tmp_path / "in", a=20, b=20)
  code = """
import json, sys
from pathlib import Path
from alexnet_jax.data import listing
found = listing.find(sys.argv[1], "", Path("spool"))
print(json.dumps([item.name for item, _ in found.splits["test"]]))
"""
  environment = os.environ | {"PYTHONHASHSEED": "1"}
  there = python(code, source, cwd=REPOSITORY, env=environment)
  assert there == [item.name for item, _ in find(source).splits["test"]]


def test_a_new_class_moves_no_other_image_between_splits(tmp_path):
  """A draw over all files would put yesterday's test images into train."""
  source = classes(tmp_path / "in", b=12, c=12)
  old = find(source, "validation=0.25,test=0.25")
  classes(source, a=12)
  new = find(source, "validation=0.25,test=0.25")
  for split in ["train", "validation", "test"]:
    kept = {path for path in paths(new, split) if path[0] != "a"}
    assert kept == paths(old, split)


def test_a_new_image_moves_few_others(tmp_path):
  """A shuffle by position would draw all anew."""
  source = classes(tmp_path / "in", a=40, b=40)
  old = paths(find(source, "test=0.25"), "test")
  write(source, "a/00.png")
  assert len(old - paths(find(source, "test=0.25"), "test")) <= 1


# Tars.


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_longer_than_a_header_are_whole(tmp_path, form, mode):
  """Both formats keep them in members of their own."""
  names = [f"{c * 120}/{'ä' * 60}{i}/x.png" for c in "ab" for i in "12"]
  members = [(f"train/{n}".replace("/x.png", ".png"), b"x") for n in names]
  source = tar_of(tmp_path / "in.tar", *members, mode=mode, format=form)
  found = find(source)
  assert [item.name for item, _ in found.splits["train"]] == (
    [name for name, _ in members]
  )
  assert found.class_names == ["a" * 120, "b" * 120]


def test_a_plain_tar_is_not_unpacked(tmp_path):
  """ImageNet's has 138 GB; its images are ranges of it."""
  data = {f"{c}/{n}.png": os.urandom(n) for c in "ab" for n in (0, 1, 512, 999)}
  find_in = tmp_path / "in.tar"
  tar_of(find_in, *data.items())
  found = find(find_in, "validation=0")
  assert {i.name: i.read() for i, _ in found.splits["train"]} == data
  assert sorted(tmp_path.iterdir()) == [find_in]


def test_a_tar_that_is_cut_later_is_told_when_it_is_read(tmp_path):
  source = tar_of(tmp_path / "in.tar", ("a/0.png", b"aaa"), ("b/0.png", b"bbb"))
  found = find(source)
  source.write_bytes(source.read_bytes()[:1537])
  first, last = (item for item, _ in found.splits["train"])
  assert first.read() == b"aaa"
  with pytest.raises(OSError, match="cut off"):
    last.read()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_links_in_a_tar_are_what_they_point_at(tmp_path, mode):
  """In a folder they are followed too."""
  found = find(
    tar_of(
      tmp_path / "in.tar",
      ("a", None),
      ("a/before.png", tarfile.SYMTYPE, "x.png"),
      ("a/x.png", b"xx"),
      ("a/hard.png", tarfile.LNKTYPE, "a/x.png"),
      ("b/soft.png", tarfile.SYMTYPE, "../a/./x.png"),
      ("b/chain.png", tarfile.SYMTYPE, "soft.png"),
      mode=mode,
    ),
    "validation=0",
  )
  assert [(i.name, y, i.read()) for i, y in found.splits["train"]] == [
    ("a/before.png", 0, b"xx"),
    ("a/hard.png", 0, b"xx"),
    ("a/x.png", 0, b"xx"),
    ("b/chain.png", 1, b"xx"),
    ("b/soft.png", 1, b"xx"),
  ]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize(
  "bad",
  [
    (tarfile.SYMTYPE, "nowhere.png"),
    (tarfile.SYMTYPE, "bad.png"),
    (tarfile.SYMTYPE, "/etc/passwd"),
    (tarfile.SYMTYPE, "../../../../../etc/passwd"),
    (tarfile.SYMTYPE, "worse.png"),
    (tarfile.LNKTYPE, "/etc/passwd"),
    (tarfile.FIFOTYPE, ""),
    (tarfile.CHRTYPE, ""),
  ],
)
def test_a_member_without_bytes_is_told_when_it_is_read(tmp_path, bad, mode):
  """Two links in a circle, one out of the archive, a pipe, a device."""
  found = find(
    tar_of(
      tmp_path / "in.tar",
      ("a/0.png", b"0"),
      ("a/bad.png", *bad),
      ("a/worse.png", tarfile.SYMTYPE, "bad.png"),
      ("b/0.png", b"0"),
      mode=mode,
    ),
    "validation=0",
  )
  items = {item.name: item for item, _ in found.splits["train"]}
  assert set(items) == {"a/0.png", "a/bad.png", "a/worse.png", "b/0.png"}
  for name in ["a/bad.png", "a/worse.png"]:
    with pytest.raises(OSError, match=r"no regular file"):
      items[name].read()


@pytest.mark.parametrize("mode", ["w", "w:xz"])
def test_of_a_member_that_comes_twice_the_last_counts(tmp_path, mode):
  """As tar -r adds a newer version to the end."""
  source = tar_of(
    tmp_path / "in.tar",
    ("a/0.png", b"old"),
    ("b/0.png", b"b"),
    ("./a/0.png", b"newer"),
    mode=mode,
  )
  assert held(find(source)) == {"train": [("a", b"newer"), ("b", b"b")]}


def test_a_file_that_comes_after_a_link_of_its_name_counts(tmp_path):
  source = tar_of(
    tmp_path / "in.tar",
    ("a/1.png", b"one"),
    ("a/0.png", tarfile.SYMTYPE, "1.png"),
    ("a/0.png", b"new"),
    ("b/0.png", b"b"),
  )
  found = find(source, "validation=0")
  assert held(found)["train"] == [("a", b"new"), ("a", b"one"), ("b", b"b")]


@pytest.mark.parametrize("prefix", ["", "./", "/", "//data/"])
def test_members_may_have_odd_prefixes(tmp_path, prefix):
  """`tar -C folder .` writes ./ and tar -P writes /."""
  source = tar_of(
    tmp_path / "in.tar", (f"{prefix}a/0.png", b"a"), (f"{prefix}b/0.png", b"b")
  )
  assert held(find(source)) == {"train": [("a", b"a"), ("b", b"b")]}


def test_a_member_with_holes_is_refused(tmp_path):
  """GNU's -S stores a map of a file's pieces where its bytes would lie."""
  info = tarfile.TarInfo("a/0.png")
  info.pax_headers = {
    "GNU.sparse.major": "1",
    "GNU.sparse.minor": "0",
    "GNU.sparse.name": "a/0.png",
    "GNU.sparse.realsize": "20",
  }
  stored = b"2\n0\n4\n12\n8\n".ljust(512, b"\0") + b"headand tail"
  info.size = len(stored)
  with tarfile.open(tmp_path / "in.tar", "w") as archive:
    archive.addfile(info, io.BytesIO(stored))
    other = tarfile.TarInfo("b/0.png")
    archive.addfile(other)
  refuse(tmp_path / "in.tar", "a/0.png is sparse")


def whole_tar(file, mode="w"):
  """A tar of members with random bytes, longer than its own records."""
  rng = random.Random(0)
  members = [(f"{c}/{i}.png", rng.randbytes(6000)) for c in "ab" for i in "123"]
  tar_of(file, *members, mode=mode)
  return dict(members)


@pytest.mark.parametrize("back", [0, 1, 100, 512, 600, 3000, 6511, 6512])
@pytest.mark.parametrize("member", [1, -1])
def test_a_tar_that_is_cut_off_is_refused(tmp_path, member, back):
  """Between members, in a header, in data: to tarfile some are plain ends."""
  source = tmp_path / "in.tar"
  whole_tar(source)
  with tarfile.open(source) as archive:
    header = archive.getmembers()[member].offset
  source.write_bytes(source.read_bytes()[: header + back])
  refuse(source, "source=", "whole tar", "give")


def test_a_tar_may_lack_padding_after_its_end_mark(tmp_path):
  data = whole_tar(tmp_path / "in.tar")
  with tarfile.open(tmp_path / "in.tar") as archive:
    last = archive.getmembers()[-1]
  end = last.offset_data + 6144  # In blocks of 512.
  whole = (tmp_path / "in.tar").read_bytes()
  (tmp_path / "in.tar").write_bytes(whole[: end + 1024])
  found = find(tmp_path / "in.tar", "validation=0")
  assert {i.name: i.read() for i, _ in found.splits["train"]} == data


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_tar_that_is_cut_off_is_refused(tmp_path, kind, fraction):
  source = tmp_path / "in.tar"
  whole_tar(source, f"w:{kind}")
  data = source.read_bytes()
  source.write_bytes(data[: int(len(data) * fraction)])
  refuse(source, "source=", "whole tar", "give")


@pytest.mark.parametrize("after", range(3))
@pytest.mark.parametrize("pack_bytes", [gzip, bz2, lzma])
def test_a_cut_off_tar_that_is_compressed_later_is_refused(
  tmp_path, pack_bytes, after
):
  """The compression is whole, the tar in it is not."""
  source = tmp_path / "in.tar"
  whole_tar(source)
  with tarfile.open(source) as archive:
    cut = archive.getmembers()[-1].offset + 100 * after
  source.write_bytes(pack_bytes.compress(source.read_bytes()[:cut]))
  refuse(source, "source=", "whole tar", "give")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zip"])
def test_damage_to_an_archive_is_never_taken_for_images(tmp_path, kind):
  """Each has checksums; those of gzip lie at its very end."""
  source = tmp_path / "in"
  if kind == "zip":
    rng = random.Random(0)
    data = {f"{c}/{i}.png": rng.randbytes(600) for c in "ab" for i in "123"}
    zip_of(source, *data.items(), compression=zipfile.ZIP_DEFLATED)
  else:
    data = whole_tar(source, f"w:{kind}")
  whole = source.read_bytes()
  refused = 0
  for position in range(len(whole) // 40, len(whole), len(whole) // 20):
    damaged = bytearray(whole)
    damaged[position] ^= 0x10
    source.write_bytes(damaged)
    try:
      found = find(source, "validation=0")
    except errors.InputError:
      refused += 1
    else:
      assert {i.name: i.read() for i, _ in found.splits["train"]} == data
  assert refused >= 10


# Zips.


@pytest.mark.parametrize(
  "compression",
  [
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
  ],
)
def test_a_zip_may_be_compressed_in_any_way(tmp_path, compression):
  data = {f"{c}/{n}.png": bytes(n) for c in "ab" for n in (0, 1, 5000)}
  source = zip_of(
    tmp_path / "in.zip", ("a/", b""), *data.items(), compression=compression
  )
  found = find(source, "validation=0")
  assert {i.name: i.read() for i, _ in found.splits["train"]} == data


def test_an_archive_is_known_by_its_content(tmp_path):
  zipped = zip_of(tmp_path / "x.tar", ("a/0.png", b"a"), ("b/0.png", b"b"))
  tarred = tar_of(tmp_path / "x.zip", ("a/0.png", b"a"), ("b/0.png", b"b"))
  expected = {"train": [("a", b"a"), ("b", b"b")]}
  assert held(find(zipped)) == held(find(tarred)) == expected


def test_a_tar_with_a_zip_in_it_is_a_tar(tmp_path):
  """The end of a zip near the end of a file does not make it one."""
  inner = zip_of(tmp_path / "inner.zip", ("c/0.png", b"c"), ("d/0.png", b"d"))
  source = tar_of(
    tmp_path / "in.tar",
    ("a/0.png", b"a"),
    ("b/0.png", b"b"),
    ("b/more.zip", inner.read_bytes()),
  )
  assert held(find(source)) == {"train": [("a", b"a"), ("b", b"b")]}


def test_of_a_zip_member_that_comes_twice_the_last_counts(tmp_path):
  with pytest.warns(UserWarning, match="Duplicate name"):
    source = zip_of(
      tmp_path / "in.zip",
      ("a/0.png", b"old"),
      ("b/0.png", b"b"),
      ("a/0.png", b"newer"),
    )
  assert held(find(source)) == {"train": [("a", b"newer"), ("b", b"b")]}


def patched(file, local, central, change):
  """Changes two bytes of every header, where a zip keeps a field."""
  data = bytearray(file.read_bytes())
  for mark, place in [(b"PK\x03\x04", local), (b"PK\x01\x02", central)]:
    start = data.find(mark)
    while start >= 0:
      (value,) = struct.unpack_from("<H", data, start + place)
      struct.pack_into("<H", data, start + place, change(value))
      start = data.find(mark, start + 4)
  file.write_bytes(data)
  return file


FLAGS = (6, 8)  # PKWARE's APPNOTE 4.3.7 and 4.3.12.
METHOD = (8, 10)


def test_names_in_a_zip_are_utf8_even_where_it_does_not_say_so(tmp_path):
  """Info-ZIP on Linux and macOS' own do not set the flag."""
  names = [f"{c}/{c}.png" for c in ("猫", "Ålesund")]
  source = zip_of(tmp_path / "in.zip", *((n, n.encode()) for n in names))
  patched(source, *FLAGS, lambda flags: flags & ~0x800)
  found = find(source)
  assert found.class_names == ["Ålesund", "猫"]
  assert paths(found, "train") == set(names)


def test_names_in_a_zip_may_be_of_dos(tmp_path):
  """Code page 437 is what a zip without the flag is in, by its standard."""
  source = zip_of(tmp_path / "in.zip", ("AAA/0.png", b"a"), ("b/0.png", b"b"))
  source.write_bytes(source.read_bytes().replace(b"AAA", b"caf\x82"[1:]))
  assert find(source).class_names == ["afé", "b"]


def test_a_dot_before_a_name_in_a_zip_says_nothing(tmp_path):
  source = zip_of(tmp_path / "in.zip", ("./a/0.png", b"a"), ("./b/0.png", b"b"))
  assert held(find(source)) == {"train": [("a", b"a"), ("b", b"b")]}


def test_a_zip_that_cannot_be_read_is_refused(tmp_path):
  """By a password, an unknown compression, a name that is no UTF-8."""
  members = [("ä/0.png", b"a" * 99), ("b/0.png", b"b" * 99)]
  source = tmp_path / "in.zip"
  patched(zip_of(source, *members), *FLAGS, lambda flags: flags | 1)
  refuse(source, "source=", "whole tar, zip", "give")
  patched(zip_of(source, *members), *METHOD, lambda _: 99)
  refuse(source, "source=", "whole tar, zip", "give")
  zip_of(source, *members)
  source.write_bytes(source.read_bytes().replace("ä".encode(), b"\xc3\x28"))
  refuse(source, "source=", "whole tar, zip", "give")


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.99])
def test_a_zip_that_is_cut_off_is_refused(tmp_path, fraction):
  source = zip_of(
    tmp_path / "in.zip", *((p, b"x" * 99) for p in images("a", 9))
  )
  data = source.read_bytes()
  source.write_bytes(data[: int(len(data) * fraction)])
  refuse(source, "source=", "whole tar, zip", "give")


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
    ("l.lst", "x/0.png   cat\r\n\r\nx/2 b.png dog", BOTH),
    ("l.TXT", "\n  x/0.png cat  \n \t \n  x/2 b.png\tdog\n\n", BOTH),
    ("l.tsv", "x/0.png\tcat\nx/2 b.png\tdog\n", BOTH),
    ("l.csv", "x/0.png,cat\nx/2 b.png,dog\n", BOTH),
    ("l.csv", 'x/0.png, cat\n"x/2 b.png","dog"\n', BOTH),
    ("l.txt", "\N{BOM}x/0.png cat\nx/2 b.png dog\n", BOTH),
    ("l.csv", "\N{BOM}x/0.png,cat\nx/2 b.png,dog\n", BOTH),
    (
      "l.csv",
      '"x/3,c.png","big, ""old"" cat"\nx/0.png,dog\n',
      {"train": {"3,c.png": 'big, "old" cat', "0.png": "dog"}},
    ),
    (
      "l.txt",
      "x/3,c.png cat\nx/ä.png 猫\n",
      {"train": {"3,c.png": "cat", "ä.png": "猫"}},
    ),
    (
      "l.tsv",
      "x/2 b.png\tbig cat\nx/0.png\tdog, wet\n",
      {"train": {"2 b.png": "big cat", "0.png": "dog, wet"}},
    ),
    (
      "l.csv",
      "x/0.png,cat,train\nx/1.png,dog,train\nx/ä.png,cat,val\n",
      {
        "train": {"0.png": "cat", "1.png": "dog"},
        "validation": {"ä.png": "cat"},
      },
    ),
    (
      "l.txt",
      "x/0.png\tcat\tTrain\nx/1.png\tdog\tTrain\nx/ä.png\tcat\tTEST\n",
      {"train": {"0.png": "cat", "1.png": "dog"}, "test": {"ä.png": "cat"}},
    ),
  ],
)
def test_a_list_names_path_and_label(tmp_path, name, text, expected):
  text = text.replace("\N{BOM}", "\ufeff")
  assert rows(find(listed(tmp_path, text, name))) == expected


def test_paths_in_a_list_are_below_it(tmp_path, monkeypatch):
  """Not below the folder in which the command runs."""
  far = tmp_path / "in" / "x" / "0.png"
  source = listed(tmp_path / "in", f"./x/../x/1.png a\n{far} b\n")
  monkeypatch.chdir(tmp_path)
  assert held(find(source))["train"] == [("a", b"x/1.png"), ("b", b"x/0.png")]


def test_integer_labels_keep_their_order(tmp_path):
  """As text, 10 would become label 1."""
  lines = [f"x/{n % 2}.png {n}" for n in [10, 9, 0, 2]]
  found = find(listed(tmp_path, "\n".join(lines)))
  assert found.class_names == ["0", "2", "9", "10"]


def test_a_list_of_missing_files_says_which_when_they_are_read(tmp_path):
  found = find(listed(tmp_path, "x/gone.png a\nx b\nx/0.png b\n"))
  gone, folder, good = (item for item, _ in found.splits["train"])
  for item, name, reason in [
    (gone, "gone.png", "No such file"),
    (folder, "x", "no regular file"),
  ]:
    assert item.name.endswith(name)
    with pytest.raises(OSError, match=reason):
      item.read()
  assert good.read() == b"x/0.png"


def test_a_list_without_splits_is_held_out_like_a_folder(tmp_path):
  source = classes(tmp_path / "in", a=20, b=20)
  lines = [f"{path} {path[0]}" for path in images("a", 20) + images("b", 20)]
  (source / "list.txt").write_text("\n".join(reversed(lines)))
  found = find(source / "list.txt")
  assert sizes(found) == {"train": 32, "validation": 4, "test": 4}
  assert paths(found, "test").isdisjoint(paths(found, "train"))


def test_splits_of_a_list_are_chosen_by_name(tmp_path):
  text = "x/0.png,a,one\nx/1.png,b,one\nx/ä.png,a,two\nx/3 b.png,b,three\n"
  source = listed(tmp_path, text, "list.csv")
  found = find(source, "train=one,test=two")
  assert rows(found) == {
    "train": {"0.png": "a", "1.png": "b"},
    "test": {"ä.png": "a"},
  }
  refuse(source, "'four'", "one, three, two", wanted="train=one,test=four")


@pytest.mark.parametrize(
  ("name", "text", "words"),
  [
    ("l.txt", "x/0.png a\nx/1.png\n", ["line 2", "x/1.png", "PATH and LABEL"]),
    ("l.csv", "x/0.png,a\n\nx/1.png b\n", ["line 3", "commas"]),
    ("l.csv", "x/0.png,a\nx/1.png,\n", ["line 2", "LABEL"]),
    ("l.tsv", "x/0.png\ta\ttrain\tmore\n", ["line 1", "SPLIT"]),
    ("l.csv", "x/0.png,a,train\nx/1.png,b\n", ["some lines", "all or in none"]),
    ("l.txt", "", ["lists no images"]),
    ("l.txt", "\n \n", ["lists no images"]),
    ("l.txt", "x/0.png a\nx/1.png a\n", ["1 classes", "at least 2"]),
    ("l.csv", "x/0.png,a,val\nx/1.png,b,val\n", ["0 classes", "at least 2"]),
    ("l.txt", "x/0.png a\nx/\0.png b\n", ["line 2"]),
    ("l.csv", f"{'x' * 200_000},a\n", ["line 1"]),
  ],
)
def test_a_bad_list_is_refused(tmp_path, name, text, words):
  refuse(listed(tmp_path, text, name), name, *words)


def test_a_list_that_is_not_utf8_is_refused(tmp_path):
  source = listed(tmp_path, "x/ä.png a\n", encoding="latin-1")
  refuse(source, "source=", "UTF-8")


# Maps of synsets.

WORDS = "n02 tench, Tinca tinca\nn10 great white shark\nn01 cock\n"
INDEX = {"0": ["n02", "tench"], "2": ["n01", "cock"], "1": ["n10", "shark"]}


def synsets(folder, text, name="synset_words.txt"):
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(text, encoding="utf-8")
  return str(folder / name)


@pytest.mark.parametrize(
  ("name", "text", "class_names"),
  [
    (
      "synset_words.txt",
      WORDS,
      ["n02 tench, Tinca tinca", "n10 great white shark", "n01 cock"],
    ),
    (
      "synset_words.txt",
      "\ufeff" + WORDS.replace("\n", "\r\n\r\n"),
      ["n02 tench, Tinca tinca", "n10 great white shark", "n01 cock"],
    ),
    ("synsets.txt", "n02\nn10\nn01\n", ["n02", "n10", "n01"]),
    ("index.json", json.dumps(INDEX), ["n02 tench", "n10 shark", "n01 cock"]),
  ],
)
def test_a_map_gives_labels_and_names(tmp_path, name, text, class_names):
  """In its order, which for Caffe's and Keras' files is that of the labels."""
  source = classes(tmp_path / "in", n01=1, n02=2, n10=3)
  found = find(source, synsets=synsets(tmp_path, text, name))
  assert found.class_names == class_names
  assert [label for _, label in found.splits["train"]] == [2, 0, 0, 1, 1, 1]


def test_a_map_keeps_the_labels_of_absent_classes(tmp_path):
  """A subset of ImageNet has the labels of the whole."""
  source = classes(tmp_path / "in", n01=1, n02=1)
  found = find(source, synsets=synsets(tmp_path, WORDS))
  assert len(found.class_names) == 3
  assert [label for _, label in found.splits["train"]] == [2, 0]


@pytest.mark.parametrize("where", ["train", "test"])
def test_a_class_that_is_not_in_the_map_is_refused(tmp_path, where):
  source = classes(tmp_path / "in", **{"train/n01": 1, "train/n02": 1})
  classes(source, **{f"{where}/n77": 1})
  refuse(source, "'n77'", where, "remove it", synsets=synsets(tmp_path, WORDS))


@pytest.mark.parametrize(
  ("name", "text", "words"),
  [
    ("s.txt", "", ["0 lines"]),
    ("s.txt", "n01 a\nn02 b\nn01 c\n", ["3 lines", "2 classes"]),
    ("s.json", "{", ["cannot be read"]),
    ("s.json", "[]", ["s.json"]),
    ("s.json", "{}", ["s.json"]),
    ("s.json", '[["n01", "a"], ["n02", "b"]]', ["cannot be read"]),
    ("s.json", '{"1": ["n01", "a"], "2": ["n02", "b"]}', ["cannot be read"]),
    ("s.json", '{"0": "n01", "1": "n02"}', ["cannot be read"]),
    ("s.json", '{"0": ["n01", "a"], "1": ["n01", "a"]}', ["1 classes"]),
    ("s.json", '{"0": [["n01"], "a"], "1": ["n02", "b"]}', ["s.json"]),
    ("s.json", '{"0": [1, "a"], "1": ["n02", "b"]}', ["s.json"]),
    ("s.json", "7", ["cannot be read"]),
  ],
)
def test_a_bad_map_is_refused(tmp_path, name, text, words):
  source = classes(tmp_path / "in", n01=1, n02=1)
  refuse(source, "synsets=", *words, synsets=synsets(tmp_path, text, name))


@pytest.mark.parametrize("kind", ["nothing", "folder", "latin-1"])
def test_a_map_that_cannot_be_read_is_refused(tmp_path, kind):
  source = classes(tmp_path / "in", n01=1, n02=1)
  file = tmp_path / "map.txt"
  if kind == "folder":
    file.mkdir()
  elif kind == "latin-1":
    file.write_bytes("n01 é\n".encode("latin-1"))
  refuse(source, "synsets=", "cannot be read", synsets=str(file))


# ILSVRC-2012 as it is downloaded.

# Challenge's label, WNID, words, WNIDs' children: a leaf has none.
META = [
  (1, "n03", "kit fox, Vulpes macrotis", []),
  (2, "n01", "English setter", []),
  (3, "n02", "Siberian husky", []),
  (4, "n00", "entity", [5, 1]),
  (5, "n04", "dog, domestic dog", [2, 3]),
]
TRUTH = [1, 2, 3, 3, 2, 1, 3]
FIELDS = (
  "ILSVRC2012_ID WNID words gloss num_children children wordnet_height"
  " num_train_images"
).split()


def meta_mat(compress=True):
  """The development kit's meta.mat: a 5 x 1 struct array."""
  synsets_5x1 = np.empty((len(META), 1), [(name, object) for name in FIELDS])
  for row, (label, wnid, words, children) in enumerate(META):
    synsets_5x1[row, 0] = (
      np.float64(label),
      wnid,
      words,
      f"a gloss; of {words}",
      np.float64(len(children)),
      np.array(children, np.float64),
      np.float64(bool(children)),
      np.float64(0 if children else 3),
    )
  file = io.BytesIO()
  scipy.io.savemat(file, {"synsets": synsets_5x1}, do_compression=compress)
  return file.getvalue()


def ilsvrc(folder, meta=None, truth=TRUTH, without=()):
  """Miniatures of the three tars, in the layout of the real ones."""
  folder.mkdir()
  inner = []
  for wnid in ["n02", "n01", "n03"]:
    images_of = [
      (f"{wnid}_{index}.JPEG", f"{wnid}/{index}".encode() * index)
      for index in range(3)
    ]
    tar_of(folder / "inner", *images_of)
    inner.append((f"{wnid}.tar", (folder / "inner").read_bytes()))
  (folder / "inner").unlink()
  tar_of(folder / "ILSVRC2012_img_train.tar", *inner)
  tar_of(
    folder / "ILSVRC2012_img_val.tar",
    *(
      (f"ILSVRC2012_val_{number:08}.JPEG", b"%d" % number)
      for number in random.Random(0).sample(
        range(1, len(TRUTH) + 1), len(TRUTH)
      )
    ),
  )
  kit = "ILSVRC2012_devkit_t12"
  tar_of(
    folder / f"{kit}.tar.gz",
    (kit, None),
    (f"{kit}/data", None),
    (f"{kit}/readme.txt", b"ILSVRC2012_validation_ground_truth.txt: labels"),
    (f"{kit}/data/meta.mat", meta_mat() if meta is None else meta),
    (
      f"{kit}/data/ILSVRC2012_validation_ground_truth.txt",
      "".join(f"{label}\n" for label in truth).encode(),
    ),
    mode="w:gz",
  )
  for name in without:
    (folder / name).unlink()
  return folder


TRAIN_TAR = "ILSVRC2012_img_train.tar"
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
SORTED_NAMES = [
  "n01 English setter",
  "n02 Siberian husky",
  "n03 kit fox, Vulpes macrotis",
]


@pytest.mark.parametrize("compress", [False, True])
def test_the_ilsvrc_tars_are_read_as_they_are_downloaded(tmp_path, compress):
  """The challenge's labels are in another order than the WNIDs."""
  found = find(ilsvrc(tmp_path / "in", meta_mat(compress)))
  assert found.class_names == SORTED_NAMES
  train = [(y, i.name, i.read()) for i, y in found.splits["train"]]
  assert train == [
    (label, f"{w}/{w}_{index}.JPEG", f"{w}/{index}".encode() * index)
    for label, w in enumerate(["n01", "n02", "n03"])
    for index in range(3)
  ]
  labels = {1: 2, 2: 0, 3: 1}  # Challenge's: ours.
  validation = {int(i.read()): y for i, y in found.splits["validation"]}
  assert validation == {n: labels[t] for n, t in enumerate(TRUTH, start=1)}
  assert not (tmp_path / "spool").exists()


def test_without_the_kit_the_training_tar_is_enough(tmp_path):
  source = ilsvrc(tmp_path / "in", without=[DEVKIT, VALIDATION_TAR])
  found = find(source)
  assert found.class_names == ["n01", "n02", "n03"]
  assert sizes(found) == {"train": 9}


def test_the_validation_tar_needs_the_kit(tmp_path):
  source = ilsvrc(tmp_path / "in", without=[DEVKIT])
  refuse(source, VALIDATION_TAR, DEVKIT, "--splits=train")
  assert sizes(find(source, "train")) == {"train": 9}
  assert sizes(find(source, "validation=0.4")) == {"train": 6, "validation": 3}


def test_ilsvrc_may_be_split_and_mapped_otherwise(tmp_path):
  source = ilsvrc(tmp_path / "in")
  words = synsets(tmp_path, "n03 fox\nn02 husky\nn01 setter\n")
  found = find(source, "train,test=val", synsets=words)
  assert found.class_names == ["n03 fox", "n02 husky", "n01 setter"]
  assert sizes(found) == {"train": 9, "test": 7}
  labels = {1: 0, 2: 2, 3: 1}
  for item, label in found.splits["test"]:
    assert label == labels[TRUTH[int(item.read()) - 1]]


@pytest.mark.parametrize(
  "truth", [TRUTH[:-1], [1, 2, 3, 3, 2, 1, 4], [1, 2, 3, 3, 2, 1, 9], ["x"] * 7]
)
def test_labels_that_do_not_fit_the_images_are_refused(tmp_path, truth):
  """A file too short, an inner node, a number of no class, no number."""
  refuse(ilsvrc(tmp_path / "in", truth=truth), "damaged", "download")


def bad_meta():
  def saved(**values):
    file = io.BytesIO()
    scipy.io.savemat(file, values)
    return file.getvalue()

  whole = meta_mat()
  damaged = bytearray(whole)
  damaged[len(whole) // 2] ^= 0xFF
  return {
    "empty": b"",
    "text": b"no MATLAB file" * 99,
    "cut": whole[: len(whole) // 2],
    "cut plain": meta_mat(compress=False)[:-700],
    "damaged": bytes(damaged),
    "other": saved(other=np.zeros(3)),
    "numbers": saved(synsets=np.zeros(3)),
    "one number": saved(synsets=1.0),
    "fewer fields": saved(synsets={"WNID": "n01"}),
  }


@pytest.mark.parametrize("kind", bad_meta())
def test_a_damaged_meta_mat_is_refused(tmp_path, kind):
  """SciPy raises errors of many kinds."""
  refuse(ilsvrc(tmp_path / "in", bad_meta()[kind]), "damaged", "download")


@pytest.mark.parametrize("fraction", [0, 0.2, 0.6, 0.95])
@pytest.mark.parametrize("name", [TRAIN_TAR, VALIDATION_TAR, DEVKIT])
def test_a_cut_off_download_is_refused(tmp_path, name, fraction):
  source = ilsvrc(tmp_path / "in")
  whole = (source / name).read_bytes()
  # A tar of few members is padding for the most part.
  end = len(whole) if name == DEVKIT else len(whole.rstrip(b"\0"))
  (source / name).write_bytes(whole[: int(end * fraction)])
  refuse(source, "ILSVRC-2012", "download")


def test_a_cut_off_tar_in_the_training_tar_is_refused(tmp_path):
  source = ilsvrc(tmp_path / "in")
  with tarfile.open(source / TRAIN_TAR) as archive:
    inner = [
      (member.name, archive.extractfile(member).read()) for member in archive
    ]
  inner[1] = (inner[1][0], inner[1][1][:1536])  # Two members of three.
  tar_of(source / TRAIN_TAR, *inner)
  refuse(source, "ILSVRC-2012", "download")


def test_any_tar_of_class_tars_is_read(tmp_path):
  """Links in the inner ones point at members of the same."""
  inner = tar_of(
    tmp_path / "inner", ("0.png", b"00"), ("1.png", tarfile.LNKTYPE, "0.png")
  )
  other = tar_of(tmp_path / "other", ("sub/../0.png", b"other"))
  source = tar_of(
    tmp_path / "in.tar",
    ("data/a.tar", inner.read_bytes()),
    ("data/b.tar", other.read_bytes()),
  )
  assert held(find(source, "validation=0")) == {
    "train": [("a", b"00"), ("a", b"00"), ("b", b"other")]
  }


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
  home = folder / "tensorflow_datasets"
  prepare.prepare(
    str(folder / "in"),
    home / "pets" / "1.0.0",
    size_px=8,
    splits="validation=0.2,test=0.1,extra=0.1",
    workers=0,
  )
  return home


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
  for split, items in held(found).items():
    assert Counter(items) == Counter(stored(pets, split))
  (note,) = found.notes
  assert "extra" in note
  assert "--splits" in note


def test_labels_of_a_tfds_directory_keep_their_numbers(tmp_path):
  """Sorted anew, a net of that data set would be judged by wrong labels."""
  words = synsets(tmp_path, "z last\na first\n")
  for name in "az":
    (tmp_path / "in" / name).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / name / "0.png")
  prepare.prepare(
    str(tmp_path / "in"), tmp_path / "out", size_px=8, synsets=words, workers=0
  )
  found = find(tmp_path / "out")
  assert found.class_names == ["z last", "a first"]
  assert Counter(held(found)["train"]) == Counter(
    stored(tmp_path / "out", "train")
  )


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
  for split, items in held(found).items():
    assert Counter(items) == Counter(stored(pets, sources[split]))
  assert found.notes == []


def test_a_share_of_a_tfds_split_is_held_out(pets):
  found = find(pets, "validation=0.5")
  assert sizes(found) == {"train": 6, "validation": 6, "test": 2}
  both = [
    pair for split in ("train", "validation") for pair in held(found)[split]
  ]
  assert Counter(both) == Counter(stored(pets, "train"))


def test_items_of_tfds_are_named_and_survive_a_pickle(pets):
  for item, _ in find(pets).splits["test"]:
    assert str(pets) in item.name
    assert "test" in item.name
    assert pickle.loads(pickle.dumps(item)).read() == item.read()


def relabelled(pets, folder, labels):
  """A copy whose test split has these labels."""
  shutil.copytree(pets, folder)
  (file,) = folder.glob("*-test.array_record-*")
  records = array_record_module.ArrayRecordReader(str(file)).read_all()
  writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
  for record, label in zip(records, labels, strict=True):
    example = tf_example_pb2.Example.FromString(record)
    example.features.feature["label"].int64_list.value[0] = label
    writer.write(example.SerializeToString())
  writer.close()
  return folder


def test_a_tfds_split_without_labels_is_left_out(tmp_path, pets):
  """Test splits of the catalogue have label -1 where theirs are secret."""
  found = find(relabelled(pets, tmp_path / "in", [-1, -1]))
  assert list(found.splits) == ["train", "validation"]
  assert any("no labels" in note and "test" in note for note in found.notes)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_tfds_label_without_a_class_is_refused(tmp_path, pets, label):
  source = relabelled(pets, tmp_path / "in", [1, label])
  refuse(source, "test[1]", f"label {label}", "0 to 1")


def test_a_bad_wish_of_a_tfds_directory_is_refused(tmp_path, pets):
  refuse(pets, "'four'", "extra", wanted="train,test=four")
  refuse(pets, "synsets=", "drop", synsets=synsets(tmp_path, WORDS))
  shutil.copytree(pets, tmp_path / "in")
  (tmp_path / "in" / "dataset_info.json").write_text("{")
  refuse(tmp_path / "in", "in", "cannot be opened")


@pytest.mark.parametrize("variable", ["TFDS_DATA_DIR", "HOME"])
@pytest.mark.parametrize("name", ["pets", "pets:1.0.0"])
def test_a_name_is_found_where_tfds_keeps_its_data(catalogue, name, variable):
  """The variables are read when TFDS is imported."""
  environment = dict(os.environ)
  environment.pop("TFDS_DATA_DIR", None)
  value = catalogue if variable == "TFDS_DATA_DIR" else catalogue.parent
  environment[variable] = str(value)
  code = """
import json, sys
from pathlib import Path
from alexnet_jax.data import listing
found = listing.find(sys.argv[1], "", Path("spool"))
items = {s: [i.read().hex() for i, _ in v] for s, v in found.splits.items()}
print(json.dumps(items))
"""
  read = python(code, f"tfds:{name}", cwd=REPOSITORY, env=environment)
  assert list(read) == ["train", "validation", "test"]
  directory = catalogue / "pets" / "1.0.0"
  for split, items in read.items():
    jpegs = [image.hex() for _, image in stored(directory, split)]
    assert Counter(items) == Counter(jpegs)


@pytest.mark.parametrize(
  "name", ["no_such_set", "", "../x", "no_such_set:1.0.0"]
)
def test_an_unknown_name_is_refused(name):
  refuse(f"tfds:{name}", f"'tfds:{name}'", "tensorflow.org/datasets")


# Bad sources.


def no_source(folder):
  return folder / "in"


def below_a_file(folder):
  write(folder, "in")
  return folder / "in" / "x"


def too_long(folder):
  return folder / ("in" * 3000)


def empty_folder(folder):
  (folder / "in").mkdir()
  return folder / "in"


def no_images(folder):
  return write(folder / "in", "a/notes.txt", "b/notes.txt")


def one_class(folder):
  return classes(folder / "in", lonely=3)


def one_training_class(folder):
  return classes(
    folder / "in", **{"train/lonely": 3, "val/lonely": 3, "val/b": 3}
  )


def no_training_split(folder):
  return classes(folder / "in", **{"val/a": 3, "val/b": 3, "test/a": 3})


def images_in_the_root(folder):
  return write(folder / "in", "stray.jpg")


def images_in_the_root_and_classes(folder):
  return write(classes(folder / "in", a=2, b=2), "stray.jpg")


def mixed_depths(folder):
  return write(classes(folder / "in", a=2, b=2), "c/deep/stray.jpg")


def below_classes(folder):
  return write(
    classes(folder / "in", **{"train/a": 2, "train/b": 2, "val/a": 1}),
    "train/b/deep/stray.jpg",
  )


def splits_without_classes(folder):
  return classes(folder / "in", train=3, val=3)


def unknown_split(folder):
  return classes(folder / "in", **{"train/a": 2, "train/b": 2, "holdback/a": 2})


def class_only_in_test(folder):
  names = ["train/a", "train/b", "test/a", "test/newcomer"]
  return classes(folder / "in", **dict.fromkeys(names, 2))


def text(folder):
  (folder / "in").write_text("neither folder nor tar\n" * 100)
  return folder / "in"


def garbage(folder):
  (folder / "in.tar").write_bytes(random.Random(0).randbytes(50_000))
  return folder / "in.tar"


def compressed_garbage(folder):
  data = gzip.compress(random.Random(0).randbytes(50_000))
  (folder / "in.tar.gz").write_bytes(data)
  return folder / "in.tar.gz"


def zeros(folder):
  (folder / "in.tar").write_bytes(bytes(100_000))
  return folder / "in.tar"


def empty_file(folder):
  (folder / "in").touch()
  return folder / "in"


def empty_tar(folder):
  return tar_of(folder / "in.tar")


def empty_zip(folder):
  return zip_of(folder / "in.zip")


BAD_SOURCES = [  # source, words of the value and of the remedy
  (no_source, ["source=", "cannot be opened", "give"]),
  (below_a_file, ["source=", "cannot be opened", "give"]),
  (too_long, ["source="]),
  (empty_folder, ["source=", "no images", "CLASS/IMAGE"]),
  (no_images, ["source=", "no images", ".png"]),
  (one_class, ["source=", "lonely", "at least 2"]),
  (one_training_class, ["source=", "lonely", "at least 2"]),
  (no_training_split, ["source=", "none", "train/"]),
  (images_in_the_root, ["source=", "stray.jpg", "CLASS/IMAGE"]),
  (images_in_the_root_and_classes, ["source=", "stray.jpg", "CLASS/IMAGE"]),
  (mixed_depths, ["source=", "stray.jpg", "CLASS/IMAGE"]),
  (below_classes, ["source=", "stray.jpg", "CLASS/IMAGE"]),
  (splits_without_classes, ["source=", "no classes", "SPLIT/CLASS/IMAGE"]),
  (unknown_split, ["source=", "holdback", "validation", "--splits"]),
  (class_only_in_test, ["newcomer", "test", "remove it"]),
  (text, ["source=", "tar", "give"]),
  (garbage, ["source=", "tar", "give"]),
  (compressed_garbage, ["source=", "tar", "give"]),
  (zeros, ["source="]),
  (empty_file, ["source=", "tar", "give"]),
  (empty_tar, ["source=", "no images", "CLASS/IMAGE"]),
  (empty_zip, ["source=", "no images", "CLASS/IMAGE"]),
]


@pytest.mark.parametrize(
  ("make", "words"), BAD_SOURCES, ids=[make.__name__ for make, _ in BAD_SOURCES]
)
def test_a_bad_source_is_named(tmp_path, make, words):
  refuse(make(tmp_path), *words)


@pytest.mark.parametrize("kind", ["tar", "gz", "zip"])
@pytest.mark.parametrize(
  ("make", "words"),
  [
    (make, words)
    for make, words in BAD_SOURCES
    if make in (one_class, mixed_depths, unknown_split, class_only_in_test)
  ],
)
def test_a_bad_folder_is_as_bad_in_an_archive(tmp_path, make, words, kind):
  refuse(pack(make(tmp_path), kind), *words)
