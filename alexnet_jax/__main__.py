"""`python -m alexnet_jax COMMAND`, the same as `alexnet COMMAND`."""

from alexnet_jax.tools import commands

if __name__ == "__main__":
  commands.main()
