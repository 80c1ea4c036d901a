"""TFDS directories and TFDS's catalogue as sources of images."""

import functools
from pathlib import Path
from typing import NamedTuple

from alexnet_jax.data import records
from alexnet_jax.data.prepare.splits import SPLITS, Found, LabelledItem, Source


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
    examples = _open_split(self.directory, self.split)
    return examples.dataset.image_file(examples[self.index].image)


@functools.lru_cache(maxsize=8)
def _open_split(directory: str, split: str) -> records.Examples:
  dataset = records.open_directory(Path(directory))
  return records.open_split(dataset, split, "--splits")


def fits(source: str) -> bool:
  """Returns whether a source is a TFDS directory or tfds:NAME."""
  info = Path(source) / "dataset_info.json"
  return source.startswith("tfds:") or info.is_file()


def find(source: Source) -> Found:
  """Returns the images of the wanted splits, which may be slices."""
  spec = source.spec
  if source.name.startswith("tfds:"):
    dataset = records.open_catalogue(source.name.removeprefix("tfds:"))
  else:
    dataset = records.open_directory(source.path)
  info = dataset.builder.info.splits
  names = list(spec.named.values()) or [
    name
    for name in dataset.splits
    if name in SPLITS and spec.split_of(name) and info[name].num_examples
  ]
  notes, items = [], []
  unused = sorted(set(dataset.splits) - set(names))
  if unused and not spec.named:
    notes.append(f"left out, name them in --splits: {', '.join(unused)}")
  changed_ns = max(f.stat().st_ctime_ns for f in dataset.directory.iterdir())
  for name in names:
    examples = records.open_split(dataset, name, "--splits")
    labels = [examples[index].label for index in range(len(examples))]
    if set(labels) == {-1} and not spec.named:
      notes.append(f"left out, as it has no labels: {name}")
      continue
    for index, label in enumerate(labels):
      if not 0 <= label < len(dataset.class_names):
        raise source.error(
          f"has label {label} in {name}[{index}], not one from 0 to"
          f" {len(dataset.class_names) - 1}."
        )
      item = Record(str(dataset.directory), name, index, changed_ns)
      class_name = dataset.class_names[label]
      items.append(LabelledItem(name, class_name, f"{index:09}", item))
  return Found(items, dict.fromkeys(dataset.class_names, ""), notes)
