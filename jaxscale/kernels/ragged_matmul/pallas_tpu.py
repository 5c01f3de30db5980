"""Ragged products on a TPU: tiles of rows against the matrix of the group that a visit is for.

Which tile and which group a step takes is a table in scalar memory, from which the index maps read, so that only tiles
that hold a group's rows are fetched. Rows of other groups in a tile are masked as it is written, or before it is
summed.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.kernels.pallas import pl, tpu, tpu_call
from jaxscale.kernels.ragged_matmul.form import OutRows, Rows, Sizes, Weights
from jaxscale.kernels.ragged_matmul.visits import Visits, visits_by_group, visits_by_tile
from jaxscale.kernels.target import Target
from jaxscale.kernels.tiles import Tiles
from jaxscale.kernels.tpu_blocks import dot, vector_memory, within

TILES = Tiles(m=512, n=1024, k=1024)


def rows_by_matrices(
    x: Rows,
    weight: Weights,
    group_sizes: Sizes,
    target: Target,
    tiles: Tiles = TILES,
    *,
    transposed: bool = False,
    detect_races: bool = False,
) -> OutRows:
    """See `xla.rows_by_matrices`."""
    (tokens, inward), outward = x.shape, weight.shape[1 if transposed else 2]
    tiles = Tiles(min(tiles.m, tokens), min(tiles.n, outward), min(tiles.k, inward))
    visits = visits_by_tile(group_sizes, tokens, tiles.m)
    matrix = pl.BlockSpec((1, tiles.k, tiles.n), lambda j, v, k, visits: (visits.group[v], k, j))
    if transposed:
        matrix = pl.BlockSpec(
            (1, tiles.n, tiles.k), lambda j, v, k, visits: (visits.group[v], j, k)
        )
    grid_spec = tpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(pl.cdiv(outward, tiles.n), visits.tile.size, pl.cdiv(inward, tiles.k)),
        in_specs=[
            pl.BlockSpec((tiles.m, tiles.k), lambda _, v, k, visits: (visits.tile[v], k)),
            matrix,
        ],
        out_specs=pl.BlockSpec((tiles.m, tiles.n), lambda j, v, _, visits: (visits.tile[v], j)),
        scratch_shapes=[tpu.VMEM((tiles.m, tiles.n), jnp.float32)],
    )
    out_shape = jax.ShapeDtypeStruct((tokens, outward), x.dtype)
    call = tpu_call(
        partial(_rows_kernel, transposed=transposed, inward=inward),
        target,
        detect_races=detect_races,
        out_shape=out_shape,
        grid_spec=grid_spec,
        compiler_params=_parameters("arbitrary", grid_spec, (x, weight, out_shape), tiles),
        cost_estimate=_cost(x, weight, tokens * outward),
        name="ragged_rows_by_matrices",
    )
    out: OutRows = call(visits, x, weight)
    return out


def _rows_kernel(
    visits: Visits, rows: Any, matrix: Any, out: Any, total: Any, *, transposed: bool, inward: int
) -> None:
    visit, step = pl.program_id(1), pl.program_id(2)
    start, end, tile = visits.start[visit], visits.end[visit], visits.tile[visit]

    def begin() -> None:
        total[...] = jnp.zeros_like(total)

    pl.when(step == 0)(begin)

    def add() -> None:
        left = within(rows[...], 1, step, inward)
        right = within(matrix[0], 1 if transposed else 0, step, inward)
        total[...] += dot(left, right, over=(1, 1 if transposed else 0))

    pl.when(visits.product[visit] != 0)(add)

    def write() -> None:
        first = (visit == 0) | (visits.tile[jnp.maximum(visit - 1, 0)] != tile)
        old = jnp.where(first, 0.0, out[...].astype(jnp.float32))
        mine = _between(total.shape, tile, start, end)
        out[...] = jnp.where(mine, total[...], old).astype(out.dtype)

    pl.when(step == pl.num_programs(2) - 1)(write)


def rows_over_rows(
    x: Rows,
    y: OutRows,
    group_sizes: Sizes,
    target: Target,
    tiles: Tiles = TILES,
    *,
    detect_races: bool = False,
) -> Weights:
    """See `xla.rows_over_rows`. Of the tiles, k is of tokens, which are summed; m and n are of the matrices."""
    (tokens, inward), outward = x.shape, y.shape[1]
    tiles = Tiles(min(tiles.m, inward), min(tiles.n, outward), min(tiles.k, tokens))
    visits = visits_by_group(group_sizes, tokens, tiles.k)
    grid_spec = tpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(pl.cdiv(inward, tiles.m), pl.cdiv(outward, tiles.n), visits.tile.size),
        in_specs=[
            pl.BlockSpec((tiles.k, tiles.m), lambda i, _, v, visits: (visits.tile[v], i)),
            pl.BlockSpec((tiles.k, tiles.n), lambda _, j, v, visits: (visits.tile[v], j)),
        ],
        out_specs=pl.BlockSpec(
            (1, tiles.m, tiles.n), lambda i, j, v, visits: (visits.group[v], i, j)
        ),
        scratch_shapes=[tpu.VMEM((tiles.m, tiles.n), jnp.float32)],
    )
    groups = group_sizes.shape[0]
    out_shape = jax.ShapeDtypeStruct((groups, inward, outward), x.dtype)
    call = tpu_call(
        partial(_matrices_kernel, tokens=tokens),
        target,
        detect_races=detect_races,
        out_shape=out_shape,
        grid_spec=grid_spec,
        compiler_params=_parameters("parallel", grid_spec, (x, y, out_shape), tiles),
        cost_estimate=_cost(x, y, groups * inward * outward),
        name="ragged_rows_over_rows",
    )
    out: Weights = call(visits, x, y)
    return out


def _matrices_kernel(
    visits: Visits, rows: Any, others: Any, out: Any, total: Any, *, tokens: int
) -> None:
    visit, last = pl.program_id(2), pl.num_programs(2) - 1
    group, start, end = visits.group[visit], visits.start[visit], visits.end[visit]

    def begin() -> None:
        total[...] = jnp.zeros_like(total)

    pl.when((visit == 0) | (visits.group[jnp.maximum(visit - 1, 0)] != group))(begin)

    def add() -> None:
        mine = _between(rows.shape, visits.tile[visit], start, end)
        left = jnp.where(mine, rows[...], jnp.zeros_like(rows))
        # Memory beyond the last row may hold a NaN, which times zero is one.
        right = within(others[...], 0, visits.tile[visit], tokens)
        total[...] += dot(left, right, over=(0, 0))

    pl.when(visits.product[visit] != 0)(add)

    def write() -> None:
        out[0] = total[...].astype(out.dtype)

    pl.when((visit == last) | (visits.group[jnp.minimum(visit + 1, last)] != group))(write)


def _between(shape: tuple[int, int], tile: Any, start: Any, end: Any) -> jax.Array:
    """Which rows of a tile lie between two places."""
    place = tile * shape[0] + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    inside: jax.Array = (place >= start) & (place < end)
    return inside


def _parameters(second: str, grid_spec: Any, arrays: Sequence[Any], tiles: Tiles) -> Any:
    """second: how the grid's second dim is walked; the first is in parallel, the third in order."""
    specs = *grid_spec.in_specs, grid_spec.out_specs
    return tpu.CompilerParams(
        dimension_semantics=("parallel", second, "arbitrary"),
        vmem_limit_bytes=vector_memory(zip(specs, arrays, strict=True), 4 * tiles.m * tiles.n),
    )


def _cost(left: jax.Array, right: jax.Array, results: int) -> Any:
    """For XLA's scheduler, which cannot see into the kernel: each array read or written once."""
    outward = right.shape[-1] if right.ndim == 2 else max(right.shape[1:])
    moved = (left.size + right.size + results) * left.dtype.itemsize
    flops = 2 * left.size * outward
    return pl.CostEstimate(flops=flops, bytes_accessed=moved, transcendentals=0)
