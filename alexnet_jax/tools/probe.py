"""A linear classifier on features: how much of the classes is in them.

  alexnet probe TRAIN.npz TEST.npz

Softmax regression on the standardized features, by L-BFGS; of a row of
penalties on the squared weights that one is taken which is best on a tenth of
the training images, held out at random. The files are `features`' own.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from alexnet_jax.runtime import cli, errors

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_STEPS, _TOLERANCE = 200, 1e-5


class Features(NamedTuple):
  """A file of `alexnet features`.

  Attributes:
    values: float32 [N, D].
    labels: int64 [N].
    class_names: of the labels.
    layer: that they are of.
  """

  values: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]
  layer: str


def read(file: Path) -> Features:
  """Reads a file of features; maps are flattened.

  Raises:
    InputError: it is none.
  """
  try:
    with np.load(file) as held:
      values = held["features"].astype(np.float32)
      labels = held["labels"].astype(np.int64)
      names, layer = held["class_names"].tolist(), str(held["layer"])
    if len(values) != len(labels) or not len(values):
      raise ValueError(f"{len(values)} features of {len(labels)} labels")
    if not np.isfinite(values).all():
      raise ValueError("a feature is not finite")
    if labels.min() < 0 or labels.max() >= len(names):
      raise ValueError(f"a label is not of the {len(names)} classes")
  # What is no archive, or half of one, has errors of many kinds.
  except Exception as e:
    raise errors.InputError(
      f"{str(file)!r} holds no features ({' '.join(str(e).split())}); make it"
      " with alexnet features."
    ) from e
  return Features(values.reshape(len(values), -1), labels, tuple(names), layer)


def fit(
  values: np.ndarray, labels: np.ndarray, classes: int, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns weights [D, K] and biases [K] of the least penalized loss.

  The loss is the mean cross-entropy and half the penalty times the sum of the
  squared weights.

  Args:
    values: float32 [N, D], standardized.
    labels: int [N].
    classes: K.
    penalty: above 0.
  """
  return jax.device_get(_solve(values, labels, penalty, classes))


@functools.partial(jax.jit, static_argnames="classes")
def _solve(values: Any, labels: Any, penalty: Any, classes: int) -> Any:
  def loss(params: Any) -> Any:
    weights, biases = params
    logits = values @ weights + biases[None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean() + penalty / 2 * (weights**2).sum()

  solver = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(loss)

  def step(carry: Any) -> Any:
    count, params, state, _ = carry
    value, grads = value_and_grad(params, state=state)
    updates, state = solver.update(
      grads, state, params, value=value, grad=grads, value_fn=loss
    )
    largest = optax.tree.norm(grads, ord=jnp.inf)
    return count + 1, optax.apply_updates(params, updates), state, largest

  def going(carry: Any) -> Any:
    count, _, _, largest = carry
    return (count < _STEPS) & (largest > _TOLERANCE)

  params: Any = jnp.zeros((values.shape[1], classes)), jnp.zeros(classes)
  start = (0, params, solver.init(params), jnp.float32(jnp.inf))
  return jax.lax.while_loop(going, step, start)[1]


def error(
  train: Features, test: Features, seed: int = 0
) -> tuple[float, float]:
  """Returns the penalty that was chosen, and the test error.

  Args:
    train: learned from.
    test: of the same layer and classes.
    seed: of the tenth that is held out to choose the penalty.

  Raises:
    InputError: they are not of the same layer and classes, or too few.
  """
  for field in ("layer", "class_names"):
    if getattr(train, field) != getattr(test, field):
      raise errors.InputError(
        f"the files are of another {field}; make both with one run and layer."
      )
  if train.values.shape[1:] != test.values.shape[1:] or len(train.labels) < 10:
    raise errors.InputError(
      f"{train.values.shape[0]} features of {train.values.shape[1]} numbers"
      f" cannot be learned from for ones of {test.values.shape[1]}; make both"
      " files with one run and layer, of ten images or more."
    )
  mean, deviation = train.values.mean(0), train.values.std(0)
  deviation[deviation == 0] = 1
  learned, tested = ((x.values - mean) / deviation for x in (train, test))
  classes = len(train.class_names)

  def wrong(held: Any, values: np.ndarray, labels: np.ndarray) -> float:
    weights, biases = held
    return float(((values @ weights + biases).argmax(1) != labels).mean())

  order = np.random.default_rng(seed).permutation(len(learned))
  out, rest = np.split(order, [len(order) // 10])
  found = {
    penalty: wrong(
      fit(learned[rest], train.labels[rest], classes, penalty),
      learned[out],
      train.labels[out],
    )
    for penalty in PENALTIES
  }
  best = min(found, key=lambda penalty: (found[penalty], -penalty))
  held = fit(learned, train.labels, classes, best)
  return best, wrong(held, tested, test.labels)


def main(argv: Sequence[str]) -> None:
  """Runs the command."""
  if len(argv) != 3:
    raise errors.InputError(
      f"{len(argv) - 1} files were given; write alexnet probe"
      " TRAIN.npz TEST.npz."
    )
  cli.keep_memory()
  train, test = (read(Path(name)) for name in argv[1:])
  penalty, share = error(train, test, flags.FLAGS.seed)
  print(
    f"{train.layer}, {train.values.shape[1]:,} features, {len(train.labels):,}"
    f" to learn from, {len(test.labels):,} to test, penalty {penalty:g}: top-1"
    f" error {share:.2%}"
  )


def _define_flags() -> None:
  flags.DEFINE_integer("seed", 0, "Of the tenth that the penalty is chosen by.")


def command() -> None:
  """`alexnet probe`."""
  cli.run(main, _define_flags, takes_files=True)
