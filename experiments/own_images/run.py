"""What a user's own images become: the README's commands, timed as typed.

  python experiments/own_images/run.py HELD_OUT cifar10_jpeg.tar.xz [SEEDS]

HELD_OUT is made by experiments/tiny_imagenet/folders.py: classes that the net
which ships has not seen. Each trial is `prepare`, the `train` command that it
prints (from scratch: with another config) and `evaluate`, one after another on
an idle machine. A seed draws other images, another split and other weights.
Rows are added to results.csv as they are found; README.md has the medians.
"""

import csv
import random
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
QUICKSTART = "--config=quickstart --config.generate_shapes=False"
# Data, its size in px, and the config of each arm ("" is the one printed).
ARMS = {
  ("five", "quickstart"): (64, QUICKSTART),
  ("five", "scratch"): (64, "--config=small"),
  ("five", "finetune"): (64, ""),
  ("ten", "scratch"): (64, "--config=small"),
  ("ten", "finetune"): (64, ""),
  ("cifar", "scratch"): (32, ""),
  ("cifar", "finetune"): (64, ""),
}


def alexnet(command: str) -> tuple[str, float]:
  """Returns what a command prints, and its seconds."""
  start = time.perf_counter()
  words = [sys.executable, "-m", "alexnet_jax", *shlex.split(command)]
  done = subprocess.run(words, capture_output=True, text=True)
  if done.returncode:
    raise SystemExit(f"{command}\n{done.stdout}{done.stderr}")
  return done.stdout, time.perf_counter() - start


def write_sources(held_out: Path, cifar: str, seed: int, work: Path) -> None:
  """Makes the three folders of images that a user might have."""
  classes = sorted(path.name for path in held_out.iterdir())
  five = classes[::3]
  draw = random.Random(seed)

  def link(images: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for image in images:
      (folder / image.name).hardlink_to(image)

  for name in classes:
    images = sorted((held_out / name).iterdir())
    draw.shuffle(images)
    if name in five:  # prepare holds out a tenth twice.
      link(images, work / "five" / name)
    else:
      link(images[:30], work / "ten" / "train" / name)
      link(images[30:130], work / "ten" / "test" / name)
  with tarfile.open(cifar) as tar:
    tar.extractall(work / "cifar", filter="data")
  for folder in sorted((work / "cifar" / "train").iterdir()):
    images = sorted(folder.iterdir())
    for image in draw.sample(images, len(images) - 500):
      image.unlink()


def trials(held_out: Path, cifar: str, seed: int) -> Iterator[dict[str, str]]:
  """Yields a row for each arm."""
  with tempfile.TemporaryDirectory(dir=held_out.parent) as folder:
    work = Path(folder)
    write_sources(held_out, cifar, seed, work)
    for (data, arm), (size, config) in ARMS.items():
      output, run = work / f"data_{data}_{arm}", work / f"run_{data}_{arm}"
      printed, prepare_s = alexnet(
        f"prepare --source={work / data} --output={output} --size={size}"
        f" --seed={seed}"
      )
      (command,) = re.findall("^to train: alexnet (.*)", printed, re.MULTILINE)
      if config:
        command = re.sub(r"--config=\S+", config, command)
      if arm == "quickstart":  # Its length is its own.
        command = re.sub(r"--config.total_epochs=\S+", "", command)
      _, train_s = alexnet(f"{command} --workdir={run} --config.seed={seed}")
      printed, evaluate_s = alexnet(f"evaluate --workdir={run}")
      (error,) = re.findall(r"top-1 error ([\d.]+)%", printed)
      times = prepare_s, train_s, evaluate_s
      row = {"data": data, "arm": arm, "seed": str(seed), "error": error}
      names = ("prepare_s", "train_s", "evaluate_s")
      yield row | {k: f"{v:.1f}" for k, v in zip(names, times, strict=True)}


def main(held_out: str, cifar: str, seeds: str = "3") -> None:
  """Writes results.csv."""
  with open(HERE / "results.csv", "w", newline="") as file:
    table = None
    for seed in range(int(seeds)):
      for row in trials(Path(held_out), cifar, seed):
        if table is None:
          table = csv.DictWriter(file, list(row), lineterminator="\n")
          table.writeheader()
        table.writerow(row)
        file.flush()
        print(row, flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
