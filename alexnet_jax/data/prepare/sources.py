"""What a source holds: where each image lies, its split and its class.

A source is a folder, an archive, a list file, the ILSVRC-2012 tars or a TFDS
directory. No pixel is read here.
"""

import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
import posixpath
import stat
import tarfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from alexnet_jax.data import records
from alexnet_jax.data.prepare import archives
from alexnet_jax.runtime import errors

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

_TRAIN_TAR = "ILSVRC2012_img_train.tar"
_VALIDATION_TAR = "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


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

  splits: dict[str, list[tuple[archives.Item, int]]]
  class_names: list[str]
  notes: list[str]


class LabelledItem(NamedTuple):
  """An image before its class has a label; `split` is "" where none is given.

  `key` decides whether it is held out: its name below its class.
  """

  split: str
  class_name: str
  key: str
  item: archives.Item


@dataclasses.dataclass(frozen=True)
class SplitSpec:
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
  def parse(cls, text: str, seed: int = 0) -> "SplitSpec":
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
  splits = SplitSpec.parse(wanted, seed)
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
    found = _in_layout(source, archives.in_folder(path), splits, notes)
  elif path.suffix.lower() in LISTS:
    found = _of_list(path, splits)
  else:
    found = _in_layout(source, archives.in_archive(path, spool), splits, notes)
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
  found: list[LabelledItem],
  wanted: SplitSpec,
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
  splits: dict[str, list[tuple[archives.Item, int]]] = {}
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


def _hold_out(
  found: list[LabelledItem], wanted: SplitSpec
) -> list[LabelledItem]:
  """Moves shares of each class of train, chosen by the hash of their keys."""
  shares = wanted.shares
  if all(f.split == "" for f in found):
    if not wanted.named and not shares:
      shares = SplitSpec.parse(HOLDOUT).shares
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


def _named(
  source: str, found: list[LabelledItem], wanted: SplitSpec
) -> list[LabelledItem]:
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
  members: Iterable[tuple[str, archives.Item]],
  wanted: SplitSpec,
  notes: list[str],
) -> list[LabelledItem]:
  """Reads split and class out of paths: CLASS/IMAGE or SPLIT/CLASS/IMAGE."""
  others: Counter[str] = Counter()
  images: dict[
    str, archives.Item
  ] = {}  # Of two files of one path the last counts.
  for path, item in members:
    suffix = PurePosixPath(path).suffix
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
      found.append(LabelledItem(*folders[folder], name, item))
  return _named(source, found, wanted)


def _layout(
  source: str, paths: Iterable[str], wanted: SplitSpec
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


def _of_list(source: Path, wanted: SplitSpec) -> list[LabelledItem]:
  """Reads lines of PATH and LABEL, and perhaps SPLIT, in columns.

  Columns are parted by tabs where there are any, by commas in a .csv, or else
  by the last blank of the line. Paths are relative to the list's folder, and
  lead to files in it.
  """
  root = os.path.realpath(source.parent)
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
    real = os.path.realpath(source.parent / path)
    if os.path.commonpath([root, real]) != root:
      raise errors.InputError(
        f"{source}, line {number}: {path!r} lies outside of the list's folder,"
        f" at {real!r}; put the list above its images, without links."
      )
    item = archives.file_at(str(source.parent / path))
    found.append(LabelledItem(split, class_name, path, item))
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
  folder: Path, wanted: SplitSpec
) -> tuple[list[LabelledItem], dict[str, str]]:
  """Reads the tars of ILSVRC-2012 as they are downloaded.

  The tar of training images is one of tars, a class each. The names of the
  validation images are numbers of lines in a file of the development kit, which
  holds the challenge's own labels; labels here are in order of WNID.
  """
  path = folder / _TRAIN_TAR
  found = []
  try:
    with tarfile.open(path, "r:") as archive:
      for name, item in archives.in_tar(archive, path):
        wnid, _, image = name.rpartition("/")
        found.append(LabelledItem("train", wnid, image, item))
    classes: dict[str, str] = {}
    if (folder / _DEVKIT).is_file():
      wnids, words, truth = _read_devkit(folder / _DEVKIT)
      classes = {w: f"{w} {words[w]}" for w in sorted(wnids.values())}
      if (folder / _VALIDATION_TAR).is_file():
        path = folder / _VALIDATION_TAR
        with tarfile.open(path, "r:") as archive:
          for name, item in archives.in_tar(archive, path):
            number = int(PurePosixPath(name).stem.rpartition("_")[2])
            wnid = wnids[truth[number]]
            found.append(LabelledItem("validation", wnid, name, item))
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
) -> tuple[dict[int, str], dict[str, str], dict[int, int]]:
  """Returns WNID by the challenge's label, words by WNID, validation labels."""
  import scipy.io  # Takes long to import, and only this file needs it.

  members = {}
  with tarfile.open(file, "r:*") as archive:
    for member in archive:
      stream = archive.extractfile(member) if member.isreg() else None
      asked = member.name.endswith(("meta.mat", "ground_truth.txt"))
      if stream and asked and member.size <= archives.MAX_BYTES:
        members[posixpath.basename(member.name)] = stream.read()
    archives.read_on(vars(archive)["fileobj"])
  meta = scipy.io.loadmat(io.BytesIO(members["meta.mat"]), squeeze_me=True)
  leaves = [row for row in meta["synsets"] if row["num_children"] == 0]
  truth = members["ILSVRC2012_validation_ground_truth.txt"]
  return (
    {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves},
    {str(row["WNID"]): str(row["words"]) for row in leaves},
    {n: int(line) for n, line in enumerate(truth.split(), start=1)},
  )


def _of_tfds(source: str, wanted: SplitSpec) -> Listing:
  if source.startswith("tfds:"):
    dataset = records.open_catalogue(source.removeprefix("tfds:"))
  else:
    dataset = records.open_directory(Path(source))
  named = wanted.named or {
    split: name
    for name in dataset.splits
    if (split := SPLITS.get(name)) and split not in wanted.shares
    if dataset.builder.info.splits[name].num_examples
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
      found.append(LabelledItem(split, class_name, f"{index:09}", item))
  plain = _plain_names(source, dataset.class_names)
  classes = {plain[name]: name for name in dataset.class_names}
  return _labelled(source, found, wanted, classes, notes)
