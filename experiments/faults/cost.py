"""What saving, verifying and resuming cost, with the paper's whole net.

  python experiments/faults/cost.py

Saving: seconds that one save adds to steps of batch 32, rounds with a save and
rounds without taking turns. Verifying: the command's work on that checkpoint.
Resuming: the command, killed after its first checkpoint, from its start to the
first step done, of batch 128. Results go to cost.csv.
"""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from alexnet_jax import augment, networks, optimizer, steps
from alexnet_jax.configs import alexnet
from alexnet_jax.parallel import layouts, placement
from alexnet_jax.runs import checkpoint, digests, logs, states
from alexnet_jax.runs.saving import Saver
from alexnet_jax.runtime import platforms

HERE = Path(__file__).parent
ROUNDS, STEPS = 5, 6
BATCH = 32


def saving(folder: Path) -> list[dict[str, float]]:
  """Returns the seconds of rounds of steps, without and with a save."""
  config = alexnet.get_config()
  config.batch_size, config.checkpoints_to_keep = BATCH, 1
  net = networks.make_model(config)
  layout = layouts.from_config(config, net.network, 1)
  mesh = placement.make_mesh(1)
  tx, _ = optimizer.from_config(config, 1000, 1000, layout.axes_of)
  augmentation = augment.Augmentation(
    crop_size_px=224,
    random_crop=True,
    mirror=True,
    images_per_view=1,
    colour_noise=0.1,
    colour_noise_steps=2**31 - 1,
    colour_noise_divisor=1.0,
    mean_image=np.full((256, 256, 3), 120, np.float32),
    colour_axes=np.eye(3, dtype=np.float32),
    colour_sds=np.full(3, 50, np.float32),
  )
  state = states.init_state([states.init_params(net, 0)], tx)
  state = jax.device_put(state, placement.shardings(mesh, placement.REPLICATED))
  step = steps.make_step(config, net, tx, augmentation, layout, mesh)
  step = platforms.jit(step, donate_argnums=0)
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (BATCH, 256, 256, 3), dtype=np.uint8),
    "label": rng.integers(0, 1000, BATCH).astype(np.int32),
  }
  batch = placement.put_batch(mesh, layout.batch_spec, (BATCH,), batch)
  rows = []
  folder.mkdir()
  log = logs.Logger(folder, 0, True, 1, is_first=False)
  with Saver(folder, config, log) as saver:
    for turn in range(ROUNDS + 1):  # The first compiles.
      seconds = {}
      for saves in (False, True):
        start = time.perf_counter()
        if saves:
          saver.save(state, checkpoint.Progress({}, {}))
        blocked = time.perf_counter() - start
        for _ in range(STEPS):
          state, sums = step(state, batch)
          jax.block_until_ready(sums)
        seconds[saves] = time.perf_counter() - start
        running = saver._thread is not None and saver._thread.is_alive()
        saver.wait()
      if turn:
        rows.append(
          {
            "without_s": round(seconds[False], 2),
            "with_s": round(seconds[True], 2),
            "blocked_s": round(blocked, 2),
            "outlasted_the_steps": running,
          }
        )
        print(rows[-1], flush=True)
  return rows


def verifying(folder: Path) -> tuple[float, list[float]]:
  """Returns the size of a checkpoint in MB and the seconds of each look."""
  (step,) = checkpoint.steps_of(folder)
  saved = folder / "checkpoints" / str(step)
  size = sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
  seconds = []
  for _ in range(ROUNDS):
    start = time.perf_counter()
    assert not digests.problem(saved)
    seconds.append(round(time.perf_counter() - start, 2))
  return size / 1e6, seconds


def resuming(folder: Path) -> list[dict[str, float]]:
  """Returns seconds to what a resumed run says."""
  rng = np.random.default_rng(0)
  for number in range(1000):
    image = folder / "photos" / f"class{number:03}" / "0.jpg"
    image.parent.mkdir(parents=True)
    pixels = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
  data = folder / "data"
  subprocess.run(
    [sys.executable, "-m", "alexnet_jax", "prepare",
     f"--source={folder / 'photos'}", f"--output={data}"],
    check=True, stdout=subprocess.DEVNULL,
  )  # fmt: skip
  workdir = folder / "run"
  command = [
    sys.executable, "-m", "alexnet_jax", "train", "--config=alexnet",
    f"--workdir={workdir}", f"--config.data_dir={data}",
    "--config.validation_split=", "--config.test_split=",
    "--config.schedule=epochs", "--config.total_steps=1000",
    "--config.log_every_steps=1", "--config.checkpoint_every_steps=1",
  ]  # fmt: skip
  rows = []
  for turn in range(ROUNDS + 1):
    start = time.perf_counter()
    process = subprocess.Popen(
      command, cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True,
      env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout
    seen = {}
    for line in process.stdout:
      now = round(time.perf_counter() - start, 1)
      if line.startswith("resuming"):
        seen["restored_s"] = now
      if line.startswith("step "):
        name = "first_step_s" if "first_step_s" not in seen else "second_step_s"
        seen[name] = now
        if name == "second_step_s" and len(checkpoint.steps_of(workdir)):
          break
    process.kill()
    process.wait()
    if turn:
      rows.append(seen)
      print(seen, flush=True)
  return rows


def main() -> None:
  """Measures and writes cost.csv."""
  rows = []

  def put(what: str, values: list[float]) -> None:
    rows.append(
      {
        "what": what,
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "of": len(values),
      }
    )
    print(rows[-1], flush=True)

  with tempfile.TemporaryDirectory() as name:
    rounds = saving(Path(name) / "saved")
    put("steps without a save, s", [r["without_s"] for r in rounds])
    put("steps with a save, s", [r["with_s"] for r in rounds])
    put("a save adds, s", [r["with_s"] - r["without_s"] for r in rounds])
    put("of it before the next step, s", [r["blocked_s"] for r in rounds])
    size, seconds = verifying(Path(name) / "saved")
    put(f"verifying {size:.0f} MB, s", seconds)
    rounds = resuming(Path(name))
    put("start to restored, s", [r["restored_s"] for r in rounds])
    put("start to first step done, s", [r["first_step_s"] for r in rounds])
    between = [r["second_step_s"] - r["first_step_s"] for r in rounds]
    put("of it about a step, s", between)
  with (HERE / "cost.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
  main()
