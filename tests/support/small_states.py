"""Training states of a few random arrays, and how they are saved."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.parallel import placement
from alexnet_jax.runs import checkpoint, saving
from alexnet_jax.schedules import Plateau
from alexnet_jax.steps import TrainState

SHAPES = {
  "features/conv1/kernel": (3, 3, 2, 8),
  "features/conv1/bias": (8,),
  "classifier/fc6/kernel": (16, 40),
  "classifier/fc6/bias": (40,),
}


class Lines:
  """A log that keeps what is printed."""

  count = 0

  def __init__(self):
    self.lines = []

  def print(self, text):
    """Keeps a line."""
    self.lines.append(text)

  def flush(self):
    """Has nothing to write."""
    return True

  def sync(self):
    """Has nothing to wait for."""


def arrays(step, shapes=SHAPES):
  rng = np.random.default_rng(step)
  return {
    name: rng.standard_normal(shape, np.float32)
    for name, shape in shapes.items()
  }


def tree(flat):
  nested = {}
  for name, value in flat.items():
    half, layer, kind = name.split("/")
    nested.setdefault(half, {}).setdefault(layer, {})[kind] = value
  return nested


def state_of(step, shapes=SHAPES, devices=1):
  """A state of random arrays, those with 8 rows in parts on the devices."""
  mesh = placement.make_mesh(devices)
  (axis, *_) = mesh.axis_names

  def put(value):
    spec = [axis if size % 8 == 0 else None for size in value.shape[:1]]
    sharding = jax.sharding.NamedSharding(mesh, jax.P(*spec))
    return jax.device_put(value, sharding)

  drawn = arrays(step, shapes)
  return TrainState(
    jnp.int32(step),
    tree({name: put(x) for name, x in drawn.items()}),
    {"velocity": tree({name: put(-x) for name, x in drawn.items()})},
    Plateau.start(),
  )


def saver(workdir, log=None, keep=9, best=None, **options):
  return saving.Saver(
    workdir,
    types.SimpleNamespace(
      checkpoints_to_keep=keep, checkpoint_every_minutes=math.inf
    ),
    log or Lines(),
    best,
    **options,
  )


def save(workdir, *steps, best=None, devices=1, keep=9):
  with saver(workdir, keep=keep, best=best) as saves:
    for step in steps:
      progress = checkpoint.Progress({}, {}, best_step=best)
      assert saves.save(state_of(step, devices=devices), progress, wait=True)
