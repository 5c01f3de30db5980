"""Rows over rows, one matrix a group, on a Hopper GPU (sm90): the weight gradient of a ragged product.

Persistent blocks of one warpgroup take tiles of the groups' matrices. A tile's sum runs over the stages that hold rows
of its group; in the first and the last of them rows of other groups are set to zero in shared memory, before `wgmma`
reads it. The design follows JAX's own `transposed_ragged_dot_mgpu`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.kernels.pallas import gpu, gpu_kernel, pl
from jaxscale.kernels.ragged_matmul.form import OutRows, Rows, Sizes, Weights, group_bounds
from jaxscale.kernels.ragged_matmul.pallas_gpu import GpuTiles
from jaxscale.kernels.target import Target
from jaxscale.kernels.tiled_gpu import num_multiprocessors, pad_to

# m and n are of a group's matrix, k of tokens, which are summed.
TILES = GpuTiles(m=128, n=128, k=64, stages=4)
# Tiles side by side before the next row of them, for L2.
_WIDTH = 8


def rows_over_rows(
    x: Rows,
    y: OutRows,
    group_sizes: Sizes,
    target: Target,
    tiles: GpuTiles = TILES,
    *,
    detect_races: bool = False,
) -> Weights:
    """See `xla.rows_over_rows`, for 16-bit operands. Sizes that tiles do not divide are padded with zeros."""
    (tokens, inward), outward = x.shape, y.shape[1]
    sizes = tuple(
        -(-size // tile) * tile
        for size, tile in ((tokens, tiles.k), (inward, tiles.m), (outward, tiles.n))
    )
    groups = group_sizes.shape[0]
    kernel = gpu_kernel(
        partial(_body, tiles=tiles, grid=(groups, sizes[1] // tiles.m, sizes[2] // tiles.n)),
        target,
        detect_races=detect_races,
        out_type=jax.ShapeDtypeStruct((groups, *sizes[1:]), x.dtype),
        grid=(num_multiprocessors(target),),
        grid_names=("multiprocessor",),
    )
    bounds = group_bounds(group_sizes, tokens)
    out = kernel(*bounds, pad_to(x, sizes[:2]), pad_to(y, (sizes[0], sizes[2])))
    cut: Weights = out[:, :inward, :outward]
    return cut


def _body(*refs: Any, tiles: GpuTiles, grid: tuple[int, int, int]) -> None:
    """One persistent block. refs: each group's first row and the one after its last, x, y, and the matrices."""
    starts, ends, x, y, out = refs

    def block(loop: Any) -> None:
        group = loop.index[0]
        row, column = gpu.planar_snake(loop.index[1], grid[1:], 1, _WIDTH)
        start, end = starts[group], ends[group]
        first = start // tiles.k
        steps = jnp.where(end > start, -(-end // tiles.k) - first, 0)

        def summed(total: Any) -> jax.Array:
            def add(index: Any, rows: Any, others: Any) -> None:
                step = index[0]
                bounds = start - (first + step) * tiles.k, end - (first + step) * tiles.k
                pl.when((step == 0) | (step == steps - 1))(partial(_clear, rows, bounds))
                gpu.wgmma(total, rows.transpose((1, 0)), others)
                gpu.wgmma_wait(1)

            specs = [
                _stage((tiles.k, tiles.m), lambda step: (first + step, row)),
                _stage((tiles.k, tiles.n), lambda step: (first + step, column)),
            ]
            run = gpu.emit_pipeline(
                add, grid=(steps,), in_specs=specs, max_concurrent_steps=tiles.stages
            )
            pl.when(steps > 0)(lambda: run(x, y))
            value: jax.Array = total[...]
            return value

        matrix = pl.run_scoped(summed, gpu.ACC((tiles.m, tiles.n), jnp.float32))
        place = pl.ds(row * tiles.m, tiles.m), pl.ds(column * tiles.n, tiles.n)
        target = out.at[group].at[place]
        slot = gpu.SMEM((tiles.m, tiles.n), out.dtype, transforms=_transforms(tiles.n))
        pl.run_scoped(partial(_store, matrix.astype(out.dtype), target), slot)

    gpu.nd_loop((grid[0], grid[1] * grid[2]), collective_axes="multiprocessor")(block)


def _clear(rows: Any, bounds: tuple[Any, Any]) -> None:
    """Zeros where a stage's rows are not between the bounds."""
    values = rows[...]
    place = jax.lax.broadcasted_iota(jnp.int32, values.shape, 0)
    place = gpu.layout_cast(place, gpu.Layout.WGMMA)
    mine = (place >= bounds[0]) & (place < bounds[1])
    rows[...] = jnp.where(mine, values, jnp.zeros_like(values))
    gpu.commit_smem()


def _store(values: jax.Array, target: Any, slot: Any) -> None:
    slot[...] = values
    gpu.commit_smem()
    gpu.copy_smem_to_gmem(slot, target)
    gpu.wait_smem_to_gmem(0, wait_read_only=True)


def _stage(shape: tuple[int, int], index: Any) -> Any:
    return gpu.BlockSpec(shape, index, transforms=_transforms(shape[1]), delay_release=1)


def _transforms(width: int) -> tuple[Any, Any]:
    """How a tile of 16-bit numbers lies in shared memory, so that neither TMA nor wgmma meets bank conflicts."""
    swizzle = gpu.find_swizzle(width * 2 * 8)
    return gpu.TilingTransform((8, swizzle // 2)), gpu.SwizzleTransform(swizzle)
