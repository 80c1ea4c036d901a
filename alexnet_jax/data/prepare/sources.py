"""What a source holds: where each image lies, its split and its class.

The families of sources are in a table at the end. No pixel is read here.
"""

import csv
import dataclasses
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from alexnet_jax.data.prepare import archives, ilsvrc, splits, tfds_directories
from alexnet_jax.data.prepare.splits import Found, LabelledItem, Source
from alexnet_jax.runtime import errors, files

SUFFIXES = frozenset(
  ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm"
  " .avif".split()
)
_LISTS = (".txt", ".tsv", ".csv")


@dataclasses.dataclass(frozen=True)
class Listing:
  """The images of a source, as they will be written."""

  splits: dict[str, list[tuple[Any, int]]]  # Items and labels, in fixed order.
  class_names: list[str]  # By label.
  notes: list[str]  # Lines for the user on what was left out.


def find(
  source: str, wanted: str, spool: Path, *, seed: int = 0, synsets: str = ""
) -> Listing:
  """Returns what a source, a path or tfds:NAME, holds.

  The arguments are the command's flags; `spool` is a file that may be made.
  Raises InputError, or OSError if there is no room for the spool.
  """
  spec = splits.SplitSpec.parse(wanted, seed)
  classes = _read_synsets(Path(synsets)) if synsets else {}
  given = Source(source, Path(source), spec, spool)
  for fits, find_in in _FAMILIES:
    if fits(source):
      found = find_in(given)
      if not wanted and not any(x.split for x in found.items):
        spec = splits.SplitSpec.parse(splits.HOLDOUT, seed)
      items = splits.hold_out(splits.select(given, found.items), spec)
      labelled = splits.label(given, items, classes or found.classes)
      return Listing(*labelled, found.notes)
  raise given.error(
    "is no file or folder that can be opened; give a folder, a tar, a zip, a"
    " list file or tfds:NAME."
  )


def _find_by_path(source: Source) -> Found:
  """Reads a folder or an archive of CLASS/IMAGE or SPLIT/CLASS/IMAGE."""
  if source.path.is_dir():
    found = archives.in_folder(source.path)
  else:
    found = archives.in_archive(source.path, source.spool)
  others = 0
  images: dict[str, archives.Item] = {}  # Of two with one path, the last.
  for path, item in found:
    if path.startswith(".") or "/." in path:
      continue
    if PurePosixPath(path).suffix.lower() in SUFFIXES:
      images[path] = item
    else:
      others += 1
  if not images:
    raise source.error(
      f"holds no images ({', '.join(sorted(SUFFIXES))}); it needs CLASS/IMAGE"
      " or SPLIT/CLASS/IMAGE."
    )
  folders = _layout(source, images)
  items = []
  for path, item in images.items():
    folder, _, name = path.rpartition("/")
    if folder in folders:
      items.append(LabelledItem(*folders[folder], name, item))
  note = f"left out, as their names are not of images: {others:,} files"
  return Found(items, {}, [note] if others else [])


def _layout(source: Source, paths: Iterable[str]) -> dict[str, tuple[str, str]]:
  """Returns the split, or "", and the class of each folder that is wanted."""
  spec = source.spec
  examples = {path.rpartition("/")[0]: path for path in paths}
  folders = {f: tuple(filter(None, f.split("/"))) for f in examples}
  # A folder around everything means nothing, unless it is the only split.
  while min(map(len, folders.values())) > 1:
    outer, *others = {parts[0] for parts in folders.values()}
    deepest = max(map(len, folders.values()))
    if others or (deepest == 2 and spec.is_split(outer)):
      break
    folders = {f: parts[1:] for f, parts in folders.items()}
  if spec.named:
    named = {f: p for f, p in folders.items() if p and spec.split_of(p[0])}
    folders = named or folders
  depth = Counter(map(len, folders.values())).most_common(1)[0][0]
  for folder, parts in folders.items():
    if len(parts) != depth or depth not in (1, 2):
      raise source.error(
        f"has {examples[folder]!r}, which does not lie in CLASS/IMAGE or"
        " SPLIT/CLASS/IMAGE like the other images; move or remove it."
      )
  if depth == 1 and all(spec.is_split(name) for (name,) in folders.values()):
    raise source.error(
      "has splits but no classes in them; it needs SPLIT/CLASS/IMAGE."
    )
  return {f: (p[0] if depth == 2 else "", p[-1]) for f, p in folders.items()}


def _find_in_list(source: Source) -> Found:
  """Reads lines of PATH, LABEL and perhaps SPLIT; paths lie below the list."""
  file = source.path
  root = os.path.realpath(file.parent)
  items = []
  for number, line in enumerate(_read_lines(file, "source"), start=1):
    if not line.strip():
      continue
    row = [column.strip() for column in _columns(line, file.suffix.lower())]
    if len(row) not in (2, 3) or not all(row) or "\0" in line:
      raise source.error(
        f"line {number}: {line!r} is not PATH and LABEL, and perhaps"
        " SPLIT, separated by tabs, in a .csv by commas, or by a blank."
      )
    path, class_name, split = [*row, ""][:3]
    real = os.path.realpath(file.parent / path)
    if os.path.commonpath([root, real]) != root:
      raise source.error(
        f"line {number}: {path!r} lies outside of the list's folder, at"
        f" {real!r}; put the list above its images, without links."
      )
    item = archives.file_at(str(file.parent / path))
    items.append(LabelledItem(split, class_name, path, item))
  if not items:
    raise source.error("lists no images.")
  if len({bool(x.split) for x in items}) > 1:
    raise source.error(
      "names the split in some lines only; name it in all or in none."
    )
  return Found(items, {}, [])


def _columns(line: str, suffix: str) -> list[str]:
  if "\t" in line:
    return line.split("\t")
  if suffix == ".csv":
    return next(csv.reader([line]))
  return line.rsplit(maxsplit=1)


def _read_lines(file: Path, flag: str) -> list[str]:
  try:
    return files.read(file).decode("utf-8-sig").splitlines()
  except (OSError, ValueError) as e:
    raise errors.InputError(
      f"{flag}={str(file)!r} cannot be read as text ({e}); save it in UTF-8."
    ) from e


def _read_synsets(file: Path) -> dict[str, str]:
  """Returns the full name of each WNID, from a file like Caffe's."""
  rows = [line.split(maxsplit=1) for line in _read_lines(file, "synsets")]
  rows = [row for row in rows if row]
  classes = {row[0]: " ".join(row).strip() for row in rows}
  if len(classes) != len(rows) or not rows:
    raise errors.InputError(
      f"synsets={str(file)!r} has {len(rows)} lines but {len(classes)} classes;"
      " give one line of WNID WORDS for each."
    )
  return classes


# How a family of sources is known, and what reads it; the first that fits.
_FAMILIES = (
  (tfds_directories.fits, tfds_directories.find),
  (ilsvrc.fits, ilsvrc.find),
  (lambda x: x.lower().endswith(_LISTS) and os.path.isfile(x), _find_in_list),
  (lambda x: os.path.isdir(x) or os.path.isfile(x), _find_by_path),
)
