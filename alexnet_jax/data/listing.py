"""What a source holds: where each image lies, its split and its class.

A source is a folder, an archive, a list file, the ILSVRC-2012 tars or a TFDS
directory. No pixel is read here; an archive that cannot be read at random is
unpacked into one spool file.
"""

import csv
import dataclasses
import errno
import functools
import hashlib
import io
import json
import os
import posixpath
import stat
import tarfile
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, Protocol

import scipy.io

from alexnet_jax import errors
from alexnet_jax.data import records

SPLITS = {
  "train": "train",
  "training": "train",
  "val": "validation",
  "valid": "validation",
  "validation": "validation",
  "dev": "validation",
  "test": "test",
  "testing": "test",
}
SUFFIXES = frozenset(
  ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm"
  " .avif".split()
)
LISTS = frozenset({".txt", ".tsv", ".csv", ".lst"})
HOLDOUT = "validation=0.1,test=0.1"

_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)

_TRAIN_TAR = "ILSVRC2012_img_train.tar"
_VALIDATION_TAR = "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


class Item(Protocol):
  """Where one image lies; small, as there is one for each, and picklable.

  Equal items hold equal bytes: an item knows when its file changed (`ctime`,
  which no program can set).
  """

  @property
  def name(self) -> str:
    """What the user knows it by."""
    ...

  def read(self) -> bytes:
    """Returns its bytes; raises OSError where they cannot be had."""
    ...


class File(NamedTuple):
  """An image in a file of its own."""

  path: str
  size: int
  changed_ns: int

  @property
  def name(self) -> str:
    """The path."""
    return self.path

  def read(self) -> bytes:
    """Returns the whole file."""
    if self.size < 0:  # See `_file`.
      os.stat(self.path)
      raise OSError("no regular file")
    with open(self.path, "rb") as file:
      return file.read()


class Range(NamedTuple):
  """An image that is a range of bytes in an archive or a spool file."""

  path: str
  offset: int
  size: int
  name: str
  changed_ns: int  # Of the archive.

  def read(self) -> bytes:
    """Returns the range."""
    if self.size < 0:  # See `_tar_members`.
      raise OSError("no regular file, or a link to nothing")
    with open(self.path, "rb") as file:
      file.seek(self.offset)
      data = file.read(self.size)
    if len(data) != self.size:
      raise OSError("the archive was cut off meanwhile")
    return data


class Record(NamedTuple):
  """An image in a TFDS directory."""

  directory: str
  split: str
  index: int
  changed_ns: int  # Of the newest file in the directory.

  @property
  def name(self) -> str:
    """Directory, split and number."""
    return f"{self.directory}, {self.split}[{self.index}]"

  def read(self) -> bytes:
    """Returns the image as it is stored."""
    examples = _records(self.directory, self.split)
    return examples.dataset.image_file(examples[self.index].image)


@functools.lru_cache(maxsize=8)
def _records(directory: str, split: str) -> records.Examples:
  dataset = records.open_directory(Path(directory))
  return records.open_split(dataset, split, "splits")


@dataclasses.dataclass(frozen=True)
class Listing:
  """The images of a source.

  Attributes:
    splits: the items and labels of each split, in a reproducible order.
    class_names: name of each label.
    notes: lines for the user, on what was left out.
  """

  splits: dict[str, list[tuple[Item, int]]]
  class_names: list[str]
  notes: list[str]


class _Found(NamedTuple):
  """An image before its class has a label; `split` is "" where none is given.

  `key` decides whether it is held out: its name below its class.
  """

  split: str
  class_name: str
  key: str
  item: Item


