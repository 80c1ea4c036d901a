"""The data set of a run, opened and checked before its first step."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from alexnet_jax.data import checks, records, statistics
from alexnet_jax.data.prepare import shapes
from alexnet_jax.runs import checkpoint, run_files
from alexnet_jax.runtime import errors, hosts


class RunData(NamedTuple):
  """The data set of a run."""

  class_names: tuple[str, ...]
  splits: dict[str, records.Examples]  # Of train, validation and test.
  statistics: statistics.Statistics  # That the net's input is made with.
  fingerprint: dict[str, str]  # The digest of each file.


def open_data(config: Any, workdir: Path, resumes: bool) -> RunData:
  """Opens and checks the data set of a config, the same in all processes."""
  data_dir = Path(config.data_dir)
  # By its name, as a mistyped data_dir does not exist either.
  draws = config.generate_shapes and data_dir.name == "shapes"
  with hosts.raise_on_all_hosts():
    if draws and jax.process_index() == 0 and not data_dir.exists():
      print(f"drawing the shapes data set into {data_dir}", flush=True)
      shapes.generate(data_dir, size_px=config.image_size_px)
  with hosts.raise_on_all_hosts():
    dataset = records.open_directory(data_dir)
    splits = {
      split: records.open_split(dataset, config[field], f"--config.{field}")
      for split in ("train", "validation", "test")
      if config[field := f"{split}_split"] or split == "train"
    }
    if config.batch_size > len(splits["train"]):
      raise errors.InputError(
        f"batch_size={config.batch_size} is larger than train_split="
        f"{config.train_split!r}; pass --config.batch_size="
        f"{len(splits['train'])}, the number of its images, or less."
      )
    source = run_files.find_run(config.init_from)
    if config.init_from and not resumes:
      if not run_files.holds_weights(source):
        checkpoint.find_step(source, "newest")
      size_px = run_files.read_config(source).image_size_px
      if config.init_inherits and config.image_size_px != size_px:
        raise errors.InputError(
          f"--config.image_size_px={config.image_size_px} but the net in"
          f" init_from={config.init_from!r}, and its mean image, are for"
          f" {size_px} px; leave --config.image_size_px out."
        )
    stats = checks.check(splits, config)
    if resumes and run_files.has_statistics(workdir):
      stats = statistics.read(workdir, config.image_size_px)
    elif config.init_inherits:  # The net knows pixels less that run's mean.
      stats = statistics.read(source, config.image_size_px)
    digests = {k: checks.fingerprint(each) for k, each in splits.items()}
  names = hashlib.sha256(json.dumps(dataset.class_names).encode()).hexdigest()
  fingerprint = digests["train"] | digests.get("validation", {})
  fingerprint["class names"] = names[:16]
  if hosts.from_first(stats is None):
    stats = _measure(splits["train"], config, workdir, digests["train"])
  mean_image = stats and stats.mean_image.tobytes()
  hosts.assert_same_on_all_hosts(
    {
      "class names of data_dir": dataset.class_names,
      "mean image of data_dir": hashlib.sha256(mean_image or b"").hexdigest(),
    }
    | {
      f"file {name} of data_dir": digest
      for files in digests.values()
      for name, digest in files.items()
    }
  )
  assert stats  # Otherwise the processes differ.
  if jax.process_index() == 0 and (shared := checks.overlaps(splits)):
    print(f"note: {'; '.join(shared)}", flush=True)
  return RunData(dataset.class_names, splits, stats, fingerprint)


def _measure(
  train: records.Examples, config: Any, workdir: Path, files: dict[str, str]
) -> statistics.Statistics:
  """Measures a split in process 0, unless a killed run has left its result."""
  split = json.dumps([config.train_split, config.image_size_px, files])
  measured_of = hashlib.sha256(split.encode()).hexdigest()
  arrays = []
  with hosts.raise_on_all_hosts():
    if jax.process_index() == 0:
      stats = None
      with contextlib.suppress(errors.InputError):
        stats = statistics.read(workdir, config.image_size_px)
      if not stats or stats.measured_of != measured_of:
        stats = checks.measure(train, config)
      arrays = [stats.mean_image, stats.colour_axes, stats.colour_sds]
  shared = hosts.from_first([array.tolist() for array in arrays])
  mean_image, axes, sds = (np.array(values, np.float32) for values in shared)
  return statistics.Statistics(mean_image, axes, sds, measured_of)
