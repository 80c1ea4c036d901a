"""Folders and archives: every member's bytes, and damage that is found."""

import io
import os
import pickle
import random
import tarfile
import zipfile

import pytest
from source_files import (
  TARS,
  classes,
  contents,
  find,
  pack,
  refuse,
  sizes,
  tar_of,
  zip_of,
)

from alexnet_jax.runtime import errors


@pytest.mark.parametrize("kind", [*TARS, "zip"])
def test_an_archive_equals_its_folder(tmp_path, kind):
  """In order and in what is held out."""
  folder = classes(tmp_path / "in", a=12, b=11, c=10)
  found, packed = find(folder), find(pack(folder, kind))
  assert sizes(found) == {"train": 27, "validation": 3, "test": 3}
  assert contents(packed) == contents(found)
  assert packed.class_names == found.class_names
  names = [item.name for item, _ in packed.splits["test"]]
  assert names == [data.decode() for _, data in contents(packed)["test"]]
  for item, _ in packed.splits["test"]:  # Worker processes get them so.
    assert pickle.loads(pickle.dumps(item)).read() == item.read()


# Links, and files that are none.


def test_links_in_a_folder_are_followed(tmp_path):
  """Path.rglob does not enter links: a class would be missing in silence."""
  classes(tmp_path / "far", c=2)
  folder = classes(tmp_path / "in", a=1, b=1)
  (folder / "c").symlink_to(tmp_path / "far" / "c")
  (folder / "b" / "1.png").symlink_to(folder / "a" / "0.png")
  assert contents(find(folder, "validation=0"))["train"] == [
    ("a", b"a/0.png"),
    ("b", b"b/0.png"),
    ("b", b"a/0.png"),
    ("c", b"c/0.png"),
    ("c", b"c/1.png"),
  ]


def test_links_to_folders_above_are_not_followed(tmp_path):
  """The walk would go on until the path is too long."""
  folder = classes(tmp_path / "in", a=2, b=2)
  (folder / "a" / "loop").symlink_to("..")
  assert sizes(find(folder)) == {"train": 4}


# Tars.


def test_a_plain_tar_is_not_unpacked(tmp_path):
  """ImageNet's has 138 GB; its images are ranges of it."""
  data = {f"{c}/{n}.png": os.urandom(n) for c in "ab" for n in (0, 1, 512, 999)}
  source = tar_of(tmp_path / "in.tar", *data.items())
  found = find(source, "validation=0")
  assert {i.name: i.read() for i, _ in found.splits["train"]} == data
  assert not (tmp_path / "spool").stat().st_size


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
  refuse(tmp_path / "in.tar", "a/0.png is sparse")


# Damage.


def random_tar(file, mode="w"):
  """A tar of members with random bytes, longer than its own records."""
  rng = random.Random(0)
  members = [(f"{c}/{i}.png", rng.randbytes(6000)) for c in "ab" for i in "123"]
  tar_of(file, *members, mode=mode)
  return dict(members)


@pytest.mark.parametrize("back", [0, 1, 512, 3000, 6512])
def test_a_tar_that_is_cut_off_is_refused(tmp_path, back):
  """Between members, in a header, in data: to tarfile some are plain ends."""
  source = tmp_path / "in.tar"
  random_tar(source)
  with tarfile.open(source) as archive:
    header = archive.getmembers()[-1].offset
  source.write_bytes(source.read_bytes()[: header + back])
  refuse(source, "source=", "complete tar", "give")


def test_an_archive_that_is_cut_later_is_reported_when_it_is_read(tmp_path):
  source = tar_of(tmp_path / "in.tar", ("a/0.png", b"aaa"), ("b/0.png", b"bbb"))
  found = find(source)
  source.write_bytes(source.read_bytes()[:1537])
  first, last = (item for item, _ in found.splits["train"])
  assert first.read() == b"aaa"
  with pytest.raises(OSError, match="cut off"):
    last.read()


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zip"])
def test_damage_to_an_archive_is_never_taken_for_images(tmp_path, kind):
  """Each has checksums; those of gzip lie at its very end."""
  source = tmp_path / "in"
  if kind == "zip":
    rng = random.Random(0)
    data = {f"{c}/{i}.png": rng.randbytes(600) for c in "ab" for i in "123"}
    zip_of(source, *data.items(), compression=zipfile.ZIP_DEFLATED)
  else:
    data = random_tar(source, f"w:{kind}")
  content = source.read_bytes()
  refused = 0
  for position in range(len(content) // 40, len(content), len(content) // 20):
    damaged = bytearray(content)
    damaged[position] ^= 0x10
    source.write_bytes(damaged)
    try:
      found = find(source, "validation=0")
    except errors.InputError:
      refused += 1
    else:
      assert {i.name: i.read() for i, _ in found.splits["train"]} == data
  assert refused >= 10
  for fraction in [0.1, 0.9, 0.99]:
    source.write_bytes(content[: int(len(content) * fraction)])
    refuse(source, "source=", "complete tar, zip", "give")


# Zips.


def test_an_archive_is_known_by_its_content(tmp_path):
  """The end of a zip near the end of a tar does not make it one."""
  zipped = zip_of(tmp_path / "x.tar", ("a/0.png", b"a"), ("b/0.png", b"b"))
  inner = ("b/more.zip", zipped.read_bytes())
  members = [("a/0.png", b"a"), ("b/0.png", b"b"), inner]
  tarred = tar_of(tmp_path / "x.zip", *members)
  expected = {"train": [("a", b"a"), ("b", b"b")]}
  assert contents(find(zipped)) == contents(find(tarred)) == expected


def test_names_in_a_zip_are_utf8_even_where_it_does_not_say_so(tmp_path):
  """Info-ZIP on Linux and macOS' own do not set the flag."""
  source = zip_of(tmp_path / "in.zip", ("AAA/0.png", b"a"), ("b/0.png", b"b"))
  content = source.read_bytes()
  source.write_bytes(content.replace(b"AAA", "猫".encode()))
  assert find(source).class_names == ["b", "猫"]
  source.write_bytes(content.replace(b"AAA", b"af\x82"))
  refuse(source, "source=", "utf-8")


def test_what_is_no_file_is_reported_when_it_is_read(tmp_path):
  """One bad image must neither hide the others nor be waited for."""
  folder = classes(tmp_path / "in", a=2, b=2)
  (folder / "a" / "link.png").symlink_to("nowhere")
  os.mkfifo(folder / "a" / "pipe.png")
  items = [item for item, _ in find(folder, "validation=0").splits["train"]]
  assert len(items) == 6
  for item in items[2:4]:
    with pytest.raises(OSError, match="no regular file"):
      item.read()
