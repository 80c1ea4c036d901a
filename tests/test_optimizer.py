"""The update and the rates against the paper's formula."""

import jax
import numpy as np
import optax
import oracles
import pytest

from alexnet_jax import optimizer


def test_update_is_the_papers_over_a_drop_of_the_rate():
  """Catches a rate outside the velocity, as in `optax.sgd`."""
  rng = np.random.default_rng(0)
  rates = [0.1] * 10 + [0.01] * 10
  schedule = optimizer.drops_by_epoch(
    0.1, (5.0,), 0.1, num_examples=20, batch_size=10
  )
  tx = optimizer.paper_sgd(schedule, 0.9, 0.0005)
  w = {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}
  v = jax.tree.map(np.zeros_like, w)
  params = jax.tree.map(lambda a: a.astype(np.float32), w)
  opt_state = tx.init(params)
  for rate in rates:
    grads = {name: rng.normal(size=a.shape) for name, a in w.items()}
    for name in w:
      w[name], v[name] = oracles.paper_update(
        w[name], v[name], grads[name], rate
      )
    grads = jax.tree.map(lambda a: a.astype(np.float32), grads)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
  for name in w:
    np.testing.assert_allclose(params[name], w[name], rtol=1e-5, atol=1e-6)


def test_rate_drops_at_the_first_step_of_an_epoch():
  # 1000 images in batches of 128: epoch 2 starts within step 15 (1920 seen).
  schedule = optimizer.drops_by_epoch(
    0.01, (2.0, 4.0), 0.1, num_examples=1000, batch_size=128
  )
  rates = [float(schedule(step)) for step in range(40)]
  expected = [
    0.01 if step * 128 < 2000 else 0.001 if step * 128 < 4000 else 0.0001
    for step in range(40)
  ]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_no_drops_is_a_constant_rate():
  schedule = optimizer.drops_by_epoch(
    0.5, (), 0.1, num_examples=10, batch_size=1
  )
  assert float(schedule(10**6)) == pytest.approx(0.5)
