"""A trained run, loaded for use: its config, its net and its parameters."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alexnet_jax import model, networks
from alexnet_jax.data import records
from alexnet_jax.parallel import ensemble, placement
from alexnet_jax.runs import checkpoint, run_files
from alexnet_jax.runtime import errors


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """What a workdir holds, loaded."""

  config: Any
  net: model.AlexNet
  step: int  # Of the checkpoint.
  members: list[Any]  # Parameters of each net, on the mesh.


def load_run(workdir: Path, mesh: Mesh, step: str = "newest") -> TrainedRun:
  """Loads a checkpoint of a run, and puts its arrays on a mesh.

  `step` is `newest`, `best` (by validation) or a number. Raises InputError if
  there is no such checkpoint, or a damaged one.
  """
  config = run_files.read_config(workdir)
  try:
    net = networks.make_model(config)
  except (AttributeError, KeyError) as e:
    raise errors.InputError(
      f"workdir={str(workdir)!r} holds a run of another version"
      f" ({errors.reason(e)}); train it anew."
    ) from e
  size, count = net.network.input_size_px, config.ensemble

  def draw():
    images = jnp.zeros((1, size, size, 3))
    params = net.init(jax.random.key(0), images)["params"]
    return ensemble.stack([params] * count) if count > 1 else params

  found = checkpoint.find_step(workdir, step)
  params = checkpoint.read_params(workdir, found, jax.eval_shape(draw))
  members = ensemble.unstack(placement.replicate(mesh, params), count)
  return TrainedRun(config, net, found, members)


def with_pretrained_net(
  config: Any, overridden: Mapping[str, Any], workdir: Path
) -> Any:
  """Returns a config with the net and the input of the run in `init_from`.

  Only if `init_inherits` is set. The last layer has `num_classes` units, which
  are drawn anew.

  Args:
    config: a complete config.
    overridden: fields of the command line, by flat names, which stay.
    workdir: of the run to come; once begun, its own config has the net.

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
  source = run_files.read_config(workdir if begun else Path(config.init_from))
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
  """Replaces the drawn layers of a net by those of another run.

  Returns:
    The new parameters, the names of the layers that were replaced, and of those
    that stay as drawn: the `fresh` ones, and those that do not fit.
  """
  other, *more = load_run(workdir, mesh).members
  if more:
    raise errors.InputError(
      f"init_from={str(workdir)!r} holds {1 + len(more)} nets of an ensemble;"
      " start from a run of a single net."
    )
  # A dict that jax has handled has its keys sorted.
  started = {half: dict(params[half]) for half in ("features", "classifier")}
  known = [name for layers in started.values() for name in layers]
  for name in fresh:
    if name not in known:
      raise errors.unknown("reinit_layers", name, known)
  taken: list[str] = []
  for half, layers in started.items():
    for name, drawn in layers.items():
      found = other[half].get(name)
      fits = jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, drawn)
      if fits and name not in fresh:
        layers[name] = found
        taken.append(name)
  if not taken:
    raise errors.InputError(
      f"init_from={str(workdir)!r} has no layer of this net's names and shapes;"
      " start from a run of a like net."
    )
  return started, taken, [name for name in known if name not in taken]


def examples_of(config: Any, data_dir: str, split: str) -> records.Examples:
  """Opens a split for a run, by default its test split."""
  split = split or config.test_split
  if not split:
    raise errors.InputError(
      "the run has no test split (test_split=''); name one, such as"
      " --split=validation."
    )
  dataset = records.open_directory(Path(data_dir or config.data_dir))
  return records.open_split(dataset, split, "--split")
