"""Trains a net as a config says, then tests it.

alexnet train --config=alexnet --workdir=DIR
"""

from pathlib import Path

import jax
from absl import flags

from alexnet_jax import train
from alexnet_jax.runs import config_files, trained
from alexnet_jax.runtime import cli, hosts, signals


def main(_) -> None:
  """Runs the command."""
  asked = flags.FLAGS
  config, name = config_files.config()
  workdir = Path(asked.workdir or f"runs/{name}")
  fields = config_files.overridden()
  config = trained.with_pretrained_net(config, fields, workdir)
  cli.keep_memory()
  cli.keep_programs()
  with (
    hosts.initialize(
      asked.coordinator, asked.num_processes, asked.process_id, asked.timeout_s
    ),
    signals.handle_signals() as should_stop,
  ):
    train.train_and_evaluate(config, workdir, should_stop)
    if jax.process_index() == 0:
      print(f"{workdir} holds the run: metrics.jsonl, checkpoints/ and more")


def _define_flags() -> None:
  flags.DEFINE_string(
    "workdir", None, "Folder of the run; runs/CONFIG if none."
  )
  hosts.define_flags()
  config_files.define_config()


def command() -> None:
  """`alexnet train`."""
  cli.run(main, _define_flags)


if __name__ == "__main__":
  command()
