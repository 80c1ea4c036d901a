"""One change at a time, over any base.

  alexnet train --config=ablations:list
  alexnet train --config=ablations:tanh
  alexnet train --config=ablations:tanh,no_mirror@cifar10

The base is `alexnet` unless another config is named after the `@`, by name or
as a file (tanh@my/base.py). Several changes are made from left to right. A
change that changes nothing is an error.
"""

import dataclasses
import difflib
import importlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Ablation:
  """One change.

  Attributes:
    change: in words.
    effect: on the top-1 / top-5 error in % points, with the source.
    apply: edits a config.
  """

  change: str
  effect: str
  apply: Callable[[Any], None]


def _set(**fields: Any) -> Callable[[Any], None]:
  """Returns an edit of fields; `__` in a name stands for a dot."""

  def apply(config: Any) -> None:
    for name, value in fields.items():
      config.update_from_flattened_dict({name.replace("__", "."): value})

  return apply


def _convs(config: Any) -> list[str]:
  """Names of the layers that are convolutions."""
  net = config.network
  return [name for name in net.layers if "filters" in net[name]]


def _pools(row: Any) -> tuple[str, ...]:
  return tuple(word for word in row.then if word.endswith("_pool"))


NORMS = ("lrn", "map_norm")


def _strip(config: Any, words: tuple[str, ...], kept: str = "") -> None:
  """Removes words from the `then` of every layer but one."""
  for name in config.network.layers:
    if name != kept:
      row = config.network[name]
      row.then = tuple(word for word in row.then if word not in words)
  if "dropout" in words:
    config.network.dropout_rate_of_layers = ()


def _overlap(config: Any) -> None:
  net = config.network
  net.pool_window = 3
  if _paddings(net) == (1, 0):
    net.conv2.padding, net.conv5.padding = 2, 1


def _no_overlap(config: Any) -> None:
  net = config.network
  net.pool_window = 2
  # As in run 147: the pools leave more pixels, so two paddings shrink.
  if _paddings(net) == (2, 1):
    net.conv2.padding, net.conv5.padding = 1, 0


def _paddings(net: Any) -> tuple[int, int] | None:
  """Returns the paddings of conv2 and conv5, if the net has the paper's."""
  if not {"conv1", "conv2", "conv5"} <= set(net.layers):
    return None
  paper = net.conv1.stride == 4
  return (net.conv2.padding, net.conv5.padding) if paper else None


def _average_pool(config: Any) -> None:
  for name in _convs(config):
    row = config.network[name]
    row.then = tuple(
      "average_pool" if word == "max_pool" else word for word in row.then
    )


def _dropout(config: Any) -> None:
  net = config.network
  for name in net.layers[:-1]:
    if "units" in net[name] and "dropout" not in net[name].then:
      net[name].then = (*net[name].then, "dropout")


def _inverted_dropout(config: Any) -> None:
  net = config.network
  if not any("dropout" in net[name].then for name in net.layers):
    raise ValueError("inverted_dropout needs a base with dropout")
  net.dropout_rescaled = True


def _crops(config: Any) -> None:
  config.random_crop = True
  if config.crop_size_px == config.image_size_px:
    config.crop_size_px = config.image_size_px * 7 // 8


def _lrn(
  k: float,
  alpha: float,
  across: bool,
  conv1: tuple[str, ...] = ("activation", "lrn", "pool"),
  conv2: tuple[str, ...] = ("activation", "lrn", "pool"),
) -> Callable[[Any], None]:
  """Returns an edit that normalizes the first two layers and no other."""

  def apply(config: Any) -> None:
    _strip(config, NORMS)
    net = config.network
    net.lrn.update(k=k, alpha=alpha, across_towers=across)
    for index, order in enumerate((conv1, conv2)):
      name = _convs(config)[index]
      after: list[str] = []
      for word in order:
        after += _pools(net[name]) if word == "pool" else [word]
      net[name].then = tuple(after)

  return apply


def _half_tower(config: Any) -> None:
  config.network.towers = 1
  for name in _convs(config)[:-1]:
    config.network[name].filters //= 2


def _no_links(config: Any) -> None:
  net = config.network
  if net.towers == 1:
    raise ValueError("no_links needs a base of two towers")
  for name in net.layers[1:-1]:
    net[name].sees_all_towers = False


