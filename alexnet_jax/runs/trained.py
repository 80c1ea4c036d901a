"""A trained run, loaded for use: its config, its net and its parameters."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from alexnet_jax import model, networks
from alexnet_jax.data import records
from alexnet_jax.parallel import ensemble, placement
from alexnet_jax.runs import checkpoint, config_files, run_files, states
from alexnet_jax.runtime import errors


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """A checkpoint, with the config and the net of its run."""

  config: Any
  net: model.AlexNet
  step: int  # Of the checkpoint.
  members: list[Any]  # Parameters of each net, on the mesh.


def load_run(workdir: Path, mesh: Mesh, step: str = "newest") -> TrainedRun:
  """Loads a checkpoint of a run onto a mesh; `step` as in `find_step`."""
  config = run_files.read_config(workdir)
  try:
    config_files.check(config)
    net = networks.make_model(config)
  except (errors.InputError, AttributeError, KeyError, TypeError) as e:
    raise errors.InputError(
      f"workdir={str(workdir)!r} holds a run whose config.json is damaged or of"
      f" another version ({errors.reason(e)}); put it back, or train anew."
    ) from e

  def draw():
    drawn = [states.init_params(net, 0)] * config.ensemble
    return states.init_state(drawn, optax.identity()).params

  expected = jax.eval_shape(draw)
  found, params = checkpoint.load_params(workdir, step, expected)
  params = placement.replicate(mesh, params)
  members = ensemble.unstack(params, config.ensemble)
  return TrainedRun(config, net, found, members)


def with_pretrained_net(
  config: Any, overridden: Mapping[str, Any], workdir: Path
) -> Any:
  """Returns a config with the net and the input of the run in `init_from`.

  Only if `init_inherits` is set. The last layer gets `num_classes` new units,
  and the `overridden` fields of the command line stay. Once the run in
  `workdir` has begun, the net is that of its own config.
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
  merged.mean_crop = source.mean_crop
  merged.update_from_flattened_dict(dict(overridden))
  return merged.lock()


def load_pretrained(config: Any, drawn: Sequence[Any]) -> tuple[list[Any], str]:
  """Replaces layers of nets, as drawn, by those of the run in `init_from`.

  Layers in `reinit_layers` stay, and those that do not fit. Returns the
  parameters of each net, and a text that says which layers are whose.
  """
  source = Path(config.init_from)
  other, *more = load_run(source, placement.make_mesh()).members
  if more:
    raise errors.InputError(
      f"init_from={str(source)!r} holds {1 + len(more)} nets of an ensemble;"
      " start from a run of a single net."
    )
  started = [{half: dict(net[half]) for half in net} for net in drawn]
  taken, kept = [], []
  for half in ("features", "classifier"):  # jax has sorted the keys.
    for name, layer in drawn[0][half].items():
      found = other[half].get(name)
      fits = jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, layer)
      if not fits or name in config.reinit_layers:
        kept.append(name)
        continue
      taken.append(name)
      for net in started:
        net[half][name] = found
  if not taken:
    raise errors.InputError(
      f"init_from={str(source)!r} has no layer of this net's names and shapes;"
      " start from a run of a like net."
    )
  new = ", ".join(kept) or "no layer"
  return started, f"{', '.join(taken)} from {source}; {new} drawn anew"


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
