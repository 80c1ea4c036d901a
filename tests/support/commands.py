"""Commands as users run them, and what each does with bad input."""

import contextlib
import signal
import subprocess
import sys
import warnings
from pathlib import Path

from absl import flags


def run_command(name, *arguments):
  """Runs `alexnet NAME` to its end."""
  return subprocess.run(
    [sys.executable, "-m", "alexnet_jax", name, *arguments],
    cwd=Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=False,
  )


def assert_refused(result, *words):
  """Exit code 1 and one line that holds the words; no traceback."""
  assert result.returncode == 1, result.stdout + result.stderr
  assert "Traceback" not in result.stderr
  (line,) = (x for x in result.stderr.splitlines() if x.startswith("error:"))
  for word in words:
    assert word in line


@contextlib.contextmanager
def command_line(*words):
  """Sets a command line, with absl's flags as a new process has them."""
  argv, names = sys.argv, set(flags.FLAGS)
  on_sigterm = signal.getsignal(signal.SIGTERM)
  sys.argv = list(words)
  try:
    with warnings.catch_warnings():
      # ml_collections loads a config by a deprecated method.
      warnings.simplefilter("ignore")
      yield
  finally:
    sys.argv = argv
    signal.signal(signal.SIGTERM, on_sigterm)
    for name in set(flags.FLAGS) - names:
      delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["pytest"])


def run_in_process(capsys, name, *arguments):
  """Runs `alexnet NAME` in this process; returns what `run_command` does."""
  from alexnet_jax.tools import commands

  words = ["alexnet", name, *map(str, arguments)]
  code = 0
  with command_line(*words):
    try:
      commands.main()
    except SystemExit as e:
      code = e.code or 0
  return subprocess.CompletedProcess(words, code, *capsys.readouterr())
