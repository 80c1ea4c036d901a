"""Folders and archives: every member's bytes, and damage that is found."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import random
import struct
import tarfile
import zipfile

import pytest
from source_files import (
  KINDS,
  TARS,
  classes,
  find,
  held,
  pack,
  paths,
  refuse,
  sizes,
  tar_of,
  write,
  zip_of,
)

from alexnet_jax.runtime import errors


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
  for item, _ in packed.splits["test"]:  # Worker processes get them so.
    assert pickle.loads(pickle.dumps(item)).read() == item.read()


SCRIPTS = [*"Ålesund 猫 кошка बिल्ली 🐈 a'b\"c %20 -n".split(), "two words"]


@pytest.mark.parametrize("kind", KINDS)
def test_names_may_be_in_any_script(tmp_path, kind):
  """The list of classes ends up in a text file, so it must be exact."""
  names = [f"{c}/{image}.png" for c in SCRIPTS for image in SCRIPTS]
  found = find(pack(write(tmp_path / "in", *names), kind), "validation=0")
  assert found.class_names == sorted(SCRIPTS)
  assert paths(found, "train") == set(names)


@pytest.mark.parametrize("kind", ["folder", "tar", "gz"])
def test_names_need_not_be_text(tmp_path, kind):
  """Old archives hold names in Latin-1 or Shift JIS."""
  names = [os.fsdecode(b"caf\xe9/\x83\x4c.png"), "b/0.png"]
  found = find(pack(write(tmp_path / "in", *names), kind), "validation=0")
  assert found.class_names == ["b", "caf\N{REPLACEMENT CHARACTER}"]
  read = [data for _, data in held(found)["train"]]
  assert read == [b"b/0.png", b"caf\xe9/\x83\x4c.png"]


# Links, and files that are none.


def test_links_in_a_folder_are_followed(tmp_path):
  """Path.rglob does not enter links: a class would be missing in silence."""
  classes(tmp_path / "far", c=2)
  folder = classes(tmp_path / "in", a=1, b=1)
  (folder / "c").symlink_to(tmp_path / "far" / "c")
  (folder / "b" / "1.png").symlink_to(folder / "a" / "0.png")
  assert held(find(folder, "validation=0"))["train"] == [
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


@pytest.mark.parametrize(
  ("kind", "reason"),
  [
    ("x.png", "Too many levels"),
    ("nowhere", "No such file"),
    ("pipe", "no regular file"),
    ("removed", "No such file"),
  ],
)
def test_what_is_no_file_is_told_when_it_is_read(tmp_path, kind, reason):
  """One bad image must neither hide the others nor be waited for."""
  folder = classes(tmp_path / "in", a=2, b=2)
  bad = folder / "a" / "x.png"
  if kind == "pipe":
    os.mkfifo(bad)
  elif kind == "removed":
    bad.touch()
  else:
    bad.symlink_to(kind)
  (tmp_path / "in" / "list.txt").write_text("a/x.png a\nb/0.png b\n")
  listings = [find(folder, "validation=0")]
  listings += [find(folder / "list.txt")] if kind in ("pipe", "removed") else []
  if kind == "removed":
    bad.unlink()
  assert sizes(listings[0]) == {"train": 5}
  for listing in listings:
    (item,) = (i for i, _ in listing.splits["train"] if "x.png" in i.name)
    with pytest.raises(OSError, match=reason):
      item.read()


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_told(tmp_path):
  folder = classes(tmp_path / "in", a=2, b=2)
  (folder / "a" / "0.png").chmod(0)
  items = [item for item, _ in find(folder, "validation=0").splits["train"]]
  with pytest.raises(PermissionError):
    items[0].read()
  (folder / "a").chmod(0)
  refuse(folder, "'a'", "ermission")
  (folder / "a").chmod(0o755)


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
      ("b/0.png", tarfile.SYMTYPE, "1.png"),
      ("b/0.png", b"new"),
      mode=mode,
    ),
    "validation=0",
  )
  assert [(i.name, y, i.read()) for i, y in found.splits["train"]] == [
    ("a/before.png", 0, b"xx"),
    ("a/hard.png", 0, b"xx"),
    ("a/x.png", 0, b"xx"),
    ("b/0.png", 1, b"new"),
    ("b/soft.png", 1, b"xx"),
  ]


@pytest.mark.parametrize(
  "bad",
  [
    (tarfile.SYMTYPE, "bad.png"),
    (tarfile.SYMTYPE, "../../../../../etc/passwd"),
    (tarfile.LNKTYPE, "/etc/passwd"),
    (tarfile.FIFOTYPE, ""),
  ],
)
def test_a_member_without_bytes_is_told_when_it_is_read(tmp_path, bad):
  """A link in a circle, links out of the archive, a pipe."""
  members = [("a/0.png", b"0"), ("a/bad.png", *bad), ("b/0.png", b"0")]
  found = find(tar_of(tmp_path / "in.tar", *members), "validation=0")
  items = {item.name: item for item, _ in found.splits["train"]}
  assert set(items) == {"a/0.png", "a/bad.png", "b/0.png"}
  with pytest.raises(OSError, match="no regular file"):
    items["a/bad.png"].read()


# Tars.


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_longer_than_a_header_are_whole(tmp_path, form):
  """Both formats keep them in members of their own."""
  names = [f"train/{c * 120}/{'ä' * 60}{i}.png" for c in "ab" for i in "12"]
  members = [(name, b"x") for name in names]
  found = find(tar_of(tmp_path / "in.tar", *members, format=form))
  assert [item.name for item, _ in found.splits["train"]] == names


def test_a_plain_tar_is_not_unpacked(tmp_path):
  """ImageNet's has 138 GB; its images are ranges of it."""
  data = {f"{c}/{n}.png": os.urandom(n) for c in "ab" for n in (0, 1, 512, 999)}
  source = tar_of(tmp_path / "in.tar", *data.items())
  found = find(source, "validation=0")
  assert {i.name: i.read() for i, _ in found.splits["train"]} == data
  assert sorted(tmp_path.iterdir()) == [source]


