"""What a net computes, one line of text a step, to compare two nets.

Steps that change no number at test are left out. So is the factor of dropout,
which no file of another program holds.
"""

from alexnet_jax import model

DENSE = "fully connected"


def conv(kernel: int, stride: int, padding: int, groups: int) -> str:
  """Returns the line of a convolution."""
  return (
    f"convolution {kernel} x {kernel}, stride {stride}, padding {padding},"
    f" groups {groups}"
  )


def lrn(window: int, k: float, alpha: float, beta: float) -> str:
  """Returns the line of a response norm; `alpha` weighs the sum of squares."""
  return f"norm over {window}, k {k:.4g}, alpha {alpha:.4g}, beta {beta:.4g}"


def max_pool(window: int, stride: int) -> str:
  """Returns the line of a max pool."""
  return f"max pool {window} x {window}, stride {stride}"


def unsupported(kind: str) -> str:
  """Returns the line of a layer whose kind or settings no net here has."""
  return f"an unsupported {kind}"


def steps(network: model.Network) -> list[str]:
  """Returns the lines of a net, from the image to the logits."""
  lines = []
  for layer in (*network.features, *network.classifier):
    match layer:
      case model.Conv():
        window = (layer.kernel, layer.stride, layer.padding)
        lines.append(conv(*window, layer.towers))
      case model.Dense(towers=1):
        lines.append(DENSE)
      case model.Activation():
        lines.append(layer.function)
      case model.LocalResponseNorm(towers=1):
        lines.append(lrn(layer.window, layer.k, layer.alpha, layer.beta))
      case model.Dropout() | model.Join() | model.Flatten():
        pass
      case model.MaxPool() if not isinstance(layer, model.AveragePool):
        lines.append(max_pool(layer.window, layer.stride))
      case _:  # None of the known nets has it.
        lines.append(f"{type(layer).__name__} of this package")
  return lines
