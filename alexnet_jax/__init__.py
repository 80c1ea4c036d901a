"""AlexNet (Krizhevsky, Sutskever and Hinton, 2012) in JAX and Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from alexnet_jax.tools.inference import AlexNet, Model, from_config, load

__version__ = "0.1.0"
__all__ = ["AlexNet", "Model", "__version__", "from_config", "load"]


def __getattr__(name: str) -> Any:
  # On first use: the import takes seconds, and most commands do not need it.
  if name in __all__:
    from alexnet_jax.tools import inference

    return getattr(inference, name)
  raise AttributeError(f"module 'alexnet_jax' has no attribute {name!r}")
