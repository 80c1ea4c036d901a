"""Verifies a run's checkpoints, or prints a digest of its parameters.

  alexnet checkpoint verify --workdir=DIR
  alexnet checkpoint digest --workdir=DIR

`verify` compares every file of every checkpoint with its SHA-256. `digest`
prints one SHA-256 of the parameters: runs that agree to the bit have the same.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from alexnet_jax.runs import checkpoint, run_files
from alexnet_jax.runtime import errors


def _verify(workdir: Path) -> None:
  """Prints a line for each good checkpoint; raises for damaged ones."""
  good, damaged = [], []
  while not good and not damaged:
    steps = checkpoint.steps_of(workdir)
    for step in steps or [checkpoint.find_step(workdir, "newest")]:
      # A run may remove it meanwhile.
      with contextlib.suppress(FileNotFoundError):
        if problem := checkpoint.problem(workdir, step):
          damaged.append(f"step {step}: {problem}")
        else:
          good.append(step)
          print(f"step {step}: good")
  if damaged:
    raise errors.InputError(
      f"workdir={str(workdir)!r} has damaged checkpoints:"
      f" {errors.first_few(damaged, 3, between='; ')}. The next run resumes"
      " from the newest good one."
    )


def main(words: Sequence[str]) -> None:
  workdir = run_files.find_run(flags.FLAGS.workdir)
  match words[1:]:
    case ["verify"]:
      _verify(workdir)
    case ["digest"]:
      step, params = checkpoint.load_params(workdir, flags.FLAGS.step)
      print(f"{checkpoint.digest(params)}  params of step {step}")
    case _:
      raise errors.InputError(
        f"{' '.join(words[1:])!r} is no task; write verify or digest."
      )


def define_flags() -> None:
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_string("step", "newest", "Of digest: newest, best or a step.")
