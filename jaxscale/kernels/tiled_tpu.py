"""Products in tiles on a TPU: sums stay in vector memory while the pipeline fetches the next tiles.

The grid runs over tiles of rows, of columns, and innermost over what is summed; Pallas double-buffers each operand. At
the last step of a sum `finish` turns the fp32 sums into what is written. Sizes that tiles do not divide are masked.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.kernels.pallas import pl, tpu, tpu_call
from jaxscale.kernels.target import Target
from jaxscale.kernels.tiles import Layout, TiledProduct, Tiles, contracted, sizes_of
from jaxscale.kernels.tpu_blocks import vector_memory


def tiled_product(
    product: TiledProduct,
    tiles: Tiles,
    target: Target,
    left: jax.Array,
    rights: tuple[jax.Array, ...],
    extras: tuple[jax.Array, ...] = (),
    *,
    detect_races: bool = False,
) -> tuple[jax.Array, ...]:
    """See `TiledProduct`. Operands are this device's own, of one dtype."""
    m, n, k = sizes_of(product.layout, left, rights[0])
    tiles = Tiles(min(tiles.m, m), min(tiles.n, n), min(tiles.k, k))
    grid = (pl.cdiv(m, tiles.m), pl.cdiv(n, tiles.n), pl.cdiv(k, tiles.k))
    outs = tuple(jax.ShapeDtypeStruct((m, n), dtype) for dtype in product.out_dtypes)
    place = pl.BlockSpec((tiles.m, tiles.n), lambda i, j, _: (i, j))
    row = pl.BlockSpec((1, tiles.n), lambda _i, j, _: (0, j))
    left_spec, right_spec = _operand_specs(product.layout, tiles)
    extra_specs = [row if extra.shape[0] == 1 != m else place for extra in extras]
    num_sums = len(rights)
    in_specs = [left_spec, *[right_spec] * num_sums, *extra_specs]
    out_specs = [place] * len(outs)
    arrays = left, *rights, *extras, *outs
    aliases = {1 + num_sums + extra: out for out, extra in enumerate(product.in_place)}
    call = tpu_call(
        partial(_kernel, product=product, size=k, num_extras=len(extras)),
        target,
        detect_races=detect_races,
        out_shape=outs,
        grid=grid,
        in_specs=in_specs,
        out_specs=tuple(out_specs),
        scratch_shapes=[tpu.VMEM((tiles.m, tiles.n), jnp.float32)] * num_sums,
        input_output_aliases=aliases,
        compiler_params=tpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=vector_memory(
                zip((*in_specs, *out_specs), arrays, strict=True), 4 * num_sums * tiles.m * tiles.n
            ),
        ),
        cost_estimate=_cost((m, n, k), left, rights, extras, outs),
        name=f"tiled_product_{product.layout}",
    )
    results: tuple[jax.Array, ...] = tuple(call(left, *rights, *extras))
    return results


def _operand_specs(layout: Layout, tiles: Tiles) -> tuple[Any, Any]:
    left = pl.BlockSpec((tiles.m, tiles.k), lambda i, _, step: (i, step))
    if layout[0] == "t":
        left = pl.BlockSpec((tiles.k, tiles.m), lambda i, _, step: (step, i))
    right = pl.BlockSpec((tiles.k, tiles.n), lambda _, j, step: (step, j))
    if layout[1] == "t":
        right = pl.BlockSpec((tiles.n, tiles.k), lambda _, j, step: (j, step))
    return left, right


def _kernel(left: Any, *refs: Any, product: TiledProduct, size: int, num_extras: int) -> None:
    num_outs = len(product.out_dtypes)
    num_sums = (len(refs) - num_extras - num_outs) // 2
    rights, extras = refs[:num_sums], refs[num_sums : num_sums + num_extras]
    outs, sums = refs[num_sums + num_extras : -num_sums], refs[-num_sums:]
    step = pl.program_id(2)

    def begin() -> None:
        for total in sums:
            total[...] = jnp.zeros_like(total)

    pl.when(step == 0)(begin)
    (over_left,), (over_right,) = contracted(product.layout)[0]
    rows = _within(left[...], over_left, step, size)
    for right, total in zip(rights, sums, strict=True):
        columns = _within(right[...], over_right, step, size)
        total[...] += _dot(rows, columns, product.layout)

    def end() -> None:
        tiles = product.finish(
            tuple(total[...] for total in sums),
            tuple(extra[...].astype(jnp.float32) for extra in extras),
        )
        for out, tile in zip(outs, tiles, strict=True):
            out[...] = tile.astype(out.dtype)

    pl.when(step == pl.num_programs(2) - 1)(end)


def _dot(left: jax.Array, right: jax.Array, layout: Layout) -> jax.Array:
    # Six passes of bfloat16 make an fp32 product of fp32 operands; one is all that bfloat16 ones need.
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        left, right, contracted(layout), precision=precision, preferred_element_type=jnp.float32
    )


def _within(tile: jax.Array, axis: int, step: Any, size: int) -> jax.Array:
    """The tile with zeros where it reaches beyond the operand, whose memory there may hold anything."""
    width = tile.shape[axis]
    if size % width == 0:
        return tile
    place = step * width + jax.lax.broadcasted_iota(jnp.int32, tile.shape, axis)
    return jnp.where(place < size, tile, jnp.zeros_like(tile))


def _cost(sizes: tuple[int, int, int], left: Any, rights: Any, extras: Any, outs: Any) -> Any:
    """For XLA's scheduler, which cannot see into the kernel: each array read or written once."""
    m, n, k = sizes
    moved = sum(a.size * a.dtype.itemsize for a in (left, *rights, *extras, *outs))
    return pl.CostEstimate(
        flops=2 * m * n * k * len(rights), bytes_accessed=moved, transcendentals=0
    )
