"""A run that is opened for use: its config, its net and its parameters."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alexnet_jax import model, networks
from alexnet_jax.data import records
from alexnet_jax.parallel import ensemble
from alexnet_jax.runs import checkpoint, run_files
from alexnet_jax.runtime import errors


@dataclasses.dataclass(frozen=True)
class Run:
  """What a workdir holds, opened.

  Attributes:
    config: of the run.
    net: the module.
    step: of the checkpoint.
    members: parameters of each net at that step, on the mesh.
  """

  config: Any
  net: model.AlexNet
  step: int
  members: list[Any]


def find_run(workdir: Path) -> Any:
  """Returns the config of a run that has a checkpoint.

  Raises:
    InputError: no run, or no checkpoint yet.
  """
  config = run_files.read_config(workdir)
  if not checkpoint.steps_of(workdir):
    raise errors.InputError(
      f"workdir={str(workdir)!r} holds no checkpoint yet; train it first."
    )
  return config


def open_run(workdir: Path, mesh: Mesh, step: str = "newest") -> Run:
  """Opens a checkpoint of a run.

  Args:
    workdir: of the run.
    mesh: where to put its arrays.
    step: see `checkpoint.restore_params`.

  Raises:
    InputError: no run, no such checkpoint, a damaged one, or one of another
      version.
  """
  config = find_run(workdir)
  try:
    net = networks.make_model(config)
    count = config.ensemble
  except (AttributeError, KeyError) as e:
    raise errors.InputError(
      f"workdir={str(workdir)!r} holds a run of another version: its config"
      f" lacks {str(e).splitlines()[0]}; train it anew."
    ) from e
  size = net.network.input_size_px

  def draw():
    images = jnp.zeros((1, size, size, 3))
    params = net.init(jax.random.key(0), images)["params"]
    return ensemble.stack([params] * count) if count > 1 else params

  found, params = checkpoint.restore_params(
    workdir, jax.eval_shape(draw), mesh, step
  )
  return Run(config, net, found, ensemble.unstack(params, count))


def with_pretrained_net(
  config: Any, overridden: Mapping[str, Any], workdir: Path
) -> Any:
  """Returns a config with the net and the input of the run in `init_from`.

  As it is where `init_inherits` is not set. The last layer has `num_classes`,
  and is drawn anew.

  Args:
    config: a whole config.
    overridden: fields by their names in one level, which stay as they are.
    workdir: of the run to come; once begun, it has all that the other gave it.

  Raises:
    InputError: no such run.
  """
  if not config.init_inherits:
    return config
  if not config.init_from:
    raise errors.InputError(
      "init_from='' must be the workdir of a run to start from; pass"
      " --config.init_from=DIR."
    )
  begun = (workdir / "config.json").exists()
  source = (
    run_files.read_config(workdir)
    if begun
    else find_run(Path(config.init_from))
  )
  merged = config.copy_and_resolve_references().unlock()
  merged.network = source.network.copy_and_resolve_references().unlock()
  last = source.network.layers[-1]
  merged.network[last].units = config.num_classes
  merged.reinit_layers = (last,)
  merged.image_size_px = source.image_size_px
  merged.crop_size_px = source.crop_size_px
  merged.input_scale = tuple(source.input_scale)
  merged.update_from_flattened_dict(dict(overridden))
  return merged.lock()


def load_pretrained(
  workdir: Path, params: Any, mesh: Mesh, fresh: Sequence[str] = ()
) -> tuple[Any, list[str], list[str]]:
  """Puts another run's layers in the place of drawn ones.

  Args:
    workdir: of the other run.
    params: of the net to start, as drawn.
    mesh: where the other run is read to.
    fresh: names of layers that are left as drawn.

  Returns:
    The new parameters, the names of the layers that were taken, and of those
    that were left as drawn, if only as the other run has none of their shape.

  Raises:
    InputError: no such run, no layer of it fits, or no such fresh layer.
  """
  other, *more = open_run(workdir, mesh).members
  if more:
    raise errors.InputError(
      f"init_from={str(workdir)!r} holds {1 + len(more)} nets of an ensemble;"
      " start from a run of a single net."
    )
  known = [name for layers in params.values() for name in layers]
  for name in fresh:
    if name not in known:
      raise errors.unknown("reinit_layers", name, known)
  taken: list[str] = []
  left: list[str] = []
  started: dict[str, Any] = {}
  for stack in ("features", "classifier"):
    started[stack] = {}
    for name, drawn in params[stack].items():
      found = None if name in fresh else other[stack].get(name)
      fits = found and jax.tree.map(jnp.shape, found) == jax.tree.map(
        jnp.shape, drawn
      )
      started[stack][name] = found if fits else drawn
      (taken if fits else left).append(name)
  if not taken:
    raise errors.InputError(
      f"init_from={str(workdir)!r} has no layer of this net's names and shapes;"
      " start from a run of a like net."
    )
  return started, taken, left


def examples_of(config: Any, data_dir: str, split: str) -> records.Examples:
  """Opens a split for a run.

  Args:
    config: of the run.
    data_dir: "" for that of the run.
    split: in TFDS's words; "" for the run's test split.

  Raises:
    InputError: no such data, or no such split.
  """
  dataset = records.open_directory(Path(data_dir or config.data_dir))
  return records.open_split(dataset, split or config.test_split, "--split")