def test_any_tar_of_class_tars_is_read(tmp_path):
  """Links in the inner ones point at members of the same."""
  members = [("0.png", b"00"), ("1.png", tarfile.LNKTYPE, "0.png")]
  inner = tar_of(tmp_path / "inner", *members)
  other = tar_of(tmp_path / "other", ("sub/../0.png", b"other"))
  source = tar_of(
    tmp_path / "in.tar",
    ("data/a.tar", inner.read_bytes()),
    ("data/b.tar", other.read_bytes()),
  )
  assert held(find(source, "validation=0")) == {
    "train": [("a", b"00"), ("a", b"00"), ("b", b"other")]
  }


@pytest.mark.parametrize("mode", ["w", "w:xz"])
@pytest.mark.parametrize("prefix", ["./", "//data/"])
def test_of_a_member_that_comes_twice_the_last_counts(tmp_path, mode, prefix):
  """`tar -r` adds a newer version at the end; names may begin oddly."""
  source = tar_of(
    tmp_path / "in.tar",
    ("data/a/0.png" if "data" in prefix else "a/0.png", b"old"),
    (f"{prefix}b/0.png", b"b"),
    (f"{prefix}a/0.png", b"newer"),
    mode=mode,
  )
  assert held(find(source)) == {"train": [("a", b"newer"), ("b", b"b")]}


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


def whole_tar(file, mode="w"):
  """A tar of members with random bytes, longer than its own records."""
  rng = random.Random(0)
  members = [(f"{c}/{i}.png", rng.randbytes(6000)) for c in "ab" for i in "123"]
  tar_of(file, *members, mode=mode)
  return dict(members)


