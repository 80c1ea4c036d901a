"""Deliberate faults over the whole package, and whether a test catches each.

  .venv/bin/python tests/support/mutants.py [--only=3,7]

Each fault is put into a copy of the tree, where the tests that are named with
it run until the first failure. They have to pass in the copy without the fault.
The exit code is 1 if a fault goes free, or if its text stands no longer there.
"""

import argparse
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# What is wrong; file: tests; text => what takes its place, or - text, + place.
FAULTS = """
# the norm's sum takes in the other tower
ops.py: test_ops.py -k equals
towers, x.shape[-1] // towers) => 1, x.shape[-1])
# the norm takes the mean of the squares
ops.py: test_ops.py -k equals
return k + alpha * window_sum => return k + alpha / 5 * window_sum
# the norm's gradient counts its neighbours half
ops.py: test_ops.py -k equals
dx = scaled - (2 * alpha * beta) => dx = scaled - (alpha * beta)
# the last of equal maxima gets the gradient
ops.py: test_ops.py -k tied
better = candidate > best => better = candidate >= best
# dropout keeps what it should drop
ops.py: test_ops.py -k dropout
bernoulli(key, 1 - rate, whole) => bernoulli(key, rate, whole)
# the norm sums over two channels too few
model.py: test_model.py -k numpy
window = (1, 1, self.window) => window = (1, 1, self.window - 2)
# dropout is not scaled at test
model.py: test_model.py -k dropout
return x if self.rescaled else x * keep => return x
# all dropouts draw the same mask
model.py: test_model.py -k dropout
ops.fold_in(keys_B, self.dropout_index) => ops.fold_in(keys_B, 0)
# all layers start with a sigma of 0.01
model.py: test_model.py -k initial
nn.initializers.normal(self.sigma) => nn.initializers.normal(0.01)
# logits are sums in bfloat16
networks.py: test_model.py -k bfloat16
clone(output_dtype=jnp.float32) => clone(output_dtype=None)
# gradients do not have the precision of the config
steps.py: test_steps.py -k precision
(config.matmul_precision) => ("default")
# the contrast norm divides the deviations
layers/run131.py: test_ops.py -k contrast
return (x * ops.inverse_power => return (deviations * ops.inverse_power
# the contrast norm's mean counts pixels beyond the edge
layers/run131.py: test_ops.py -k contrast
(x, 1, square) / pixels => (x, 1, square) / window**2
# the blur keeps the second pixel first
layers/run131.py: test_ops.py -k blur
np.arange(0, size, stride)[:, None] => np.arange(1, size + 1, stride)[:, None]
# the weights of the blur do not add up to 1
layers/run131.py: test_ops.py -k blur
weights(shifts) / total => weights(shifts)
# all dropouts have one rate
networks.py: test_originals.py -k 177
.get(row, net.dropout_rate) => .get("", net.dropout_rate)
# the mean image is always cropped at the crop's own place
augment.py: test_augment.py -k run_145
if a.mean_crop == "centre": => if False:
# the centre of the mean image is mirrored with the crop
augment.py: test_augment.py -k run_145
- return mirror(view) - crop(mean_image, (margin, margin))
+ return mirror(view - crop(mean_image, (margin, margin)))
# biases that fall by schedule have as many rates as the weights
schedules.py: test_originals.py -k schedules
config.dexp_rates_of_biases => config.dexp_rates
# biases that fall by schedule fall as far as the weights
schedules.py: test_originals.py -k schedules
config.target_factor_of_biases => config.target_factor
# towers never meet
networks.py: test_networks.py
- towers = 1 if sees_all or sees_image else net.towers
+ towers = 1 if sees_image else net.towers
# a dropout's place is counted in its half of the net
networks.py: test_networks.py
- LAYERS[word](net, name, place + len(list(flat(layers))))
+ LAYERS[word](net, name, len(list(flat(layers))))
# a net that has ended goes on
steps.py: parallel/test_layouts.py -k waits
tx, skip | state.plateau.stopped) => tx, skip)
# a loss that is not finite is trained on
steps.py: test_steps.py -k loss_alone
- skip = jnp.any(nonfinite > 0) | ~jnp.isfinite(sums["loss"])
+ skip = jnp.any(nonfinite > 0)
# parts of the batch have the rate of the whole
steps.py: parallel/test_layouts.py -k separate
- sums["loss"] * layout.fc_updates / layout.batch_size
+ sums["loss"] / layout.batch_size
# members of an ensemble share a seed
steps.py: parallel/test_layouts.py -k members_of
- jnp.arange(layout.members, dtype=jnp.uint32) + seed
+ jnp.zeros(layout.members, dtype=jnp.uint32) + seed
# the step changes nothing that is random
augment.py: test_steps.py -k randomness
jax.random.fold_in(jax.random.key(seed), step) => jax.random.key(seed)
# no image is ever mirrored
augment.py: test_augment.py
if a.mirror else False => if False else False
# the last row and column are never in a crop
augment.py: test_augment.py
(2,), 0, margin + 1) => (2,), 0, margin)
# the mean image is not cropped with the image
augment.py: test_augment.py
view - crop(mean_image, corner)) => view - crop(mean_image, (0, 0)))
# colour noise has the variances for deviations
augment.py: test_augment.py
(a.colour_sds * a.colour_noise) => (a.colour_sds**2 * a.colour_noise)
# ten views are five views twice
augment.py: test_augment.py
for mirrored in (0, 1) => for mirrored in (0, 0)
# the rate stands outside of the velocity
optimizer.py: test_optimizer.py
lambda rate, u: -rate * u, now => lambda rate, u: -u, now
jnp.where(rate > 0, v, jnp.zeros_like(v)) => rate * v
# biases decay always
optimizer.py: test_optimizer.py
if path[-1].key == "kernel" or config.weight_decay_of_biases: => if True:
# biases learn at the rate of the weights
optimizer.py: test_optimizer.py
rate = first * config.learning_rate_of_biases => rate = first
# a frozen layer loses its velocity
optimizer.py: test_optimizer.py -k thaws
jnp.where(rate > 0, v, old) => v
# fc layers have the rate of the whole batch
optimizer.py: test_optimizer.py
config, config.fc_batch_size or config.batch_size => config, config.batch_size
# a tie with the best error is an improvement
schedules.py: test_optimizer.py -k plateau
jnp.where(error < self.best_error => jnp.where(error <= self.best_error
# warm-up begins at zero
schedules.py: test_optimizer.py -k warm
- jnp.minimum((step + 1) / warmup_steps, 1.0)
+ jnp.minimum(step / warmup_steps, 1.0)
# epochs are taken for the floats that they are written as
schedules.py: test_optimizer.py -k written
Fraction(str(epochs)) => Fraction(epochs)
# frozen layers have a backward pass
optimizer.py: test_optimizer.py -k never_learn
learns = 0 not in rates or any(rates.values()) => learns = True
# padding counts as examples
metrics.py: test_metrics.py
"examples": jnp.sum(mask_B) => "examples": jnp.float32(mask_B.size)
# the sixth best is among the best five
metrics.py: test_metrics.py
jnp.where(rank_B >= k, => jnp.where(rank_B >= k + k // 5,
# all nets weigh the same
evaluate.py: test_evaluate.py -k weighted
- shares = [net.weight / weight for net in nets]
+ shares = [1 / len(nets) for net in nets]
# the validation that is due is left out
train.py: test_train.py -k writes_what
- run.progress.evaluated = not run.validates_after(run.step)
+ run.progress.evaluated = True
# the worst checkpoint is kept as the best
train.py: runtime/test_processes.py -k best
error >= best => error <= best
# parts of a batch lie as the batch does
parallel/layouts.py: parallel/test_layouts.py -k rows_of_a_part
.swapaxes(0, 1).reshape(-1) => .reshape(-1)
# gradients of split arrays are added up once more
parallel/layouts.py: parallel/test_layouts.py -k "owt_c and changes2"
- for a in self.example_axes if a not in self.axes_of(path))
+ for a in self.example_axes)
# the passes of one weird trick are swapped
parallel/collectives.py: parallel/test_layouts.py -k "owt_c and changes2"
- mine = jnp.split(x, layout.passes)[turn]
+ mine = jnp.split(x, layout.passes)[-1 - turn]
# conv layers get the gradients of the fc updates, not their mean
parallel/one_weird_trick.py: parallel/test_layouts.py -k mean_over
return dx / layout.fc_updates => return dx
# a net that has ended goes on in parts
parallel/one_weird_trick.py: parallel/test_layouts.py -k waits
skip |= state.plateau.stopped => pass
# the last microbatch is left out
parallel/microbatches.py: parallel/test_layouts.py -k "numbers and data-1"
for i in range(1, count): => for i in range(1, count - 1):
# LARS takes the lengths of parts
parallel/lars.py: parallel/test_layouts.py -k "numbers and lars"
collectives.psum_if(squares, split(path)) => squares
# a run that meets a bad example is not saved
runs/ends.py: runs/test_run.py -k bad_example
run.save(wait=False) => pass
# the last lines have the rate of the next step
runs/run.py: runs/test_run.py -k last_lines
self.updates - 1, 0), self.drops) => self.updates - 1, 0), self.plateau.drops)
# the time to compile counts
runtime/platforms.py: runs/test_meter.py -k compile
if event.startswith("/jax/core/compile/"): => if False:
# a resumed run begins the data anew
runs/setup.py: runtime/test_processes.py -k other_devices
stream.set_state(progress.batches) => pass
# a flipped bit of a checkpoint is accepted
runs/digests.py: runs/test_checkpoint.py
if listed == "".join(lines): => if len(listed) == len("".join(lines)):
# a copy of a checkpoint under another number is used
runs/checkpoint.py: runs/test_checkpoint.py -k another_number
if known != step: => if known is None:
# a checkpoint that is removed while it is read is damaged
runs/checkpoint.py: runs/test_checkpoint.py -k readers
if found and folder.lstat().st_ino != inode: => if False:
# a workdir is held by its name
runtime/folders.py: runs/test_run_files.py -k not_of_its_name
return os.path.samestat(file.stat(), os.fstat(lock.fileno())) => return True
# the config of the checkpoint is not compared
runs/run_files.py: runs/test_resuming.py -k config
if newest is not None:  # Whatever => if False:  # Whatever
# a full disk ends a run
runs/saving.py: runs/test_saving.py -k reported
not any(is_full for _, is_full in failures) => any(failures)
# the best checkpoint is removed when it is old
runs/saving.py: runs/test_saving.py
if old != self._best_step: => if old is not None:
# records after the checkpoint are kept
runs/logs.py: runs/test_logs.py
record["step"] < start_step => record["step"] >= 0
# a net at chance lowers its rate
runs/ends.py: runs/test_run.py -k at_chance
np.where(learns, new, old) => new
# the validation of an earlier end acts on a longer run
train.py: runs/test_longer.py -k within_a_period
run.config.schedule == "plateau" and run.ends_period(run.step): => True:
# a run whose rates depend on its length may become longer
runs/run_files.py: runs/test_longer.py -k fix_it
if config[name] in ("linear", "exp", "dexp"): => if config[name] == "linear":
# the test of an earlier end stays
runs/logs.py: runs/test_longer.py -k another_length
evaluated and not goes_on and => evaluated and
# what the clock shows is lost to the log
runs/run.py: runs/test_banner.py -k says_what
self.meter.take(keep=True) => self.meter.take()
# a workdir takes a run of any config
runs/run_files.py: runs/test_run_files.py
for name in (*MAY_CHANGE_ON_RESUME, *LENGTH): => for name in there:
# a finetuned net subtracts the mean of its own data
runs/run_data.py: test_finetune.py -k net_and_input
if config.init_inherits:  # The => if False:  # The
# padding is taken for an example
data/batches.py: data/test_batches.py -k evaluation
is_real = indices < count => is_real = indices <= count
# every pass has the same order
data/batches.py: data/test_batches.py -k passes
Philox(key=[self._seed, epoch]) => Philox(key=[self._seed, 0])
# members of an ensemble see the same order
data/feed.py: data/test_feed.py
config.seed + int(member) => config.seed
# hosts of unequal memory choose different feeds
data/feed.py: data/test_feed.py -k unequal
min(hosts.gather(_device_memory(mesh))) => _device_memory(mesh)
# the mean that a killed run left is taken for that of other images
runs/run_data.py: runs/test_run_data.py -k anew
if not stats or stats.measured_of != measured_of: => if not stats:
# splits that share examples are not told of
data/checks.py: runs/test_run_data.py -k shared
if a.filename == b.filename => if a is b
# a trained net takes data of another size
data/checks.py: runs/test_run_data.py -k another_size
height and height == width != size_px => False
# the memory that a parent's cgroup leaves is not asked for
runtime/machine.py: runtime/test_machine.py
(folder, *folder.parents) => (folder,)
# a turned picture stays as it is
data/decode.py: data/test_decode.py -k turned
return ImageOps.exif_transpose(image) => return image
# the colours' covariance is about black
data/statistics.py: data/test_checks.py -k missing
self.products / pixels - np.outer(mean, mean) => self.products / pixels
# labels begin at 1
data/prepare/splits.py: data/prepare/test_splits.py
- for number, name in enumerate(order)}
+ for number, name in enumerate(order, 1)}
# the order of the classes is reversed
data/prepare/splits.py: data/prepare/test_splits.py
- sorted(known, key=(lambda n: (int(n), n)) if numbers else None)
+ sorted(known, reverse=True)
# ImageNet's validation labels are off by one
data/prepare/ilsvrc.py: data/prepare/test_ilsvrc.py
enumerate(truth.split(), start=1) => enumerate(truth.split())
# shards of other options are taken for finished
data/prepare/shards.py: data/prepare/test_prepare.py -k "option or unfinished"
- result["key"] == self._key() and result["size"] == size
+ result["size"] == size
# the generated pictures are of the next class
data/prepare/shapes.py: data/prepare/test_shapes.py
- draw(seed[-1] % len(CLASSES), seed, size_px)
+ draw((seed[-1] + 1) % len(CLASSES), seed, size_px)
# large numbers are taken for infinite
runtime/platforms.py: runtime/test_platforms.py
(rows @ jnp.zeros(x.shape[-1], x.dtype)).sum() => rows.sum()
# bad input ends with exit code 0
runtime/cli.py: runtime/test_cli.py
sys.exit(1) => sys.exit(0)
# Caffe's alpha is taken for a factor of the sum
tools/convert/caffe.py: tools/convert/test_convert_in.py -k caffe
alpha = lrn.alpha / lrn.window => alpha = lrn.alpha
# Caffe's filters take RGB for BGR
tools/convert/command.py: tools/convert/test_convert_in.py -k caffe
if known.bgr: => if False:
# inputs of fc6 run channel by channel
runs/torch_layout.py: tools/convert/test_convert_in.py -k torchvision
kernel = maps.transpose(2, 1, 0) => kernel = maps.transpose(1, 2, 0)
# an exported net lacks the factor of dropout
tools/convert/onnx_graph.py: tools/convert/test_convert_out.py -k runtime
np.float32(1 - layer.rate) => np.float32(1)
# of ten views the first alone is taken
tools/inference.py: tools/test_inference.py
sum(parts) / len(parts) => parts[0]
# the farthest image is the nearest
tools/features.py: tools/test_features.py -k nearest
return distances_QxN.argsort( => return (-distances_QxN).argsort(
# the plan forgets the momentum
tools/plan/costs.py: tools/test_plan.py -k memory
"momentum": stored => "momentum": 0
# an interval has the deviation for the standard error
tools/report/tables.py: tools/test_report.py -k interval
stats.sem(values) => np.std(values, ddof=1)
"""


