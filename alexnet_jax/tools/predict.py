"""Prints the most likely classes of images.

  alexnet predict --workdir=RUN IMAGE...

IMAGE is a file, a folder, a pattern ("photos/**/*.jpg") or -, which stands for
names from standard input, one a line. An image in a folder that is named like a
class, or by its WNID, has that true class. From Python: `alexnet_jax.load`.
"""

import concurrent.futures
import csv
import glob
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from alexnet_jax.data import decode
from alexnet_jax.data.prepare import sources
from alexnet_jax.runtime import cli, errors
from alexnet_jax.tools import inference

_CHUNK = 64
_MOST_IN_PANEL = 24


def find(words: Iterable[str], lines: Iterable[str]) -> Iterator[Path]:
  """Yields the image files that the words name, in order; - means `lines`."""
  for word in words:
    if word == "-":
      yield from (Path(line.strip()) for line in lines if line.strip())
    elif os.path.isdir(word):
      inside = (x for x in sorted(Path(word).rglob("*")) if not x.is_dir())
      yield from (x for x in inside if x.suffix.lower() in sources.SUFFIXES)
    elif not os.path.exists(word) and (
      found := glob.glob(word, recursive=True)
    ):
      yield from (Path(x) for x in sorted(found) if not os.path.isdir(x))
    else:
      yield Path(word)


def predictions(
  model: inference.Model, paths: Iterable[Path], views: int, top: int
) -> Iterator[tuple[Path, np.ndarray | None, dict[str, Any]]]:
  """Yields the path, image and most likely classes of each file.

  Yields:
    The path; the image, uint8 [S, S, 3], or None if it cannot be read; and
    `top`, a list of `class`, `label` and `probability`, with `true`, a class or
    None. If the image cannot be read, `error` instead.
  """
  size, names = model.config.image_size_px, model.class_names
  remaining = iter(paths)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    while chunk := list(itertools.islice(remaining, _CHUNK)):
      read = list(pool.map(_read, chunk, [size] * len(chunk)))
      images = [image for image in read if not isinstance(image, str)]
      rows = iter(model.predict(images, views))
      for path, image in zip(chunk, read, strict=True):
        if isinstance(image, str):
          yield path, None, {"error": image}
          continue
        row = next(rows)
        classes = [
          {"class": names[k], "label": k, "probability": float(row[k])}
          for k in np.argsort(-row, kind="stable")[:top].tolist()
        ]
        folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
        label = model.labels.get(folder)
        true = None if label is None else names[label]
        yield path, image, {"top": classes, "true": true}


def _read(path: Path, size_px: int) -> np.ndarray | str:
  """Returns an image, uint8 [S, S, 3], or why it cannot be read."""
  try:
    return decode.square(decode.decode(path.read_bytes()), size_px)
  except OSError as e:
    return e.strerror or str(e)
  except (decode.UnreadableError, MemoryError) as e:
    return " ".join(str(e).split()) or "it is too large"


def _write_table(path: Path, found: dict[str, Any], first: bool) -> None:
  true = f"  (true: {found['true']})" if found["true"] else ""
  print("" if first else "\n", path, true, sep="")
  for guess in found["top"]:
    print(f"  {guess['probability']:7.2%}  {guess['class']}")


def _write_json(path: Path, found: dict[str, Any], first: bool) -> None:
  print(json.dumps({"image": str(path), **found}))


def _write_csv(path: Path, found: dict[str, Any], first: bool) -> None:
  writer = csv.writer(sys.stdout, lineterminator="\n")
  header, cells = ["image", "true"], [path, found["true"] or ""]
  for rank, guess in enumerate(found["top"], start=1):
    header += [f"class_{rank}", f"probability_{rank}"]
    cells += [guess["class"], f"{guess['probability']:.6f}"]
  if first:
    writer.writerow(header)
  writer.writerow(cells)


FORMATS = {"table": _write_table, "jsonl": _write_json, "csv": _write_csv}


def main(argv: Sequence[str]) -> None:
  """Runs the command."""
  options, words = flags.FLAGS, argv[1:]
  panel = Path(options.panel) if options.panel else None
  if panel:
    from alexnet_jax.tools.figures import drawings, plots

    drawings.check_name(panel)
  cli.keep_memory()
  cli.keep_programs()
  model = inference.load(options.workdir, options.step)
  bad, count, shown = [], 0, []
  paths = find(words, sys.stdin)
  found_of = predictions(model, paths, options.views, options.top)
  for count, (path, image, found) in enumerate(found_of, start=1):
    if image is None:
      bad.append(f"{str(path)!r} ({found['error']})")
      continue
    FORMATS[options.format](path, found, count - len(bad) == 1)
    if len(shown) < _MOST_IN_PANEL:
      shown.append((path, image, found))
  if panel and shown:
    plots.save(drawings.panel(shown), panel)
  if not count:
    raise errors.InputError(
      f"no image in {words}; name image files or folders of them."
    )
  if bad:
    raise errors.InputError(
      f"{len(bad)} of {count} images cannot be read:"
      f" {errors.first_few(bad, 10, between='; ')}."
    )


def _define_flags() -> None:
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_string("step", "newest", "Checkpoint: newest, best or a step.")
  flags.DEFINE_integer("views", 1, "Views of each image, 1 or 10.")
  flags.DEFINE_integer("top", 5, "Classes of each image.", lower_bound=1)
  flags.DEFINE_enum("format", "table", list(FORMATS), "Format of the output.")
  flags.DEFINE_string(
    "panel",
    None,
    "PNG or PDF to draw of the first 24, like the paper's Fig. 4.",
  )


def command() -> None:
  """`alexnet predict`."""
  cli.run(main, _define_flags, takes_files=True)
