"""Times each operation of a step beside torch's, forward and backward.

  python experiments/throughput/layers.py --net=two_tower --batch=128

Both sides are in this process, trials alternate. Beside each stand the least
times that arithmetic and memory allow on this machine, so that the widest gap
is plain to see. Results go to profile.csv and README.md.
"""

import argparse
import csv
import dataclasses
import functools
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import inputs
import jax
import jax.numpy as jnp
import numpy as np
import optax
import ours
import report
import torch  # pyright: ignore[reportMissingImports]
import torch_nets
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from alexnet_jax import augment, metrics, model, networks, ops, optimizer
from alexnet_jax.model import (
  Activation,
  Conv,
  Dense,
  Dropout,
  LocalResponseNorm,
  MaxPool,
  Row,
)
from alexnet_jax.parallel import collectives
from alexnet_jax.runs import states
from alexnet_jax.runtime import platforms

HERE = Path(__file__).parent
TRIALS = 5
TRIAL_S = 0.3
COPIED = 2**28
"""Bytes of the array whose copy tells the bandwidth."""


@dataclasses.dataclass(frozen=True)
class Operation:
  """One row of the profile.

  Attributes:
    name: of the layer.
    way: forward, backward, or to which of its inputs.
    ours: runs it to the end.
    torchs: likewise.
    flops: that it takes.
    numbers: that it must read and write.
  """

  name: str
  way: str
  ours: Callable[[], Any]
  torchs: Callable[[], Any]
  flops: float
  numbers: float


