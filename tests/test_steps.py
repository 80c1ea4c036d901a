"""A step against its parts done by hand, and over several devices."""

import dataclasses

import jax
import numpy as np
import oracles
import pytest

from alexnet_jax import augment, model, optimizer, parallel, steps
from alexnet_jax.errors import InputError
from configs import quickstart

pytestmark = pytest.mark.usefixtures("quick_compilation")


def small_config(**changes):
  config = quickstart.get_config()
  with config.unlocked():
    net = config.network
    net.conv1.filters = 8
    net.conv2.filters = net.conv3.filters = 16
    net.conv4.filters = net.conv5.filters = 16
    net.fc6.units = net.fc7.units = 32
    config.batch_size = 16
    config.update(changes)
  return config


def build(config, mesh):
  size = config.image_size_px
  rng = np.random.default_rng(0)
  a = augment.Augmentation(
    crop_size_px=config.crop_size_px,
    random_crop=config.random_crop,
    mirror=config.mirror,
    images_per_crop=config.images_per_crop,
    colour_noise=config.colour_noise,
    colour_noise_steps=2**31 - 1,
    colour_noise_divisor=1.0,
    mean_image=rng.uniform(100, 150, (size, size, 3)).astype(np.float32),
    colour_axes=np.eye(3, dtype=np.float32),
    colour_sds=np.full(3, 50, np.float32),
  )
  net = model.from_config(config)
  params = steps.init_params(net, config.seed)
  tx, _ = optimizer.from_config(config, params, 1000, 100)
  state = parallel.replicate(mesh, steps.init_state(params, tx))
  train_step = steps.make_train_step(net, tx, a, mesh, config.seed)
  return net, a, state, train_step


def batches(count, size=64, batch_size=16):
  rng = np.random.default_rng(1)
  for _ in range(count):
    yield {
      "image": rng.integers(
        0, 256, (batch_size, size, size, 3), dtype=np.uint8
      ),
      "label": rng.integers(0, 10, batch_size).astype(np.int32),
    }


def train(config, devices, count=3):
  mesh = parallel.make_mesh(devices)
  _, _, state, train_step = build(config, mesh)
  losses = []
  for batch in batches(count):
    state, sums = train_step(state, parallel.put_batch(mesh, batch))
    losses.append(float(sums["loss"]) / float(sums["examples"]))
  return losses, jax.device_get(state)


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_do_not_change_the_run(devices):
  """Catches gradients K times too large and one dropout mask on all shards."""
  config = small_config()
  losses, state = train(config, 1)
  other_losses, other = train(config, devices)
  np.testing.assert_allclose(losses, other_losses, rtol=1e-5)
  for ours, theirs in zip(
    jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True
  ):
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(ours).max()


def test_step_is_the_papers_update_of_the_mean_gradient():
  """The gradient, from differences of the oracle's loss along a direction."""
  config = small_config(
    random_crop=False, mirror=False, colour_noise=0.0, learning_rate=1e-2
  )
  config.network.dropout_rate = 0.0
  mesh = parallel.make_mesh(1)
  net, a, state, train_step = build(config, mesh)
  batch = next(batches(1))
  before = jax.device_get(state.params)
  (centre,) = augment.views(1, config.image_size_px, config.crop_size_px)
  images = np.asarray(augment.look(batch["image"], centre, a))
  after, sums = train_step(state, parallel.put_batch(mesh, batch))
  assert int(after.step) == 1

  def loss(params):
    logits = net.apply({"params": params}, images)
    return oracles.cross_entropy(np.asarray(logits), batch["label"]).mean()

  assert float(sums["loss"]) / 16 == pytest.approx(loss(before), rel=1e-5)
  # v = -rate (decay w + grad), so grad = -(dw / rate) - decay w.
  moved = jax.tree.map(
    lambda new, old: -(np.asarray(new, np.float64) - old) / 1e-2 - 0.0005 * old,
    jax.device_get(after.params),
    before,
  )
  norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(moved)))
  step = 2e-2 / norm
  ahead, behind = (
    jax.tree.map(
      lambda w, g, s=sign: (w + s * step * g / norm).astype(np.float32),
      before,
      moved,
    )
    for sign in (1, -1)
  )
  slope = (loss(ahead) - loss(behind)) / (2 * step)
  assert slope == pytest.approx(norm, rel=0.05)


def test_same_batch_again_and_again_is_learned():
  config = small_config(learning_rate=0.003, seed=1)
  mesh = parallel.make_mesh(1)
  _, _, state, train_step = build(config, mesh)
  batch = parallel.put_batch(mesh, next(batches(1)))
  losses = []
  for _ in range(40):
    state, sums = train_step(state, batch)
    losses.append(float(sums["loss"]) / 16)
  assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05


def test_randomness_follows_the_step_and_the_seed():
  # With this rate the weights stand still: views and dropout alone change.
  config = small_config(learning_rate=1e-30)
  mesh = parallel.make_mesh(1)
  batch = parallel.put_batch(mesh, next(batches(1)))
  net, a, _, train_step = build(config, mesh)
  params = steps.init_params(net, config.seed)
  tx, _ = optimizer.from_config(config, params, 1000, 100)
  other_step = steps.make_train_step(net, tx, a, mesh, seed=1)

  def losses(train_step):
    params = steps.init_params(net, config.seed)
    state = parallel.replicate(mesh, steps.init_state(params, tx))
    found = []
    for _ in range(2):
      state, sums = train_step(state, batch)
      found.append(float(sums["loss"]))
    return found

  first, second = losses(train_step)
  assert first != second
  assert [first, second] == losses(train_step)
  assert [first, second] != losses(other_step)


def test_images_share_a_crop_but_no_noise_where_the_config_says_so():
  config = small_config(images_per_crop=8, batch_size=16, colour_noise=0.0)
  a = dataclasses.replace(
    build(config, parallel.make_mesh(1))[1],
    mean_image=np.zeros((64, 64, 3), np.float32),
  )
  # Each picture holds its own coordinates, so a view tells where it lies.
  rows, cols = np.mgrid[:64, :64]
  image = np.stack([rows, cols, 0 * rows], -1).astype(np.uint8)
  seen = []

  class Spy(model.AlexNet):
    def apply(self, variables, images, keys_B=None, **_):
      jax.debug.callback(lambda x: seen.append(np.asarray(x)), images)
      return super().apply(variables, images, keys_B)

  net = model.from_config(config)
  spy = Spy(net.network, net.dtype)
  params = steps.init_params(net, 0)
  tx, _ = optimizer.from_config(config, params, 1000, 100)
  mesh = parallel.make_mesh(1)
  step = steps.make_train_step(spy, tx, a, mesh, 0)
  batch = {
    "image": np.broadcast_to(image, (16, 64, 64, 3)).copy(),
    "label": np.zeros(16, np.int32),
  }
  state = parallel.replicate(mesh, steps.init_state(params, tx))
  step(state, parallel.put_batch(mesh, batch))
  jax.effects_barrier()
  (views,) = seen
  for group in (views[:8], views[8:]):
    np.testing.assert_array_equal(
      group, np.broadcast_to(group[:1], (8, *group.shape[1:]))
    )
  assert not np.array_equal(views[0], views[8])


@pytest.mark.parametrize(
  ("batch_size", "words"),
  [(100, "try 96 or 104"), (3, "try 8"), (0, "at least 1")],
)
def test_batch_that_devices_cannot_share_is_refused(batch_size, words):
  with pytest.raises(InputError, match=words):
    parallel.check_batch_size(parallel.make_mesh(8), batch_size)