@pytest.mark.parametrize("back", [0, 1, 512, 3000, 6512])
def test_a_tar_that_is_cut_off_is_refused(tmp_path, back):
  """Between members, in a header, in data: to tarfile some are plain ends."""
  source = tmp_path / "in.tar"
  whole_tar(source)
  with tarfile.open(source) as archive:
    header = archive.getmembers()[-1].offset
  source.write_bytes(source.read_bytes()[: header + back])
  refuse(source, "source=", "whole tar", "give")


def test_a_tar_may_lack_padding_after_its_end_mark(tmp_path):
  data = whole_tar(tmp_path / "in.tar")
  with tarfile.open(tmp_path / "in.tar") as archive:
    end = archive.getmembers()[-1].offset_data + 6144  # In blocks of 512.
  whole = (tmp_path / "in.tar").read_bytes()
  (tmp_path / "in.tar").write_bytes(whole[: end + 1024])
  found = find(tmp_path / "in.tar", "validation=0")
  assert {i.name: i.read() for i, _ in found.splits["train"]} == data


def test_an_archive_that_is_cut_later_is_told_when_it_is_read(tmp_path):
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
  for fraction in [0.1, 0.9, 0.99]:
    source.write_bytes(whole[: int(len(whole) * fraction)])
    refuse(source, "source=", "whole tar, zip", "give")


@pytest.mark.parametrize("pack_bytes", [gzip, bz2, lzma])
def test_a_cut_off_tar_that_is_compressed_later_is_refused(
  tmp_path, pack_bytes
):
  """The compression is whole, the tar in it is not."""
  source = tmp_path / "in.tar"
  whole_tar(source)
  with tarfile.open(source) as archive:
    cut = archive.getmembers()[-1].offset
  source.write_bytes(pack_bytes.compress(source.read_bytes()[:cut]))
  refuse(source, "source=", "whole tar", "give")


# Zips.


@pytest.mark.parametrize(
  "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]
)
def test_a_zip_may_be_compressed_in_any_way(tmp_path, compression):
  data = {f"{c}/{n}.png": bytes(n) for c in "ab" for n in (0, 1, 5000)}
  source = zip_of(
    tmp_path / "in.zip", ("a/", b""), *data.items(), compression=compression
  )
  found = find(source, "validation=0")
  assert {i.name: i.read() for i, _ in found.splits["train"]} == data


def test_an_archive_is_known_by_its_content(tmp_path):
  """The end of a zip near the end of a tar does not make it one."""
  zipped = zip_of(tmp_path / "x.tar", ("a/0.png", b"a"), ("b/0.png", b"b"))
  inner = ("b/more.zip", zipped.read_bytes())
  members = [("a/0.png", b"a"), ("b/0.png", b"b"), inner]
  tarred = tar_of(tmp_path / "x.zip", *members)
  expected = {"train": [("a", b"a"), ("b", b"b")]}
  assert held(find(zipped)) == held(find(tarred)) == expected


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


def test_names_in_a_zip_are_utf8_even_where_it_does_not_say_so(tmp_path):
  """Info-ZIP on Linux and macOS' own do not set the flag; DOS wrote CP437."""
  names = [f"{c}/{c}.png" for c in ("猫", "Ålesund")]
  source = zip_of(tmp_path / "in.zip", *((n, n.encode()) for n in names))
  patched(source, *FLAGS, lambda flags: flags & ~0x800)
  found = find(source)
  assert found.class_names == ["Ålesund", "猫"]
  assert paths(found, "train") == set(names)
  source = zip_of(tmp_path / "in.zip", ("AAA/0.png", b"a"), ("b/0.png", b"b"))
  source.write_bytes(source.read_bytes().replace(b"AAA", b"af\x82"))
  assert find(source).class_names == ["afé", "b"]


def test_a_zip_with_a_password_is_refused(tmp_path):
  source = zip_of(tmp_path / "in.zip", ("a/0.png", b"a"), ("b/0.png", b"b"))
  patched(source, *FLAGS, lambda flags: flags | 1)
  refuse(source, "source=", "whole tar, zip", "password")
