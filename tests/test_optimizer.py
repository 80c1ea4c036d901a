"""The update and the rates, every array and step against the originals'."""

import fractions

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

from alexnet_jax import optimizer, schedules
from alexnet_jax.configs import (
  alexnet,
  caffenet,
  cifar_19pct,
  finetune,
  run145,
)

NAMES = ("conv1", "conv2", "fc6")


def changed(module=alexnet, **fields):
  config = module.get_config()
  config.update(fields)
  return config


def draw(seed, names, *lead):
  """Arrays in the form of a net's parameters, of the leading axes."""
  rng = np.random.default_rng(seed)

  def stack(prefix):
    return {
      name: {
        "kernel": rng.normal(size=(*lead, 3, 4)).astype(np.float32),
        "bias": rng.normal(size=(*lead, 4)).astype(np.float32),
      }
      for name in names
      if name.startswith(prefix)
    }

  return {"features": stack("conv"), "classifier": stack("fc")}


def trajectory(tx, params, grads):
  """The moves, weights and velocities of all steps."""
  count = len(jax.tree.leaves(grads)[0])

  def step(carry, now):
    params, state = carry
    step, grads = now
    moves, state = tx.update(grads, state, params, step=step)
    params = optax.apply_updates(params, moves)
    found = moves, params, optax.tree.get(state, "trace")
    return (params, state), found

  _, found = jax.lax.scan(
    step, (params, tx.init(params)), (jnp.arange(count), grads)
  )
  return jax.device_get(found)


def assert_follows(config, update, steps, names=NAMES, steps_per_epoch=1):
  """Compares each step with `update(w, v, grad, epoch, name, part)`.

  Returns what `trajectory` does.
  """
  params, grads = draw(0, names), draw(1, names, steps)
  num_examples = config.batch_size * steps_per_epoch
  tx, _ = optimizer.from_config(config, num_examples, steps)
  found = moves, _, velocities = trajectory(tx, params, grads)
  for (path, w), gradient, move, velocity in zip(
    jax.tree.leaves_with_path(params),
    *map(jax.tree.leaves, (grads, moves, velocities)),
    strict=True,
  ):
    _, name, part = (key.key for key in path)
    v = np.zeros(w.shape)
    for step in range(steps):
      before, epoch = w, step // steps_per_epoch
      w, v = update(w, v, gradient[step], epoch, name, part)
      for ours, theirs in ((move[step], w - before), (velocity[step], v)):
        # Beside the velocity then, to see rates of 1e-5 as well as of 0.01.
        np.testing.assert_allclose(
          ours, theirs, rtol=0, atol=1e-5 * abs(v).max(),
          err_msg=f"{name}/{part} in epoch {epoch}",
        )  # fmt: skip
  return found


def run_update(rate, decay):
  """The original's update, of a rate and a decay by epoch, layer and array."""

  def update(w, v, grad, epoch, name, part):
    return oracles.run_update(
      w, v, grad, rate(epoch, name, part), 0.9, decay(name, part)
    )

  return update


def weights_only(decay):
  return lambda name, part: decay if part == "kernel" else 0.0


def test_papers_update_decays_biases_and_learns_them_at_the_same_rate():
  """Catches a rate outside the velocity, as in `optax.sgd`."""
  config = changed(schedule="epochs", learning_rate_drop_epochs=(10.0,))
  assert_follows(
    config,
    run_update(
      lambda epoch, *_: 0.01 if epoch < 10 else 0.001, lambda *_: 0.0005
    ),
    steps=20,
  )


def test_run_145_freezes_conv1_and_keeps_the_rate_of_the_biases():
  def rate(epoch, name, part):
    if name == "conv1" and epoch >= 71:
      return 0.0
    if part == "bias":
      return 0.02
    if name == "conv1" and epoch >= 66:
      return 1e-5
    return 10.0 ** -(2 + sum(epoch >= drop for drop in (24, 50, 78)))

  moves, *held = assert_follows(
    run145.get_config(),
    run_update(rate, weights_only(0.0005)),
    steps=900,
    steps_per_epoch=10,
  )
  for array in jax.tree.leaves(moves["features"]["conv1"]):
    assert not array[710:].any()
  for array in jax.tree.leaves([tree["features"]["conv1"] for tree in held]):
    assert (array[710:] == array[709]).all()


