"""The product that fp8 stands for, and how far rounding to fp8 may take it away."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxscale.kernels.fp8_matmul.scaling import Format


def reference_matmul(
    x: Float[Array, "rows inward"], weight: Float[Array, "inward outward"]
) -> Float[Array, "rows outward"]:
    """The product in fp32 or wider."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum("ri,io->ro", x, weight, preferred_element_type=wide)


def rounding(array: jax.Array, to: Format, scale: jax.Array) -> jax.Array:
    """The most that an element within the scale's range can be off: half a step of fp8.

    Relative to the element while fp8 is normal, half its smallest number times the scale below; and the division by the
    scale rounds in fp32.
    """
    relative = to.epsilon / 2 + 2.0**-23
    return jnp.maximum(relative * jnp.abs(array), scale * to.smallest / 2)


def product_error(
    left: jax.Array, right: jax.Array, off_left: jax.Array, off_right: jax.Array
) -> Float[Array, "rows columns"]:
    """The most that left @ right can be off when each element of them is off by at most `off`.

    |(l + a)(r + b) - l r| <= |l| |b| + |a| |r| + |a| |b|, summed; and the sum itself is rounded in fp32 at each term,
    and twice more by the scales.
    """
    sums = jnp.abs(left) @ off_right + off_left @ (jnp.abs(right) + off_right)
    rounded = (left.shape[1] + 2) * 2.0**-24 * (jnp.abs(left) @ jnp.abs(right) + sums)
    return sums + rounded
