"""What the device at hand reaches: arithmetic of a large product, bandwidth of a pass over a large array."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.kernels.cases import normals
from jaxscale.kernels.measure import WORKING_SET

# Rows of the square products. A larger one is slower where it leaves a cache, a smaller one where it cannot fill it.
_CPU_SIZES = (1024, 2048)
_ACCELERATOR_SIZES = (4096, 8192)
_ACCELERATOR_BYTES = 2**30


@dataclass(frozen=True)
class Rates:
    """flops, bandwidth: operations and bytes a second; bandwidth None where it is not known. source: whence."""

    flops: float
    bandwidth: float | None
    source: str


def measured_rates(dtype: str, seconds: float = 0.2) -> Rates:
    """The fastest of repetitions that take `seconds` for each array, on this process's default device.

    Products are square, of random normal numbers of `dtype` with fp32 sums. The array is read and written once, in its
    own memory, so that no pages are asked of the system meanwhile.
    """
    on_cpu = jax.default_backend() == "cpu"
    num_bytes = WORKING_SET if on_cpu else _ACCELERATOR_BYTES
    rates = {
        size: 2 * size**3 / _product_seconds(size, dtype, seconds)
        for size in (_CPU_SIZES if on_cpu else _ACCELERATOR_SIZES)
    }
    size = max(rates, key=lambda size: rates[size])
    bandwidth = 2 * num_bytes / _pass_seconds(num_bytes, seconds)
    source = f"{size}^3 product; {num_bytes // 2**20} MiB read and written in place"
    return Rates(rates[size], bandwidth, source)


def _product_seconds(size: int, dtype: str, seconds: float) -> float:
    square = jax.ShapeDtypeStruct((size, size), jnp.dtype(dtype))
    left, right = normals(jax.random.key(0), (square, square))

    def product(left: jax.Array, right: jax.Array) -> jax.Array:
        wide = jnp.promote_types(left.dtype, jnp.float32)
        return jnp.matmul(left, right, preferred_element_type=wide).astype(left.dtype)

    compiled = jax.jit(product)
    return _fastest(lambda _: compiled(left, right), None, seconds)


def _pass_seconds(num_bytes: int, seconds: float) -> float:
    array = jnp.arange(num_bytes // 4, dtype=jnp.float32)
    return _fastest(jax.jit(jnp.negative, donate_argnums=0), array, seconds)


def _fastest(step: Callable[[Any], jax.Array], state: Any, seconds: float) -> float:
    """Seconds of the fastest repetition, each fed with the result before: interruptions only make one slower."""
    state = jax.block_until_ready(step(state))
    best, deadline = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < deadline:
        begin = time.perf_counter()
        state = jax.block_until_ready(step(state))
        best = min(best, time.perf_counter() - begin)
    return best