def test_biases_of_caffenet_learn_twice_as_fast_and_fall_with_the_weights():
  def rate(epoch, _, part):
    drops = sum(epoch >= drop for drop in (20, 40, 60, 80))
    return (0.02 if part == "bias" else 0.01) / 10**drops

  assert_follows(
    caffenet.get_config(), run_update(rate, weights_only(0.0005)), steps=90
  )


def test_fresh_layers_of_finetune_learn_ten_times_as_fast_at_every_rate():
  """Beside a frozen layer, as a user asks for it."""

  def rate(epoch, name, _):
    if name == "conv1":
      return 0.0
    progress = epoch / 12
    times = 10 if name == "fc6" else 1
    return times * 0.003 * (1 - progress + progress / 1000)

  config = changed(
    finetune,
    reinit_layers=("fc6",),
    learning_rate=0.003,
    learning_rate_of_layers=((0.0, "conv1", 0.0),),
  )
  assert_follows(config, run_update(rate, lambda *_: 0.0005), steps=12)


def test_last_layer_of_cifar_19pct_has_a_decay_of_its_own():
  def rate(epoch, _, part):
    drops = sum(epoch >= drop for drop in (120, 130))
    return (0.002 if part == "bias" else 0.001) / 10**drops

  def decay(name, part):
    return weights_only(3.0 if name == "fc10" else 0.004)(name, part)

  assert_follows(
    cifar_19pct.get_config(),
    run_update(rate, decay),
    steps=140,
    names=("conv1", "conv3", "fc10"),
  )


@pytest.mark.parametrize(
  ("thaw", "bias_rate"),
  [
    (((10.0, "conv1", 1e-3),), 0.01),
    (((10.0, "conv1/bias", 1e-4), (10.0, "conv1", 1e-3)), 1e-4),
  ],
)
def test_layer_that_thaws_goes_on_with_its_old_velocity(thaw, bias_rate):
  def rate(epoch, name, part):
    if name != "conv1" or epoch < 5:
      return 0.01
    if epoch < 10:
      return 0.0
    return bias_rate if part == "bias" else 1e-3

  config = changed(learning_rate_of_layers=(*thaw, (5.0, "conv1", 0.0)))
  assert_follows(config, run_update(rate, lambda *_: 0.0005), steps=20)


def learns_ever(exceptions, part):
  """Whether an array of conv1 has a rate at any time, as configs define it."""

  def newest(rate, epoch, *names):
    for start, name, value in sorted(exceptions, key=lambda entry: entry[0]):
      if start <= epoch and name in names:
        rate = value
    return rate

  for epoch in range(5):
    of_layer = newest(0.01, epoch, "conv1")
    own = newest(0.01, epoch, f"conv1/{part}")
    if part == "kernel":
      own = of_layer = newest(0.01, epoch, "conv1", "conv1/kernel")
    if of_layer > 0 and own > 0:
      return True
  return False


def test_arrays_that_never_learn_have_no_gradient():
  """Among random exceptions; no array that learns is among them."""
  rng = np.random.default_rng(0)
  params = {"features": {"conv1": {"kernel": 1.0, "bias": 1.0}}}
  seen = set()
  for _ in range(300):
    names = rng.choice(["conv1", "conv1/kernel", "conv1/bias", "conv2"], 3)
    exceptions = tuple(
      (float(rng.integers(3)), str(name), float(rng.integers(2)) * 0.1)
      for name in names[: rng.integers(1, 4)]
    )
    config = changed(learning_rate_of_layers=exceptions)
    apply = optimizer.freeze(config, lambda p: sum(jax.tree.leaves(p)))
    grads = jax.grad(apply)(params)["features"]["conv1"]
    for part, grad in grads.items():
      learns = learns_ever(exceptions, part)
      assert grad == 1 or not learns, exceptions
      if part == "kernel" or len(exceptions) == 1:
        assert (grad == 1) == learns, exceptions
      seen.add((part, learns))
  assert len(seen) == 4


