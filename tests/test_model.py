"""Whole nets against numpy, and torch where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from alexnet_jax import model
from configs import alexnet, one_tower, quickstart


def build(config, seed=0):
  config = config.get_config()
  net = model.from_config(config)
  size = net.network.input_size_px
  params = jax.jit(net.init)(
    jax.random.key(seed), jnp.zeros((1, size, size, 3))
  )["params"]
  images = np.random.default_rng(seed).normal(0, 60, (2, size, size, 3))
  return net, params, images.astype(np.float32)


def test_paper_net_equals_numpy():
  net, params, images = build(alexnet)
  logits = jax.jit(net.apply)({"params": params}, images)
  expected = oracles.alexnet_logits(jax.tree.map(np.asarray, params), images)
  assert logits.dtype == jnp.float32
  error = np.abs(logits - expected).max() / np.abs(expected).max()
  assert error < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("config", [alexnet, one_tower])
def test_net_and_gradients_equal_torch(config):
  torch = pytest.importorskip("torch")
  F = torch.nn.functional
  net, params, images = build(config)
  towers = config.get_config().network.towers
  labels = np.array([3, 7])

  def loss(params):
    logits = net.apply({"params": params}, images)
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(2), labels])

  value, grads = jax.jit(jax.value_and_grad(loss))(params)

  leaves = jax.tree.map(
    lambda p: torch.tensor(np.asarray(p), requires_grad=True), params
  )
  features, classifier = leaves["features"], leaves["classifier"]

  def conv(x, name, groups, **settings):
    weight = features[name]["kernel"].permute(3, 2, 0, 1)
    bias = features[name]["bias"]
    return F.relu(F.conv2d(x, weight, bias, groups=groups, **settings))

  def norm(x):
    parts = x.chunk(towers, 1)
    return torch.cat(
      [F.local_response_norm(p, 5, alpha=5e-4, beta=0.75, k=2) for p in parts],
      1,
    )

  def pool(x):
    return F.max_pool2d(x, 3, 2)

  x = F.pad(torch.tensor(images).permute(0, 3, 1, 2), (0, 3, 0, 3))
  x = pool(norm(conv(x, "conv1", 1, stride=4)))
  x = pool(norm(conv(x, "conv2", towers, padding=2)))
  x = conv(x, "conv3", 1, padding=1)
  x = conv(x, "conv4", towers, padding=1)
  x = pool(conv(x, "conv5", towers, padding=1))
  x = x.permute(0, 2, 3, 1).flatten(1)
  for name in ("fc6", "fc7"):
    layer = classifier[name]
    x = 0.5 * F.relu(x @ layer["kernel"] + layer["bias"])
  logits = x @ classifier["fc8"]["kernel"] + classifier["fc8"]["bias"]
  expected = F.cross_entropy(logits, torch.tensor(labels))
  expected.backward()

  np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
  for ours, theirs in zip(
    jax.tree.leaves(grads), jax.tree.leaves(leaves), strict=True
  ):
    theirs = theirs.grad.numpy()
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error < 1e-4


def test_initial_weights_are_the_papers():
  _, params, _ = build(alexnet)
  both = params["features"] | params["classifier"]
  ones = {"conv2", "conv4", "conv5", "fc6", "fc7"}
  for name, layer in both.items():
    assert np.all(layer["bias"] == (1 if name in ones else 0)), name
    # conv1 has the fewest weights, 34,848: 1 % is 2.6 standard deviations
    # of their spread for one seed, which stays.
    assert np.std(layer["kernel"]) == pytest.approx(0.01, rel=0.02), name
    assert abs(np.mean(layer["kernel"])) < 6 * 0.01 / np.sqrt(
      layer["kernel"].size
    )


def test_towers_talk_at_conv3_alone_below_the_classifier():
  """Catches a grouped conv or a norm that leaks across the towers."""
  net, params, images = build(quickstart)
  filters = params["features"]["conv1"]["kernel"]
  half = filters.shape[-1] // 2
  silent = filters.at[..., half:].set(0)
  changed = {
    **params,
    "features": {
      **params["features"],
      "conv1": {"kernel": silent, "bias": params["features"]["conv1"]["bias"]},
    },
  }

  def activities(params):
    _, state = net.apply({"params": params}, images, capture_intermediates=True)
    features = state["intermediates"]["features"]
    return {name: features[name]["__call__"][0] for name in ("conv2", "conv3")}

  before, after = activities(params), activities(changed)
  half2 = before["conv2"].shape[-1] // 2
  first, second = np.s_[..., :half2], np.s_[..., half2:]
  np.testing.assert_array_equal(before["conv2"][first], after["conv2"][first])
  assert np.any(before["conv2"][second] != after["conv2"][second])
  half3 = before["conv3"].shape[-1] // 2
  assert np.any(before["conv3"][..., :half3] != after["conv3"][..., :half3])


def test_dropout_acts_in_training_alone():
  net, params, images = build(quickstart)
  keys = jax.random.split(jax.random.key(0), 2)
  apply = jax.jit(net.apply)
  test = apply({"params": params}, images)
  np.testing.assert_array_equal(test, apply({"params": params}, images))
  train = apply({"params": params}, images, keys)
  assert np.any(train != test)


def test_bfloat16_is_near_float32():
  net, params, images = build(quickstart)
  exact = net.apply({"params": params}, images)
  rough = net.clone(dtype=jnp.dtype("bfloat16")).apply(
    {"params": params}, images
  )
  assert rough.dtype == jnp.float32
  assert np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()
  assert np.any(rough != exact)
