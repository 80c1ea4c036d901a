"""What a source holds: where each image lies, its split and its class.

A source is a folder, an archive, a list file, the ILSVRC-2012 tars or a TFDS
directory. No pixel is read here.
"""

import csv
import functools
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from alexnet_jax.data import records
from alexnet_jax.data.prepare import archives, ilsvrc
from alexnet_jax.data.prepare import splits as splits_lib
from alexnet_jax.data.prepare.splits import LabelledItem, Listing, SplitSpec
from alexnet_jax.runtime import errors

SUFFIXES = frozenset(
  ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm"
  " .avif".split()
)
LISTS = frozenset({".txt", ".tsv", ".csv"})


def find(
  source: str, wanted: str, spool: Path, *, seed: int = 0, synsets: str = ""
) -> Listing:
  """Returns what a source holds.

  `wanted` is "" for the source's own splits or, if it has none, a tenth of each
  class for `validation` and another for `test`; else see `SplitSpec.parse`.
  `seed` chooses what is held out. `spool` is a file to make if an archive has
  to be unpacked. `synsets` is a file of `WNID WORDS` lines, the classes in
  order of their labels; if "", they are the folders' names in order.

  Raises InputError if the source or another argument cannot be used, and
  OSError if there is no room for the spool.
  """
  spec = SplitSpec.parse(wanted, seed)
  classes = _read_synsets(Path(synsets)) if synsets else {}
  path, is_catalogue = Path(source), source.startswith("tfds:")
  if is_catalogue or os.path.isfile(path / "dataset_info.json"):
    if synsets:
      raise errors.InputError(
        f"synsets={synsets!r}: a TFDS data set has its own labels; drop it."
      )
    return _of_tfds(source, spec)
  notes: list[str] = []
  if os.path.isfile(path / ilsvrc.TRAIN_TAR):
    items, wnids = ilsvrc.find(path, spec)
    classes = classes or wnids
  elif os.path.isdir(path):
    items = _of_files(source, archives.in_folder(path), spec, notes)
  elif not os.path.isfile(path):
    raise errors.InputError(
      f"source={source!r} is no file or folder that can be opened; give a"
      " folder, a tar, a zip, a list file or tfds:NAME."
    )
  elif path.suffix.lower() in LISTS:
    items = _of_list(path, spec)
  else:
    items = _of_files(source, archives.in_archive(path, spool), spec, notes)
  return splits_lib.label(source, items, spec, classes, notes)


def _of_files(
  source: str,
  files: Iterable[tuple[str, archives.Item]],
  spec: SplitSpec,
  notes: list[str],
) -> list[LabelledItem]:
  """Takes split and class from paths: CLASS/IMAGE or SPLIT/CLASS/IMAGE."""
  others: Counter[str] = Counter()
  images: dict[str, archives.Item] = {}  # Of two with one path, the last.
  for path, item in files:
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
  folders = _layout(source, images, spec)
  items = []
  for path, item in images.items():
    folder, _, name = path.rpartition("/")
    if folder in folders:
      items.append(LabelledItem(*folders[folder], name, item))
  return splits_lib.select(source, items, spec)


def _layout(
  source: str, paths: Iterable[str], spec: SplitSpec
) -> dict[str, tuple[str, str]]:
  """Returns the split, or "", and the class of each folder that is wanted."""
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
      raise errors.InputError(
        f"{examples[folder]!r} in source={source!r} does not lie in CLASS/IMAGE"
        " or SPLIT/CLASS/IMAGE like the other images."
      )
  if depth == 2:
    return {f: (split, name) for f, (split, name) in folders.items()}
  if all(spec.is_split(name) for (name,) in folders.values()):
    raise errors.InputError(
      f"source={source!r} has splits but no classes in them; it needs"
      " SPLIT/CLASS/IMAGE."
    )
  return {f: ("", name) for f, (name,) in folders.items()}