def lars_config():
  return changed(
    optimizer="lars", weight_decay_of_biases=False, learning_rate=0.1
  )


def test_lars_scales_kernels_by_their_trust_ratio_and_leaves_biases_plain():
  def update(w, v, grad, epoch, name, part):
    if part == "bias":
      return oracles.run_update(w, v, grad, 0.1, 0.9, 0.0)
    return oracles.lars_update(w, v, grad, 0.1, 0.9, 0.0005, trust=0.001)

  assert_follows(lars_config(), update, steps=10)


def test_lars_is_that_of_optax():
  params, grads = draw(0, NAMES), draw(1, NAMES, 10)
  params["features"]["conv2"]["kernel"][:] = 0  # no length to compare with
  tx, _ = optimizer.from_config(lars_config(), 128, 10)
  kernels = jax.tree.map(lambda w: w.ndim == 2, params)
  reference = optax.lars(
    0.1, 0.0005, kernels, trust_coefficient=0.001, trust_ratio_mask=kernels
  )
  state = reference.init(params)
  _, weights, _ = trajectory(tx, params, grads)
  for step in range(10):
    grad = jax.tree.map(lambda g, step=step: g[step], grads)
    moves, state = reference.update(grad, state, params)
    params = optax.apply_updates(params, moves)
    jax.tree.map(
      lambda w, ours, step=step: np.testing.assert_allclose(
        ours[step], w, rtol=1e-5, atol=1e-6
      ),
      params,
      weights,
    )


def rates(config, *, examples, total_steps, until=None):
  """The weights' rate in each step of a run."""
  _, rate = optimizer.from_config(config, examples, total_steps)
  steps = jnp.arange(until or total_steps)
  return np.asarray(jax.vmap(rate, (0, None))(steps, 0))


def test_rate_drops_at_the_first_step_of_an_epoch():
  # 1000 images in batches of 128: epoch 2 starts within step 15 (1920 seen).
  config = changed(schedule="epochs", learning_rate_drop_epochs=(2.0, 4.0))
  expected = [
    0.01 if step * 128 < 2000 else 0.001 if step * 128 < 4000 else 0.0001
    for step in range(40)
  ]
  found = rates(config, examples=1000, total_steps=40)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_epochs_are_steps_as_they_are_written():
  """Catches floats: 2.2 is a little more than 11/5, and 1,100 steps 1,101."""
  assert schedules.step_of_epoch(2.2, 8000, 16) == 1100
  for tenths in range(1, 1000):
    for examples, batch in ((8000, 16), (50_000, 128), (1_281_167, 128)):
      found = schedules.step_of_epoch(tenths / 10, examples, batch)
      exact = fractions.Fraction(tenths, 10) * examples / batch
      assert found - 1 < exact <= found
  assert schedules.step_of_epoch(2e9, 10**6, 1) == 2**31 - 1


def test_no_drops_is_a_constant_rate():
  config = changed(schedule="epochs")
  assert set(rates(config, examples=10, total_steps=99)) == {np.float32(0.01)}


