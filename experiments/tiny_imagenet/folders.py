"""Splits Tiny-ImageNet-200: 185 classes to train on, 15 held out.

  python experiments/tiny_imagenet/folders.py tiny_imagenet_200.tar.xz OUTPUT

Makes OUTPUT/shipped/{train,validation}/CLASS and OUTPUT/held_out/CLASS, which
`alexnet prepare` reads. A class bears the first of its words. The validation
images are those of Tiny-ImageNet. In the order of the WNIDs, every 13th class
is held out; of those, only the training images are kept.
"""

import sys
import tarfile
import tempfile
from pathlib import Path


def main(archive: str, output: Path) -> None:
  """Writes the folders."""
  output.mkdir(parents=True)
  with tempfile.TemporaryDirectory(dir=output) as work:
    with tarfile.open(archive) as tar:
      tar.extractall(work, filter="data")
    (root,) = Path(work).iterdir()
    lines = (root / "words.txt").read_text().splitlines()
    words = dict(line.split("\t") for line in lines)
    shipped = {}
    for place, wnid in enumerate(
      sorted((root / "wnids.txt").read_text().split())
    ):
      name = words[wnid].partition(",")[0]
      if place % 13 == 6:
        folder = output / "held_out" / name
      else:
        folder = output / "shipped" / "train" / name
        shipped[wnid] = output / "shipped" / "validation" / name
        shipped[wnid].mkdir(parents=True)
      folder.parent.mkdir(parents=True, exist_ok=True)
      (root / "train" / wnid / "images").rename(folder)
    for line in (root / "val/val_annotations.txt").read_text().splitlines():
      file, wnid, *_ = line.split("\t")
      if wnid in shipped:
        (root / "val/images" / file).rename(shipped[wnid] / file)


if __name__ == "__main__":
  main(sys.argv[1], Path(sys.argv[2]))
