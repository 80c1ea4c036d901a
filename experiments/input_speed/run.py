"""Measures reading and preparing images beside torch, tf.data and Pillow.

  pip install -e '.[peers,catalogue]'
  python experiments/input_speed/run.py --photos=TAR --cifar=TAR
  python experiments/input_speed/run.py --photos=TAR --like_for_like

The second command compares with torch's loader over the files that we read, and
writes like_for_like.csv. Every trial is a fresh process, the trials of all
contestants alternate, and nothing else should be running.
"""

import argparse
import csv
import glob
import json
import math
import os
import platform
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TRIALS = 5
BATCH_SIZE = 128
WARM_BATCHES, BATCHES = 4, 40
SIZE_PX = 256


def photos(folder: Path, name: str = "photos") -> list[str]:
  """Returns the files of the photographs, or of their squares of 256 px."""
  return sorted(glob.glob(f"{folder}/{name}/**/*.JPEG", recursive=True))


def ours(folder: Path, prepared: str) -> Iterator[Any]:
  """Our training batches."""
  from alexnet_jax.data import batches, records

  dataset = records.open_directory(folder / prepared)
  examples = records.open_split(dataset, "train", "split")
  order = batches.ShuffledBatches(len(examples), BATCH_SIZE, seed=0)
  return batches.iterate(
    order, lambda indices: batches.load(examples, indices, SIZE_PX), threads=2
  )


def grain_items(folder: Path) -> Iterator[Any]:
  """Grain with an example an item and TFDS's own parser, for comparison."""
  import grain
  import simplejpeg
  import tensorflow_datasets as tfds

  builder: Any = tfds.builder_from_directory(folder / "jpeg")
  decoders = {"image": tfds.decode.SkipDecoding()}
  examples = builder.as_data_source("train", decoders=decoders)

  def decode(example: dict[str, Any]) -> dict[str, Any]:
    return example | {"image": simplejpeg.decode_jpeg(example["image"])}

  items = grain.MapDataset.source(examples).shuffle(seed=0).repeat()
  batches = items.map(decode).batch(BATCH_SIZE)
  return iter(
    batches.to_iter_dataset(
      grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    )
  )


def torch_loader(folder: Path, name: str = "photos") -> Iterator[Any]:
  """The usual loader: views of files, made on the host."""
  import numpy as np
  import torch  # pyright: ignore[reportMissingImports]
  from PIL import Image

  files = photos(folder, name)
  mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
  sd = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

  def box(width: int, height: int) -> tuple[int, int, int, int]:
    for _ in range(10):
      area = width * height * random.uniform(0.08, 1)
      ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
      w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
      if 0 < w <= width and 0 < h <= height:
        left, top = random.randint(0, width - w), random.randint(0, height - h)
        return left, top, left + w, top + h
    return 0, 0, width, height

  class Photos(torch.utils.data.Dataset):
    def __len__(self) -> int:
      return BATCH_SIZE * (WARM_BATCHES + BATCHES + 16)

    def __getitem__(self, index: int) -> Any:
      image = Image.open(files[index % len(files)]).convert("RGB")
      image = image.resize(
        (224, 224), Image.Resampling.BILINEAR, box=box(*image.size)
      )
      if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
      pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
      return pixels.float().div(255).sub(mean).div(sd), index % len(files)

  return iter(
    torch.utils.data.DataLoader(
      Photos(), batch_size=BATCH_SIZE, shuffle=True, num_workers=2
    )
  )


def tf_data(folder: Path) -> Iterator[Any]:
  """tf.data on the same examples, which it can only read from TFRecord."""
  import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]

  features = {
    "image": tf.io.FixedLenFeature([], tf.string),
    "label": tf.io.FixedLenFeature([], tf.int64),
  }

  def decode(serialized: Any) -> Any:
    example = tf.io.parse_single_example(serialized, features)
    image = tf.io.decode_jpeg(
      example["image"], channels=3, dct_method="INTEGER_ACCURATE"
    )
    image.set_shape((SIZE_PX, SIZE_PX, 3))
    return image, example["label"]

  files = sorted(glob.glob(f"{folder}/*.tfrecord"))
  return iter(
    tf.data.TFRecordDataset(files)
    .repeat()
    .shuffle(1024)
    .map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    .batch(BATCH_SIZE)
    .prefetch(tf.data.AUTOTUNE)
  )


