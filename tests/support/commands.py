"""Commands as users run them, and what each does with bad input."""

import subprocess
import sys
from pathlib import Path


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
