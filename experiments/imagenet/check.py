"""The commands of this folder's README, on a miniature of ImageNet's tars.

  python experiments/imagenet/check.py FOLDER_OF_IMAGES

The images below the folder, at least 40, are packed like the downloads of
ILSVRC-2012, under six invented classes. Then each command of the README runs
with a narrow net, two steps of eight images and other folders. The script stops
at the first command that fails or whose figures are not those of the run.
"""

import argparse
import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

ROOT = Path(__file__).parents[2]
SUFFIXES = {".jpg", ".jpeg", ".png"}
# In the order of the challenge's own labels, which is not that of the WNIDs.
# Six, as two towers share them.
WNIDS = tuple(f"n{number:08}" for number in (4, 2, 5, 1, 6, 3))
NARROW = {"conv1": 8, "conv2": 16, "conv3": 16, "conv4": 16, "conv5": 16}
SMALL = [
  f"--config.num_classes={len(WNIDS)}",
  "--config.batch_size=8",
  "--config.total_steps=2",
  "--config.log_every_steps=1",
  *(f"--config.network.{name}.filters={n}" for name, n in NARROW.items()),
  "--config.network.fc6.units=32",
  "--config.network.fc7.units=32",
]
TEST = "--config.test_split=validation"


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
  """Adds a file to a tar."""
  info = tarfile.TarInfo(name)
  info.size = len(data)
  archive.addfile(info, io.BytesIO(data))


def meta_mat() -> bytes:
  """Returns the development kit's list of classes, and a parent of all."""
  fields = ("ILSVRC2012_ID", "WNID", "words", "num_children", "children")
  rows: list[tuple[Any, ...]] = [
    (np.float64(number), wnid, f"words of {wnid}", np.float64(0), np.zeros(0))
    for number, wnid in enumerate(WNIDS, start=1)
  ]
  count = len(WNIDS)
  children = np.arange(1.0, count + 1)
  rows.append((count + 1, "n00000000", "entity", float(count), children))
  synsets = np.empty((len(rows), 1), [(name, object) for name in fields])
  for row, values in enumerate(rows):
    synsets[row, 0] = values
  file = io.BytesIO()
  scipy.io.savemat(file, {"synsets": synsets}, do_compression=True)
  return file.getvalue()


def pack(images: list[bytes], folder: Path) -> dict[str, int]:
  """Writes the three tars; returns how many images each split has."""
  count = len(images) // 5
  held_out, rest = images[:count], images[count:]
  with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as archive:
    for number, wnid in enumerate(WNIDS):
      inner = io.BytesIO()
      with tarfile.open(fileobj=inner, mode="w") as of_class:
        for index, data in enumerate(rest[number :: len(WNIDS)]):
          add(of_class, f"{wnid}_{index}.JPEG", data)
      add(archive, f"{wnid}.tar", inner.getvalue())
  with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
    for index, data in enumerate(held_out, start=1):
      add(archive, f"ILSVRC2012_val_{index:08}.JPEG", data)
  kit = "ILSVRC2012_devkit_t12"
  truth = "".join(f"{index % len(WNIDS) + 1}\n" for index in range(count))
  with tarfile.open(folder / f"{kit}.tar.gz", "w:gz") as archive:
    add(archive, f"{kit}/data/meta.mat", meta_mat())
    name = f"{kit}/data/ILSVRC2012_validation_ground_truth.txt"
    add(archive, name, truth.encode())
  return {"train": len(rest), "validation": count}


def run(what: str, *words: str, env: dict[str, str] | None = None) -> list[str]:
  """Runs a command and prints its last line; returns all of its lines."""
  begun = time.perf_counter()
  done = subprocess.run(
    words,
    cwd=ROOT,
    env=os.environ | (env or {}),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    check=False,
  )
  lines = done.stdout.splitlines()
  if done.returncode:
    print(done.stdout, file=sys.stderr)
    raise SystemExit(f"{what}: code {done.returncode} of {shlex.join(words)}")
  seconds = time.perf_counter() - begun
  print(f"{what} ({seconds:.0f} s)\n  {lines[-1]}", flush=True)
  return lines


def alexnet(command: str, *flags: str) -> list[str]:
  """Returns the words of `alexnet COMMAND`."""
  return [sys.executable, "-m", "alexnet_jax", command, *flags]


def tested(workdir: Path) -> str:
  """Returns what the run itself found at its end, in `evaluate`'s words."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  (found,) = (r for r in map(json.loads, lines) if r["split"] == "test")
  return (
    f"top-1 error {found['top1_error']:.2%},"
    f" top-5 error {found['top5_error']:.2%}, loss {found['loss']:.4f}"
  )


def main() -> None:
  """Packs the miniature and runs the commands."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("folder", type=Path)
  files = sorted(
    path
    for path in parser.parse_args().folder.rglob("*")
    if path.suffix.lower() in SUFFIXES
  )
  if len(files) < 40:
    raise SystemExit(f"{len(files)} images are too few; give 40 or more.")
  with tempfile.TemporaryDirectory() as name:
    home = Path(name)
    # Programs are kept for `evaluate`, but not for good.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(home / "programs")
    (home / "downloads").mkdir()
    counts = pack([file.read_bytes() for file in files], home / "downloads")
    check(home, counts)
  print("all commands ended as they should")


def check(home: Path, counts: dict[str, int]) -> None:
  """Runs the commands; raises SystemExit where one does not do as it should."""
  data = home / "imagenet"
  printed = run(
    "prepare",
    *alexnet("prepare", f"--source={home / 'downloads'}"),
    f"--output={data}",
  )
  for split, count in counts.items():
    if f"{split}: {count:,} images" not in printed:
      raise SystemExit(f"prepare did not find {count} images of {split}")
  names = (data / "label.labels.txt").read_text().splitlines()
  if names != [f"{wnid} words of {wnid}" for wnid in sorted(WNIDS)]:
    raise SystemExit(f"prepare named the classes {names}")

  def flags(config: str, workdir: str, *more: str) -> list[str]:
    return [
      f"--config={config}",
      f"--workdir={home / workdir}",
      f"--config.data_dir={data}",
      TEST,
      *SMALL,
      *more,
    ]

  def train(config: str, workdir: str, *more: str, **env: str) -> None:
    words = alexnet("train", *flags(config, workdir, *more))
    run(f"{config} {' '.join(more)}".strip(), *words, env=env)

  def evaluate(*workdirs: str) -> str:
    asked = ",".join(str(home / workdir) for workdir in workdirs)
    words = alexnet("evaluate", f"--workdir={asked}", "--views=10")
    return run(f"evaluate {','.join(workdirs)}", *words)[-1]

  train("run145", "145_0", "--config.seed=0")
  if tested(home / "145_0") not in evaluate("145_0"):
    raise SystemExit("main and evaluate differ")
  train("run145", "145_1", "--config.seed=1")
  if "2 nets, ten views" not in evaluate("145_0", "145_1"):
    raise SystemExit("evaluate did not take two nets")
  train("run145", "both", "--config.ensemble=2")
  for config in ("alexnet", "run147", "run148", "run150", "run145_half"):
    train(config, config)
  eight = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
  }
  for layout in ("data", "towers"):
    more = f"--config.layout={layout}"
    train("run145", f"eight_{layout}", more, **eight)
  run(
    "two processes",
    "launch/two_process.sh",
    *flags("run145", "two"),
    env={"PYTHON": sys.executable},
  )


if __name__ == "__main__":
  main()