def _without(name: str) -> Callable[[Any], None]:
  """Returns an edit that drops a convolution and keeps the pixel grids."""

  def apply(config: Any) -> None:
    net = config.network
    index = net.layers.index(name) if name in net.layers else None
    if index is None:
      raise ValueError(f"the base has no {name}")
    kept = _pools(net[name]) + ("dropout",) * ("dropout" in net[name].then)
    # Its dropout goes to its neighbour, with its rate.
    neighbour = net.layers[index - 1 if index else 1]
    net.dropout_rate_of_layers = tuple(
      (neighbour if layer == name else layer, rate)
      for layer, rate in net.dropout_rate_of_layers
    )
    heir = net[neighbour]
    if index == 0:
      # The next layer sees the image, through this one's windows.
      if "filters" not in heir:
        raise ValueError(f"{name} is the only convolution")
      for field in ("kernel", "stride", "padding", "ceil_mode"):
        heir[field] = net[name][field]
      heir.then = (*kept, *heir.then)
    else:
      heir.then = (*heir.then, *kept)
      net[net.layers[index + 1]].sees_all_towers |= net[name].sees_all_towers
    net.layers = tuple(n for n in net.layers if n != name)
    del net[name]
    config.learning_rate_of_layers = tuple(
      entry
      for entry in config.learning_rate_of_layers
      if entry[1].partition("/")[0] != name
    )
    config.weight_decay_of_layers = tuple(
      entry for entry in config.weight_decay_of_layers if entry[0] != name
    )

  return apply


ABLATIONS = {
  "relu": Ablation(
    "max(0, x) after every layer", "the paper's (3.1)",
    _set(network__activation="relu"),
  ),
  "tanh": Ablation(
    "tanh instead of ReLU",
    "six times slower to 25 % on CIFAR-10 (3.1, Fig. 1); +7.0 at 128 px"
    " (caffenet-benchmark)",
    _set(network__activation="tanh"),
  ),
  "scaled_tanh": Ablation(
    "1.7159 tanh(2x / 3) instead of ReLU", "none given",
    _set(network__activation="scaled_tanh"),
  ),
  "sigmoid": Ablation(
    "1 / (1 + exp(-x)) instead of ReLU", "none given",
    _set(network__activation="sigmoid"),
  ),
  "linear": Ablation(
    "no nonlinearity at all", "+8.2 at 128 px (caffenet-benchmark)",
    _set(network__activation="none"),
  ),
  "overlap": Ablation(
    "pooling 3 / 2", "the paper's (3.4)", _overlap
  ),
  "no_overlap": Ablation(
    "pooling 2 / 2; in the paper's grids conv2 and conv5 are padded by one"
    " pixel less, as in run 147",
    "+0.4 / +0.3 (3.4, run 147); -1.3 at 128 px (caffenet-benchmark)",
    _no_overlap,
  ),
  "average_pool": Ablation(
    "average instead of maximum", "none given", _average_pool
  ),
  "dropout": Ablation(
    "dropout after each hidden fully connected layer", "the paper's (4.2)",
    _dropout,
  ),
  "no_dropout": Ablation(
    "no dropout", "overfits substantially, converges twice as fast (4.2)",
    lambda config: _strip(config, ("dropout",)),
  ),
  "inverted_dropout": Ablation(
    "dropout rescaled in training", "none given", _inverted_dropout
  ),
  "paper_lrn": Ablation(
    "conv1, conv2 normalized: k 2, alpha 1e-4, after the ReLU",
    "the paper's (3.3)", _lrn(2.0, 1e-4, False),
  ),
  "run_lrn": Ablation(
    "k 2, alpha 1e-4 / 5; conv1's before its ReLU, then a norm within maps",
    "none given; the whole run: 40.7 / 18.2 (run 145)",
    _lrn(2.0, 1e-4 / 5, False, conv1=("lrn", "pool", "activation"),
         conv2=("activation", "lrn", "map_norm", "pool")),
  ),
  "caffe_lrn": Ablation(
    "k 1, alpha 1e-4 / 5, across the towers", "none given",
    _lrn(1.0, 1e-4 / 5, True),
  ),
  "no_lrn": Ablation(
    "no normalization layer",
    "+1.4 / +1.2 (3.3, run 148); -0.1 at 128 px (caffenet-benchmark)",
    lambda config: _strip(config, NORMS),
  ),
  "lrn_conv1": Ablation(
    "only the first convolution normalized", "none given",
    lambda config: _strip(config, NORMS, kept=_convs(config)[0]),
  ),
  "lrn_conv2": Ablation(
    "only the second convolution normalized", "none given",
    lambda config: _strip(config, NORMS, kept=_convs(config)[1]),
  ),
  "two_towers": Ablation(
    "two towers", "the paper's (3.2)", _set(network__towers=2)
  ),
  "one_tower": Ablation(
    "one tower of the whole width", "-1.6 at 128 px (caffenet-benchmark)",
    _set(network__towers=1),
  ),
  "half_tower": Ablation(
    "one tower, half the filters but in the last convolution",
    "+1.7 / +1.2 (3.2, run 145-half)", _half_tower,
  ),
  "no_links": Ablation(
    "two towers that meet in the last layer alone",
    "+1.2 / +1.1, with more filters in return (run 150)", _no_links,
  ),
  "colour_noise": Ablation(
    "colour noise of 0.1 standard deviations", "the paper's (4.1)",
    _set(colour_noise=0.1),
  ),
  "no_colour_noise": Ablation(
    "no colour noise", "more than +1 (4.1)", _set(colour_noise=0.0)
  ),
  "crops": Ablation(
    "random crops, of 7/8 of the side if the base crops nothing",
    "the paper's (4.1)", _crops,
  ),
  "no_crops": Ablation(
    "central crops alone", "overfits substantially (4.1)",
    _set(random_crop=False),
  ),
  "mirror": Ablation(
    "mirrored with probability 1/2", "the paper's (4.1)", _set(mirror=True)
  ),
  "no_mirror": Ablation(
    "never mirrored", "overfits substantially (4.1, with the crops)",
    _set(mirror=False),
  ),
  **{
    f"no_{name}": Ablation(
      f"without {name}; its pooling, dropout and link of the towers stay",
      effect, _without(name),
    )
    for name, effect in (
      ("conv1", "none given"), ("conv2", "about +2 (7)"),
      ("conv3", "about +2 (7)"), ("conv4", "about +2 (7)"),
      ("conv5", "none given"), ("conv6", "none given"),
    )
  },
  "one_view": Ablation(
    "tested on the central view", "+1.5 / +1.3 (4.1, run 145-2010)",
    _set(test_views=1),
  ),
  "ten_views": Ablation(
    "tested on ten views", "the paper's (4.1)", _set(test_views=10)
  ),
}  # fmt: skip


