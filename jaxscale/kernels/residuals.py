"""Products as a rematerialization policy sees them.

`jax.checkpoint` knows `dot_general`, but no kernel: the results of products by Pallas carry a name instead.
"""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

_NAME = "product"


def product_residual(array: jax.Array) -> jax.Array:
    """The same array, as one that `is_product` knows."""
    marked: jax.Array = checkpoint_name(array, _NAME)
    return marked


def is_product(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """A policy of `jax.checkpoint`: keeps the results of products with weights that kernels computed."""
    return bool(primitive.name == "name" and parameters["name"] == _NAME)


def together(*gradients: jax.Array) -> tuple[jax.Array, ...]:
    """The same gradients, none of which goes on before all are formed.

    Otherwise the compiler puts products for weights at the end of a layer, and keeps what they read until then.
    """
    formed: tuple[jax.Array, ...] = jax.lax.optimization_barrier(gradients)
    return formed
