"""A gated MLP as its definition (arXiv:2002.05202), in the dtype of its operands or fp32 if narrower."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxscale.kernels.activations import activate


def reference_gated_mlp(
    x: Float[Array, "rows embed"],
    gate: Float[Array, "embed mlp"],
    up: Float[Array, "embed mlp"],
    down: Float[Array, "mlp embed"],
    activation: str,
) -> Float[Array, "rows embed"]:
    """(activation(x gate) * (x up)) down; rounded once, to x's dtype."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x, gate, up, down = (array.astype(wide) for array in (x, gate, up, down))
    hidden = activate(activation, jnp.dot(x, gate, precision="highest"))
    hidden = hidden * jnp.dot(x, up, precision="highest")
    return jnp.dot(hidden, down, precision="highest")
