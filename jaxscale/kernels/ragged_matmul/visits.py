"""Which tile of rows a kernel takes at each step, and for which group: a tile that groups share is visited for each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxscale.kernels.ragged_matmul.form import Sizes, group_bounds

Steps = Int[Array, " visits"]


class Visits(NamedTuple):
    """group, tile: of each visit, in order. start, end: rows that the visit is for.

    product: 1, or 0 where no group has these rows and they are zeros.
    """

    group: Steps
    tile: Steps
    start: Steps
    end: Steps
    product: Steps


def visits_by_tile(group_sizes: Sizes, tokens: int, rows: int) -> Visits:
    """Every tile of `rows` rows once for each group that has rows in it, and once for rows beyond the last group.

    Visits of a tile follow one another. Their number, tiles + groups, is the most that can be needed: those left over
    stay on the last tile, with nothing to multiply.
    """
    starts, ends = group_bounds(group_sizes, tokens)
    tail = ends[-1:]
    starts = jnp.concatenate([starts, tail])
    ends = jnp.concatenate([ends, jnp.full(1, tokens, jnp.int32)])
    group, tile = _order(starts, ends, rows, -(-tokens // rows), smallest=0)
    num_groups = group_sizes.shape[0]
    known = jnp.minimum(group, num_groups)
    left_over = group > num_groups
    return Visits(
        jnp.minimum(group, num_groups - 1),
        tile,
        jnp.where(left_over, 0, starts[known]),
        jnp.where(left_over, 0, ends[known]),
        (group < num_groups).astype(jnp.int32),
    )


def visits_by_group(group_sizes: Sizes, tokens: int, rows: int) -> Visits:
    """Every group once for each tile that it has rows in, and empty ones once. Those left over stay with the last."""
    starts, ends = group_bounds(group_sizes, tokens)
    num_tiles = -(-tokens // rows)
    group, tile = _order(starts, ends, rows, num_tiles, smallest=1)
    left_over = group == group_sizes.shape[0]
    group = jnp.minimum(group, group_sizes.shape[0] - 1)
    return Visits(
        group,
        jnp.minimum(tile, num_tiles - 1),
        jnp.where(left_over, 0, starts[group]),
        jnp.where(left_over, 0, ends[group]),
        (~left_over & (ends > starts)[group]).astype(jnp.int32),
    )


def _order(
    starts: Sizes, ends: Sizes, rows: int, num_tiles: int, *, smallest: int
) -> tuple[Steps, Steps]:
    """Group and tile of each visit; a group's number of visits is at least `smallest`. Left over: one group further."""
    first = starts // rows
    counts = jnp.where(ends > starts, -(-ends // rows) - first, smallest)
    after = jnp.cumsum(counts)
    visit = jnp.arange(num_tiles + starts.shape[0] - 1, dtype=jnp.int32)
    group = jnp.searchsorted(after, visit, side="right", method="compare_all").astype(jnp.int32)
    known = jnp.minimum(group, starts.shape[0] - 1)
    tile = first[known] + visit - (after - counts)[known]
    tile = jnp.where(group < starts.shape[0], tile, num_tiles - 1)
    return group, jax.lax.convert_element_type(tile, jnp.int32)
