"""torch's side: the same nets and steps, spelled as fast as torch allows.

The nets are built from the configs and know nothing of our code. Where there
are several spellings, `choose` times them and the fastest is used.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import inputs
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

Tensor = Any


def device() -> str:
  """Returns cuda or cpu."""
  return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
  """Waits for what the device has been told to do."""
  if device() == "cuda":
    torch.cuda.synchronize()


# Response normalization: [B, C, H, W] in channels_last, by spelling.


def _functional_norm(x: Tensor, towers: int, lrn: Any) -> Tensor:
  blocks = x.unflatten(1, (towers, -1)).flatten(0, 1)
  # torch weighs the mean of the squares, the paper their sum.
  alpha = lrn.alpha * lrn.window
  y = F.local_response_norm(blocks, lrn.window, alpha, lrn.beta, lrn.k)
  return y.unflatten(0, (-1, towers)).flatten(1, 2)


def _power(x: Tensor, energy: Tensor, beta: float) -> Tensor:
  if beta != 0.75:
    return x * energy**-beta
  root = energy.rsqrt()
  return x * (root * root.sqrt())


def _pooled_norm(x: Tensor, towers: int, lrn: Any) -> Tensor:
  rows = x.permute(0, 2, 3, 1)
  blocks = rows.unflatten(-1, (towers, -1)).flatten(0, 2).float()
  mean = F.avg_pool1d(blocks * blocks, lrn.window, 1, lrn.window // 2)
  energy = lrn.k + lrn.alpha * lrn.window * mean
  y = _power(blocks, energy, lrn.beta).to(x.dtype)
  return y.reshape(rows.shape).permute(0, 3, 1, 2)


def _shifted_norm(x: Tensor, towers: int, lrn: Any) -> Tensor:
  rows = x.permute(0, 2, 3, 1)
  blocks = rows.unflatten(-1, (towers, -1)).float()
  count, reach = blocks.shape[-1], lrn.window // 2
  squares = F.pad(blocks * blocks, (reach, reach))
  total = squares[..., :count]
  for shift in range(1, lrn.window):
    total = total + squares[..., shift : shift + count]
  y = _power(blocks, lrn.k + lrn.alpha * total, lrn.beta).to(x.dtype)
  return y.flatten(-2).permute(0, 3, 1, 2)


NORMS: dict[str, Callable[[Tensor, int, Any], Tensor]] = {
  "functional": _functional_norm,
  "pooled": _pooled_norm,
  "shifted": _shifted_norm,
}


# The nets.


class _Function(nn.Module):
  """A layer without parameters."""

  def __init__(self, function: Callable[[Tensor], Tensor]):
    super().__init__()
    self.function = function

  def forward(self, x: Tensor) -> Tensor:
    return self.function(x)


def overhang(size: int, row: Any) -> int:
  """Returns the pixels that the last window reads past even padding.

  Args:
    size: side of the input in pixels.
    row: of a convolution in a config.
  """
  rest = (size + 2 * row.padding - row.kernel) % row.stride
  return row.stride - rest if row.ceil_mode and rest else 0


def build(config: Any, norm: str) -> Any:
  """Returns the net; it takes images already padded by `overhang`.

  Args:
    config: of the net.
    norm: a key of `NORMS`.
  """
  net = config.network
  layers: Any = nn.Sequential()
  channels, size = 3, config.crop_size_px
  for name in net.layers:
    row = net[name]
    if "units" in row:
      if size:
        layers.append(_Function(lambda x: x.permute(0, 2, 3, 1).flatten(1)))
        channels, size = channels * size * size, 0
      layer = nn.Linear(channels, row.units)
      channels = row.units
    else:
      first = name == net.layers[0]
      past = overhang(size, row)
      if past and not first:
        raise SystemExit(f"{name} has no even padding that torch can do")
      towers = 1 if first or row.sees_all_towers else net.towers
      shape = (channels, row.filters, row.kernel, row.stride, row.padding)
      layer = nn.Conv2d(*shape, groups=towers)
      size += past + 2 * row.padding - row.kernel
      size = size // row.stride + 1
      channels = row.filters
    nn.init.normal_(layer.weight, std=row.sigma)
    nn.init.constant_(layer.get_parameter("bias"), row.bias)
    layers.add_module(name, layer)
    for word in row.then:
      layers.append(_follower(word, net, norm))
      if word.endswith("pool"):
        size = -(-(size - net.pool_window) // net.pool_stride) + 1
  return layers.to(device(), memory_format=torch.channels_last)


def _follower(word: str, net: Any, norm: str) -> nn.Module:
  """Returns the layer that a word in a row's `after` stands for."""
  match word:
    case "activation":
      assert net.activation == "relu"
      return nn.ReLU(inplace=True)
    case "lrn":
      towers = 1 if net.lrn.across_towers else net.towers
      return _Function(lambda x: NORMS[norm](x, towers, net.lrn))
    case "max_pool":
      return nn.MaxPool2d(net.pool_window, net.pool_stride, ceil_mode=True)
    case "average_pool":
      return nn.AvgPool2d(
        net.pool_window,
        net.pool_stride,
        ceil_mode=True,
        count_include_pad=False,
      )
    case "dropout":
      drop = nn.Dropout(net.dropout_rate)
      if net.dropout_rescaled:
        return drop
      return nn.Sequential(
        drop, _Function(lambda x: x * (1 - net.dropout_rate))
      )
  raise SystemExit(f"torch has no spelling of {word}")


