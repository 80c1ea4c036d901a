"""Splits and labels: which images are held out, and the labels of classes."""

import dataclasses
import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

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
HOLDOUT = "validation=0.1,test=0.1"


@dataclasses.dataclass(frozen=True)
class Listing:
  """The images of a source."""

  splits: dict[str, list[tuple[Any, int]]]  # Items, labels; always same order.
  class_names: list[str]  # By label.
  notes: list[str]  # Lines for the user on what was left out.


class LabelledItem(NamedTuple):
  """An image whose class has no label yet."""

  split: str  # "" if the source has none.
  class_name: str
  key: str  # Its name within the class, which decides whether it is held out.
  item: Any


@dataclasses.dataclass(frozen=True)
class SplitSpec:
  """The splits that a user asks for."""

  named: Mapping[str, str]  # The source's name of each split taken from it.
  shares: Mapping[str, float]  # Of each class of train, held out by split.
  seed: int  # Chooses what is held out.

  @classmethod
  def parse(cls, text: str, seed: int = 0) -> "SplitSpec":
    """Parses `train=Train,test,validation=0.1`: names, or shares of train."""
    named: dict[str, str] = {}
    shares: dict[str, float] = {}
    for part in filter(None, text.split(",")):
      split, _, value = (word.strip() for word in part.partition("="))
      if not split.isidentifier() or split in named or split in shares:
        raise errors.InputError(
          f"splits={text!r}: {part!r} is not a new NAME, NAME=FOLDER or"
          " NAME=SHARE; write for example train=Train,test=0.1."
        )
      try:
        shares[split] = float(value)
      except ValueError:
        named[split] = value or split
    valid = all(0 <= share < 1 for share in shares.values())
    if not valid or sum(shares.values()) >= 1 or "train" in shares:
      raise errors.InputError(
        f"splits={text!r}: shares must be 0 or more and below 1 together, and"
        " train has none, as it gets the rest."
      )
    return cls(named, shares, seed)

  def split_of(self, name: str) -> str:
    """Returns our name of a split of the source, "" if it is not wanted."""
    usual = SPLITS.get(name.lower(), "")
    if not self.named:
      return "" if usual in self.shares else usual
    for split, asked in self.named.items():
      if name == asked or (usual and usual == SPLITS.get(asked.lower())):
        return split
    return ""

  def is_split(self, name: str) -> bool:
    """Returns whether a folder's name is that of a split."""
    return name.lower() in SPLITS or name in self.named.values()


def select(
  source: str, items: list[LabelledItem], spec: SplitSpec
) -> list[LabelledItem]:
  """Returns the items of the wanted splits, under our names of the splits."""
  ours = {name: spec.split_of(name) for name in {x.split for x in items}}
  if ours.keys() == {""} and not spec.named.keys() - {"train"}:
    return items
  known = ", ".join(sorted(filter(None, ours)))
  for name in sorted(ours):
    if not spec.named and not spec.is_split(name):
      raise errors.InputError(
        f"source={source!r} has a split {name!r}, which is none of"
        f" {', '.join(sorted(SPLITS))}; say what it is, like"
        f" --splits=train=...,test={name}, or remove it."
      )
  for split, name in spec.named.items():
    if split not in ours.values():
      raise errors.InputError(
        f"source={source!r} has no split {name!r}; it has"
        f" {known or 'no splits'}; shares are given like --splits={HOLDOUT}."
      )
  return [x._replace(split=ours[x.split]) for x in items if ours[x.split]]


def label(
  source: str,
  items: list[LabelledItem],
  spec: SplitSpec,
  classes: Mapping[str, str],
  notes: list[str],
) -> Listing:
  """Holds items from `select` out, and gives every class its label.

  `classes` are full names by class, in order of the labels. If it is empty, the
  labels are in order of the classes' names. `notes` are for the listing.
  """
  names = normal_names(source, {x.class_name for x in items})
  items = _hold_out(items, spec)
  train = {names[x.class_name] for x in items if x.split == "train"}
  if len(train) < 2:
    raise errors.InputError(
      f"source={source!r} has {len(train)} classes to train on"
      f" ({', '.join(train) or 'none'}); a classifier needs at least 2 folders"
      " of images (in train/, if there are splits)."
    )
  if classes:
    order, where = list(classes), "the list of classes"
  else:  # If all are numbers, 10 comes after 9.
    numbers = all(name.isascii() and name.isdigit() for name in train)
    order = sorted(train, key=(lambda n: (int(n), n)) if numbers else None)
    where = "train"
  labels = {name: number for number, name in enumerate(order)}
  found: dict[str, list[tuple[Any, int]]] = {}
  items.sort(key=lambda x: (x.split, names[x.class_name], x.key, x.item.name))
  for x in items:
    name = names[x.class_name]
    if name not in labels:
      raise errors.InputError(
        f"class {name!r} is in {x.split} but not in {where}; add it there or"
        f" remove it from {x.split}."
      )
    found.setdefault(x.split, []).append((x.item, labels[name]))
  splits = dict.fromkeys([*SPLITS.values(), *sorted(found)])
  return Listing(
    {split: found[split] for split in splits if split in found},
    [classes.get(name) or name for name in order],
    notes,
  )


def normal_names(source: str, names: Iterable[str]) -> dict[str, str]:
  """Returns each class name as a line of text, which must be its own."""
  normal = {}
  for name in names:
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    normal[name] = " ".join(unicodedata.normalize("NFC", text).split())
  count = Counter(normal.values())
  for name, text in normal.items():
    if not text or count[text] > 1:
      raise errors.InputError(
        f"source={source!r} has a class {name!r}, which as text is {text!r},"
        " blank or like another; rename it."
      )
  return normal


def _hold_out(items: list[LabelledItem], spec: SplitSpec) -> list[LabelledItem]:
  """Moves shares of train; by hashes, so a new image moves few others."""
  shares = spec.shares
  if all(x.split == "" for x in items):
    if not spec.named and not shares:
      shares = SplitSpec.parse(HOLDOUT).shares
    items = [x._replace(split="train") for x in items]
  result = [x for x in items if x.split != "train"]
  by_class = defaultdict(list)
  for x in items:
    if x.split == "train":
      by_class[x.class_name].append(x)

  def digest(x: LabelledItem) -> bytes:
    key = f"{spec.seed}/{x.class_name}/{x.key}"
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

  for order in by_class.values():
    order.sort(key=digest)
    start = 0
    for split, share in shares.items():
      # Rounded first, as 100 * 0.29 is a little less than 29.
      stop = start + int(round(len(order) * share, 9))
      result += [x._replace(split=split) for x in order[start:stop]]
      start = stop
    result += order[start:]
  return result
