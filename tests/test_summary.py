"""The architecture table as printed."""

import subprocess
import sys
from pathlib import Path


def test_summary_prints_the_papers_layers_and_totals():
  result = subprocess.run(
    [
      sys.executable,
      "-m",
      "alexnet_jax.summary",
      "--config=configs/alexnet.py",
    ],
    cwd=Path(__file__).parents[1],
    capture_output=True,
    text=True,
    check=True,
  )
  lines = {
    line.split()[0]: line for line in result.stdout.splitlines() if line.split()
  }
  assert "60,965,224" in lines["total"]
  assert "724,406,816" in lines["total"]
  assert "2 x 128 of 5 x 5 / 1" in lines["conv2"]
  assert "55 x 55 x 96" in lines["conv1"]
  assert "37,752,832" in lines["fc6"]
