"""A step on one device against its parts done by hand."""

import jax
import numpy as np
import oracles
import pytest
from training import Trainer, batches, small_config

from alexnet_jax import augment, model, steps

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_step_is_the_papers_update_of_the_mean_gradient():
  """The gradient, from differences of the oracle's loss along a direction."""
  config = small_config(
    random_crop=False, mirror=False, colour_noise=0.0, learning_rate=1e-2
  )
  config.network.dropout_rate = 0.0
  trainer = Trainer(config)
  net = trainer.net
  batch = next(batches(config, 1))
  before = trainer.params
  (centre,) = augment.views(1, config.image_size_px, config.crop_size_px)
  images = np.asarray(
    augment.look(batch["image"], centre, trainer.augmentation)
  )
  (mean_loss,) = trainer.train([batch])
  assert int(trainer.state.step) == 1

  def loss(params):
    logits = net.apply({"params": params}, images)
    return oracles.cross_entropy(np.asarray(logits), batch["label"]).mean()

  assert mean_loss == pytest.approx(loss(before), rel=1e-5)
  # v = -rate (decay w + grad), so grad = -(dw / rate) - decay w.
  moved = jax.tree.map(
    lambda new, old: -(np.asarray(new, np.float64) - old) / 1e-2 - 0.0005 * old,
    trainer.params,
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
  losses = Trainer(config).train([next(batches(config, 1))] * 40)
  assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05


def test_randomness_follows_the_step_and_the_seed():
  # With this rate the weights stand still: views and dropout alone change.
  config = small_config(learning_rate=1e-30)
  twice = [next(batches(config, 1))] * 2
  first, second = Trainer(config).train(twice)
  assert first != second
  again = Trainer(config)
  # The same weights; the other seed is that of what is drawn in steps.
  other = Trainer(config)
  other.step = steps.make_train_step(
    other.net, other.tx, other.augmentation, other.layout, other.mesh, seed=1
  )
  assert [first, second] == again.train(twice).tolist()
  assert [first, second] != other.train(twice).tolist()


def test_images_share_a_crop_but_no_noise_where_the_config_says_so():
  config = small_config(images_per_crop=8, batch_size=16, colour_noise=0.0)
  # Each picture holds its own coordinates, so a view tells where it lies.
  rows, cols = np.mgrid[:64, :64]
  image = np.stack([rows, cols, 0 * rows], -1).astype(np.uint8)
  seen = []

  class Spy(model.AlexNet):
    def extract(self, images_BxHxWxC, keys_B=None):
      jax.debug.callback(lambda x: seen.append(np.asarray(x)), images_BxHxWxC)
      return super().extract(images_BxHxWxC, keys_B)

  net = model.from_config(config)
  trainer = Trainer(config, net=Spy(net.network, net.dtype))
  seen.clear()
  batch = {
    "image": np.broadcast_to(image, (16, 64, 64, 3)).copy(),
    "label": np.zeros(16, np.int32),
  }
  trainer.train([batch])
  jax.effects_barrier()
  (views,) = seen
  for group in (views[:8], views[8:]):
    np.testing.assert_array_equal(
      group, np.broadcast_to(group[:1], (8, *group.shape[1:]))
    )
  assert not np.array_equal(views[0], views[8])
