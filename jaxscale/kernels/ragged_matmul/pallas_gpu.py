"""Rows times their group's matrix on a Hopper GPU (sm90): persistent blocks over visits of row tiles.

As in `tiled_gpu`, a memory warpgroup feeds two computing ones through shared memory, each with half of a tile's rows.
Which tile and group a visit takes is a table in the device's memory. A tile that groups share is visited for each; its
rows leave in copies of 64, 32, ... 1 rows, of which those that add up to the group's rows are carried out, since the
sizes of TMA's copies are static.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.kernels.gpu_epilogue import WARPGROUPS, swizzled
from jaxscale.kernels.pallas import gpu, gpu_kernel, pl
from jaxscale.kernels.ragged_matmul.form import OutRows, Rows, Sizes, Weights
from jaxscale.kernels.ragged_matmul.visits import visits_by_tile
from jaxscale.kernels.target import Target
from jaxscale.kernels.tiled_gpu import num_multiprocessors, pad_to

_MEMORY_REGISTERS = 40
# Rows and columns that leave a warpgroup's registers at a time.
_OUT = 64
_LADDER = (64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class GpuTiles:
    """m: rows of one of the two computing warpgroups. n: columns. k: summed in one stage. stages: in flight."""

    m: int = 64
    n: int = 256
    k: int = 64
    stages: int = 4

    def updated(self, config: Mapping[str, int]) -> "GpuTiles":
        """With the values that a tuning table gives."""
        return replace(self, **config)


TILES = GpuTiles()


def rows_by_matrices(
    x: Rows,
    weight: Weights,
    group_sizes: Sizes,
    target: Target,
    tiles: GpuTiles = TILES,
    *,
    transposed: bool = False,
    detect_races: bool = False,
) -> OutRows:
    """See `xla.rows_by_matrices`, for 16-bit operands. Sizes that tiles do not divide are padded with zeros."""
    (tokens, inward), outward = x.shape, weight.shape[1 if transposed else 2]
    rows = WARPGROUPS * tiles.m
    padded = tuple(
        -(-size // tile) * tile
        for size, tile in ((tokens, rows), (outward, tiles.n), (inward, tiles.k))
    )
    matrix = (padded[1], padded[2]) if transposed else (padded[2], padded[1])
    visits = visits_by_tile(group_sizes, padded[0], rows)
    kernel = gpu_kernel(
        partial(_body, tiles=tiles, sizes=padded, visits=visits.tile.size, transposed=transposed),
        target,
        detect_races=detect_races,
        out_type=jax.ShapeDtypeStruct(padded[:2], x.dtype),
        grid=(num_multiprocessors(target),),
        grid_names=("multiprocessor",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
    )
    whole = pad_to(weight, (weight.shape[0], *matrix))
    out = kernel(*visits, pad_to(x, (padded[0], padded[2])), whole)
    cut: OutRows = out[:tokens, :outward]
    return cut


def _body(
    *refs: Any, tiles: GpuTiles, sizes: tuple[int, ...], visits: int, transposed: bool
) -> None:
    """One persistent block. refs: the table of visits, x, the matrices, and the result, in the device's memory."""
    groups, places, starts, ends, products, x, weight, out = refs
    rows, columns = WARPGROUPS * tiles.m, sizes[1] // tiles.n
    idle = _pipeline(tiles, sizes[2], _nothing, _nothing, transposed=transposed)
    scratch = {
        "staged": idle.get_allocations(x, weight.at[0]),
        "slots": gpu.SMEM((WARPGROUPS, _OUT, _OUT), out.dtype),
    }

    @partial(pl.run_scoped, collective_axes="warpgroup", **scratch)
    def _(staged: Any, slots: Any) -> None:
        warpgroup = jax.lax.axis_index("warpgroup")

        def block(loop: Any) -> None:
            # Columns innermost: the blocks at work share the rows of a few visits, which then stay in L2.
            visit, column = loop.index[0] // columns, loop.index[0] % columns
            tile, group = places[visit], groups[visit]
            first = tile * rows + warpgroup * tiles.m
            bounds = starts[visit] - first, ends[visit] - first
            across = pl.ds(column * tiles.n, tiles.n)
            corner = first, column * tiles.n
            store = partial(_store, slots.at[warpgroup], out, corner, bounds)

            def multiply() -> None:
                matrix = weight.at[group]
                right = matrix.at[across, :] if transposed else matrix.at[:, across]

                def compute(run: Any) -> None:
                    def summed(total: Any) -> None:
                        run(total)
                        _write(total[...], tiles, store)

                    pl.run_scoped(summed, gpu.ACC((tiles.m, tiles.n), jnp.float32))

                def add(_: Any, left_tile: Any, right_tile: Any, total: Any) -> Any:
                    mine = left_tile.at[pl.ds(warpgroup * tiles.m, tiles.m), :]
                    gpu.wgmma(
                        total, mine, right_tile.transpose((1, 0)) if transposed else right_tile
                    )
                    gpu.wgmma_wait(0)
                    return total

                pipeline = _pipeline(tiles, sizes[2], add, compute, transposed=transposed)
                pipeline(x.at[pl.ds(tile * rows, rows), :], right, allocations=staged)

            def clear() -> None:
                _write(jnp.zeros((tiles.m, tiles.n), jnp.float32), tiles, store)

            is_product = products[visit] != 0
            pl.when(is_product)(multiply)
            pl.when(jnp.logical_not(is_product) & (warpgroup < WARPGROUPS))(clear)

        gpu.nd_loop((visits * columns,), collective_axes="multiprocessor")(block)


