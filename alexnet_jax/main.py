"""Trains and evaluates: flags in, `train_and_evaluate` out.

python -m alexnet_jax.main --config=configs/alexnet.py --workdir=DIR
"""

from pathlib import Path

from absl import flags

from alexnet_jax import cli, train


def main(_) -> None:
  """Runs the command."""
  config, name = cli.config()
  workdir = Path(flags.FLAGS.workdir or f"runs/{name}")
  train.train_and_evaluate(config, workdir)
  print(
    f"{workdir} holds config.json, metrics.jsonl, tensorboard/, checkpoints/"
  )


def _define_flags() -> None:
  flags.DEFINE_string(
    "workdir", None, "Folder of the run; runs/NAME_OF_CONFIG by default."
  )
  cli.define_config()


if __name__ == "__main__":
  cli.run(main, _define_flags)