SAME_FILES = "torch DataLoader, the same 256 px files"
LIKE_FOR_LIKE = ("ours, JPEG", "torch DataLoader", SAME_FILES)
READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
  "ours, JPEG": lambda folder: ours(folder, "jpeg"),
  "ours, raw": lambda folder: ours(folder, "raw"),
  "Grain, an example an item": grain_items,
  "torch DataLoader": torch_loader,
  SAME_FILES: lambda folder: torch_loader(folder, "squares"),
  "tf.data": tf_data,
}


def read(name: str, folder: Path) -> float:
  """Returns the images a second of a reader."""
  batches = READERS[name](folder)
  for _ in range(WARM_BATCHES):
    next(batches)
  start = time.perf_counter()
  for _ in range(BATCHES):
    next(batches)
  return BATCH_SIZE * BATCHES / (time.perf_counter() - start)


def pillow_loop(folder: Path, with_sums: bool) -> float:
  """Returns the images a second that one core prepares in a plain loop."""
  import numpy as np
  from PIL import Image

  total, products = np.zeros((SIZE_PX, SIZE_PX, 3)), np.zeros((3, 3))
  files = photos(folder) * 6
  start = time.perf_counter()
  for file in files:
    image = Image.open(file).convert("RGB")
    scale = SIZE_PX / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - SIZE_PX) // 2, (height - SIZE_PX) // 2
    image = image.crop((left, top, left + SIZE_PX, top + SIZE_PX))
    image.save(folder / "square.jpg", quality=90)
    if with_sums:
      pixels = np.asarray(image).astype(np.float64)
      total += pixels
      products += pixels.reshape(-1, 3).T @ pixels.reshape(-1, 3)
  return len(files) / (time.perf_counter() - start)


def our_loop(folder: Path) -> float:
  """Returns the images a second that one core prepares by our code."""
  import functools

  from alexnet_jax.data.prepare import prepare, shards, sources

  found = sources.find(str(folder / "photos"), "train", folder / "spool")
  items = found.splits["train"] * 6
  encoder = functools.partial(prepare.encode, size_px=SIZE_PX, raw=False)
  output = Path(tempfile.mkdtemp(dir=folder), "loop")
  with shards.claim(output) as work:
    start = time.perf_counter()
    shards.write(
      work,
      output,
      {"train": items},
      class_names=found.class_names,
      size_px=SIZE_PX,
      encoder=encoder,
      workers=0,
    )
    return len(items) / (time.perf_counter() - start)


LOOPS: dict[str, Callable[[Path], float]] = {
  "prepare, one core, ours": our_loop,
  "prepare, one core, Pillow": lambda folder: pillow_loop(folder, False),
  "prepare, one core, Pillow, with mean and PCA": lambda folder: pillow_loop(
    folder, True
  ),
}


def command(name: str, *flags: str) -> tuple[float, float]:
  """Runs `alexnet NAME`; returns seconds and peak memory in GB."""
  start = time.perf_counter()
  process = subprocess.Popen(
    [sys.executable, "-m", "alexnet_jax", name, *flags],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
  )
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f"{name} {' '.join(flags)} ended with status {status}")
  return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9


def make_tfrecords(folder: Path) -> None:
  """Copies the serialized examples of the JPEG shards into TFRecord files."""
  import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]
  from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]
  )

  for file in sorted(glob.glob(f"{folder}/jpeg/*.array_record-*")):
    reader = array_record_module.ArrayRecordReader(file)
    with tf.io.TFRecordWriter(f"{folder}/{Path(file).name}.tfrecord") as out:
      for record in reader.read_all():
        out.write(record)