def _write(totals: jax.Array, tiles: GpuTiles, store: Any) -> None:
    for row in range(0, tiles.m, _OUT):
        for column in range(0, tiles.n, _OUT):
            store(row, column, totals[row : row + _OUT, column : column + _OUT])


def _store(
    slot: Any,
    out: Any,
    corner: tuple[Any, Any],
    bounds: tuple[Any, Any],
    row: int,
    column: int,
    values: jax.Array,
) -> None:
    """Writes those of 64 rows that lie between the bounds.

    corner: first row and column of the warpgroup's tile; bounds and row count from it, column too.
    """
    begin, end = (jnp.clip(bound - row, 0, _OUT) for bound in bounds)
    count = jnp.maximum(end - begin, 0)
    gpu.wait_smem_to_gmem(0, wait_read_only=True)
    slot[...] = values.astype(out.dtype)
    gpu.commit_smem()
    for length in _LADDER:

        def copy(begin: Any = begin, length: int = length) -> None:
            source = slot.at[pl.ds(begin, length)]
            rows = pl.ds(corner[0] + row + begin, length)
            place = rows, pl.ds(corner[1] + column, _OUT)
            gpu.copy_smem_to_gmem(source, out.at[place])

        pl.when(count & length != 0)(copy)
        begin = begin + (count & length)
    gpu.wait_smem_to_gmem(0, wait_read_only=True)


def _pipeline(tiles: GpuTiles, size: int, add: Any, compute: Any, *, transposed: bool) -> Any:
    rows = WARPGROUPS * tiles.m
    left = _stage((rows, tiles.k), along=1)
    right = (
        _stage((tiles.n, tiles.k), along=1) if transposed else _stage((tiles.k, tiles.n), along=0)
    )
    return gpu.emit_pipeline_warp_specialized(
        add,
        grid=(size // tiles.k,),
        memory_registers=_MEMORY_REGISTERS,
        in_specs=[left, right],
        wg_axis="warpgroup",
        num_compute_wgs=WARPGROUPS,
        max_concurrent_steps=tiles.stages,
        compute_context=compute,
    )


def _stage(shape: tuple[int, int], *, along: int) -> Any:
    return gpu.BlockSpec(
        shape,
        (lambda step: (step, 0)) if along == 0 else (lambda step: (0, step)),
        transforms=swizzled(shape, 2),
        delay_release=0,
        memory_space=gpu.MemorySpace.SMEM,
    )


def _nothing(*_: Any, **__: Any) -> None:
    """Functions do not change what a pipeline allocates."""
