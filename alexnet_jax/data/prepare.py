"""Any folder or tar of images into square shards, once.

  python -m alexnet_jax.data.prepare --source=DIR_OR_TAR --output=DIR

The source holds CLASS/IMAGE or SPLIT/CLASS/IMAGE, perhaps inside one more
folder. Where it has no splits, a seeded tenth of each class goes to
`validation` and another to `test`.
"""

import contextlib
import hashlib
import lzma
import os
import tarfile
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from absl import flags
from PIL import Image, ImageOps

from alexnet_jax import cli, errors
from alexnet_jax.data import shards

SPLITS = {
  "train": "train",
  "training": "train",
  "val": "validation",
  "valid": "validation",
  "validation": "validation",
  "test": "test",
  "testing": "test",
}
SUFFIXES = frozenset(
  {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}
)

Examples = dict[str, list[tuple[Path, int]]]


def encode(path: Path, size_px: int) -> bytes:
  """Returns an image file as a square RGB JPEG (paper 2).

  The shorter side is scaled to `size_px` and the central square cut out. A
  JPEG that is such a square already is kept byte for byte.

  Args:
    path: image file in any format that Pillow reads.
    size_px: side of the square.

  Raises:
    OSError: the file is not a whole image; the message names it and says why.
  """
  try:
    data = path.read_bytes()
    with Image.open(path) as image:
      turned = ImageOps.exif_transpose(image)
      if (
        image.format == "JPEG"
        and image.mode == "RGB"
        and image.size == (size_px, size_px)
        and image.getexif().get(0x0112, 1) == 1
      ):
        shards.decode_jpeg(data)
        return data
      if image.mode.startswith("I;16"):  # Pillow would clip, not scale.
        turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
      if image.has_transparency_data:  # Palettes lose it only by way of RGBA.
        turned = turned.convert("RGBA")
      rgb = turned.convert("RGB")
  # Pillow's decoders raise these and more on damaged files of each format.
  except Exception as e:
    raise OSError(f"{path}: {type(e).__name__}: {e}") from e
  square = ImageOps.fit(rgb, (size_px, size_px), Image.Resampling.BICUBIC)
  return shards.encode_jpeg(np.asarray(square))


def find_examples(root: Path, holdout: float) -> tuple[Examples, list[str]]:
  """Returns the image files and labels of each split, and the class names.

  Args:
    root: folder of CLASS/IMAGE or SPLIT/CLASS/IMAGE.
    holdout: share of each class for `validation` and again for `test`, where
      the source has no splits.

  Raises:
    InputError: no images, another layout, fewer than two classes, or a class
      that only another split than `train` has.
  """
  files = sorted(
    path.relative_to(root)
    for path in _walk(root)
    if path.suffix.lower() in SUFFIXES
    and not any(part.startswith(".") for part in path.relative_to(root).parts)
    and path.is_file()
  )
  if not files:
    raise errors.InputError(
      f"source={str(root)!r} holds no images ({', '.join(sorted(SUFFIXES))});"
      " it needs CLASS/IMAGE or SPLIT/CLASS/IMAGE."
    )
  by_split = _by_split_and_class(root, files, holdout)
  names = sorted(by_split["train"]) if "train" in by_split else []
  if len(names) < 2:
    raise errors.InputError(
      f"source={str(root)!r} has {len(names)} classes to train on"
      f" ({', '.join(names) or 'none'}); a classifier needs at least 2 folders"
      " of images (in train/, if there are splits)."
    )
  for split, classes in by_split.items():
    for extra in sorted(set(classes) - set(names)):
      raise errors.InputError(
        f"class {extra!r} is in {split} but not in train; add it there or"
        f" remove it from {split}."
      )
  examples = {
    split: [
      (root / file, label)
      for label, name in enumerate(names)
      for file in classes.get(name, [])
    ]
    for split, classes in by_split.items()
  }
  return {split: found for split, found in examples.items() if found}, names


def _walk(root: Path) -> Iterator[Path]:
  """Yields every file, through links too, but not those to a folder above."""
  for folder, subfolders, names in os.walk(root, followlinks=True):
    here = Path(folder).resolve()
    subfolders[:] = [
      name
      for name in subfolders
      if not here.is_relative_to(Path(folder, name).resolve())
    ]
    yield from (Path(folder, name) for name in names)