def write_squares(folder: Path) -> None:
  """Writes the JPEGs of the shards as files, for torch's loader."""
  from alexnet_jax.data import records

  dataset = records.open_directory(folder / "jpeg")
  (folder / "squares").mkdir()
  examples = records.open_split(dataset, "train", "split")
  for number in range(len(examples)):
    file = folder / "squares" / f"{number}.JPEG"
    file.write_bytes(examples[number].image)


def make_small_images(path: Path, count: int) -> None:
  """Writes a tar of generated 32 px images in ten classes."""
  import io

  import numpy as np
  import simplejpeg

  rng = np.random.default_rng(0)
  with tarfile.open(path, "w") as archive:
    for number in range(count):
      image = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0)
      image = np.ascontiguousarray(image.repeat(8, 1))
      jpeg = simplejpeg.encode_jpeg(image)
      member = tarfile.TarInfo(f"class{number % 10}/{number:06}.jpg")
      member.size = len(jpeg)
      archive.addfile(member, io.BytesIO(jpeg))


def main() -> None:
  """Measures, or is one trial of another process that does."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--photos", help="tar of WNID/NAME.JPEG, full size")
  parser.add_argument("--cifar", help="tar of CIFAR-10 as JPEG files")
  parser.add_argument("--like_for_like", action="store_true")
  parser.add_argument("--trial", help="of which contestant")
  parser.add_argument("--folder", type=Path)
  args = parser.parse_args()
  if args.trial:
    trial = LOOPS.get(args.trial) or (lambda f: read(args.trial, f))
    print(json.dumps(trial(args.folder)))
    return
  rows = []

  def record(what: str, trial: int, value: float, unit: str) -> None:
    rows.append({"what": what, "trial": trial, "value": value, "unit": unit})
    print(f"{what}, {trial}: {value:.4g} {unit}", flush=True)

  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    with tarfile.open(args.photos) as archive:
      archive.extractall(folder / "photos", filter="data")
    one_split = ["--splits=train", f"--source={args.photos}"]
    command("prepare", f"--output={folder}/jpeg", *one_split)
    write_squares(folder)
    contestants = LIKE_FOR_LIKE
    if not args.like_for_like:
      command("prepare", f"--output={folder}/raw", "--raw", *one_split)
      make_tfrecords(folder)
      contestants = (*READERS, *LOOPS)
    for trial in range(TRIALS):
      for what in contestants:
        arguments = [f"--trial={what}", f"--folder={folder}"]
        result = subprocess.run(
          [sys.executable, __file__, *arguments],
          stdout=subprocess.PIPE,
          check=True,
        )
        record(what, trial, json.loads(result.stdout), "images/s")
    if args.like_for_like:
      write("like_for_like.csv", rows)
      return
    for trial in range(3):
      flags = [f"--source={args.cifar}", f"--output={folder}/cifar{trial}"]
      seconds, _ = command("prepare", *flags, "--size=32", "--splits=train")
      record("prepare, 50,000 CIFAR files, two cores", trial, seconds, "s")
    for count in (10_000, 100_000):
      make_small_images(folder / "small.tar", count)
      flags = [f"--source={folder}/small.tar", f"--output={folder}/{count}"]
      _, peak_gb = command("prepare", *flags, "--size=32")
      record(f"prepare, {count:,} images, peak memory", 0, peak_gb, "GB")
    command(
      "train",
      "--config=alexnet",
      f"--workdir={folder}/run",
      f"--config.data_dir={folder}/jpeg",
      "--config.num_classes=103",
      "--config.batch_size=64",
      "--config.schedule=epochs",
      "--config.total_steps=12",
      "--config.log_every_steps=12",
      "--config.device_cache_fraction=0",
      "--config.validation_split=",
      "--config.test_split=",
    )
    (line,) = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    waited = json.loads(line)["input_wait"]
    record("input_wait of the full net, streamed", 0, waited, "of its time")
  write("results.csv", rows)


def write(name: str, rows: list[dict[str, Any]]) -> None:
  """Writes the trials to a table in this folder."""
  for row in rows:
    row["machine"] = f"{os.cpu_count()} cores, {platform.machine()}"
  with (HERE / name).open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
  main()
