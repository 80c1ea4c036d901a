"""That both sides compute the same, or nothing is timed.

  python experiments/throughput/guard.py --nets=two_tower

In float32, on the device at hand.
"""

import argparse
import functools
from typing import Any

import inputs
import jax
import jax.numpy as jnp
import numpy as np
import ours
import torch  # pyright: ignore[reportMissingImports]
import torch_nets
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from alexnet_jax import networks, optimizer
from alexnet_jax.runs import states

TOLERANCE = 1e-4
"""Of the largest number of an array."""
DRAWS = 3
"""Where a ReLU or a maximum is within rounding of turning, gradients may differ
by far more: seldom, and not on each of so many draws of the views."""


class Differs(Exception):
  """Both sides do not compute the same."""


def _agree(what: str, ours: Any, theirs: Any) -> None:
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  if ours.shape != theirs.shape:
    raise Differs(f"{what}: {ours.shape} is not torch's {theirs.shape}")
  error = np.abs(ours - theirs).max() / np.abs(ours).max()
  if not error <= TOLERANCE:
    raise Differs(
      f"{what}: differs from torch's by {error:.1e} of the largest, more than"
      f" {TOLERANCE:g}; nothing is timed"
    )


def _by_layer(tree: Any) -> dict[str, Any]:
  """Returns the layers of both halves of a tree of parameters."""
  return {**tree["features"], **tree["classifier"]}


def _velocity(theirs: Any, parameter: Any) -> Any:
  """Returns what torch adds to a parameter in its first step."""
  gathered = theirs.optimizer.state[parameter]["momentum_buffer"]
  return -theirs.config.learning_rate * gathered


def check_views(config: Any, batch_size: int) -> np.ndarray:
  """Checks torch's random views with a plain loop; returns them, NHWC."""
  found, views = inputs.statistics(config), torch_nets.Views(config)
  images, _ = inputs.examples(config, batch_size)
  size = config.crop_size_px
  drawn = views.draw(batch_size, "cpu")
  drawn[1][0], drawn[1][-1] = True, False
  expected = np.zeros((batch_size, size, size, 3), np.float32)
  for n, (corner, mirrored, shift) in enumerate(zip(*drawn, strict=True)):
    (row, col), end = corner.tolist(), corner + size
    place = (slice(row, end[0]), slice(col, end[1]))
    crop = images[n][place] - found.mean_image[place]
    expected[n] = (crop[:, ::-1] if mirrored else crop) + shift.numpy()
  here = torch_nets.device()
  there = torch.from_numpy(images).to(here)
  for spelling in views.SPELLINGS:
    where = "cpu" if spelling == "slices" else here
    made = getattr(views, spelling)(there, *(x.to(where) for x in drawn))
    made = made.permute(0, 2, 3, 1)[:, :size, :size].cpu()
    _agree(f"views by {spelling}", expected, made)
  return expected


def check(net: str, batch_size: int) -> None:
  """Checks logits, gradients, update and answers of a net.

  Args:
    net: as in `inputs.config_of`.
    batch_size: how many random images.

  Raises:
    Differs: what, and by how much.
  """
  config = inputs.config_of(net, batch_size)
  module = networks.make_model(config)
  params = states.init_params(module, config.seed)
  views = check_views(config, batch_size)
  images, labels = inputs.examples(config, batch_size)

  # Without dropout, which is random, but with what the paper does at test.
  def loss_of(params: Any) -> tuple[jax.Array, jax.Array]:
    logits: Any = module.apply({"params": params}, jnp.asarray(views))
    shares = jax.nn.log_softmax(logits)
    return -jnp.mean(shares[jnp.arange(batch_size), labels]), logits

  with jax.default_matmul_precision("highest"):
    (_, logits), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(
      params
    )
  tx, _ = optimizer.from_config(config, 1_281_167, 10**6)
  updates, _ = tx.update(grads, tx.init(params), params, step=jnp.int32(0))
  choices: dict[str, Any] = {
    "augment": "slices",
    "optimizer": "foreach",
    "threads": torch.get_num_threads(),
  }
  for norm in torch_nets.NORMS:
    theirs = torch_nets.Contestant(net, 1, False, norm=norm, **choices)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch_nets.load(theirs.net, jax.device_get(_by_layer(params)))
    theirs.net.eval()
    past = theirs.views.past
    x = torch.from_numpy(views).to(torch_nets.device()).permute(0, 3, 1, 2)
    seen = theirs.net(F.pad(x, (0, past, 0, past)))
    _agree(f"{net}, {norm}: logits", logits, seen.detach().cpu())
    there = torch.from_numpy(labels).long().to(seen.device)
    F.cross_entropy(seen, there).backward()
    their_grads = torch_nets.unload(theirs.net, lambda p: p.grad.clone())
    theirs.optimizer.step()
    velocity = functools.partial(_velocity, theirs)
    their_updates = torch_nets.unload(theirs.net, velocity)
    for name, layer in _by_layer(grads).items():
      for part, gradient in layer.items():
        what = f"{net}, {norm}: {name}/{part}"
        _agree(f"{what}, gradient", gradient, their_grads[name][part])
        update = _by_layer(updates)[name][part]
        _agree(f"{what}, update", update, their_updates[name][part])
  if config.test_views == 10 and ours.is_cpu():
    mine = ours.Contestant(net, 1)
    torch_nets.load(theirs.net, jax.device_get(_by_layer(mine.state.params)))
    _agree(f"{net}: answers", mine.answer(1, images), theirs.answer(1, images))


def main() -> None:
  """Checks the nets that are named."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--nets", default=",".join([*inputs.NETS, "cifar10"]))
  parser.add_argument("--batch", type=int, default=2)
  args = parser.parse_args()
  for net in args.nets.split(","):
    for draw in range(DRAWS):
      torch.manual_seed(draw)
      try:
        check(net, args.batch)
        break
      except Differs as e:
        print(e, flush=True)
    else:
      raise SystemExit(f"{net}: the sides differ on each of {DRAWS} draws")
    print(f"{net}: both sides agree", flush=True)


if __name__ == "__main__":
  main()
