"""What a net does step by step, in lines that tell two nets apart.

What changes no number at test is left out, as is the scaling of dropout, which
files do not hold.
"""

from alexnet_jax import networks

DENSE = "fully connected"


def conv(kernel: int, stride: int, padding: int, groups: int) -> str:
  """Returns the line of a convolution."""
  return (
    f"convolution {kernel} x {kernel}, stride {stride}, padding {padding},"
    f" groups {groups}"
  )


def activation(function: str) -> str:
  """Returns the line of a name in `ops.ACTIVATIONS`."""
  return function


def lrn(window: int, k: float, alpha: float, beta: float) -> str:
  """Returns the line of a response norm over all channels.

  Args:
    window: in channels.
    k: added to the sum of squares.
    alpha: weighs their sum, not their mean.
    beta: the power.
  """
  return f"norm over {window}, k {k:.4g}, alpha {alpha:.4g}, beta {beta:.4g}"


def max_pool(window: int, stride: int) -> str:
  """Returns the line of a maximum over windows."""
  return f"max pool {window} x {window}, stride {stride}"


def steps(network: networks.Network) -> list[str]:
  """Returns the lines of a net, from the image to the logits."""
  found = []
  for layer in (*network.features, *network.classifier):
    match layer:
      case networks.Conv():
        found.append(
          conv(layer.kernel, layer.stride, layer.padding, layer.towers)
        )
      case networks.Dense(towers=1):
        found.append(DENSE)
      case networks.Activation():
        found.append(activation(layer.function))
      case networks.LocalResponseNorm(towers=1):
        found.append(lrn(layer.window, layer.k, layer.alpha, layer.beta))
      case networks.MaxPool():
        found.append(max_pool(layer.window, layer.stride))
      case networks.Dropout() | networks.Join() | networks.Flatten():
        pass
      case _:
        found.append(str(layer))
  return found
