"""What one ragged product asks for beside its arrays, and where each group's rows are."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxscale.errors import UserError
from jaxscale.kernels.tiles import Layout

Rows = Float[Array, "tokens inward"]
OutRows = Float[Array, "tokens outward"]
Weights = Float[Array, "groups inward outward"]
Sizes = Int[Array, " groups"]


@dataclass(frozen=True)
class RaggedCall:
    """The static facts of a product.

    layout: "nn" rows by matrices, "nt" rows by transposed matrices (the gradient of x), "tn" rows over rows, one matrix
    a group (the gradient of the weights). inward, outward: what is summed over in "nn", and what it yields.
    """

    layout: Layout
    dtype: str
    tokens: int
    inward: int
    outward: int
    groups: int

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"t": self.tokens, "i": self.inward, "o": self.outward, "g": self.groups}


def check_shapes(x: jax.Array, weight: jax.Array, group_sizes: jax.Array) -> None:
    """Raises UserError, with the numbers, for operands that do not fit together."""
    if x.ndim != 2 or weight.ndim != 3 or x.shape[1] != weight.shape[1]:
        raise UserError(
            f"x of shape {x.shape} and weight of shape {weight.shape}: they should be "
            "[tokens, inward] and [groups, inward, outward]"
        )
    if group_sizes.shape != weight.shape[:1]:
        raise UserError(f"{weight.shape[0]} groups but group sizes of shape {group_sizes.shape}")
    if not jnp.issubdtype(group_sizes.dtype, jnp.integer):
        raise UserError(f"group sizes are whole numbers, not {group_sizes.dtype}")
    if x.dtype != weight.dtype:
        raise UserError(f"x is {x.dtype} but weight is {weight.dtype}: cast one of them")


def group_bounds(group_sizes: Sizes, tokens: int) -> tuple[Sizes, Sizes]:
    """First row of each group, and the row after its last one, within the rows that there are."""
    ends = jnp.minimum(jnp.cumsum(group_sizes.astype(jnp.int32)), tokens)
    return jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]]), ends
