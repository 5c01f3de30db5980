"""Inputs for the attention tests, and the two ways to run them that are compared."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.kernels.attention.form import Form, SegmentIds
from jaxscale.kernels.attention.reference import reference_attention

Arrays = tuple[jax.Array, jax.Array, jax.Array]
Call = Callable[..., jax.Array]


def inputs(
    *,
    queries: int,
    keys: int | None = None,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 8,
    dtype: str = "float64",
) -> tuple[Arrays, jax.Array]:
    """Normal query, key and value for two rows, and a cotangent for the output."""
    rng = np.random.default_rng(0)
    keys = queries if keys is None else keys
    shapes = (queries, heads), (keys, kv_heads), (keys, kv_heads), (queries, heads)
    arrays = [jnp.asarray(rng.standard_normal((2, n, h, head_dim)), dtype) for n, h in shapes]
    return (arrays[0], arrays[1], arrays[2]), arrays[3]


def plain(segments: SegmentIds | None, form: Form) -> Call:
    return lambda q, k, v: reference_attention(q, k, v, segments, form)


def output_and_gradients(call: Call, arrays: Arrays, cotangent: jax.Array) -> list[np.ndarray]:
    """In one program: operation by operation, every shape of each would be compiled on its own."""

    @jax.jit
    def both(arrays: Arrays, cotangent: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(call, *arrays)
        return out, *pull(cotangent)

    return [np.asarray(x, np.float64) for x in both(arrays, cotangent)]


def worst(actual: list[np.ndarray], wanted: list[np.ndarray]) -> list[float]:
    """Largest error of each array, relative to the array's own largest value."""
    return [float(abs(a - w).max() / abs(w).max()) for a, w in zip(actual, wanted, strict=True)]