@dataclasses.dataclass(frozen=True)
class Wanted:
  """The splits that a user asks for.

  Attributes:
    named: the source's name of each split that is taken from the source.
    shares: of each class of `train`, held out for each other split.
    seed: of the choice.
  """

  named: Mapping[str, str]
  shares: Mapping[str, float]
  seed: int

  @classmethod
  def parse(cls, text: str, seed: int = 0) -> "Wanted":
    """Reads `train=Train,test,validation=0.1`: names, or shares of train.

    Raises:
      InputError: another form, a split named twice, or bad shares.
    """
    named: dict[str, str] = {}
    shares: dict[str, float] = {}
    for part in filter(None, text.split(",")):
      split, _, value = (word.strip() for word in part.partition("="))
      number = value.isdecimal() and int(value) > 1  # A folder's name.
      if not split.isidentifier() or split in named or split in shares:
        raise errors.InputError(
          f"splits={text!r}: {part!r} is not a new NAME, NAME=FOLDER or"
          " NAME=SHARE; write for example train=Train,test=0.1."
        )
      try:
        shares[split] = float("no share" if number else value)
      except ValueError:
        named[split] = value or split
    whole = sum(shares.values())
    if not all(0 <= share < 1 for share in shares.values()) or not whole < 1:
      raise errors.InputError(
        f"splits={text!r}: the shares must be 0 or more and below 1 together."
      )
    if "train" in shares:
      raise errors.InputError(
        f"splits={text!r}: train gets what the others leave; drop its share."
      )
    return cls(named, shares, seed)

  def split_of(self, name: str) -> str:
    """Returns our name of a split of the source; "" if it is not wanted."""
    usual = SPLITS.get(name.lower(), "")
    if not self.named:
      return "" if usual in self.shares else usual
    for split, asked in self.named.items():
      if name == asked or (usual and usual == SPLITS.get(asked.lower())):
        return split
    return ""

  def is_split(self, name: str) -> bool:
    """Whether a folder's name is that of a split."""
    return name.lower() in SPLITS or name in self.named.values()

  def wants(self, split: str) -> bool:
    """Whether a split is to be taken from the source if it has it."""
    return split in self.named if self.named else split not in self.shares


def find(
  source: str, wanted: str, spool: Path, *, seed: int = 0, synsets: str = ""
) -> Listing:
  """Returns what a source holds.

  Args:
    source: folder, tar with any compression, zip, list file, folder of the
      ILSVRC-2012 tars, TFDS directory, or `tfds:NAME` of the catalogue.
    wanted: see `Wanted.parse`; "" for the source's own splits or, where it has
      none, a tenth of each class for `validation` and another for `test`.
    spool: a file to make, where an archive has to be unpacked.
    seed: of what is held out.
    synsets: a file whose lines, `WNID WORDS`, are the classes in order of
      their labels; "" for the folders' names in alphabetic order.

  Raises:
    InputError: no images, another layout, fewer than two classes to train on,
      a class that is not in `train`, or bad arguments.
    OSError: there is no room for the spool.
  """
  splits = Wanted.parse(wanted, seed)
  notes: list[str] = []
  classes = _read_synsets(Path(synsets)) if synsets else {}
  path = Path(source)
  if not source.startswith("tfds:"):
    _check_kind(path)
  if source.startswith("tfds:") or os.path.isfile(path / "dataset_info.json"):
    if synsets:
      raise errors.InputError(
        f"synsets={synsets!r}: a TFDS data set has labels of its own; drop it."
      )
    return _of_tfds(source, splits)
  if os.path.isfile(path / _TRAIN_TAR):
    found, devkit = _of_ilsvrc(path, splits)
    classes = classes or devkit
  elif path.is_dir():
    found = _in_layout(source, _folder_members(path), splits, notes)
  elif path.suffix.lower() in LISTS:
    found = _of_list(path, splits)
  else:
    found = _in_layout(source, _archive_members(path, spool), splits, notes)
  return _labelled(source, found, splits, classes, notes)


def _check_kind(source: Path) -> None:
  """Raises InputError if a source is no file or folder that can be opened."""
  try:
    mode = source.stat().st_mode
    reason = "is neither a file nor a folder"
  except OSError as e:
    mode, reason = 0, f"cannot be opened ({e.strerror})"
  if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
    raise errors.InputError(
      f"source={str(source)!r} {reason}; give a folder, a tar, a zip, a list"
      " file or tfds:NAME."
    )