@pytest.mark.parametrize("total_steps", [96, 97])
@pytest.mark.parametrize(
  ("schedule", "oracle", "count"),
  [
    ("linear", oracles.rate_linear, ()),
    ("exp", oracles.rate_exp, ()),
    *(("dexp", oracles.rate_dexp, (count,)) for count in (2, 4, 7)),
  ],
)
def test_rate_falls_from_the_first_to_the_target(
  schedule, oracle, count, total_steps
):
  config = changed(schedule=schedule, target_factor=50.0)
  if count:
    (config.dexp_rates,) = count
  expected = [
    oracle(0.01, 50.0, *count, step / total_steps)
    for step in range(total_steps + 1)
  ]
  found = rates(
    config, examples=128, total_steps=total_steps, until=total_steps + 1
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_warm_up_rises_to_the_rate_and_then_follows_the_schedule():
  config = changed(
    schedule="epochs", learning_rate_drop_epochs=(8.0,), warmup_epochs=5.0
  )
  expected = [0.01 * step / 20 for step in range(1, 21)]
  expected += [0.01] * 12 + [0.001] * 8
  found = rates(config, examples=4 * 128, total_steps=40)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def first_move(config, drops=0):
  """How far a gradient of 1 moves arrays of zeros."""
  params = jax.tree.map(np.zeros_like, draw(0, ("conv1",)))
  tx, _ = optimizer.from_config(config, 1000, 1000)
  grads = jax.tree.map(np.ones_like, params)
  moves, _ = tx.update(grads, tx.init(params), params, step=0, drops=drops)
  layer = moves["features"]["conv1"]
  return {part: float(layer[part].mean()) for part in ("kernel", "bias")}


@pytest.mark.parametrize(
  ("scaling", "factor"), [("none", 1), ("linear", 4), ("sqrt", 2)]
)
def test_rates_grow_with_the_batch(scaling, factor):
  config = changed(
    batch_size=512, batch_scaling=scaling, learning_rate_of_biases=2.0
  )
  assert first_move(config) == pytest.approx(
    {"kernel": -0.01 * factor, "bias": -0.02 * factor}
  )


def test_fc_layers_have_the_rate_of_their_own_batch():
  config = changed(batch_size=512, fc_batch_size=128, batch_scaling="linear")
  params = jax.tree.map(np.zeros_like, draw(0, NAMES))
  tx, _ = optimizer.from_config(config, 1000, 1000)
  grads = jax.tree.map(np.ones_like, params)
  moves, _ = tx.update(grads, tx.init(params), params, step=0)
  for half, rate in (("features", 0.04), ("classifier", 0.01)):
    for move in jax.tree.leaves(moves[half]):
      np.testing.assert_allclose(move, -rate, rtol=1e-6)


@pytest.mark.parametrize("drops", [0, 1, 2, 3])
def test_drops_on_a_plateau_reach_the_update(drops):
  rate = 0.01 / 10**drops
  assert first_move(changed(), drops) == pytest.approx(
    {"kernel": -rate, "bias": -rate}
  )


def test_net_that_has_ended_drops_its_rate_no_more():
  state = schedules.Plateau.start().replace(stopped=jnp.bool_(True))
  for _ in range(9):
    state = state.after(0.5, patience=2, max_drops=3)
  assert (int(state.drops), bool(state.stopped)) == (0, True)


def test_plateau_is_the_papers_rule():
  state = schedules.Plateau.start()
  states = []
  # The best error is never reached again, though each is below the one before.
  for error in [0.5, *np.linspace(0.9, 0.6, 20)]:
    state = state.after(error, patience=5, max_drops=3)
    states.append((int(state.drops), bool(state.stopped)))
  assert states == [
    *[(0, False)] * 5, *[(1, False)] * 5, *[(2, False)] * 5, *[(3, False)] * 5,
    (3, True),
  ]  # fmt: skip


@pytest.mark.parametrize("nan_rate", [0.0, 0.1])
def test_plateau_equals_the_oracle_on_any_errors(nan_rate):
  """Catches a NaN that is taken for the best error: none is below it."""
  rng = np.random.default_rng(0)
  shape = (200, 40)
  # Few values, so that many tie; falling, so that some improve. All are exact.
  errors = rng.integers(0, 16, shape) / 16 - np.arange(40) / 64
  errors[rng.random(shape) < nan_rate] = np.nan
  patience = rng.integers(1, 6, 200)
  max_drops = rng.integers(0, 4, 200)

  @jax.vmap
  def found(errors, patience, max_drops):
    def after(state, error):
      state = state.after(error, patience, max_drops)
      return state, (state.drops, state.stopped)

    return jax.lax.scan(after, schedules.Plateau.start(), errors)[1]

  drops, stopped = found(errors.astype(np.float32), patience, max_drops)
  for row, states in enumerate(np.stack([drops, stopped], -1).tolist()):
    expected = oracles.plateau(errors[row], patience[row], max_drops[row])
    assert states == [list(state) for state in expected]
