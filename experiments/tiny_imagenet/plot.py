"""Draws the errors of both runs, one after the other.

python experiments/tiny_imagenet/plot.py
"""

import json
from pathlib import Path

from matplotlib import pyplot as plt

HERE = Path(__file__).parent
LABELS = {"train": "train, random crops", "validation": "validation, centre"}


def main() -> None:
  """Reads first.jsonl and second.jsonl; writes curves.png."""
  figure, axes = plt.subplots(figsize=(6, 3.4))
  passed = 0.0
  for name in ("first", "second"):
    lines = (HERE / f"{name}.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for split, width in (("train", 0.8), ("validation", 1.8)):
      found = [record for record in records if record["split"] == split]
      axes.plot(
        [passed + record["epoch"] for record in found],
        [100 * record["top1_error"] for record in found],
        color={"train": "C0", "validation": "C1"}[split],
        label=LABELS[split] if name == "first" else None,
        linewidth=width,
      )
    passed += records[-1]["epoch"]
    if name == "first":
      axes.axvline(passed, color="grey", ls=":", lw=1)
  axes.set(xlabel="epoch", ylabel="top-1 error, %")
  axes.legend(frameon=False)
  axes.spines[["top", "right"]].set_visible(False)
  figure.tight_layout()
  figure.savefig(HERE / "curves.png", dpi=120)


if __name__ == "__main__":
  main()