class Fault(NamedTuple):
  """Texts of a file, what takes their places, and tests that should fail."""

  title: str
  file: str
  tests: str
  changes: list[tuple[str, str]]


def parse(text: str) -> list[Fault]:
  """Returns the faults of a list like `FAULTS`."""
  found = []
  for part in text.strip().removeprefix("# ").split("\n# "):
    title, where, changes = part.split("\n", 2)
    changes = re.sub(r"^- (.*)\n\+ (.*)$", r"\1 => \2", changes, flags=re.M)
    pairs = [tuple(line.split(" => ")) for line in changes.split("\n")]
    found.append(Fault(title, *where.split(": "), pairs))
  return found


def copy_tree(target: Path) -> None:
  """Copies what git knows of, as it is now."""
  listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT)
  for name in filter(None, listed.decode().split("\0")):
    if (ROOT / name).exists():
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(ROOT / name, target / name, follow_symlinks=False)


def failing_test(tree: Path, tests: str) -> str:
  """Returns the first test that fails in a tree, "" if none does."""
  file, *rest = tests.split(" ", 1)
  chosen = ["-k", rest[0].removeprefix("-k ").strip('"')] if rest else []
  result = subprocess.run(
    [sys.executable, "-m", "pytest", "-x", "-n0", f"tests/{file}", *chosen],
    cwd=tree,
    env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    capture_output=True,
    text=True,
  )
  if result.returncode == 0:
    return ""
  names = re.findall(r"^(?:FAILED|ERROR) \S*::(.*?)(?: - |$)", result.stdout, 8)
  return names[0] if names else f"exit code {result.returncode}"