def _labelled(
  source: str,
  found: list[_Found],
  wanted: Wanted,
  classes: Mapping[str, str],
  notes: list[str],
) -> Listing:
  """Gives every image its split and every class its label."""
  plain = _plain_names(source, {f.class_name for f in found})
  found = _hold_out(found, wanted)
  train = {plain[f.class_name] for f in found if f.split == "train"}
  if len(train) < 2:
    raise errors.InputError(
      f"source={source!r} has {len(train)} classes to train on"
      f" ({', '.join(train) or 'none'}); a classifier needs at least 2 folders"
      " of images (in train/, if there are splits)."
    )
  if classes:
    names, where = list(classes), "the list of classes"
  else:  # 10 comes after 9, where names are numbers.
    numbers = all(name.isascii() and name.isdigit() for name in train)
    names = sorted(train, key=(lambda n: (int(n), n)) if numbers else None)
    where = "train"
  labels = {name: label for label, name in enumerate(names)}
  splits: dict[str, list[tuple[Item, int]]] = {}
  found.sort(key=lambda f: (f.split, plain[f.class_name], f.key, f.item.name))
  for f in found:
    name = plain[f.class_name]
    if name not in labels:
      raise errors.InputError(
        f"class {name!r} is in {f.split} but not in {where}; add it there or"
        f" remove it from {f.split}."
      )
    splits.setdefault(f.split, []).append((f.item, labels[name]))
  order = dict.fromkeys([*SPLITS.values(), *sorted(splits)])
  return Listing(
    {split: splits[split] for split in order if split in splits},
    [classes.get(name) or name for name in names],
    notes,
  )


def _plain_names(source: str, names: Iterable[str]) -> dict[str, str]:
  """Returns the one form in which a file of class names keeps each name."""
  plain = {}
  for name in names:
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if len(text.splitlines()) != 1 or not text.strip():
      raise errors.InputError(
        f"source={source!r} has a class called {name!r}; a name must be one"
        " line of text: rename it."
      )
    plain[name] = " ".join(unicodedata.normalize("NFC", text).split())
  for name, count in Counter(plain.values()).items():
    if count > 1:
      raise errors.InputError(
        f"source={source!r} has {count} classes that are both written"
        f" {name!r}; rename one of them."
      )
  return plain


def _hold_out(found: list[_Found], wanted: Wanted) -> list[_Found]:
  """Moves shares of each class of train, chosen by the hash of their keys."""
  shares = wanted.shares
  if all(f.split == "" for f in found):
    if not wanted.named and not shares:
      shares = Wanted.parse(HOLDOUT).shares
    found = [f._replace(split="train") for f in found]
  kept = [f for f in found if f.split != "train"]
  by_class = defaultdict(list)
  for f in found:
    if f.split == "train":
      key = f"{wanted.seed}/{f.class_name}/{f.key}"
      digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
      by_class[f.class_name].append((digest, f))
  for drawn in by_class.values():
    order = [f for _, f in sorted(drawn, key=lambda pair: pair[0])]
    start = 0
    for split, share in shares.items():
      # Rounded first: 100 * 0.29 is a little less than 29.
      stop = start + int(round(len(order) * share, 9))
      kept += [f._replace(split=split) for f in order[start:stop]]
      start = stop
    kept += order[start:]
  return kept


def _named(source: str, found: list[_Found], wanted: Wanted) -> list[_Found]:
  """Returns the images of the splits that are asked for, by our names."""
  own = {f.split for f in found}
  if own == {""}:
    if wanted.named.keys() - {"train"}:
      raise errors.InputError(
        f"source={source!r} has no splits, so there is no"
        f" {', '.join(wanted.named.values())}; give shares, like"
        f" --splits={HOLDOUT}."
      )
    return found
  ours = {name: wanted.split_of(name) for name in own}
  for name in sorted(own):
    if not wanted.named and not wanted.is_split(name):
      raise errors.InputError(
        f"source={source!r} has a split {name!r}; say what it is, like"
        f" --splits=train=...,test={name}, or leave it out."
      )
  for split, name in wanted.named.items():
    if split not in ours.values():
      raise errors.InputError(
        f"source={source!r} has no split {name!r}; it has"
        f" {', '.join(sorted(own))}."
      )
  return [f._replace(split=ours[f.split]) for f in found if ours[f.split]]


