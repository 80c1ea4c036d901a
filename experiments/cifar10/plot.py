"""Draws the learning curves of the run recorded beside this file.

python experiments/cifar10/plot.py
"""

import json
from pathlib import Path

from matplotlib import pyplot as plt

HERE = Path(__file__).parent
GOAL = 0.30


def main() -> None:
  """Reads metrics.jsonl and writes curves.png."""
  lines = (HERE / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  figure, (loss, error) = plt.subplots(1, 2, figsize=(9, 3.4))
  styles = {
    "train": {"lw": 1, "alpha": 0.7},
    "validation": {"marker": "o", "ms": 3},
    "test": {"marker": "*", "ms": 11, "ls": "none"},
  }
  for split, style in styles.items():
    found = [record for record in records if record["split"] == split]
    if not found:
      raise SystemExit(f"metrics.jsonl has no {split} records")
    epochs = [record["epoch"] for record in found]
    loss.plot(epochs, [r["loss"] for r in found], label=split, **style)
    errors = [100 * r["top1_error"] for r in found]
    error.plot(epochs, errors, label=split, **style)
  error.axhline(100 * GOAL, color="grey", ls=":", lw=1)
  error.annotate("goal", (0, 100 * GOAL), va="bottom", color="grey")
  loss.set(xlabel="epoch", ylabel="cross-entropy, nats")
  error.set(xlabel="epoch", ylabel="top-1 error, %")
  error.legend(frameon=False)
  for axes in (loss, error):
    axes.spines[["top", "right"]].set_visible(False)
  figure.suptitle("Four-layer net on CIFAR-10")
  figure.tight_layout()
  figure.savefig(HERE / "curves.png", dpi=120)


if __name__ == "__main__":
  main()
