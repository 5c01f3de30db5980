"""Arrays as fp8 values and a scale. Formats and their use follow arXiv:2209.05433: e4m3 forward, e5m2 for gradients."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class Format:
    """largest: the end of its range. epsilon: from 1 to the next number. smallest: the first number above 0."""

    dtype: Any
    largest: float
    epsilon: float
    smallest: float


FORWARD = Format(jnp.float8_e4m3fn, 448.0, 2.0**-3, 2.0**-9)
BACKWARD = Format(jnp.float8_e5m2, 57344.0, 2.0**-2, 2.0**-16)
_SMALLEST_NORMAL = 2.0**-126


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scaled:
    """An array that is `values * scale`. scale: fp32, one number, or one for each index along kept dims of size 1."""

    values: jax.Array
    scale: jax.Array


def scaled(array: jax.Array, to: Format, *, over: int | None) -> Scaled:
    """The array with its largest magnitude at the end of fp8's range (current scaling).

    over: the dim that a product will sum over, which shares each scale; None: one scale for the whole array.
    """
    magnitude = jnp.abs(array).max(axis=over, keepdims=over is not None).astype(jnp.float32)
    return scaled_by(array, to, scale_of(magnitude, to))


def scale_of(magnitude: jax.Array, to: Format) -> jax.Array:
    """What values are multiplied by to give back numbers of up to a magnitude; 1 where that is 0 or not finite."""
    scale = magnitude / to.largest
    # Below the smallest normal fp32 number a division by the scale overflows.
    usable = (scale > _SMALLEST_NORMAL) & jnp.isfinite(scale)
    return jnp.where(usable, scale, 1.0)


def scaled_by(array: jax.Array, to: Format, scale: jax.Array) -> Scaled:
    """The array by a scale that is known before it. What is beyond the range becomes its end; NaN stays NaN."""
    values = jnp.clip(array.astype(jnp.float32) / scale, -to.largest, to.largest)
    return Scaled(values.astype(to.dtype), scale)


def product(left: Scaled, right: Scaled, over: tuple[int, int]) -> Float[Array, "rows columns"]:
    """fp32 product of two matrices, summed over a dim of each. Scales are constant along it.

    The fp8 values meet in one `dot_general`, which XLA gives to cuBLASLt where the GPU has fp8 units; elsewhere it
    widens them first. The scales are applied to the sums.
    """
    sums = jax.lax.dot_general(
        left.values,
        right.values,
        (((over[0],), (over[1],)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return sums * _as_rows(left.scale, over[0]) * _as_rows(right.scale, over[1]).T


def _as_rows(scale: jax.Array, over: int) -> Float[Array, "#rows 1"]:
    """A scale as a column beside the rows that an operand gives to a product."""
    if scale.ndim == 0:
        return scale.reshape(1, 1)
    return scale if over == 1 else scale.T
