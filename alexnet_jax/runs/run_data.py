"""The data set of a run, opened and checked before its first step."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax

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
      split: records.open_split(dataset, config[field], field)
      for split in ("train", "validation", "test")
      if config[field := f"{split}_split"] or split == "train"
    }
    if config.batch_size > len(splits["train"]):
      raise errors.InputError(
        f"batch_size={config.batch_size} is larger than train_split="
        f"{config.train_split!r} with {len(splits['train'])} images; lower it."
      )
    stats = checks.check(splits["train"], config)
    if config.init_from and not resumes:
      checkpoint.find_step(Path(config.init_from), "newest")
    if resumes:
      _, stats = run_files.read_run_metadata(workdir)
    elif config.init_inherits:  # The net knows pixels less that run's mean.
      _, stats = run_files.read_run_metadata(Path(config.init_from))
    fingerprint = checks.fingerprint(splits.values())
  mean_image = stats.mean_image.tobytes()
  hosts.assert_same_on_all_hosts(
    {
      "class names of data_dir": dataset.class_names,
      "mean image of data_dir": hashlib.sha256(mean_image).hexdigest(),
    }
    | {f"file {k} of data_dir": v for k, v in fingerprint.items()}
  )
  return RunData(dataset.class_names, splits, stats, fingerprint)
