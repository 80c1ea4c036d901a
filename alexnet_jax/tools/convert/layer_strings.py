"""What a net computes, one line of text a step, to compare two nets.

Steps that change no number at test are left out. So is the factor of dropout,
which no file of another program holds.
"""

from alexnet_jax import model

DENSE = "fully connected"
CONV = "convolution {0} x {0}, stride {1}, padding {2}, groups {3}"
MAX_POOL = "max pool {0} x {0}, stride {1}"
LRN = "norm over {}, k {:.4g}, alpha {:.4g}, beta {:.4g}"  # alpha of the sum
UNSUPPORTED = "an unsupported {}"  # no net here has its kind or settings


def steps(network: model.Network) -> list[str]:
  """Returns the lines of a net, from the image to the logits."""
  lines = []
  for layer in (*network.features, *network.classifier):
    match layer:
      case model.Conv():
        window = (layer.kernel, layer.stride, layer.padding)
        lines.append(CONV.format(*window, layer.towers))
      case model.Dense(towers=1):
        lines.append(DENSE)
      case model.Activation():
        lines.append(layer.function)
      case model.LocalResponseNorm(towers=1):
        settings = (layer.window, layer.k, layer.alpha, layer.beta)
        lines.append(LRN.format(*settings))
      case model.Dropout() | model.Join() | model.Flatten():
        pass
      case model.MaxPool() if not isinstance(layer, model.AveragePool):
        lines.append(MAX_POOL.format(layer.window, layer.stride))
      case _:  # None of the known nets has it.
        lines.append(f"{type(layer).__name__} of this package")
  return lines