def _of_list(source: Path, spec: SplitSpec) -> list[LabelledItem]:
  """Reads lines of PATH and LABEL, and perhaps SPLIT.

  Separated by tabs if there are any, by commas in a .csv, or by the line's last
  blank. Paths are relative to the list's folder and must lie in it.
  """
  root = os.path.realpath(source.parent)
  items = []
  for number, line in enumerate(_lines(source, "source"), start=1):
    if not line.strip():
      continue
    row = [column.strip() for column in _columns(line, source.suffix.lower())]
    if len(row) not in (2, 3) or not all(row) or "\0" in line:
      raise errors.InputError(
        f"{source}, line {number}: {line!r} is not PATH and LABEL, and perhaps"
        " SPLIT, separated by tabs, in a .csv by commas, or by a blank."
      )
    path, class_name, split = [*row, ""][:3]
    real = os.path.realpath(source.parent / path)
    if os.path.commonpath([root, real]) != root:
      raise errors.InputError(
        f"{source}, line {number}: {path!r} lies outside of the list's folder,"
        f" at {real!r}; put the list above its images, without links."
      )
    item = archives.file_at(str(source.parent / path))
    items.append(LabelledItem(split, class_name, path, item))
  if not items:
    raise errors.InputError(f"source={str(source)!r} lists no images.")
  if len({bool(x.split) for x in items}) > 1:
    raise errors.InputError(
      f"source={str(source)!r} names the split in some lines only; name it in"
      " all or in none."
    )
  return splits_lib.select(str(source), items, spec)


def _columns(line: str, suffix: str) -> list[str]:
  if "\t" in line:
    return line.split("\t")
  if suffix == ".csv":
    return next(csv.reader([line]))
  return line.rsplit(maxsplit=1)


def _lines(file: Path, flag: str) -> list[str]:
  try:
    return file.read_text(encoding="utf-8-sig").splitlines()
  except (OSError, ValueError) as e:
    raise errors.InputError(
      f"{flag}={str(file)!r} cannot be read as text ({e}); save it in UTF-8."
    ) from e


def _read_synsets(file: Path) -> dict[str, str]:
  """Returns the full name of each WNID, in order of the labels.

  From `WNID WORDS` lines, as Caffe's synset_words.txt.
  """
  rows = [line.split(maxsplit=1) for line in _lines(file, "synsets")]
  rows = [row for row in rows if row]
  classes = {wnid: " ".join([wnid, *words]).strip() for wnid, *words in rows}
  if len(classes) != len(rows) or not rows:
    raise errors.InputError(
      f"synsets={str(file)!r} has {len(rows)} lines but {len(classes)} classes;"
      " give one line of WNID WORDS for each."
    )
  return classes


class Record(NamedTuple):
  """An image in a TFDS directory; like `archives.Item`."""

  directory: str
  split: str
  index: int
  changed_ns: int  # The latest ctime in the directory.

  @property
  def name(self) -> str:
    """For the user."""
    return f"{self.directory}, {self.split}[{self.index}]"

  def read(self) -> bytes:
    """Returns the image as it is stored."""
    examples = _records(self.directory, self.split)
    return examples.dataset.image_file(examples[self.index].image)


@functools.lru_cache(maxsize=8)
def _records(directory: str, split: str) -> records.Examples:
  dataset = records.open_directory(Path(directory))
  return records.open_split(dataset, split, "splits")


def _of_tfds(source: str, spec: SplitSpec) -> Listing:
  if source.startswith("tfds:"):
    dataset = records.open_catalogue(source.removeprefix("tfds:"))
  else:
    dataset = records.open_directory(Path(source))
  named = spec.named or {
    split: name
    for name in dataset.splits
    if (split := splits_lib.SPLITS.get(name)) and split not in spec.shares
    if dataset.builder.info.splits[name].num_examples
  }
  notes, items = [], []
  unused = sorted(set(dataset.splits) - set(named.values()))
  if unused and not spec.named:
    notes.append(f"left out, name them in --splits: {', '.join(unused)}")
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
      items.append(LabelledItem(split, class_name, f"{index:09}", item))
  normal = splits_lib.normal_names(source, dataset.class_names)
  classes = {normal[name]: name for name in dataset.class_names}
  return splits_lib.label(source, items, spec, classes, notes)