def prepare(
  source: Path,
  output: Path,
  *,
  size_px: int = 256,
  holdout: float = 0.1,
  workers: int | None = None,
) -> dict[str, int]:
  """Writes the shards of a folder or tar of images.

  Args:
    source: folder, or tar with any compression.
    output: directory to make; must not exist.
    size_px: side of the stored images.
    holdout: as in `find_examples`.
    workers: processes; the number of cores by default, 0 for none.

  Returns:
    The number of examples of each split.

  Raises:
    InputError: see `find_examples` and `shards.write`; `source` is missing or
      is no tar.
  """
  if not 0 <= holdout < 0.5:
    raise errors.InputError(
      f"holdout={holdout} is not a share from 0 to under 0.5."
    )
  if not 8 <= size_px <= 4096:
    raise errors.InputError(f"size={size_px} is not from 8 to 4096 pixels.")
  if workers is not None and workers < 0:
    raise errors.InputError(f"workers={workers} must not be negative.")
  shards.check_output(output)
  with _as_folder(source, output) as root:
    examples, names = find_examples(root, holdout)
    with cli.progress("images", sum(map(len, examples.values()))) as advance:
      shards.write(
        output,
        examples,
        class_names=names,
        size_px=size_px,
        encoder=encode,
        description=f"Prepared from {source.name}.",
        workers=workers,
        on_progress=advance,
      )
  return {split: len(found) for split, found in examples.items()}


def _by_split_and_class(
  root: Path, files: list[Path], holdout: float
) -> Mapping[str, Mapping[str, list[Path]]]:
  found: dict[str, dict[str, list[Path]]] = defaultdict(
    lambda: defaultdict(list)
  )
  folders = [file.parts[:-1] for file in files]
  # A folder around everything says nothing, unless it is the only split.
  while min(map(len, folders)) > 1 and len({f[0] for f in folders}) == 1:
    if len(folders[0]) == 2 and folders[0][0].lower() in SPLITS:
      break
    folders = [folder[1:] for folder in folders]
  names = {folder[0].lower() for folder in folders if folder}
  for file, folder in zip(files, folders, strict=True):
    if len(folder) == 1 and names <= set(SPLITS):
      raise errors.InputError(
        f"source={str(root)!r} has splits but no classes in them; it needs"
        " SPLIT/CLASS/IMAGE."
      )
    if len(folder) == 1 and len(folders[0]) == 1:
      found["train"][folder[0]].append(file)
    elif len(folder) == 2 and folder[0].lower() in SPLITS:
      found[SPLITS[folder[0].lower()]][folder[1]].append(file)
    else:
      raise errors.InputError(
        f"{str(file)!r} in source={str(root)!r} does not lie in CLASS/IMAGE or"
        " SPLIT/CLASS/IMAGE like its neighbours; splits are"
        f" {', '.join(sorted(SPLITS))}."
      )
  if len(folders[0]) == 1:
    _hold_out(found, holdout)
  return found


def _hold_out(found: dict[str, dict[str, list[Path]]], holdout: float) -> None:
  """Moves a share of each class, chosen by the hash of its name, in place."""
  for name, files in list(found["train"].items()):
    order = sorted(
      files,
      key=lambda f: hashlib.sha256(
        PurePosixPath(f).as_posix().encode()
      ).digest(),
    )
    count = int(len(files) * holdout)
    found["validation"][name] = sorted(order[:count])
    found["test"][name] = sorted(order[count : 2 * count])
    found["train"][name] = sorted(order[2 * count :])


@contextlib.contextmanager
def _as_folder(source: Path, output: Path) -> Iterator[Path]:
  if source.is_dir():
    yield source
    return
  if not source.exists():
    raise errors.InputError(
      f"source={str(source)!r} does not exist; give a folder or a tar."
    )
  with tempfile.TemporaryDirectory(
    prefix=f".{output.name}.unpacked-", dir=output.parent
  ) as folder:
    try:
      with tarfile.open(source, "r:*") as archive:
        archive.extractall(folder, filter="data")
        # A tar that is cut off between two members reads like a whole one.
        file: Any = archive.fileobj
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
          raise tarfile.ReadError("it ends before its end mark")
    except (
      tarfile.TarError,
      EOFError,
      OSError,
      lzma.LZMAError,
      zlib.error,
    ) as e:
      raise errors.InputError(
        f"source={str(source)!r} is not a folder nor a whole tar ({e}); give a"
        " folder or a tar of images."
      ) from e
    yield Path(folder)


def main(_) -> None:
  """Runs the command."""
  args = flags.FLAGS
  for name in ("source", "output"):
    if not args[name].value:
      raise errors.InputError(f"--{name}= is empty; give a path.")
  output = Path(args.output)
  counts = prepare(
    Path(args.source),
    output,
    size_px=args.size,
    holdout=args.holdout,
    workers=args.workers,
  )
  for split, count in counts.items():
    print(f"{split}: {count:,} images")
  if "test" not in counts:
    print("no test split: too few images in each class to hold any out")
  print(f"wrote {output}")


def _define_flags() -> None:
  flags.DEFINE_string("source", None, "Folder or tar of images.", required=True)
  flags.DEFINE_string("output", None, "Directory to make.", required=True)
  flags.DEFINE_integer("size", 256, "Side of the stored images in pixels.")
  flags.DEFINE_float(
    "holdout",
    0.1,
    "Share of each class for validation, and again for test, where the source"
    " has no splits.",
  )
  flags.DEFINE_integer("workers", None, "Processes; the number of cores.")


if __name__ == "__main__":
  cli.run(main, _define_flags)
