"""Counts against a literal sort."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from alexnet_jax import metrics
from alexnet_jax.parallel import placement


def sums(logits, labels, mask=None):
  mask = np.ones(len(labels), np.float32) if mask is None else mask
  logits = jnp.asarray(logits, jnp.float32)
  figures = jax.jit(metrics.sums)(logits, jnp.asarray(labels), mask)
  return {name: float(value) for name, value in figures.items()}


def test_loss_and_errors_equal_the_literal_ones():
  rng = np.random.default_rng(0)
  logits = rng.integers(0, 6, (200, 12)).astype(np.float32)  # many ties
  labels = rng.integers(0, 12, 200)
  found = sums(logits, labels)
  assert found["top1_errors"] == oracles.top_k_errors(logits, labels, 1).sum()
  assert found["top5_errors"] == oracles.top_k_errors(logits, labels, 5).sum()
  np.testing.assert_allclose(
    found["loss"], oracles.cross_entropy(logits, labels).sum(), rtol=1e-6
  )


def test_dead_network_is_at_chance():
  """Catches `>` alone, which calls a label right when all logits are equal."""
  labels = np.arange(10)
  assert sums(np.zeros((10, 10)), labels)["top1_errors"] == 9


def test_nan_logits_are_errors():
  found = sums(np.full((3, 10), np.nan), [0, 4, 9])
  assert found["top1_errors"] == found["top5_errors"] == 3


def test_top_5_needs_more_than_five_classes():
  for classes in (2, 5, 6):
    found = sums(np.zeros((3, classes)), [0, 1, 1])
    assert found["top1_errors"] == 2
    assert ("top5_errors" in found) == (classes == 6)
    assert ("top5_error" in metrics.means(found)) == (classes == 6)


def test_classes_of_all_devices_are_counted():
  """Three on each of two devices."""
  mesh = placement.make_mesh(2, 2)
  logits, labels = np.arange(18.0).reshape(3, 6) % 5, np.array([0, 3, 2])
  for classes in (4, 6):
    split = jax.shard_map(
      lambda x: metrics.sums(x, labels, np.ones(3), ("model",)),
      mesh=mesh,
      in_specs=jax.P(None, "model"),
      out_specs=jax.P(),
    )
    found = jax.jit(split)(logits[:, :classes])
    expected = sums(logits[:, :classes], labels)
    assert found.keys() == expected.keys()
    assert {k: float(x) for k, x in found.items()} == pytest.approx(expected)
    assert ("top5_errors" in found) == (classes == 6)


def test_masked_rows_count_for_nothing():
  logits = np.eye(7)[[0, 1, 2, 3]]
  logits[3] = np.nan
  mask = np.array([1, 1, 0, 0], np.float32)
  found = sums(logits, [0, 0, 0, 0], mask)
  kept = sums(logits[:2], [0, 0])
  assert found == kept
  assert found["examples"] == 2


def test_means_divide_by_the_examples():
  totals = {
    "loss": 6.0,
    "top1_errors": 2.0,
    "top5_errors": 1.0,
    "examples": 4.0,
  }
  assert metrics.means(totals) == {
    "loss": 1.5,
    "top1_error": 0.5,
    "top5_error": 0.25,
  }
