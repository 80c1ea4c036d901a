"""What differs from backend to backend: it changes speed and rounding alone.

The choices are measured in experiments/throughput.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Of jax 0.10 and 0.11; a version that does not know an option refuses it.
COMPILER_OPTIONS: Mapping[str, dict[str, Any]] = {
  "cpu": {
    # YNNPACK's convolutions are slower than Eigen's, and so are its products
    # where one of the matrices has few rows.
    "xla_cpu_experimental_ynn_fusion_type": "",
    # Else `materialize` has no effect: XLA would drop its barriers too early.
    "xla_disable_hlo_passes": "cse_barrier_expander",
  },
}

# No sums in any order, and no kernels that are chosen by their speed.
DETERMINISTIC_OPTIONS = {"gpu": {"xla_gpu_deterministic_ops": True}}

# Platforms that are many times slower at convolutions in a loop, or under vmap
# with a kernel for each member.
UNROLLING = ("cpu",)


def loops_are_fast() -> bool:
  """Whether convolutions in a loop are as quick as one by one."""
  return jax.default_backend() not in UNROLLING


def jit(fun: Any, deterministic: bool = False, **settings: Any) -> Any:
  """Returns `jax.jit(fun, **settings)` with the options of the backend."""
  options = dict(COMPILER_OPTIONS.get(jax.default_backend(), {}))
  if deterministic:
    options |= DETERMINISTIC_OPTIONS.get(jax.default_backend(), {})
  return jax.jit(fun, compiler_options=options, **settings)


_compiled = threading.local()


def clock() -> float:
  """Returns seconds, of a clock that stops while its thread compiles."""
  return time.perf_counter() - getattr(_compiled, "seconds", 0.0)


def _stop_clock(event: str, duration_secs: float, **_: Any) -> None:
  if event.startswith("/jax/core/compile/"):
    _compiled.seconds = getattr(_compiled, "seconds", 0.0) + duration_secs


jax.monitoring.register_event_duration_secs_listener(_stop_clock)


# Functions that compute the same, by platform, for `lax.platform_dependent`.
def matmul_precision(name: str) -> contextlib.AbstractContextManager[Any]:
  """Sets the precision of products; "default" leaves jax's own setting."""
  if name == "default":
    return contextlib.nullcontext()
  return jax.default_matmul_precision(name)


Table = Mapping[str, Callable[..., jax.Array]]
MATERIALIZE: Table = {"cpu": lax.optimization_barrier, "default": lambda x: x}


@jax.custom_vjp
def materialize(x: jax.Array) -> jax.Array:
  """Returns x, which is computed in full before it is used; its gradient too.

  XLA:CPU would compute elementwise operations anew inside each of their users.
  """
  return lax.platform_dependent(x, **MATERIALIZE)


materialize.defvjp(
  lambda x: (materialize(x), None), lambda _, dy: (materialize(dy),)
)


def _sum_by_product(y: jax.Array) -> jax.Array:
  # By images first, which is also more exact than one long sum.
  y = y.reshape(len(y), -1, y.shape[-1])
  ones = jnp.ones(y.shape[:2], y.dtype)
  each = jnp.einsum("bn,bnc->bc", ones, y, preferred_element_type=jnp.float32)
  return each.sum(0).astype(y.dtype)


# The sum over all axes but the last.
COLUMN_SUM: Table = {
  "cpu": _sum_by_product,
  "default": lambda y: y.sum(tuple(range(y.ndim - 1))),
}


def _rows_by_columns(x: jax.Array, kernel: jax.Array) -> jax.Array:
  # Barriers, as XLA would write the same product as below.
  columns = lax.optimization_barrier(x.T)
  return lax.optimization_barrier(kernel @ columns).T


TIMES_TRANSPOSED: Table = {
  "cpu": _rows_by_columns,
  "default": lambda x, kernel: x @ kernel.T,
}


def _finite_by_product(x: jax.Array) -> jax.Array:
  # 0 times what is not finite is not a number.
  rows = x.reshape(-1, x.shape[-1])
  return jnp.isfinite((rows @ jnp.zeros(x.shape[-1], x.dtype)).sum())


ALL_FINITE: Table = {
  "cpu": _finite_by_product,
  "default": lambda x: jnp.isfinite(x).all(),
}


@jax.custom_vjp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
  """Adds a number to each channel or unit."""
  return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


add_bias.defvjp(
  lambda y, bias: (add_bias(y, bias), None),
  lambda _, dy: (dy, lax.platform_dependent(dy, **COLUMN_SUM)),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
  """Returns `x @ kernel` in a dtype, and its gradients in the dtype of x."""
  return jnp.matmul(x, kernel, preferred_element_type=dtype)


def _matmul_backward(dtype, residuals, dy):
  del dtype
  x, kernel = residuals
  dy = dy.astype(x.dtype)
  dx = lax.platform_dependent(dy, kernel, **TIMES_TRANSPOSED)
  return dx, x.T @ dy


matmul.defvjp(
  lambda x, w, dtype: (matmul(x, w, dtype), (x, w)), _matmul_backward
)
