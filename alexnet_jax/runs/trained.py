"""A trained run, loaded for use: its config, its net and its parameters."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import safetensors
from jax.sharding import Mesh

from alexnet_jax import model, networks
from alexnet_jax.data import checks, records, statistics
from alexnet_jax.parallel import ensemble, placement
from alexnet_jax.runs import (
  checkpoint,
  config_files,
  run_files,
  states,
  torch_layout,
)
from alexnet_jax.runtime import cli, errors


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """A checkpoint or weights alone, with what is known of their run."""

  config: Any
  net: model.AlexNet
  class_names: tuple[str, ...]
  statistics: statistics.Statistics
  step: int  # Of the checkpoint.
  members: list[Any]  # Parameters of each net, on the mesh.


def load_run(
  workdir: str | Path, mesh: Mesh, step: str = "newest"
) -> TrainedRun:
  """Loads a run's parameters onto a mesh.

  `workdir` is as in `find_run`, `step` as in `find_step`.
  """
  workdir = run_files.find_run(workdir)
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

  if run_files.holds_weights(workdir):
    if step != "newest":
      raise errors.InputError(
        f"--step={step} names a checkpoint, but {str(workdir)!r} holds weights"
        " of one step alone; leave --step out."
      )
    found, params = _load_weights(workdir, net.network)
    members = [placement.replicate(mesh, params)]
  else:
    expected = jax.eval_shape(draw)
    found, params = checkpoint.load_params(workdir, step, expected)
    params = placement.replicate(mesh, params)
    members = ensemble.unstack(params, config.ensemble)
  size_px = config.image_size_px
  names, stats = run_files.read_run_metadata(workdir, size_px)
  if len(names) != config.num_classes:
    raise errors.InputError(
      f"workdir={str(workdir)!r} names {len(names)} of its"
      f" {config.num_classes} classes; put its class_names.json back."
    )
  return TrainedRun(config, net, names, stats, found, members)


def _load_weights(workdir: Path, network: model.Network) -> tuple[int, Any]:
  """Returns step and parameters of a folder that holds weights alone."""
  file = workdir / run_files.WEIGHTS
  try:
    with safetensors.safe_open(file, "np") as opened:
      step = int((opened.metadata() or {}).get("step", 0))
      arrays = {name: opened.get_tensor(name) for name in opened.keys()}
    there = {name: x.shape for name, x in arrays.items()}
    if differing := errors.differences(there, torch_layout.shapes(network)):
      raise ValueError(f"of another net than config.json: {differing}")
    return step, torch_layout.from_torch(network, arrays)
  except Exception as e:  # The library has errors of its own.
    raise errors.InputError(
      f"{str(file)!r} cannot be used ({errors.reason(e)}); put a copy back."
    ) from e


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
      "--config.init_from='' must name a run to start from; pass"
      " --config.init_from=DIR."
    )
  begun = (workdir / "config.json").exists()
  source = run_files.read_config(
    workdir if begun else run_files.find_run(config.init_from)
  )
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
  source = config.init_from
  other, *more = load_run(source, placement.make_mesh()).members
  if more:
    raise errors.InputError(
      f"--config.init_from={source!r} holds {1 + len(more)} nets of an"
      " ensemble; start from a run of a single net."
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
      f"--config.init_from={source!r} has no layer of this net's names and"
      " shapes; start from a run of a like net."
    )
  new = ", ".join(kept) or "no layer"
  return started, f"{', '.join(taken)} from {source}; {new} drawn anew"


def examples_of(config: Any, data_dir: str, split: str) -> records.Examples:
  """Opens a split for a run, by default of test, else of validation."""
  chosen = split or config.test_split or config.validation_split
  if not chosen:
    raise errors.InputError(
      "the run has no test and no validation split (test_split='',"
      " validation_split=''); name a split of its data, such as --split=train."
    )
  if not split and chosen == config.validation_split:
    note = f"errors on {chosen} may be too low: the run was validated on it"
    cli.echo(f"note: {note}", sys.stderr)
  dataset = records.open_directory(Path(data_dir or config.data_dir))
  checks.check_size(dataset, config.image_size_px)
  return records.open_split(dataset, chosen, "--split")