def _jit(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
  """Returns a call of the jitted function that ends when it is done."""
  jitted = platforms.jit(function)
  return lambda: jax.block_until_ready(jitted(*arguments))


def _pull_back(
  function: Callable[..., Any], *arguments: Any
) -> tuple[Callable[[], Any], Any]:
  """Returns the forward pass in training, and what it leaves for backward."""
  forward = functools.partial(jax.vjp, function)
  run = _jit(forward, *arguments)
  return run, run()[1]


def _waited(function: Callable[[], Any]) -> Callable[[], Any]:
  """Returns a call of torch that ends when it is done."""

  def run() -> None:
    function()
    torch_nets.wait()

  return run


def _tensor(x: jax.Array) -> Any:
  """Returns the same for torch, maps in channels_last."""
  y = torch.tensor(np.asarray(x.astype(jnp.float32))).to(torch_nets.device())
  if x.dtype == jnp.bfloat16:
    y = y.bfloat16()
  return y.permute(0, 3, 1, 2) if y.ndim == 4 else y


class Profile:
  """The operations of a net, each on random numbers of its shapes."""

  def __init__(self, net: str, batch_size: int):
    """Takes the table of the net."""
    half = not ours.is_cpu()
    self.config = inputs.config_of(net, batch_size, half)
    self.batch = batch_size
    self.dtype = jnp.dtype(self.config.compute_dtype)
    self.network = networks.from_config(self.config)
    self.rng = np.random.default_rng(0)

  def _random(self, *shape: int) -> jax.Array:
    values = self.rng.standard_normal(shape, np.float32)
    return jnp.asarray(values, self.dtype)

  def operations(self) -> Iterator[Operation]:
    """Yields the operations from images to the update."""
    yield self._augmentation()
    size = self.network.input_size_px
    shape: tuple[int, ...] = (size, size, 3)
    place = ""
    for number, row in enumerate(networks.rows(self.network)):
      layer = row.layer
      match layer:
        case Conv():
          place = layer.name or ""
          yield from self._conv(layer, shape, row, first=number == 0)
        case Dense():
          place = layer.name or ""
          yield from self._dense(layer, shape, row)
        case Activation():
          yield from self._activation(place, layer, shape)
        case LocalResponseNorm():
          yield from self._norm(place, layer, shape)
        case MaxPool():
          yield from self._pool(place, layer, shape, row)
        case Dropout():
          yield from self._dropout(place, layer, shape)
      shape = row.output_shape
    yield self._loss(shape[0])
    yield self._update()

  def _weighted(
    self,
    name: str,
    row: Row,
    mine: tuple[Callable[..., Any], tuple[jax.Array, ...]],
    theirs: tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]],
    first: bool,
  ) -> Iterator[Operation]:
    """Yields a layer with a kernel: forward, and both gradients apart."""
    function, (x, kernel, bias) = mine
    dy = self._random(self.batch, *row.output_shape)
    _, pull_back = _pull_back(function, x, kernel, bias)
    flops = 2.0 * row.macs * self.batch
    numbers = x.size + kernel.size + dy.size
    forward, input_gradient, kernel_gradient = map(_waited, theirs)
    yield Operation(
      name, "forward", _jit(function, x, kernel, bias), forward, flops, numbers
    )
    if not first:
      yield Operation(
        *(name, "input gradient", _jit(lambda p, d: p(d)[0], pull_back, dy)),
        *(input_gradient, flops, numbers),
      )
    yield Operation(
      *(name, "kernel gradient", _jit(lambda p, d: p(d)[1:], pull_back, dy)),
      *(kernel_gradient, flops, numbers),
    )

  def _conv(
    self, layer: Conv, shape: Any, row: Row, first: bool
  ) -> Iterator[Operation]:
    inside = shape[-1] // layer.towers
    x = self._random(self.batch, *shape)
    kernel = self._random(layer.kernel, layer.kernel, inside, layer.filters)
    bias = self._random(layer.filters)
    function = functools.partial(
      ops.conv,
      stride=layer.stride,
      padding=layer.padding,
      ceil_mode=layer.ceil_mode,
      towers=layer.towers,
    )
    past = torch_nets.overhang(shape[0], layer)
    last = torch.channels_last
    tx = F.pad(_tensor(x), (0, past, 0, past)).contiguous(memory_format=last)
    w = _tensor(kernel.transpose(3, 0, 1, 2)).contiguous(memory_format=last)
    b = _tensor(bias)
    strides, pads = [layer.stride] * 2, [layer.padding] * 2
    dy = torch.randn_like(F.conv2d(tx, w, b, strides, pads, 1, layer.towers))

    def gradient(*mask: bool) -> Callable[[], Any]:
      return lambda: torch.ops.aten.convolution_backward(
        *(dy, tx, w, [layer.filters], strides, pads, [1, 1], False, [0, 0]),
        *(layer.towers, mask),
      )

    yield from self._weighted(
      layer.name or "",
      row,
      (function, (x, kernel, bias)),
      (
        lambda: F.conv2d(tx, w, b, strides, pads, 1, layer.towers),
        gradient(True, False, False),
        gradient(False, True, True),
      ),
      first,
    )

  def _dense(self, layer: Dense, shape: Any, row: Row) -> Iterator[Operation]:
    x = self._random(self.batch, *shape)
    kernel = self._random(shape[0] // layer.towers, layer.units)
    bias = self._random(layer.units)
    tx, w, b = _tensor(x), _tensor(kernel).T.contiguous(), _tensor(bias)
    dy = torch.randn_like(F.linear(tx, w, b))
    yield from self._weighted(
      layer.name or "",
      row,
      (functools.partial(ops.dense, towers=layer.towers), (x, kernel, bias)),
      (
        lambda: F.linear(tx, w, b),
        lambda: dy @ w,
        lambda: (dy.T @ tx, dy.sum(0)),
      ),
      first=False,
    )

  def _both_ways(
    self,
    name: str,
    mine: Callable[[jax.Array], jax.Array],
    theirs: Callable[[Any], Any],
    shape: Any,
    numbers: tuple[float, float],
  ) -> Iterator[Operation]:
    """Yields a layer without parameters, forward and backward."""
    x = self._random(self.batch, *shape)
    forward, pull_back = _pull_back(mine, x)
    y, _ = forward()
    dy = self._random(*y.shape)
    tx = _tensor(x).requires_grad_()
    ty, tdy = theirs(tx), _tensor(dy)
    yield Operation(
      name, "forward", forward, _waited(lambda: theirs(tx)), 0, numbers[0]
    )
    yield Operation(
      *(name, "backward", _jit(lambda p, d: p(d), pull_back, dy)),
      _waited(lambda: torch.autograd.grad(ty, tx, tdy, retain_graph=True)),
      *(0, numbers[1]),
    )

  def _activation(
    self, place: str, layer: Activation, shape: Any
  ) -> Iterator[Operation]:
    count = self.batch * math.prod(shape)
    mine = ops.ACTIVATIONS[layer.function]
    yield from self._both_ways(
      f"{place} {layer.function}", mine, F.relu, shape, (2 * count, 3 * count)
    )

  def _norm(
    self, place: str, layer: LocalResponseNorm, shape: Any
  ) -> Iterator[Operation]:
    count = self.batch * math.prod(shape)
    window = (1, 1, layer.window)
    arguments = (layer.towers, window, layer.k, layer.alpha, layer.beta)
    x = _tensor(self._random(self.batch, *shape)).requires_grad_()

    def both_ways(norm: Callable[..., Any]) -> None:
      norm(x, layer.towers, layer).backward(x.detach())

    norm = min(
      torch_nets.NORMS.values(),
      key=lambda norm: torch_nets.seconds(lambda: both_ways(norm)),
    )
    yield from self._both_ways(
      f"{place} lrn",
      lambda x: ops.response_norm(x, *arguments),
      lambda x: norm(x, layer.towers, layer),
      shape,
      (2 * count, 3 * count),
    )

  def _pool(
    self, place: str, layer: MaxPool, shape: Any, row: Row
  ) -> Iterator[Operation]:
    count = math.prod(shape) + math.prod(row.output_shape)
    yield from self._both_ways(
      f"{place} max_pool",
      lambda x: ops.max_pool(x, layer.window, layer.stride),
      lambda x: F.max_pool2d(x, layer.window, layer.stride, ceil_mode=True),
      shape,
      (self.batch * count, self.batch * count),
    )

  def _dropout(
    self, place: str, layer: Dropout, shape: Any
  ) -> Iterator[Operation]:
    count = self.batch * math.prod(shape)
    keys = jax.random.split(jax.random.key(0), self.batch)
    keep = 1 if layer.rescaled else 1 - layer.rate
    yield from self._both_ways(
      f"{place} dropout",
      lambda x: ops.dropout(x, keys, layer.rate),
      lambda x: F.dropout(x, layer.rate) * keep,
      shape,
      (2 * count, 2 * count),
    )

  def _augmentation(self) -> Operation:
    mine = augment.from_config(self.config, inputs.statistics(self.config))
    images, _ = inputs.examples(self.config, self.batch)
    views, there = torch_nets.Views(self.config), torch.from_numpy(images)
    there = there.to(torch_nets.device())
    spelling = min(
      views.SPELLINGS,
      key=lambda s: torch_nets.seconds(lambda: views.random(there, s)),
    )
    made = self.batch * 3 * self.network.input_size_px**2
    return Operation(
      *("augmentation", "forward"),
      _jit(
        functools.partial(ours.random_views, augmentation=mine),
        *(jnp.asarray(images), jnp.int32(0)),
      ),
      _waited(lambda: views.random(there, spelling)),
      0,
      # A crop is bytes at first.
      made * (1 + 1 / self.dtype.itemsize),
    )

  def _loss(self, classes: int) -> Operation:
    logits = self._random(self.batch, classes).astype(jnp.float32)
    labels = jnp.zeros(self.batch, jnp.int32)
    there = _tensor(logits).requires_grad_()
    at = torch.zeros(self.batch, dtype=torch.long, device=torch_nets.device())

    def loss(logits: jax.Array, labels: jax.Array) -> Any:
      ones = jnp.ones(labels.shape)
      sums = metrics.sums(logits, labels, ones)
      return sums["loss"] / self.batch, sums

    return Operation(
      *("softmax loss", "both"),
      _jit(jax.value_and_grad(loss, has_aux=True), logits, labels),
      _waited(lambda: torch.autograd.grad(F.cross_entropy(there, at), there)),
      *(0, 2 * logits.size),
    )

  def _update(self) -> Operation:
    """The step's own: the optimizer, and its look for what is not finite."""
    net = model.AlexNet(self.network, self.dtype)
    params = states.init_params(net, 0)
    tx, _ = optimizer.from_config(self.config, 1_281_167, 10**6)
    count = sum(x.size for x in jax.tree.leaves(params))

    def update(params: Any, velocity: Any, grads: Any) -> Any:
      flags = jax.tree.leaves(collectives.nonfinite_flags(grads))
      skip = jnp.any(jnp.stack(flags) > 0)
      zero = jnp.int32(0)
      updates, new = tx.update(grads, velocity, params, step=zero, drops=zero)
      return jax.tree.map(
        lambda old, updated: jnp.where(skip, old, updated),
        (params, velocity),
        (optax.apply_updates(params, updates), new),
      )

    jitted = platforms.jit(update, donate_argnums=(0, 1))
    grads = jax.tree.map(jnp.zeros_like, params)
    held = [params, tx.init(params)]

    def mine() -> None:
      held[:] = jax.block_until_ready(jitted(*held, grads))

    module = torch_nets.build(self.config, "shifted")
    for parameter in module.parameters():
      parameter.grad = torch.zeros_like(parameter)
    kinds = [
      torch_nets.make_optimizer(module, self.config, kind).step
      for kind in ("foreach", "fused")
    ]
    theirs = min(kinds, key=torch_nets.seconds)
    return Operation("update", "both", mine, _waited(theirs), 0, 5 * count)


def bandwidth() -> float:
  """Returns the bytes a second of a copy, read and written; the best side's."""
  x = jnp.zeros(COPIED // 4, jnp.float32)
  there = _tensor(x)
  to = torch.empty_like(there)
  seconds = (
    torch_nets.seconds(_jit(lambda x: x + 1, x)),
    torch_nets.seconds(lambda: to.copy_(there)),
  )
  return 2 * COPIED / min(seconds)


def measure(operation: Operation, trials: int) -> tuple[float, float]:
  """Returns the median seconds of ours and of torch's."""
  sides = (operation.ours, operation.torchs)
  counts = []
  for side in sides:
    once = torch_nets.seconds(side, 1)
    counts.append(max(1, min(1000, round(TRIAL_S / once))))
  found: tuple[list[float], list[float]] = ([], [])
  for _ in range(trials):
    for side, count, times in zip(sides, counts, found, strict=True):
      start = time.perf_counter()
      for _ in range(count):
        side()
      times.append((time.perf_counter() - start) / count)
  return statistics.median(found[0]), statistics.median(found[1])


def whole_step(net: str, batch_size: int, trials: int) -> tuple[float, float]:
  """Returns the median seconds of the step that all this makes."""
  mine = ours.Contestant(net, batch_size)
  choices = torch_nets.choose(net, batch_size, compiled=False)
  theirs = torch_nets.Contestant(net, batch_size, False, **choices)
  operation = Operation(
    "", "", lambda: mine.train(1), lambda: theirs.train(1), 0, 0
  )
  return measure(operation, trials)


FIELDS = ("operation", "way", "ours_s", "torch_s", "flops_s", "bytes_s")


def table(rows: list[dict[str, Any]], heading: str) -> str:
  """Returns the table in Markdown, in milliseconds."""
  names = ("operation", "", "ours", "torch", "torch / ours", "arithmetic")
  lines = [
    f"| {' | '.join((*names, 'bytes', 'ours - floor'))} |",
    "|---" * 8 + "|",
  ]
  for row in rows:
    mine, theirs = row["ours_s"], row["torch_s"]
    floors = (row["flops_s"], row["bytes_s"])
    words = [row["operation"], row["way"]]
    words += [f"{1000 * seconds:.2f}" for seconds in (mine, theirs)]
    words.append(f"{theirs / mine:.2f}")
    words += [f"{1000 * floor:.2f}" if floor else "" for floor in floors]
    words.append(f"{1000 * (mine - max(floors)):.2f}")
    lines.append(f"| {' | '.join(words)} |")
  return "\n".join([heading, "", *lines])


def main() -> None:
  """Measures and writes profile.csv and the table."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--net", default="two_tower", choices=inputs.NETS)
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--trials", type=int, default=TRIALS)
  parser.add_argument("--quick", action="store_true", help="batch 2, one trial")
  parser.add_argument("--out", type=Path, default=HERE)
  args = parser.parse_args()
  batch, trials = (2, 1) if args.quick else (args.batch, args.trials)
  sizes = (256,) if args.quick else (2048, 4096)
  ceiling = max(
    side.gemm(size, 5) for size in sizes for side in (ours, torch_nets)
  )
  speed = bandwidth()
  profile = Profile(args.net, batch)
  rows = []

  def record(name: str, way: str, times: Any, floors: Any) -> None:
    values = (name, way, *times, *floors)
    rows.append(dict(zip(FIELDS, values, strict=True)))
    print(*values, flush=True)

  for operation in profile.operations():
    floors = (
      operation.flops / ceiling,
      operation.numbers * profile.dtype.itemsize / speed,
    )
    times = measure(operation, trials)
    record(operation.name, operation.way, times, floors)
  sums = [sum(row[name] for row in rows) for name in FIELDS[2:]]
  record("sum", "", sums[:2], sums[2:])
  record("whole step", "", whole_step(args.net, batch, trials), (0, 0))
  args.out.mkdir(parents=True, exist_ok=True)
  with (args.out / "profile.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, FIELDS)
    writer.writeheader()
    writer.writerows(rows)
  about = (ours.about(), torch_nets.about())
  heading = (
    f"Milliseconds, {args.net}, batch {batch}, {about[0]['device']},"
    f" {os.cpu_count()} cores, {platform.machine()};"
    f" {', '.join(side['versions'] for side in about)}, Python"
    f" {platform.python_version()}; commit {inputs.commit()}. Ceilings:"
    f" {ceiling / 1e12:.4g} TFLOP/s, {speed / 1e9:.4g} GB/s."
  )
  report.fill(args.out, "layers", table(rows, heading))


if __name__ == "__main__":
  main()
