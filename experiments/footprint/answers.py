"""Measures the time and memory to import weights and to answer images.

  make peers && python -m experiments.footprint.answers

The full net has random weights in torchvision's file layout; features are
computed of `data/cifar10` (../ablations). Commands run one after another.
Results go to answers.csv and the README.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import alexnet_jax
from alexnet_jax import networks
from alexnet_jax.runs import torch_layout
from alexnet_jax.tools import features
from alexnet_jax.tools.convert import nets
from experiments.footprint.run import run
from experiments.harness import tables

HERE = Path(__file__).parent
TRIALS = 3
WARM = 50
COLUMNS = ["what", "median", "least", "most", "unit", "peak_gb"]


def _write_weights(file: Path) -> None:
  """Writes random weights of torchvision's net, 244 MB."""
  rng = np.random.default_rng(0)
  network = networks.from_config(nets.config_of(nets.NETS["torchvision"], {}))
  state = {
    name: torch.from_numpy(rng.normal(0, 0.02, shape).astype(np.float32))
    for name, shape in torch_layout.shapes(network).items()
  }
  torch.save(state, file)


def _row(what: str, times: list[float], unit: str, peak: float = 0) -> Any:
  row = {"what": what, "unit": unit, "peak_gb": f"{peak:.2f}" if peak else ""}
  for name, pick in (
    ("median", statistics.median), ("least", min), ("most", max),
  ):  # fmt: skip
    row[name] = f"{pick(times):.3g}"
  print(row, flush=True)
  return row


def _commands(what: str, *words: str, outputs: list[Path] | None = None) -> Any:
  """Returns the row of a command that is run a few times."""
  each = []
  for trial in range(TRIALS):
    more = [f"--output={outputs[trial]}"] if outputs else []
    each.append(run(words[0], *words[1:], *more))
  seconds = [figures["seconds"] for figures in each]
  return _row(what, seconds, "s", max(x["peak_gb"] for x in each))


def main() -> None:
  """Measures; writes answers.csv and the table."""
  rng = np.random.default_rng(1)
  rows = []
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
    weights = folder / "alexnet.pth"
    # Linux counts this process's peak memory as that of its children too.
    writer = multiprocessing.get_context("spawn").Process(
      target=_write_weights, args=[weights]
    )
    writer.start()
    writer.join()
    runs = [folder / f"run{trial}" for trial in range(TRIALS)]
    what = f"import of a .pth of {weights.stat().st_size / 1e6:.0f} MB"
    rows.append(_commands(what, "convert", f"--from={weights}", outputs=runs))
    picture = folder / "picture.jpg"
    pixels = rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    asked = ("predict", f"--workdir={runs[0]}", str(picture))
    first = run(*asked)
    what = "one image, by the command, nothing compiled yet"
    rows.append(_row(what, [first["seconds"]], "s", first["peak_gb"]))
    rows.append(_commands("the same, compiled programs kept", *asked))
    small = folder / "small"
    run(
      "train", "--config=alexnet_cifar10", f"--workdir={small}",
      "--config.total_steps=1", "--config.validation_split=",
      "--config.test_split=",
    )  # fmt: skip
    outputs = [folder / f"{trial}.npz" for trial in range(TRIALS)]
    asked = ("features", f"--workdir={small}", "--split=test")
    what = "fc7 of CIFAR-10's 10,000 test images"
    rows.append(_commands(what, *asked, outputs=outputs))
    model = alexnet_jax.load(runs[0])
    times = []
    for _ in range(WARM + 1):
      start = time.perf_counter()
      model.predict([pixels])
      times.append(1000 * (time.perf_counter() - start))
    rows.append(_row("one image, in the library, warm", times[1:], "ms"))
  units = rng.normal(size=(50_000, 4096)).astype(np.float32)
  times = []
  for _ in range(TRIALS):
    start = time.perf_counter()
    features.nearest(units, units[:10], 6)
    times.append(time.perf_counter() - start)
  rows.append(
    _row("nearest of 50,000 x 4,096 features, 10 queries", times, "s")
  )
  tables.write_csv(HERE / "answers.csv", COLUMNS, rows)
  lines = ["| | median | least to most | memory |", "|---|---|---|---|"]
  for row in rows:
    memory = f"{row['peak_gb']} GB" if row["peak_gb"] else ""
    lines.append(
      f"| {row['what']} | {row['median']} {row['unit']} | {row['least']} to"
      f" {row['most']} | {memory} |"
    )
  tables.fill(HERE / "README.md", "answers", lines)


if __name__ == "__main__":
  main()