def _named(net: Any) -> dict[str, Any]:
  kinds = (nn.Conv2d, nn.Linear)
  return {n: m for n, m in net.named_children() if isinstance(m, kinds)}


def load(net: Any, params: Mapping[str, Mapping[str, np.ndarray]]) -> None:
  """Copies parameters in our layout, by the name of the layer."""
  with torch.no_grad():
    for name, layer in _named(net).items():
      kernel = torch.tensor(params[name]["kernel"])
      conv = kernel.ndim == 4
      layer.weight.copy_(kernel.permute(3, 2, 0, 1) if conv else kernel.T)
      layer.bias.copy_(torch.tensor(params[name]["bias"]))


def unload(
  net: Any, of: Callable[[Tensor], Tensor]
) -> dict[str, dict[str, np.ndarray]]:
  """Returns what `of` says of each parameter, in our layout."""
  found = {}
  for name, layer in _named(net).items():
    kernel = of(layer.weight).detach().cpu()
    kernel = kernel.permute(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
    bias = of(layer.bias).detach().cpu()
    found[name] = {"kernel": kernel.numpy(), "bias": bias.numpy()}
  return found


# Views.


class Views:
  """From uint8 images to the net's input, padded for the first layer.

  `draw` says where; each spelling in `SPELLINGS` does it.
  """

  SPELLINGS = ("slices", "gather")

  def __init__(self, config: Any):
    """Takes what the config asks for, with `inputs.statistics`."""
    found = inputs.statistics(config)
    self.config = config
    self.size = config.crop_size_px
    self.margin = config.image_size_px - self.size
    first = config.network[config.network.layers[0]]
    self.past = overhang(self.size, first)
    mean = torch.tensor(found.mean_image)
    self.means = [mean.to(device()), mean.flip(1).to(device())]
    shifts = found.colour_axes * found.colour_sds * config.colour_noise
    self.axes = torch.tensor(shifts, dtype=torch.float32).T
    self.buffers: dict[int, Tensor] = {}

  def draw(self, count: int, where: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns corners [count, 2], mirrored [count], colour shifts [count, 3].

    Args:
      count: how many images.
      where: the device that draws.
    """
    corners = torch.randint(0, self.margin + 1, (count, 2), device=where)
    mirrored = torch.rand(count, device=where) < 0.5
    noise = torch.randn(count, 3, device=where) @ self.axes.to(where)
    return corners, mirrored, noise

  def random(self, images: Tensor, spelling: str) -> Tensor:
    """Returns a random view of each image, as in training."""
    where = "cpu" if spelling == "slices" else device()
    return getattr(self, spelling)(images, *self.draw(len(images), where))

  def buffer(self, count: int) -> Tensor:
    """Returns the batch that views are written into; its padding stays 0."""
    if count not in self.buffers:
      side = self.size + self.past
      # One that is made in inference could not be trained on.
      with torch.inference_mode(False):
        self.buffers[count] = torch.zeros(count, side, side, 3, device=device())
    return self.buffers[count]

  def slices(
    self, images: Tensor, corners: Tensor, mirrored: Tensor, shifts: Tensor
  ) -> Tensor:
    """Cuts out one image after another."""
    out, size, side = self.buffer(len(images)), self.size, images.shape[2]
    shifts = shifts.to(device())
    where = zip(corners.tolist(), mirrored.tolist(), strict=True)
    for n, ((row, col), flip) in enumerate(where):
      crop = images[n, row : row + size, col : col + size]
      if flip:
        crop, col = crop.flip(1), side - size - col
      mean = self.means[flip][row : row + size, col : col + size]
      view = torch.sub(crop, mean, out=out[n, :size, :size])
      if self.config.colour_noise:
        view += shifts[n]
    return out.permute(0, 3, 1, 2)

  def gather(
    self, images: Tensor, corners: Tensor, mirrored: Tensor, shifts: Tensor
  ) -> Tensor:
    """Looks up all pixels at once."""
    along = torch.arange(self.size, device=images.device)
    rows = corners[:, :1] + along
    cols = torch.where(mirrored[:, None], self.size - 1 - along, along)
    cols = corners[:, 1:] + cols
    each = torch.arange(len(images), device=images.device)[:, None, None]
    rows, cols = rows[:, :, None], cols[:, None]
    x = images[each, rows, cols] - self.means[0][rows, cols]
    if self.config.colour_noise:
      x = x + shifts[:, None, None]
    return F.pad(x.permute(0, 3, 1, 2), (0, self.past, 0, self.past))

  def at(self, images: Tensor, row: int, col: int, mirrored: bool) -> Tensor:
    """Returns the same view of every image, as at test."""
    out, size = self.buffer(len(images)), self.size
    mean = self.means[0][row : row + size, col : col + size]
    crops = images[:, row : row + size, col : col + size]
    view = torch.sub(crops, mean, out=out[:, :size, :size])
    if mirrored:
      view.copy_(view.flip(2))
    return out.permute(0, 3, 1, 2)

  def ten(self) -> list[tuple[int, int, bool]]:
    """Returns the corners, the centre and their mirrors."""
    ends, half = (0, self.margin), self.margin // 2
    five = [(row, col) for row in ends for col in ends] + [(half, half)]
    return [(*at, mirrored) for mirrored in (False, True) for at in five]


def make_optimizer(net: Any, config: Any, kind: str) -> Any:
  """Returns the paper's update.

  Args:
    net: whose parameters.
    config: of the net.
    kind: foreach or fused.
  """
  return torch.optim.SGD(
    net.parameters(),
    lr=config.learning_rate,
    momentum=config.momentum,
    weight_decay=config.weight_decay,
    **{kind: True},
  )


# Choices.


def seconds(function: Callable[[], Any], repeats: int = 3) -> float:
  """Returns the least time of a call after a first one."""
  times = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    function()
    wait()
    times.append(time.perf_counter() - start)
  return min(times[1:])


def choose(net: str, batch_size: int, compiled: bool) -> dict[str, Any]:
  """Returns the fastest spellings, and on CPU the best count of threads.

  Args:
    net: as in `inputs.config_of`.
    batch_size: of a step.
    compiled: whether the spellings are to be compiled.
  """
  config = inputs.config_of(net, batch_size)
  wrap = functools.partial(torch.compile, dynamic=False) if compiled else _same
  images = torch.tensor(inputs.examples(config, batch_size)[0]).to(device())
  views = Views(config)
  makers = {
    "slices": views.slices,
    "gather": wrap(views.gather),
  }
  augment = {
    spelling: seconds(
      lambda maker=maker, spelling=spelling: maker(
        images,
        *views.draw(batch_size, "cpu" if spelling == "slices" else device()),
      )
    )
    for spelling, maker in makers.items()
  }
  found: dict[str, Any] = {"augment": min(augment, key=augment.__getitem__)}
  lrn = config.network.lrn
  found["norm"] = "functional"
  if any("lrn" in config.network[n].then for n in config.network.layers):
    x = torch.randn(batch_size, 96, 55, 55, device=device())
    if device() == "cuda":
      x = x.bfloat16()
    x = x.to(memory_format=torch.channels_last).requires_grad_()

    def both_ways(norm: Callable[..., Tensor]) -> None:
      y = norm(x, config.network.towers, lrn)
      y.backward(x.detach())

    norms = {
      name: seconds(functools.partial(both_ways, wrap(norm)))
      for name, norm in NORMS.items()
    }
    found["norm"] = min(norms, key=norms.__getitem__)
  module = build(config, found["norm"])
  for parameter in module.parameters():
    parameter.grad = torch.zeros_like(parameter)
  kinds = {
    kind: seconds(make_optimizer(module, config, kind).step)
    for kind in ("foreach", "fused")
  }
  found["optimizer"] = min(kinds, key=kinds.__getitem__)
  found["threads"] = torch.get_num_threads()
  if device() == "cpu" and not compiled:
    del module
    most = found["threads"]
    counts = {2**power for power in range(most.bit_length())} | {most}
    contestant = Contestant(net, batch_size, False, **found)
    times = {}
    for threads in sorted(counts):
      torch.set_num_threads(threads)
      times[threads] = seconds(lambda: contestant.train(1), 1)
    found["threads"] = min(times, key=times.__getitem__)
  return found


def _same(function: Any) -> Any:
  return function


def gemm(size: int, repeats: int) -> float:
  """Returns the FLOP/s of a product of square matrices, as `ours.gemm`."""
  dtype = torch.bfloat16 if device() == "cuda" else torch.float32
  a = torch.randn(size, size, dtype=dtype, device=device())
  out = a @ a
  wait()
  start = time.perf_counter()
  for _ in range(repeats):
    torch.mm(a, a, out=out)
  wait()
  return 2 * size**3 * repeats / (time.perf_counter() - start)


# The contestant.


class Contestant:
  """A net, its training step and its answers; as `ours.Contestant`."""

  def __init__(
    self,
    net: str,
    batch_size: int,
    compiled: bool,
    *,
    augment: str,
    norm: str,
    optimizer: str,
    threads: int,
  ):
    """Builds the net and places a batch; the rest is what `choose` found."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    config = inputs.config_of(net, batch_size)
    self.config = config
    self.net = build(config, norm)
    self.views = Views(config)
    self.optimizer = make_optimizer(self.net, config, optimizer)
    self.images, self.labels = self._put(*inputs.examples(config, batch_size))
    wrap = (
      functools.partial(torch.compile, dynamic=False) if compiled else _same
    )
    self.spelling = augment
    # A loop over images is nothing to compile.
    compilable = augment == "gather"
    self.random_views = (wrap if compilable else _same)(self._random_views)
    self.loss_of = wrap(self._loss_of)
    self.predict = wrap(self._predict)
    self.loss = 0.0

  def _put(self, images: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
    return (
      torch.from_numpy(images).to(device()),
      torch.from_numpy(labels).long().to(device()),
    )

  def _random_views(self, images: Tensor) -> Tensor:
    return self.views.random(images, self.spelling)

  def _logits(self, views: Tensor) -> Tensor:
    with torch.autocast(device(), torch.bfloat16, device() == "cuda"):
      return self.net(views).float()

  def _loss_of(self, views: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(self._logits(views), labels)

  def _predict(self, views: Tensor) -> Tensor:
    return F.log_softmax(self._logits(views), dim=1)

  def _step(self, images: Tensor, labels: Tensor) -> Tensor:
    views = self.random_views(images)
    self.optimizer.zero_grad(set_to_none=True)
    loss = self.loss_of(views, labels)
    loss.backward()
    self.optimizer.step()
    return loss.detach()

  def train(self, count: int) -> None:
    """Takes steps on the batch that lies on the device."""
    self.net.train()
    loss: Any = None
    for _ in range(count):
      loss = self._step(self.images, self.labels)
    self.loss = loss.item()

  @torch.inference_mode()
  def forward(self, count: int) -> None:
    """Looks at the central crops of that batch."""
    self.net.eval()
    centre = self.views.margin // 2
    for _ in range(count):
      self.predict(self.views.at(self.images, centre, centre, False))
    wait()

  @torch.inference_mode()
  def augment(self, count: int) -> None:
    """Makes views of that batch alone."""
    for _ in range(count):
      self.random_views(self.images)
    wait()

  @torch.inference_mode()
  def answer(self, count: int, images: np.ndarray) -> np.ndarray:
    """Returns probabilities by ten views, from host to host.

    The views of few images are one batch, those of many go one by one.
    """
    self.net.eval()
    places, answers = self.views.ten(), np.empty(0)
    for _ in range(count):
      here = torch.from_numpy(images).to(device())
      views = (self.views.at(here, *place) for place in places)
      if len(images) < 16:
        # Every view is made in the same buffer.
        batch = torch.stack([view.clone() for view in views]).flatten(0, 1)
        seen = self.predict(batch.contiguous(memory_format=torch.channels_last))
        mean = seen.exp().unflatten(0, (len(places), -1)).mean(0)
      else:
        mean = torch.stack([self.predict(v).exp() for v in views]).mean(0)
      answers = mean.cpu().numpy()
    return answers

  @functools.cached_property
  def pool(self) -> tuple[Any, Any]:
    """A whole split."""
    return self._put(*inputs.examples(self.config, inputs.EPOCH_EXAMPLES))

  def epoch(self, count: int) -> None:
    """Trains on a whole split that lives on the device."""
    self.net.train()
    size, many = self.config.batch_size, inputs.EPOCH_EXAMPLES
    images, labels = self.pool
    for _ in range(count):
      order = torch.randperm(many, device=device())
      for start in range(0, many - size + 1, size):
        index = order[start : start + size]
        self._step(images[index], labels[index])
    wait()

  def memory(self) -> float:
    """Returns the peak in GB: of the device, or of this process on CPU."""
    if device() == "cpu":
      return inputs.memory_gb()
    return torch.cuda.max_memory_allocated() / 1e9


def about() -> dict[str, str]:
  """Returns platform, device and versions."""
  gpu = device() == "cuda"
  return {
    "platform": "gpu" if gpu else "cpu",
    "device": torch.cuda.get_device_name() if gpu else "cpu",
    "versions": f"torch {torch.__version__}",
  }
