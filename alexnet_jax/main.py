"""Trains a net as a config says, then tests it.

alexnet train --config=alexnet --workdir=DIR
"""

from absl import flags

from alexnet_jax import train
from alexnet_jax.runs import config_files, run_files, trained
from alexnet_jax.runtime import cli, hosts, signals


def main(_) -> None:
  args = flags.FLAGS
  config, name = config_files.config()
  workdir = run_files.find_workdir(args.workdir or f"runs/{name}")
  fields = config_files.overridden()
  config = trained.with_pretrained_net(config, fields, workdir)
  cli.configure_process()
  with (
    hosts.initialize(
      args.coordinator, args.num_processes, args.process_id, args.timeout_s
    ),
    signals.handle_signals() as should_stop,
  ):
    train.train_and_evaluate(config, workdir, should_stop, args.accept_data)


def define_flags() -> None:
  flags.DEFINE_string(
    "workdir", None, "Folder of the run; runs/CONFIG if none."
  )
  flags.DEFINE_bool("accept_data", False, "Resume on data that have changed.")
  hosts.define_flags()
  config_files.define_config()


if __name__ == "__main__":
  cli.run(main, define_flags)
