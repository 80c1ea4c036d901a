"""Splits and labels: which images are held out, and the labels of classes."""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alexnet_jax.runtime import errors

_NAMES = {
  "train": ("train", "training"),
  "validation": ("val", "valid", "validation", "dev"),
  "test": ("test", "testing"),
}
SPLITS = {name: split for split, names in _NAMES.items() for name in names}
HOLDOUT = "validation=0.1,test=0.1"


class LabelledItem(NamedTuple):
  """An image with the names of its split and its class."""

  split: str  # "" if the source has no splits.
  class_name: str
  key: str  # Its name within the class; decides whether it is held out.
  item: Any


class Found(NamedTuple):
  """What a source holds, under its own names of splits and classes."""

  items: list[LabelledItem]
  classes: Mapping[str, str]  # Full names in order of the labels, or {}.
  notes: list[str]  # Lines for the user on what was left out.


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
      is_used = split in named | shares or (value or split) in named.values()
      if not split.isidentifier() or is_used:
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
    if shares and named and "train" not in named:
      raise errors.InputError(
        f"splits={text!r}: shares are held out of train; name it too, like"
        " --splits=train,test=0.1."
      )
    return cls(named, shares, seed)

  def split_of(self, name: str) -> str:
    """Returns our name of a split of the source, "" if it is not wanted."""
    usual = SPLITS.get(name.lower(), "")
    if not self.named:
      return "" if usual in self.shares else usual
    by_name = {theirs: ours for ours, theirs in self.named.items()}
    by_meaning = {SPLITS.get(x.lower(), x): ours for x, ours in by_name.items()}
    return by_name.get(name) or by_meaning.get(usual, "")

  def is_split(self, name: str) -> bool:
    """Returns whether a folder's name is that of a split."""
    return name.lower() in SPLITS or name in self.named.values()


class Source(NamedTuple):
  """A source that a user gives."""

  name: str  # As it was given: a path, or tfds:NAME.
  path: Path
  spec: SplitSpec  # The splits that are wanted of it.
  spool: Path  # A file to make if an archive has to be unpacked.

  def error(self, text: str) -> errors.InputError:
    """Returns an error about this source."""
    return errors.InputError(f"source={self.name!r} {text}")


def select(source: Source, items: list[LabelledItem]) -> list[LabelledItem]:
  """Returns the items of the wanted splits, under our names of the splits.

  If the source has no splits, all are of the one that is named, or of train.
  """
  spec = source.spec
  ours = {name: spec.split_of(name) for name in {x.split for x in items}}
  split, name = next(iter(spec.named.items()), ("train", "train"))
  if ours.keys() == {""} and len(spec.named) < 2 and split == name:
    return [x._replace(split=split) for x in items]
  for name in sorted(ours):
    if not spec.named and not spec.is_split(name):
      raise source.error(
        f"has a split {name!r}, which is none of {', '.join(sorted(SPLITS))};"
        f" say what it is, like --splits=train=...,test={name}, or remove it."
      )
  known = ", ".join(sorted(filter(None, ours))) or "no splits"
  for split, name in spec.named.items():
    if split not in ours.values():
      raise source.error(
        f"has no split {name!r}; it has {known}; shares are given like"
        f" --splits={HOLDOUT}."
      )
  return [x._replace(split=ours[x.split]) for x in items if ours[x.split]]


def hold_out(items: list[LabelledItem], spec: SplitSpec) -> list[LabelledItem]:
  """Moves shares of train; by hashes, so a new image moves few others."""
  result, by_class = [], defaultdict(list)
  for x in items:
    group = by_class[x.class_name] if x.split == "train" else result
    group.append(x)

  def digest(x: LabelledItem) -> bytes:
    key = f"{spec.seed}/{x.class_name}/{x.key}"
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

  for order in by_class.values():
    order.sort(key=digest)
    start = 0
    for split, share in spec.shares.items():
      # Rounded first, as 100 * 0.29 is a little less than 29.
      stop = start + int(round(len(order) * share, 9))
      result += [x._replace(split=split) for x in order[start:stop]]
      start = stop
    result += order[start:]
  return result


def label(
  source: Source, items: list[LabelledItem], classes: Mapping[str, str]
) -> tuple[dict[str, list[tuple[Any, int]]], list[str]]:
  """Returns the items of each split with their labels, and the class names.

  `classes` are full names by class, in order of the labels. If it is empty,
  labels are in order of the names in train or, if train is not wanted, in all.
  """
  for name in {*classes, *(x.class_name for x in items)}:
    # TFDS stores the names as lines of text.
    if not name.isprintable() or name != name.strip() or not name:
      raise source.error(
        f"has a class {name!r}, which is not printable, or begins or ends with"
        " a blank; rename it."
      )
  trains = "train" in (source.spec.named or ["train"])
  known = {x.class_name for x in items if x.split == "train" or not trains}
  if trains and len(known) < 2:
    raise source.error(
      f"has {len(known)} classes to train on ({', '.join(known) or 'none'}); a"
      " classifier needs at least 2 folders of images (in train/, if there are"
      " splits); for a test split alone pass --splits=test."
    )
  if classes:
    order, where = list(classes), "the list of classes"
  else:  # If all are numbers, 10 comes after 9.
    numbers = all(name.isascii() and name.isdigit() for name in known)
    order = sorted(known, key=(lambda n: (int(n), n)) if numbers else None)
    where = "train"
  labels = {name: number for number, name in enumerate(order)}
  found: dict[str, list[tuple[Any, int]]] = {}
  for x in sorted(items, key=lambda x: (x[:3], x.item.name)):
    if x.class_name not in labels:
      raise errors.InputError(
        f"class {x.class_name!r} is in {x.split} but not in {where}; add it"
        f" there or remove it from {x.split}."
      )
    found.setdefault(x.split, []).append((x.item, labels[x.class_name]))
  in_order = {split: found[split] for split in _NAMES if split in found}
  return in_order | found, [classes.get(name) or name for name in order]
