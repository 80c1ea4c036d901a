"""What a trained net takes images for: its five best classes of each.

  alexnet predict --workdir=RUN IMAGE...

IMAGE is a file, a folder, a pattern ("photos/**/*.jpg") or -, for names from
standard input, one a line. A folder named as a class, or by its WNID, is the
true one of its images. As a library: `alexnet_jax.load`.
"""

import concurrent.futures
import csv
import glob
import io
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from absl import flags

from alexnet_jax import evaluate
from alexnet_jax.data import decode
from alexnet_jax.data.prepare import sources
from alexnet_jax.runtime import cli, errors
from alexnet_jax.tools import inference

FORMATS = ("table", "jsonl", "csv")
_CHUNK = 64
_MOST_IN_PANEL = 24


def find(words: Iterable[str], names: Iterable[str]) -> Iterator[Path]:
  """Yields the image files that the command line means, in its order.

  Args:
    words: files, folders, patterns and -.
    names: lines that - stands for.
  """
  for word in words:
    path = Path(word)
    if word == "-":
      yield from (Path(name.strip()) for name in names if name.strip())
    elif os.path.isdir(word):
      inside = (x for x in sorted(path.rglob("*")) if not x.is_dir())
      yield from (x for x in inside if x.suffix.lower() in sources.SUFFIXES)
    elif not os.path.exists(word) and (
      found := glob.glob(word, recursive=True)
    ):
      yield from (Path(x) for x in sorted(found) if not os.path.isdir(x))
    else:
      yield path


def _read(path: Path, size_px: int) -> np.ndarray | str:
  """Returns an image, uint8 [S, S, 3], or why it cannot be read."""
  try:
    return decode.square(decode.decode(path.read_bytes()), size_px)
  except OSError as e:
    return e.strerror or str(e)
  # A name with a NUL is a ValueError.
  except (decode.UnreadableError, MemoryError, ValueError) as e:
    return " ".join(str(e).split()) or "it is too large"


def answers(
  model: inference.Model, paths: Iterable[Path], views: int, top: int
) -> Iterator[tuple[Path, np.ndarray | None, dict[str, Any]]]:
  """Yields each file, its image and the best classes.

  Args:
    model: from `alexnet_jax.load`.
    paths: of image files.
    views: of each image, 1 or 10.
    top: how many classes.

  Yields:
    The path; uint8 [S, S, 3], None if it cannot be read; `top`, with `class`,
    `label` and `probability`, best first, and `true`, a class or None, or, of
    what cannot be read, `error`.
  """
  size, names = model.config.image_size_px, model.class_names
  waiting = iter(paths)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    while chunk := list(itertools.islice(waiting, _CHUNK)):
      read = list(pool.map(_read, chunk, [size] * len(chunk)))
      good = [image for image in read if not isinstance(image, str)]
      found = iter(model.predict(good, views))
      for path, image in zip(chunk, read, strict=True):
        if isinstance(image, str):
          yield path, None, {"error": image}
          continue
        shares = next(found)
        best = np.argsort(-shares, kind="stable")[:top].tolist()
        folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
        label = model.labels.get(folder)
        each = [
          {"class": names[k], "label": k, "probability": float(shares[k])}
          for k in best
        ]
        true = None if label is None else names[label]
        yield path, image, {"top": each, "true": true}


def main(argv: Sequence[str]) -> None:
  """Runs the command."""
  options = flags.FLAGS
  words = argv[1:]
  if not words:
    raise errors.InputError(
      "no image is named; write alexnet predict --workdir=RUN IMAGE..."
    )
  if options.format not in FORMATS:
    raise errors.unknown("--format", options.format, FORMATS)
  if options.views not in evaluate.VIEWS:
    raise errors.InputError(f"--views={options.views} must be 1 or 10.")
  if options.top < 1:
    raise errors.InputError(f"--top={options.top} must be 1 or more.")
  panel = Path(options.panel) if options.panel else None
  if panel:
    from alexnet_jax.tools.figures import drawings, plots

    drawings.check_name(panel)
  cli.keep_memory()
  cli.keep_programs()
  model = inference.load(options.workdir, options.step)
  write = {"table": _write_block, "jsonl": _write_json, "csv": _write_csv}
  # Names of files are bytes, not all of them text.
  for stream, errors_there in (
    (sys.stdin, "surrogateescape"),
    (sys.stdout, "backslashreplace"),
  ):
    if stream:  # None if it was closed.
      cast(io.TextIOWrapper, stream).reconfigure(errors=errors_there)
  bad, count, shown = [], 0, []
  paths = find(words, sys.stdin or ())
  for path, image, found in answers(model, paths, options.views, options.top):
    count += 1
    if image is None:
      bad.append(f"{str(path)!r} ({found['error']})")
      continue
    write[options.format](path, found, first=count - len(bad) == 1)
    shown.append((path, image, found))
    del shown[_MOST_IN_PANEL:]
  if panel and shown:
    plots.save(drawings.panel(shown), panel)
  if not count:
    raise errors.InputError(
      f"{', '.join(words)!r} has no images; name files or folders of them."
    )
  if bad:
    others = " The others are answered." if len(bad) < count else ""
    raise errors.InputError(
      f"{len(bad)} of {count} images cannot be read:"
      f" {errors.first_few(bad, 10, between='; ')}.{others}"
    )


def _write_block(path: Path, found: dict[str, Any], first: bool) -> None:
  true = f"  (true: {found['true']})" if found["true"] else ""
  print("" if first else "\n", path, true, sep="")
  for answer in found["top"]:
    print(f"  {answer['probability']:7.2%}  {answer['class']}")


def _write_json(path: Path, found: dict[str, Any], first: bool) -> None:
  print(json.dumps({"image": str(path), **found}))


def _write_csv(path: Path, found: dict[str, Any], first: bool) -> None:
  writer = csv.writer(sys.stdout, lineterminator="\n")
  if first:
    ranks = range(1, len(found["top"]) + 1)
    each = [f"{what}_{n}" for n in ranks for what in ("class", "probability")]
    writer.writerow(["image", "true", *each])
  cells = [
    cell
    for answer in found["top"]
    for cell in (answer["class"], f"{answer['probability']:.6f}")
  ]
  writer.writerow([path, found["true"] or "", *cells])


def _define_flags() -> None:
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_string(
    "step", "newest", "Checkpoint: newest, best (by validation) or a step."
  )
  flags.DEFINE_integer("views", 1, "Views of each image, 1 or 10.")
  flags.DEFINE_integer("top", 5, "Classes of each image.")
  flags.DEFINE_string("format", "table", "table, jsonl (JSON lines) or csv.")
  flags.DEFINE_string(
    "panel", None, "PNG or PDF to draw, as the paper's Fig. 4, of the first 24."
  )


def command() -> None:
  """`alexnet predict`."""
  cli.run(main, _define_flags, takes_files=True)
