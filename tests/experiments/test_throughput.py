"""Tests of experiments/throughput: it times what is the same."""

import os
import shutil
import subprocess
import sys

import pytest
from tiny_runs import ROOT

THROUGHPUT = ROOT / "experiments" / "throughput"


def run(script, *flags):
  """Runs a script of the experiment; returns what it printed."""
  pytest.importorskip("torch")
  found = subprocess.run(
    [sys.executable, THROUGHPUT / script, *flags],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  assert found.returncode == 0, found.stdout
  return found.stdout


@pytest.mark.slow
def test_torchs_net_gives_our_logits_gradients_updates_and_answers():
  found = run("guard.py", "--nets=cifar10", "--batch=2")
  assert "both sides agree" in found


def test_recorded_rows_give_the_recorded_tables_and_none_may_lack(tmp_path):
  for name in ("results.csv", "about.json", "README.md"):
    shutil.copy(THROUGHPUT / name, tmp_path)
  run("run.py", "--draw", f"--out={tmp_path}")
  expected = (THROUGHPUT / "README.md").read_text()
  assert (tmp_path / "README.md").read_text() == expected
  results = tmp_path / "results.csv"
  lines = results.read_text().splitlines()
  kept = [line for line in lines if "two_tower,32,train,eager," not in line]
  assert len(kept) < len(lines)
  results.write_text("\n".join(kept) + "\n")
  with pytest.raises(AssertionError, match="no row for"):
    run("run.py", "--draw", f"--out={tmp_path}")