def _in_layout(
  source: str,
  members: Iterable[tuple[str, Item]],
  wanted: Wanted,
  notes: list[str],
) -> list[_Found]:
  """Reads split and class out of paths: CLASS/IMAGE or SPLIT/CLASS/IMAGE."""
  others: Counter[str] = Counter()
  images: dict[str, Item] = {}  # Of two files of one path the last counts.
  for path, item in members:
    suffix = PurePosixPath(path).suffix
    if path.startswith("../"):
      raise errors.InputError(
        f"{path!r} lies outside of source={source!r}; pack it anew."
      )
    if path.startswith(".") or "/." in path:
      continue
    if suffix.lower() in SUFFIXES:
      images[path] = item
    else:
      others[suffix or "without suffix"] += 1
  if others:
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in others.most_common(5))
    notes.append(f"left out, as their names are not of images: {kinds}")
  if not images:
    raise errors.InputError(
      f"source={source!r} holds no images ({', '.join(sorted(SUFFIXES))});"
      " it needs CLASS/IMAGE or SPLIT/CLASS/IMAGE."
    )
  folders = _layout(source, images, wanted)
  found = []
  for path, item in images.items():
    folder, _, name = path.rpartition("/")
    if folder in folders:
      found.append(_Found(*folders[folder], name, item))
  return _named(source, found, wanted)


def _layout(
  source: str, paths: Iterable[str], wanted: Wanted
) -> dict[str, tuple[str, str]]:
  """Returns the split, or "", and the class of each folder that is wanted."""
  examples = {path.rpartition("/")[0]: path for path in paths}
  folders = {f: tuple(filter(None, f.split("/"))) for f in examples}
  # A folder around everything says nothing, unless it is the only split.
  while (
    min(map(len, folders.values())) > 1
    and len({parts[0] for parts in folders.values()}) == 1
  ):
    if {len(parts) for parts in folders.values()} == {2} and any(
      wanted.is_split(parts[0]) for parts in folders.values()
    ):
      break
    folders = {f: parts[1:] for f, parts in folders.items()}
  if wanted.named and any(
    parts and wanted.split_of(parts[0]) for parts in folders.values()
  ):
    folders = {f: p for f, p in folders.items() if p and wanted.split_of(p[0])}
  depths = Counter(map(len, folders.values()))
  flat = depths.most_common(1)[0][0] == 1
  if flat and all(p and wanted.is_split(p[0]) for p in folders.values()):
    raise errors.InputError(
      f"source={source!r} has splits but no classes in them; it needs"
      " SPLIT/CLASS/IMAGE."
    )
  for folder, parts in folders.items():
    if len(parts) != (1 if flat else 2) or (
      not flat and not wanted.is_split(parts[0])
    ):
      raise errors.InputError(
        f"{examples[folder]!r} in source={source!r} does not lie in CLASS/IMAGE"
        " or SPLIT/CLASS/IMAGE like its neighbours; splits are"
        f" {', '.join(sorted(SPLITS))}, or what --splits=train=FOLDER names."
      )
  return {f: ("", p[0]) if flat else (p[0], p[1]) for f, p in folders.items()}


def _folder_members(root: Path) -> Iterator[tuple[str, Item]]:
  """Yields the path below `root` and the file of everything in it.

  Links are followed, but not to a folder that they lie in.
  """

  def walk(folder: str, above: frozenset[str]) -> Iterator[tuple[str, Item]]:
    here = os.path.realpath(folder)
    if here in above:
      return
    try:
      entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as e:
      raise errors.InputError(
        f"{folder!r} cannot be opened ({e.strerror}); mend or remove it."
      ) from e
    for entry in entries:
      if os.path.isdir(entry.path):
        yield from walk(entry.path, above | {here})
      else:
        path = os.path.relpath(entry.path, root).replace(os.sep, "/")
        yield path, _file(entry.path)

  yield from walk(str(root), frozenset())


