"""Sources whose files each hold their own path, and what `find` makes of them.

So what is read tells where it was; no pixels are needed.
"""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from alexnet_jax.data.prepare import sources
from alexnet_jax.runtime import errors

TARS = ["tar", "gz", "bz2", "xz"]
KINDS = ["folder", *TARS, "zip"]


def write(folder, *paths):
  """Writes files that each hold their own path."""
  for path in paths:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(os.fsencode(path))
  return folder


def images(class_name, count):
  return [f"{class_name}/{index}.png" for index in range(count)]


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


def contents(listing):
  """{split: [(class, bytes)]}."""
  return {
    split: [(listing.class_names[y], item.read()) for item, y in items]
    for split, items in listing.splits.items()
  }


def paths(listing, split):
  """The paths that a split's files hold; their folders must be the classes."""
  pairs = [(name, os.fsdecode(data)) for name, data in contents(listing)[split]]
  assert all(path.split("/")[-2] == name for name, path in pairs)
  assert len(set(pairs)) == len(pairs)
  return {path for _, path in pairs}


def sizes(listing):
  return {split: len(items) for split, items in listing.splits.items()}


def refuse(source, *words, wanted="", **options):
  """Asserts that a source is refused in one line that holds the words."""
  with pytest.raises(errors.InputError) as error:
    find(source, wanted, **options)
  assert len(str(error.value).splitlines()) == 1
  for word in words:
    assert word in str(error.value)