def _base(name: str) -> ConfigDict:
  """Returns the config of a name, or of a file's path."""
  if name.endswith(".py") and Path(name).is_file():
    return runpy.run_path(name)["get_config"]()
  bases = {path.stem for path in Path(__file__).parent.glob("[a-z]*.py")}
  bases.remove("ablations")
  if name not in bases:
    near = "".join(difflib.get_close_matches(name, bases, n=1))
    guess = f", but there is {near!r}" if near else ""
    raise ValueError(f"there is no base {name!r}{guess}")
  return importlib.import_module(f"alexnet_jax.configs.{name}").get_config()


def get_config(ablations: str) -> ConfigDict:
  """Returns a base config with changes.

  Args:
    ablations: `NAME[,NAME...][@BASE]`, or `list` to print them and exit.

  Raises:
    ValueError: an unknown name or base, or a change that changes nothing.
  """
  if ablations == "list":
    for name, a in ABLATIONS.items():
      print(f"{name:17} {a.change}\n{'':17} {a.effect}")
    sys.exit()
  names, _, base = ablations.partition("@")
  base = base or "alexnet"
  config: Any = _base(base)
  if any("branches" in config.network[name] for name in config.network.layers):
    raise ValueError(f"{base} has branches, which ablations do not change")
  with config.unlocked():
    for name in names.split(","):
      if name not in ABLATIONS:
        raise ValueError(
          f"there is no ablation {name!r}; --config=ablations:list prints all"
        )
      before = config.to_dict()
      try:
        ABLATIONS[name].apply(config)
      except IndexError as e:
        raise ValueError(f"{name} needs more layers than are left") from e
      if config.to_dict() == before:
        raise ValueError(f"{name} changes nothing in {base}")
  return config