def _file(path: str) -> File:
  try:
    status = os.stat(path)
  except OSError:
    return File(path, -1, 0)
  # To open a pipe would be to wait for ever.
  regular = stat.S_ISREG(status.st_mode)
  return File(path, status.st_size if regular else -1, status.st_ctime_ns)


def _archive_members(path: Path, spool: Path) -> Iterator[tuple[str, Item]]:
  """Yields what `_folder_members` does, of a tar or a zip.

  Raises:
    InputError: it is neither, or is damaged or cut off.
  """
  try:
    try:
      archive = tarfile.open(path, "r:")
    except tarfile.ReadError:
      # A tar that ends in a zip would pass for one.
      if zipfile.is_zipfile(path):
        yield from _zip_members(path, spool)
        return
      archive = tarfile.open(path, "r:*")
      with archive, spool.open("wb") as file:
        yield from _tar_members(archive, path, spool_to=file)
    else:
      with archive:
        yield from _tar_members(archive, path)
  except errors.InputError:
    raise
  # Archives of each kind have errors of their own, and so has each damage.
  except Exception as e:
    if isinstance(e, OSError) and e.errno in _NO_ROOM:
      raise  # The spool's fault.
    raise errors.InputError(
      f"source={str(path)!r} is not a whole tar, zip or list file"
      f" ({' '.join(str(e).split())}); give one, or a folder."
    ) from e


def _zip_members(path: Path, spool: Path) -> Iterator[tuple[str, Item]]:
  changed_ns = path.stat().st_ctime_ns
  with zipfile.ZipFile(path) as archive, spool.open("wb") as file:
    for info in archive.infolist():
      if not info.is_dir():
        name = _normal(_zip_name(info))
        yield name, _spooled(archive.read(info), file, name, changed_ns)


def _zip_name(info: zipfile.ZipInfo) -> str:
  """Returns a name in UTF-8, which zip on Linux writes but does not declare."""
  if info.flag_bits & 0x800:
    return info.filename
  try:
    return info.filename.encode("cp437").decode("utf-8")
  except ValueError:
    return info.filename


def _normal(name: str) -> str:
  return posixpath.normpath(name).lstrip("/")


def _spooled(data: bytes, file: IO[bytes], name: str, changed_ns: int) -> Range:
  item = Range(file.name, file.tell(), len(data), name, changed_ns)
  file.write(data)
  return item


def _tar_members(
  archive: tarfile.TarFile,
  path: Path,
  *,
  offset: int = 0,
  folder: str = "",
  spool_to: IO[bytes] | None = None,
) -> Iterator[tuple[str, Item]]:
  """Yields the members of a tar, and those of tars in it as of folders.

  Args:
    archive: opened.
    path: of the file that it is in.
    offset: of the tar in that file.
    folder: that its members are put under.
    spool_to: a file for the members' bytes, where the tar is compressed.
  """
  changed_ns = path.stat().st_ctime_ns
  nothing = Range(str(path), 0, -1, "", changed_ns)
  ranges: dict[str, Range] = {}
  links: dict[str, str] = {}
  while member := archive.next():
    vars(archive)["members"].clear()  # It would keep them all.
    name = folder + _normal(member.name)
    if member.issparse():
      raise tarfile.ReadError(f"{name} is sparse")
    if member.isreg():
      stream: Any = archive.extractfile(member)
      if name.endswith(".tar") and not spool_to:
        with tarfile.open(fileobj=stream, mode="r:") as inner:
          yield from _tar_members(
            inner,
            path,
            offset=offset + member.offset_data,
            folder=name.removesuffix(".tar") + "/",
          )
        continue
      if spool_to:
        item = _spooled(stream.read(), spool_to, name, changed_ns)
      else:
        start = offset + member.offset_data
        item = Range(str(path), start, member.size, name, changed_ns)
    elif member.islnk():
      target = folder + _normal(member.linkname)
      item = ranges.get(target, nothing)._replace(name=name)
    elif member.issym():
      target = posixpath.join(posixpath.dirname(name), member.linkname)
      links[name] = posixpath.normpath(target)
      continue
    elif member.isdir():
      continue
    else:
      item = nothing._replace(name=name)
    links.pop(name, None)
    ranges[name] = item
    yield name, item
  for name in links:
    seen, target = set(), name
    while target in links and target not in seen:
      seen.add(target)
      target = links[target]
    yield name, ranges.get(target, nothing)._replace(name=name)
  # A tar that is cut off between two members reads like a whole one.
  file: Any = archive.fileobj
  file.seek(archive.offset)
  if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
    raise tarfile.ReadError("it ends before its end mark")
  if spool_to:
    _read_on(file)


