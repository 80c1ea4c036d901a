"""Tests of experiments/throughput: it times what is the same."""

import subprocess
import sys
from pathlib import Path

import pytest

THROUGHPUT = Path(__file__).parents[2] / "experiments" / "throughput"


@pytest.fixture(autouse=True)
def _torch():
  pytest.importorskip("torch")


def run(script, *flags):
  """Runs a script of the experiment; returns what it printed."""
  found = subprocess.run(
    [sys.executable, THROUGHPUT / script, *flags],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  assert found.returncode == 0, found.stdout
  return found.stdout


@pytest.mark.slow
def test_torchs_net_gives_our_logits_gradients_updates_and_answers():
  found = run("guard.py", "--nets=two_tower", "--batch=2")
  assert "both sides agree" in found


@pytest.mark.slow
def test_a_quick_run_fills_every_row_and_a_missing_row_ends_it(tmp_path):
  flags = [f"--out={tmp_path}", "--nets=cifar10", "--nocompiled"]
  run("run.py", "--quick", *flags)
  assert (tmp_path / "throughput.png").exists()
  assert "| cifar10 | 2 | train |" in (tmp_path / "README.md").read_text()

  results = tmp_path / "results.csv"
  lines = results.read_text().splitlines()
  kept = [line for line in lines if ",train,eager," not in line]
  assert len(kept) == len(lines) - 1
  results.write_text("\n".join(kept) + "\n")
  with pytest.raises(AssertionError, match="no row for"):
    run("run.py", "--draw", *flags)
