"""What is added up between two records, and the time that it took."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.runs.meter import Meter


def sums(losses, errors, examples=4):
  values = {"loss": losses, "top1_errors": errors, "top5_errors": errors}
  values = {name: np.array(x, np.float32) for name, x in values.items()}
  return values | {"examples": np.full_like(values["loss"], examples)}


def losses(figures):
  return [each and each["loss"] for each in figures]


def test_net_that_ends_has_the_means_of_its_own_steps():
  """Two members and their steps; what one has told, the other keeps."""
  meter = Meter({})
  assert meter.take() == []
  meter.add([sums([4, 8], [1, 2]), sums([4, 16], [1, 2])], [True, True])
  first_ends = np.array([True, False])
  assert losses(meter.take(first_ends)) == [1, None]
  assert meter.take(first_ends) == []
  meter = Meter(meter.totals())  # As a run that is resumed.
  meter.add([sums([9, 24], [4, 3])], ~first_ends)
  assert losses(meter.take()) == [None, 4, 4]
  assert meter.take() == []


def test_mean_of_all_follows_the_members():
  meter = Meter({})
  meter.add([sums([4, 8], [1, 2])])
  assert losses(meter.take()) == [1, 2, 1.5]
  meter.add([sums(4, 1)])
  assert losses(meter.take()) == [1]


def test_time_to_compile_does_not_count():
  """Nor that of a program which is compiled later; all other time does."""
  meter = Meter({})
  for size in (1, 2):
    start = time.perf_counter()

    def slow_to_compile(x):
      for i in range(300):
        x = jnp.sin(x) * i
      return x

    with meter.waiting():
      jax.jit(slow_to_compile)(np.ones(size, np.float32))
      time.sleep(0.05)
    meter.add([sums(4, 1)])
    seconds = time.perf_counter() - start
    (figures,) = meter.take()
    told = 4 / figures["images_per_second"]
    assert 0.05 < told < 0.5 * seconds
    assert 0.05 / seconds < figures["input_wait"] <= 1