def _read_on(file: IO[bytes]) -> None:
  """Reads to the end, where the checksum of a .gz is."""
  while file.read(2**20):
    pass


def _of_list(source: Path, wanted: Wanted) -> list[_Found]:
  """Reads lines of PATH and LABEL, and perhaps SPLIT, in columns.

  Columns are parted by tabs where there are any, by commas in a .csv, or else
  by the last blank of the line. Paths are relative to the list's folder.
  """
  try:
    lines = source.read_text(encoding="utf-8-sig").splitlines()
  except (OSError, ValueError) as e:
    raise errors.InputError(
      f"source={str(source)!r} cannot be read as text ({e}); save it in UTF-8."
    ) from e
  found = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    if "\t" in line:
      row = line.split("\t")
    elif source.suffix.lower() == ".csv":
      row = _csv_row(line)
    else:
      row = line.rsplit(maxsplit=1)
    row = [column.strip() for column in row]
    if len(row) not in (2, 3) or not all(row) or "\0" in line:
      raise errors.InputError(
        f"{source}, line {number}: {line!r} is not PATH and LABEL, and perhaps"
        " SPLIT, parted by tabs, in a .csv by commas, or by a blank."
      )
    path, class_name, split = [*row, ""][:3]
    item = _file(str(source.parent / path))
    found.append(_Found(split, class_name, path, item))
  if not found:
    raise errors.InputError(
      f"source={str(source)!r} lists no images; add some."
    )
  if len({bool(f.split) for f in found}) > 1:
    raise errors.InputError(
      f"source={str(source)!r} names the split in some lines only; name it in"
      " all or in none."
    )
  return _named(str(source), found, wanted)


def _csv_row(line: str) -> list[str]:
  try:
    return next(csv.reader([line]))
  except csv.Error:
    return []


def _read_synsets(file: Path) -> dict[str, str]:
  """Returns WNID: full name in order of the labels.

  Lines of `WNID WORDS`, as Caffe's synset_words.txt, or Keras'
  imagenet_class_index.json, {"0": ["WNID", "word"], ...}.
  """
  try:
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".json":
      index = json.loads(text)
      rows = [index[str(label)] for label in range(len(index))]
      rows = [(wnid, words) for wnid, words in rows]
    else:
      lines = [line for line in text.splitlines() if line.strip()]
      rows = [(*line.split(maxsplit=1), "")[:2] for line in lines]
    if not all(isinstance(wnid, str) and wnid for wnid, _ in rows):
      raise ValueError("a WNID is no text")
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise errors.InputError(
      f"synsets={str(file)!r} cannot be read ({type(e).__name__}: {e}); give"
      " lines of WNID WORDS in order of the labels."
    ) from e
  classes = {wnid: f"{wnid} {words}".strip() for wnid, words in rows}
  if len(classes) != len(rows) or not rows:
    raise errors.InputError(
      f"synsets={str(file)!r} has {len(rows)} lines but {len(classes)} classes;"
      " give one line for each."
    )
  return classes