def main() -> None:
  """Tries the faults, and ends with exit code 1 if one goes free."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--only", help="Numbers of faults, as they are printed.")
  only = parser.parse_args().only
  numbers = {int(number) for number in only.split(",")} if only else set()
  free = 0
  with tempfile.TemporaryDirectory() as folder:
    tree = Path(folder)
    copy_tree(tree)
    failing_now = functools.cache(lambda tests: failing_test(tree, tests))
    for number, fault in enumerate(parse(FAULTS), start=1):
      if numbers and number not in numbers:
        continue
      file = tree / "alexnet_jax" / fault.file
      text = changed = file.read_text()
      for old, new in fault.changes:
        changed = changed.replace(old, new)
      if any(text.count(old) != 1 for old, _ in fault.changes):
        verdict = "FREE: its text does not stand there once"
      elif failing := failing_now(fault.tests):
        verdict = f"FREE: without it fails {failing}"
      else:
        file.write_text(changed)
        failing = failing_test(tree, fault.tests)
        file.write_text(text)
        verdict = f"caught by {failing}" if failing else "FREE"
      free += verdict.startswith("FREE")
      print(f"{number:3} {fault.title} ({fault.file}): {verdict}", flush=True)
  print(f"{free} go free")
  sys.exit(free > 0)


if __name__ == "__main__":
  main()
