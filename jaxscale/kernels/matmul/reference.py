"""A product with everything that may follow it, as its definition, in the dtype of its operands or fp32 if narrower."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxscale.kernels.activations import activate


def reference_matmul(
    x: Float[Array, "rows inward"],
    weight: Float[Array, "inward outward"],
    bias: Float[Array, " outward"] | None = None,
    activation: str | None = None,
    residual: Float[Array, "rows outward"] | None = None,
) -> Float[Array, "rows outward"]:
    """activation(x weight + bias) + residual; rounded once, to x's dtype."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    out = jnp.einsum("ri,io->ro", x, weight, preferred_element_type=wide, precision="highest")
    out = out if bias is None else out + bias.astype(wide)
    out = activate(activation, out)
    out = out if residual is None else out + residual.astype(wide)
    rounded: jax.Array = out.astype(x.dtype)
    return rounded
