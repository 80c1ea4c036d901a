"""Prints the most likely classes of images.

  alexnet predict IMAGE...
  alexnet predict --workdir=RUN IMAGE...

The first asks the net that ships with the package.
IMAGE is a file, a folder or -, which stands for names from standard input, one
a line. An image in a folder that is named like a class, or by its WNID, has
that true class. From Python: `alexnet_jax.load`.
"""

import concurrent.futures
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
    else:
      yield Path(word)


def predictions(
  model: inference.Model, paths: Iterable[Path], views: int, top: int
) -> Iterator[tuple[Path, np.ndarray | None, dict[str, Any]]]:
  """Yields the path, image and most likely classes of each file.

  The image is uint8 [S, S, 3]. The classes are `top`, a list of `class`,
  `label` and `probability`, with `true`, a class or None. If an image cannot be
  read, it is None, and there is only `error`.
  """
  size, names = model.config.image_size_px, model.class_names
  remaining = iter(paths)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    while chunk := list(itertools.islice(remaining, _CHUNK)):
      read = list(pool.map(read_image, chunk, [size] * len(chunk)))
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
        label = model.labels.get(Path(os.path.abspath(path)).parent.name)
        true = None if label is None else names[label]
        yield path, image, {"top": classes, "true": true}


def read_image(path: Path, size_px: int) -> np.ndarray | str:
  """Returns an image, uint8 [S, S, 3], or why it cannot be read."""
  try:
    return inference.square(path, size_px)
  except decode.UnreadableError as e:
    return str(e)


def main(argv: Sequence[str]) -> None:
  options, words = flags.FLAGS, argv[1:]
  panel = Path(options.panel) if options.panel else None
  if panel:
    from alexnet_jax.tools.figures import drawings, plots

    drawings.check_name(panel)
  cli.configure_process()
  model = inference.load(options.workdir, options.step)
  good, bad, shown = 0, [], []
  paths = find(words, sys.stdin)
  found_of = predictions(model, paths, options.views, options.top)
  for path, image, found in found_of:
    if image is None:
      bad.append(f"{str(path)!r} ({found['error']})")
      continue
    good += 1
    if options.format == "jsonl":
      cli.echo(json.dumps({"image": str(path), **found}))
    else:
      cli.echo(f"{path}  (true: {found['true']})" if found["true"] else path)
      for x in found["top"]:
        cli.echo(f"  {x['probability']:7.2%}  {x['class']}")
      cli.echo("")
    if len(shown) < _MOST_IN_PANEL:
      shown.append((path, image, found))
  if panel and shown:
    plots.save(drawings.panel(shown), panel)
  if not good and not bad:
    raise errors.InputError(
      f"no image in {words}; name image files or folders of them."
    )
  if bad:
    raise errors.InputError(
      f"{len(bad)} of {good + len(bad)} images cannot be read:"
      f" {errors.first_few(bad, 10, between='; ')}."
    )


def define_flags() -> None:
  flags.DEFINE_string("workdir", "pretrained", "Folder of the run.")
  flags.DEFINE_string("step", "newest", "Checkpoint: newest, best or a step.")
  flags.DEFINE_integer("views", 1, "Views of each image, 1 or 10.")
  flags.DEFINE_integer("top", 5, "Classes of each image.", lower_bound=1)
  flags.DEFINE_enum("format", "table", ["table", "jsonl"], "Of the output.")
  flags.DEFINE_string("panel", None, "PNG or PDF of 24 answers, as in Fig. 4.")
