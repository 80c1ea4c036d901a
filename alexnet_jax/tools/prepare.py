"""Turns any images into square shards, once, and says how to train on them.

  alexnet prepare --source=IMAGES --output=DIR

IMAGES is a folder, a tar or a zip of CLASS/IMAGE or SPLIT/CLASS/IMAGE, perhaps
inside one more folder; a list file of PATH and LABEL; a folder with the
ILSVRC-2012 tars; a TFDS directory; or `tfds:NAME`. If it has no splits, a
seeded tenth of each class goes to `validation` and another to `test`. If the
command is killed, the same command continues. `--splits=test` makes a test
split alone, for `alexnet evaluate --data_dir=DIR`.
"""

import shlex
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from alexnet_jax import networks
from alexnet_jax.data.prepare import prepare, splits
from alexnet_jax.parallel import layouts, placement
from alexnet_jax.runs import config_files, trained
from alexnet_jax.runtime import cli, errors, machine
from alexnet_jax.tools.plan.command import compile_step

# Of a small data set, a net sees so many images, in so many passes: minutes on
# two cores.
_SEEN_IMAGES, _PASSES = 40_000, (10, 100)


def config_for(size_px: int, train_images: int) -> str:
  """Returns the name of the config for a data set, "" if there is none."""
  if size_px == 64:  # As the images of the net that ships.
    return "finetune"
  if size_px >= 224 and train_images >= 100_000:
    return "alexnet"
  return f"small:{size_px}" if 32 <= size_px <= 256 else ""


def advice(
  output: str, size_px: int, counts: Mapping[str, int], num_classes: int
) -> Iterator[str]:
  """Yields the command that trains on a data set, and what it will cost."""
  if not (name := config_for(size_px, counts["train"])):
    yield (
      f"no config is for these images of {size_px} px; prepare with --size=64"
      " for --config=finetune, or 32 to 256 for --config=small"
    )
    return
  config: Any = config_files.load_config(name)
  fields: dict[str, Any] = {"data_dir": output, "num_classes": num_classes}
  if name == "alexnet":
    fields["image_size_px"] = size_px
  else:
    passes = np.clip(_SEEN_IMAGES // counts["train"], *_PASSES)
    fields["total_epochs"] = float(passes)
  if (batch := counts["train"]) < config.batch_size:  # A part on each device.
    fields["batch_size"] = batch - batch % len(placement.devices()) or batch
  for split in sorted({"validation", "test"} - counts.keys()):
    fields[f"{split}_split"] = ""
  if "validation" not in counts and config.schedule == "plateau":
    fields["schedule"] = "linear"  # The plateau needs a validation error.
  workdir = f"runs/{Path(output).name}"
  words = [f"--config={name}", f"--workdir={workdir}"]
  words += [f"--config.{field}={value}" for field, value in fields.items()]
  yield f"to train: {shlex.join(['alexnet', 'train', *words])}"
  if name.startswith("small"):
    yield (
      "for a good net in minutes: prepare with --size=64 and another --output;"
      " training then starts from the net that ships"
    )
  config.update_from_flattened_dict(fields)
  try:
    config = trained.with_pretrained_net(config, fields, Path(workdir))
    yield cost(config, counts["train"])
  except errors.InputError as e:
    yield f"the time of an epoch is not known: {e}"


def cost(config: Any, train_images: int) -> str:
  """Returns the time of an epoch, after some real steps, and a run's disk."""
  config_files.check(config)
  net, devices = networks.make_model(config), placement.devices()
  layout = layouts.from_config(config, net.network, len(devices))
  step = compile_step(config, net, layout)
  state, batch = jax.tree.map(
    lambda array, where: jnp.zeros(array.shape, array.dtype, device=where),
    step.args_info[0],
    step.input_shardings[0],
  )
  megabytes = sum(array.nbytes for array in jax.tree.leaves(state)) / 1e6
  seconds = []
  while sum(seconds) < 1:
    start = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, batch))
    seconds.append(time.perf_counter() - start)
  epoch_s = statistics.median(seconds) * train_images / config.batch_size
  minutes = f"{epoch_s / 60:,.1f} min"
  is_cpu = devices[0].platform == "cpu"
  kind = f"{machine.cpu_count()} CPUs" if is_cpu else devices[0].device_kind
  return (
    f"an epoch takes about {minutes if epoch_s > 99 else f'{epoch_s:.1f} s'}"
    f" on this machine ({kind}), at most {config.total_epochs:g} of them; a"
    f" checkpoint {megabytes:,.0f} MB, of which"
    f" {config.checkpoints_to_keep + 1} are kept"
  )


def main(_) -> None:
  args = flags.FLAGS
  names = ("raw", "splits", "seed", "synsets", "skip_bad", "workers")
  options: dict[str, Any] = {name: args[name].value for name in names}
  counts, class_names, notes = prepare.prepare(
    args.source, Path(args.output), size_px=args.size, **options
  )
  lines = [f"{split}: {count:,} images" for split, count in counts.items()]
  for line in (*notes, *lines, f"wrote {args.output}"):
    cli.echo(line)
  if "train" in counts:
    cli.configure_process()
    for line in advice(args.output, args.size, counts, len(class_names)):
      cli.echo(line)


def define_flags() -> None:
  text, integer = flags.DEFINE_string, flags.DEFINE_integer
  text("source", None, "Images to read; see above.", required=True)
  text("output", None, "Directory to make.", required=True)
  integer("size", 256, "Side in pixels.", 8, 4096)
  integer("seed", 0, "Another seed holds out other images.", 0)
  integer("workers", None, "Processes; one per core by default.", 0)
  flags.DEFINE_bool("raw", False, "Store pixels: more room, faster to read.")
  text(
    "splits",
    "",
    "NAME, NAME=FOLDER or NAME=SHARE (of each class of train, held out), with"
    f" commas; by default the source's own or, if none, {splits.HOLDOUT}.",
  )
  text("synsets", "", "File of WNID WORDS in order of the labels.")
  flags.DEFINE_bool("skip_bad", False, "Leave out unreadable images.")
