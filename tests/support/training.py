"""A small net and its training step, on any layout."""

import functools

import jax
import numpy as np

from alexnet_jax import augment, networks, optimizer, steps
from alexnet_jax.configs import quickstart
from alexnet_jax.parallel import layouts, placement
from alexnet_jax.runs import states
from alexnet_jax.runtime import platforms


def small_config(**changes):
  """Two towers that join at conv3 and at the fc layers, quick to compile.

  On 16 examples of 10 classes, with all that is random.
  """
  config = quickstart.get_config()
  with config.unlocked():
    net = config.network
    net.layers = ("conv1", "conv3", "conv5", "fc6", "fc7", "fc8")
    net.conv1.kernel, net.conv1.stride = 5, 2
    net.conv1.filters = 8
    net.conv3.filters = net.conv5.filters = 16
    net.fc6.units = net.fc7.units = 32
    config.image_size_px = 32
    config.batch_size = 16
    config.update(changes)
  return config


def augmentation(config):
  """What turns random pictures into the net's input."""
  size = config.image_size_px
  rng = np.random.default_rng(0)
  return augment.Augmentation(
    crop_size_px=config.crop_size_px,
    random_crop=config.random_crop,
    mirror=config.mirror,
    images_per_view=config.images_per_view,
    colour_noise=config.colour_noise,
    colour_noise_steps=2**31 - 1,
    colour_noise_divisor=1.0,
    mean_image=rng.uniform(100, 150, (size, size, 3)).astype(np.float32),
    colour_axes=np.eye(3, dtype=np.float32),
    colour_sds=np.full(3, 50, np.float32),
  )


def batches(config, count):
  """Random pictures and labels, by the rows of a batch."""
  rng = np.random.default_rng(1)
  size, rows = config.image_size_px, config.batch_size
  for _ in range(count):
    yield {
      "image": rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8),
      "label": rng.integers(0, config.num_classes, rows).astype(np.int32),
    }


@functools.cache
def draw(net, seed):
  """Returns the first parameters of a net; they are slow to compile."""
  return jax.device_get(states.init_params(net, seed))


_STEPS = {}  # Equal trainers share a compiled step.


class Trainer:
  """A net in training: its state and its step."""

  def __init__(self, config, devices=1):
    """Draws the parameters, for a whole config and a number of devices."""
    self.config = config
    self.net = networks.make_model(config)
    self.layout = layouts.from_config(config, self.net.network, devices)
    self.mesh = placement.make_mesh(devices, self.layout.model)
    self.tx, _ = optimizer.from_config(config, 1000, 100, self.layout.axes_of)
    self.augmentation = augmentation(config)
    members = self.layout.members
    each = [draw(self.net, config.seed + member) for member in range(members)]
    state = states.init_state(each, self.tx)
    where = placement.shardings(self.mesh, placement.specs(self.layout, state))
    self.state = jax.device_put(state, where)
    key = config.to_json(), devices, platforms.UNROLLING
    if key not in _STEPS:
      _STEPS[key] = platforms.jit(self.make_step(config), donate_argnums=0)
    self.step = _STEPS[key]

  def make_step(self, config):
    """Returns the step that a config describes, for this net and layout."""
    return steps.make_step(
      config, self.net, self.tx, self.augmentation, self.layout, self.mesh
    )

  def put(self, batch):
    """Places a batch; every member gets the same."""
    shape = self.layout.batch_shape
    order = self.layout.example_order()
    batch = {name: rows[order] for name, rows in batch.items()}
    if self.layout.members > 1:
      batch = {name: np.stack([v] * shape[0]) for name, v in batch.items()}
    return placement.put_batch(self.mesh, self.layout.batch_spec, shape, batch)

  def train(self, batches):
    """Takes a step for each batch; returns the mean losses."""
    losses = []
    for batch in batches:
      self.state, sums = self.step(self.state, self.put(batch))
      losses.append(np.asarray(sums["loss"]) / np.asarray(sums["examples"]))
    return np.array(losses)

  @property
  def params(self):
    """The parameters as numpy arrays."""
    return jax.device_get(self.state.params)