def _of_ilsvrc(
  folder: Path, wanted: Wanted
) -> tuple[list[_Found], dict[str, str]]:
  """Reads the tars of ILSVRC-2012 as they are downloaded.

  The tar of training images is one of tars, a class each. The names of the
  validation images are numbers of lines in a file of the development kit, which
  holds the challenge's own labels; labels here are in order of WNID.
  """
  path = folder / _TRAIN_TAR
  found = []
  try:
    with tarfile.open(path, "r:") as archive:
      for name, item in _tar_members(archive, path):
        wnid, _, image = name.rpartition("/")
        found.append(_Found("train", wnid, image, item))
    classes: dict[str, str] = {}
    if (folder / _DEVKIT).is_file():
      wnids, words, truth = _read_devkit(folder / _DEVKIT)
      classes = {w: f"{w} {words[w]}" for w in sorted(wnids.values())}
      if (folder / _VALIDATION_TAR).is_file():
        path = folder / _VALIDATION_TAR
        with tarfile.open(path, "r:") as archive:
          for name, item in _tar_members(archive, path):
            number = int(PurePosixPath(name).stem.rpartition("_")[2])
            wnid = wnids[truth[number - 1]]
            found.append(_Found("validation", wnid, name, item))
    elif (folder / _VALIDATION_TAR).is_file() and wanted.wants("validation"):
      raise errors.InputError(
        f"{_VALIDATION_TAR} needs the labels in {_DEVKIT}; put it into"
        f" {str(folder)!r}, or pass --splits=train."
      )
  except errors.InputError:
    raise
  # SciPy's errors on a damaged file are of many kinds.
  except Exception as e:
    raise errors.InputError(
      f"{str(folder)!r} holds a damaged ILSVRC-2012 file"
      f" ({' '.join(str(e).split())}); download it again."
    ) from e
  return _named(str(folder), found, wanted), classes


def _read_devkit(
  file: Path,
) -> tuple[dict[int, str], dict[str, str], list[int]]:
  """Returns WNID by the challenge's label, words by WNID, validation labels."""
  members = {}
  with tarfile.open(file, "r:*") as archive:
    for member in archive:
      stream = archive.extractfile(member) if member.isreg() else None
      if stream and member.name.endswith(("meta.mat", "ground_truth.txt")):
        members[posixpath.basename(member.name)] = stream.read()
    file: Any = archive.fileobj
    _read_on(file)
  meta = scipy.io.loadmat(io.BytesIO(members["meta.mat"]), squeeze_me=True)
  leaves = [row for row in meta["synsets"] if row["num_children"] == 0]
  truth = members["ILSVRC2012_validation_ground_truth.txt"]
  return (
    {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves},
    {str(row["WNID"]): str(row["words"]) for row in leaves},
    [int(line) for line in truth.split()],
  )


def _of_tfds(source: str, wanted: Wanted) -> Listing:
  if source.startswith("tfds:"):
    dataset = records.open_catalogue(source.removeprefix("tfds:"))
  else:
    dataset = records.open_directory(Path(source))
  named = wanted.named or {
    split: name
    for name in dataset.splits
    if (split := SPLITS.get(name)) and split not in wanted.shares
  }
  notes = []
  if unused := set(dataset.splits) - set(named.values()) - {""}:
    if not wanted.named:
      notes.append(
        f"left out, name them in --splits: {', '.join(sorted(unused))}"
      )
  found = []
  changed_ns = max(f.stat().st_ctime_ns for f in dataset.directory.iterdir())
  for split, name in named.items():
    examples = records.open_split(dataset, name, "splits")
    labels = [examples[index].label for index in range(len(examples))]
    if set(labels) == {-1}:
      notes.append(f"left out, as it has no labels: {name}")
      continue
    for index, label in enumerate(labels):
      if not 0 <= label < len(dataset.class_names):
        raise errors.InputError(
          f"source={source!r}: {name}[{index}] has label {label}, not one from"
          f" 0 to {len(dataset.class_names) - 1}."
        )
      item = Record(str(dataset.directory), name, index, changed_ns)
      class_name = dataset.class_names[label]
      found.append(_Found(split, class_name, f"{index:09}", item))
  plain = _plain_names(source, dataset.class_names)
  classes = {plain[name]: name for name in dataset.class_names}
  return _labelled(source, found, wanted, classes, notes)
