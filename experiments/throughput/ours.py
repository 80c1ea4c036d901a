"""Our side: the repository's own steps, on one device."""

import functools
import time
from typing import Any

import inputs
import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np

from alexnet_jax import augment, networks, optimizer, steps
from alexnet_jax.parallel import layouts, placement, train_loop
from alexnet_jax.runs import states
from alexnet_jax.runtime import platforms

AT_ONCE = 32
"""Images that are answered at once, in ten views each."""


def is_cpu() -> bool:
  """Whether there is no accelerator."""
  return jax.default_backend() == "cpu"


def gemm(size: int, repeats: int) -> float:
  """Returns the multiply-add FLOP/s of square matrices.

  Args:
    size: of their sides.
    repeats: how many products are timed.
  """
  dtype = jnp.float32 if is_cpu() else jnp.bfloat16
  a = jax.random.normal(jax.random.key(0), (size, size), dtype)
  multiply = jax.jit(jnp.matmul)
  multiply(a, a).block_until_ready()
  start = time.perf_counter()
  products = [multiply(a, a) for _ in range(repeats)]
  jax.block_until_ready(products)
  return 2 * size**3 * repeats / (time.perf_counter() - start)


def flops(net: str) -> dict[str, float]:
  """Returns the FLOPs for one image of a forward pass and of a training step.

  A training step does not need the gradient of the image.
  """
  network = networks.from_config(inputs.config_of(net, 1))
  macs = [row.macs for row in networks.rows(network)]
  return {"forward": 2 * sum(macs), "train": 2 * (3 * sum(macs) - macs[0])}


def random_views(
  images: jax.Array, step: Any, augmentation: augment.Augmentation
) -> jax.Array:
  """Returns what a step makes of images before the net sees them."""
  keys = jax.random.split(
    jax.random.fold_in(jax.random.key(0), step), 2 * len(images)
  ).reshape(2, -1)
  return augment.augment(images, keys[0], keys[1], step, augmentation)


class Contestant:
  """A net, its training step and its answers."""

  def __init__(self, net: str, batch_size: int):
    """Draws the parameters and places a batch."""
    config = inputs.config_of(net, batch_size, half=not is_cpu())
    self.config = config
    self.net = networks.make_model(config)
    layout = layouts.from_config(config, self.net.network, 1)
    self.mesh = placement.make_mesh(1, layout.model)
    tx, _ = optimizer.from_config(config, 1_281_167, 10**6, layout.axes_of)
    self.augmentation = augment.from_config(config, inputs.statistics(config))
    params = states.init_params(self.net, config.seed)
    state = states.init_state([params], tx)
    where = placement.shardings(self.mesh, placement.specs(layout, state))
    self.state = jax.device_put(state, where)
    self.layout = layout
    self.pure_step = steps.make_step(
      config, self.net, tx, self.augmentation, layout, self.mesh
    )
    self.step = platforms.jit(self.pure_step, donate_argnums=0)
    self.view_step = steps.make_view_step(
      self.net, self.augmentation, self.mesh
    )
    self.batch = self._put(*inputs.examples(config, batch_size))
    self.random_views = platforms.jit(
      functools.partial(random_views, augmentation=self.augmentation)
    )
    self.loss = 0.0

  def _put(self, images: np.ndarray, labels: np.ndarray) -> Any:
    batch = {"image": images, "label": labels}
    return placement.put_batch(
      self.mesh, self.layout.batch_spec, labels.shape, batch
    )

  def train(self, count: int) -> None:
    """Takes steps on the batch that lies on the device."""
    sums: Any = None
    for _ in range(count):
      self.state, sums = self.step(self.state, self.batch)
    jax.block_until_ready(self.state)
    self.loss = float(sums["loss"]) / self.config.batch_size

  def forward(self, count: int) -> None:
    """Looks at the central crops of that batch."""
    view = self._views(1)
    seen: Any = None
    for _ in range(count):
      seen = self.view_step(self.state.params, self.batch, view)
    jax.block_until_ready(seen)

  def augment(self, count: int) -> None:
    """Makes views of that batch alone."""
    seen: Any = None
    for step in range(count):
      seen = self.random_views(self.batch["image"], np.int32(step))
    jax.block_until_ready(seen)

  def answer(self, count: int, images: np.ndarray) -> np.ndarray:
    """Returns probabilities by ten views, from host to host."""
    answers: Any = None
    views = self._views(10)
    for _ in range(count):
      seen = []
      for first in range(0, len(images), AT_ONCE):
        some = images[first : first + AT_ONCE]
        batch = self._put(some, np.zeros(len(some), np.int32))
        seen.append(self.view_step(self.state.params, batch, views))
      answers = np.exp(np.concatenate([np.asarray(x) for x in seen]))
    return answers

  def _views(self, count: int) -> np.ndarray:
    config = self.config
    return augment.views(count, config.image_size_px, config.crop_size_px)

  @functools.cached_property
  def pool(self) -> tuple[Any, Any]:
    """A whole split, and the program of several steps on it."""

    def draw(pool: Any, index: jax.Array) -> Any:
      return jax.tree.map(lambda values: values[index], pool)

    loop = train_loop.make_train_loop(
      self.pure_step, draw, self.layout, self.mesh
    )
    return self._put(*inputs.examples(self.config, inputs.EPOCH_EXAMPLES)), loop

  def epoch(self, count: int) -> None:
    """Trains on a whole split that lives on the device, as train.py does."""
    size, many = self.config.batch_size, inputs.EPOCH_EXAMPLES
    room = self.config.steps_per_call
    pool, loop = self.pool
    rng = np.random.default_rng(0)

    for _ in range(count):
      order = rng.permutation(many).astype(np.int32)
      order = order[: many // size * size].reshape(-1, size)
      for first in range(0, len(order), room):
        some = order[first : first + room]
        index = np.pad(some, ((0, room - len(some)), (0, 0)))
        self.state, _ = loop(self.state, pool, jax.device_put(index), len(some))
    jax.block_until_ready(self.state)

  def memory(self) -> float:
    """Returns the peak in GB: of the device, or of this process on CPU."""
    if is_cpu():
      return inputs.memory_gb()
    stats: Any = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 1e9


def about() -> dict[str, str]:
  """Returns platform, device and versions."""
  device = jax.devices()[0]
  return {
    "platform": "cpu" if is_cpu() else device.platform,
    "device": device.device_kind,
    "versions": f"jax {jax.__version__}, jaxlib {jaxlib.version.__version__}",
  }
