"""A step on one device against its parts done by hand."""

import dataclasses

import jax
import numpy as np
import oracles
import pytest
import training
from training import Trainer, batches, small_config

from alexnet_jax import augment
from alexnet_jax.runtime import platforms

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
    augment.test_view(batch["image"], centre, trainer.augmentation)
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


def loops_with_convolutions(jaxpr, inside=False):
  """Names of the loops of a program that hold a convolution."""
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if inside and name == "conv_general_dilated":
      yield inside
    inner = name if name in ("scan", "while") else inside
    for value in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      value = getattr(value, "jaxpr", value)
      if hasattr(value, "eqns"):
        yield from loops_with_convolutions(value, inner)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("changes", "devices"),
  [({"microbatches": 2}, 1), ({"ensemble": 2}, 2)],
)
def test_no_convolution_stands_in_a_loop_on_cpu(changes, devices):
  """There it is a hundred times slower; a scan of length one stays a loop."""
  config = small_config(batch_size=24, **changes)
  trainer = Trainer(config, devices)
  batch = trainer.put(next(batches(config, 1)))
  step = trainer.make_step(config)
  jaxpr = jax.make_jaxpr(step)(trainer.state, batch).jaxpr
  assert list(loops_with_convolutions(jaxpr)) == []


def products(jaxpr):
  """Yields the precision of each product of a program."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in ("dot_general", "conv_general_dilated"):
      yield equation.params["precision"]
    for value in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
    ):
      value = getattr(value, "jaxpr", value)
      if hasattr(value, "eqns"):
        yield from products(value)


def test_every_product_of_a_step_has_the_precision_of_the_config():
  """Those of the backward pass too, where TF32 or bfloat16 would do harm."""
  config = small_config(matmul_precision="highest")
  trainer = Trainer(config)
  batch = trainer.put(next(batches(config, 1)))
  step = trainer.make_step(config)
  jaxpr = jax.make_jaxpr(step)(trainer.state, batch).jaxpr
  highest = (jax.lax.Precision.HIGHEST,) * 2
  found = list(products(jaxpr))
  # Three layers of each kind, forward, and backward by input and weights.
  assert len(found) > 15
  assert set(found) == {highest}


@pytest.mark.slow
def test_randomness_follows_the_step_and_the_seed():
  # With this rate the weights stand still: views and dropout alone change.
  config = small_config(learning_rate=1e-30)
  twice = [next(batches(config, 1))] * 2
  first, second = Trainer(config).train(twice)
  assert first != second
  again = Trainer(config)
  # The same weights; the other seed is that of what is drawn in steps.
  other = Trainer(config)
  config.seed = 1
  other.step = platforms.jit(other.make_step(config))
  assert [first, second] == again.train(twice).tolist()
  assert [first, second] != other.train(twice).tolist()


def test_images_share_a_crop_where_the_config_says_so():
  config = small_config(images_per_view=8, colour_noise=0.0)
  # Each picture holds its own coordinates, so a view tells where it lies.
  rows, cols = np.mgrid[:32, :32]
  image = np.stack([rows, cols, 0 * rows], -1).astype(np.uint8)
  images = np.broadcast_to(image, (16, 32, 32, 3))
  views = np.asarray(
    augment.training_views(
      images, np.arange(16), 0, 0, training.augmentation(config)
    )
  )
  for group in (views[:8], views[8:]):
    np.testing.assert_array_equal(
      group, np.broadcast_to(group[:1], (8, *group.shape[1:]))
    )
  assert not np.array_equal(views[0], views[8])


def with_overflow(trainer):
  """Makes the gradient of fc7's kernel overflow, and nothing else.

  fc7 gives its tiny bias whatever it sees, and fc8 makes logits of that; what
  fc7 sees is huge, so the product of that and of fc8's kernel is infinite.
  """
  params = trainer.params
  fc6, fc7, fc8 = (params["classifier"][name] for name in ("fc6", "fc7", "fc8"))
  fc6["kernel"] = fc6["kernel"] * np.float32(1e22)
  fc7["kernel"], fc7["bias"] = 0 * fc7["kernel"], 0 * fc7["bias"] + 1e-20
  fc8["kernel"] = np.sign(fc8["kernel"]) * np.float32(1e20)
  trainer.state = dataclasses.replace(
    trainer.state,
    params=jax.tree.map(
      lambda new, old: jax.device_put(np.float32(new), old.sharding),
      params,
      trainer.state.params,
    ),
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("layout", "devices", "changes"),
  [
    ("towers", 2, {}),
    ("data", 2, {"microbatches": 2}),
    ("fsdp", 2, {}),
    ("owt_c", 2, {"fc_batch_size": 8}),
  ],
)
def test_step_that_is_not_finite_names_the_array_and_changes_nothing(
  layout, devices, changes
):
  """Catches a device that goes on where another stands still."""
  config = small_config(layout=layout, **changes)
  trainer = Trainer(config, devices)
  (batch,) = batches(config, 1)
  trainer.state, sums = trainer.step(trainer.state, trainer.put(batch))
  assert not np.asarray(sums["nonfinite"]).any()

  with_overflow(trainer)
  before = jax.device_get(trainer.state)
  after, sums = trainer.step(trainer.state, trainer.put(batch))
  paths = [
    jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(before.params)
  ]
  bad = [
    p for p, n in zip(paths, np.asarray(sums["nonfinite"]), strict=True) if n
  ]
  assert "['classifier']['fc7']['kernel']" in bad
  # A second update of the fc layers starts with what the first has spoiled.
  assert len(bad) == 1 or "fc_batch_size" in changes
  after = jax.device_get(after)
  assert after.step == before.step + 1
  jax.tree.map(
    np.testing.assert_array_equal,
    (after.params, after.opt_state),
    (before.params, before.opt_state),
  )


@pytest.mark.slow
def test_gradient_that_a_frozen_array_would_have_skips_no_step():
  frozen = ((0.0, "fc7/kernel", 0.0),)
  trainer = Trainer(small_config(learning_rate_of_layers=frozen))
  with_overflow(trainer)
  before = jax.device_get(trainer.state.params)["classifier"]
  after, sums = trainer.step(
    trainer.state, trainer.put(next(batches(trainer.config, 1)))
  )
  assert not np.asarray(sums["nonfinite"]).any()
  after = jax.device_get(after.params)["classifier"]
  assert not np.array_equal(after["fc8"]["bias"], before["fc8"]["bias"])
  np.testing.assert_array_equal(after["fc7"]["kernel"], before["fc7"]["kernel"])


@pytest.mark.slow
def test_step_whose_loss_alone_is_not_finite_changes_nothing():
  """Softmaxes are, and so are gradients, where a sum of losses overflows."""
  trainer = Trainer(small_config(layout="towers"), 2)
  params = trainer.params
  label = 3
  fc8 = params["classifier"]["fc8"]
  fc8["bias"] = np.where(np.arange(10) == label, -3e38, fc8["bias"])
  fc8["bias"] = fc8["bias"].astype(np.float32)
  trainer.state = dataclasses.replace(
    trainer.state,
    params=jax.tree.map(
      lambda new, old: jax.device_put(new, old.sharding),
      params,
      trainer.state.params,
    ),
  )
  (batch,) = batches(trainer.config, 1)
  batch["label"] = np.full_like(batch["label"], label)
  after, sums = trainer.step(trainer.state, trainer.put(batch))
  assert np.isinf(sums["loss"])
  assert not np.asarray(sums["nonfinite"]).any()
  jax.tree.map(np.testing.assert_array_equal, after.params, params)
