"""Products in tiles on a Hopper GPU (sm90): one memory warpgroup feeds two computing ones through shared memory.

Persistent: each multiprocessor takes output tiles in an order that keeps operands in L2, and never ends until all are
written. The memory warpgroup fetches operand tiles by TMA, `stages` ahead; the computing ones, each with half of the
tile's rows, sum by `wgmma` in registers, then pass their sums through `finish` and out through small shared tiles,
while the next operands are on their way. The design follows JAX's own `hopper_matmul_mgpu`. Sizes that tiles do not
divide are padded with zeros.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.kernels.gpu_epilogue import (
    WARPGROUPS,
    Epilogue,
    Leaving,
    Place,
    Refs,
    RowNumbers,
    swizzled,
)
from jaxscale.kernels.pallas import gpu, gpu_kernel, pl
from jaxscale.kernels.target import Target
from jaxscale.kernels.tiles import Layout, TiledProduct, sizes_of

# Bytes of shared memory that one block of an H100 or H200 can have, less a little for barriers.
SHARED_MEMORY = 232448 - 2048
_MEMORY_REGISTERS = 40


@dataclass(frozen=True)
class GpuTiles:
    """m: rows of one of the two computing warpgroups. n: columns of each right operand. k: summed in one stage.

    stages: operand tiles in flight. delay: of those, how many a product may still read when the next begins.
    width: output tiles side by side before the next row of them, for L2.
    """

    m: int = 128
    n: int = 128
    k: int = 64
    stages: int = 4
    delay: int = 0
    width: int = 8

    def updated(self, config: Mapping[str, int]) -> "GpuTiles":
        """With the values that a tuning table gives."""
        return replace(self, **config)

    def shared_bytes(self, num_rights: int, leaving: Leaving) -> int:
        """Bytes of shared memory of a kernel with these tiles, for two-byte operands."""
        stage = 2 * self.k * (WARPGROUPS * self.m + num_rights * self.n)
        return self.stages * stage + leaving.shared_bytes(self.m)

    def fitted(self, num_rights: int, leaving: Leaving) -> "GpuTiles":
        """With as many stages as fit into shared memory, at most those asked for."""
        tiles = self
        while tiles.shared_bytes(num_rights, leaving) > SHARED_MEMORY:
            assert tiles.stages > 2, f"{tiles} do not fit into shared memory"
            tiles = replace(tiles, stages=tiles.stages - 1)
        return tiles


def num_multiprocessors(target: Target) -> int:
    """How many blocks run at one time, of which each is one of the persistent ones."""
    if target.interpreted:
        return 2
    return {"NVIDIA H100 PCIe": 114, "NVIDIA H20": 78}.get(target.device_kind, 132)


def tiled_product(
    product: TiledProduct,
    tiles: GpuTiles,
    target: Target,
    left: jax.Array,
    rights: tuple[jax.Array, ...],
    extras: tuple[jax.Array, ...] = (),
    *,
    numbers: RowNumbers | None = None,
    bounds: jax.Array | None = None,
    detect_races: bool = False,
) -> tuple[jax.Array, ...]:
    """See `TiledProduct`. Operands are this device's own, of one 16-bit dtype; results and extras of one dtype.

    `in_place` is left to XLA, which reuses the memory of a donated extra. numbers: what is taken of each row of each
    tile, besides: more results, fp32 [column tiles, m] each, of columns up to the last tile's end. bounds: int32, for
    `numbers`.
    """
    m, n, k = sizes_of(product.layout, left, rights[0])
    form = _Form(product, tiles, (m, n, k), len(rights), Leaving(product, len(extras), numbers))
    kernel = gpu_kernel(
        partial(_body, form=form.fitted()),
        target,
        detect_races=detect_races,
        out_type=form.out_types,
        grid=(num_multiprocessors(target),),
        grid_names=("multiprocessor",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
    )
    across, down = _padded_operands(product.layout, form.padded)
    operands = [pad_to(left, across), *(pad_to(right, down) for right in rights)]
    met = [pad_to(extra, form.padded[:2]).astype(product.out_dtypes[0]) for extra in extras]
    outs = _one_at_a_time(kernel)(*operands, *met, *([] if bounds is None else [bounds]))
    whole = len(product.out_dtypes)
    return *(out[:m, :n] for out in outs[:whole]), *(out[:, :m] for out in outs[whole:])


@dataclass(frozen=True)
class _Form:
    """The static facts of a kernel. sizes: (m, n, k)."""

    product: TiledProduct
    tiles: GpuTiles
    sizes: tuple[int, int, int]
    num_rights: int
    leaving: Leaving

    def fitted(self) -> "_Form":
        return replace(self, tiles=self.tiles.fitted(self.num_rights, self.leaving))

    @property
    def padded(self) -> tuple[int, int, int]:
        m, n, k = self.sizes
        return _up(m, WARPGROUPS * self.tiles.m), _up(n, self.tiles.n), _up(k, self.tiles.k)

    @property
    def blocks(self) -> tuple[int, int]:
        return self.padded[0] // (WARPGROUPS * self.tiles.m), self.padded[1] // self.tiles.n

    @property
    def out_types(self) -> list[jax.ShapeDtypeStruct]:
        numbers = jax.ShapeDtypeStruct((self.blocks[1], self.padded[0]), jnp.float32)
        whole = [jax.ShapeDtypeStruct(self.padded[:2], d) for d in self.product.out_dtypes]
        return [*whole, *[numbers] * self.leaving.num_numbers]

    def split(self, refs: Sequence[Any]) -> tuple[Sequence[Any], Refs]:
        """Operands, and the rest, of a kernel's arrays: operands, extras, bounds where there are, results."""
        num_outs = len(self.product.out_dtypes)
        first_out = len(refs) - num_outs - self.leaving.num_numbers
        operands, rest = refs[: 1 + self.num_rights], refs[1 + self.num_rights : first_out]
        extras, bounds = rest[: self.leaving.num_extras], rest[self.leaving.num_extras :]
        outs = refs[first_out:]
        given = bounds[0] if bounds else None
        return operands, Refs(extras, given, outs[:num_outs], outs[num_outs:])


def _one_at_a_time(kernel: Any) -> Any:
    """The kernel under `jax.vmap`, which Mosaic GPU has no rule for: a loop, or nothing for a single one.

    The trainer's replicas are such a dim, of which each device has one.
    """

    @jax.custom_batching.custom_vmap
    def call(*arrays: jax.Array) -> list[jax.Array]:
        return list(kernel(*arrays))

    def batched(size: int, which: Any, *arrays: jax.Array) -> tuple[list[jax.Array], list[bool]]:
        given = [
            array if has else jnp.broadcast_to(array, (size, *array.shape))
            for array, has in zip(arrays, which, strict=True)
        ]
        if size == 1:
            outs = [out[None] for out in call(*(array[0] for array in given))]
        else:
            outs = jax.lax.map(lambda row: call(*row), tuple(given))
        return outs, [True] * len(outs)

    call.def_vmap(batched)
    return call


def _padded_operands(
    layout: Layout, sizes: tuple[int, int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    m, n, k = sizes
    return (k, m) if layout[0] == "t" else (m, k), (n, k) if layout[1] == "t" else (k, n)


def _up(size: int, tile: int) -> int:
    return -(-size // tile) * tile


def pad_to(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The array with zeros behind it, up to a shape."""
    if array.shape == shape:
        return array
    return jnp.pad(array, [(0, to - size) for size, to in zip(array.shape, shape, strict=True)])


def _body(*refs: Any, form: _Form) -> None:
    """One persistent block. refs: see `_Form.split`."""
    operands, others = form.split(refs)
    layout, tiles, num_rights = form.product.layout, form.tiles, form.num_rights
    idle = _pipeline(layout, tiles, form.padded[2], num_rights, _nothing, _nothing)
    scratch = {"staged": idle.get_allocations(*operands), **form.leaving.scratch(tiles.m)}

    @partial(pl.run_scoped, collective_axes="warpgroup", **scratch)
    def _(staged: Any, **shared: Any) -> None:
        warpgroup = jax.lax.axis_index("warpgroup")
        epilogue = Epilogue(form.leaving, others, warpgroup, **shared)

        def block(loop: Any) -> None:
            row, column = gpu.planar_snake(loop.index[0], form.blocks, 1, tiles.width)
            place = Place(row, column, tiles.m, tiles.n)
            # Cut to this block here, so that the index of a stage depends on the sum alone.
            left = _cut(operands[0], place.rows, transposed=layout[0] == "t")
            rights = [
                _cut(right, place.columns, transposed=layout[1] != "t") for right in operands[1:]
            ]

            def compute(run: Any) -> None:
                def summed(*sums: Any) -> None:
                    run(sums)
                    epilogue.write(sums, place)

                accumulator = gpu.ACC((tiles.m, tiles.n), jnp.float32)
                pl.run_scoped(summed, *[accumulator] * num_rights)

            def add(_: Any, left_tile: Any, *rest: Any) -> Any:
                right_tiles, sums = rest[:num_rights], rest[num_rights]
                mine = pl.ds(warpgroup * tiles.m, tiles.m)
                left_part = _as_rows(left_tile, mine, transposed=layout[0] == "t")
                for right_tile, total in zip(right_tiles, sums, strict=True):
                    turned = right_tile.transpose((1, 0))
                    gpu.wgmma(total, left_part, turned if layout[1] == "t" else right_tile)
                gpu.wgmma_wait(tiles.delay)
                return sums

            pipeline = _pipeline(layout, tiles, form.padded[2], num_rights, add, compute)
            pipeline(left, *rights, allocations=staged)

        gpu.nd_loop((form.blocks[0] * form.blocks[1],), collective_axes="multiprocessor")(block)

    gpu.wait_smem_to_gmem(0, wait_read_only=True)


def _pipeline(
    layout: Layout, tiles: GpuTiles, size: int, num_rights: int, add: Any, compute: Any
) -> Any:
    """Stages of operand tiles: `add` sees each of them, inside `compute`."""
    rows = WARPGROUPS * tiles.m
    left_spec = _stage((rows, tiles.k), along=1, delay=tiles.delay)
    if layout[0] == "t":
        left_spec = _stage((tiles.k, rows), along=0, delay=tiles.delay)
    right_spec = _stage((tiles.k, tiles.n), along=0, delay=tiles.delay)
    if layout[1] == "t":
        right_spec = _stage((tiles.n, tiles.k), along=1, delay=tiles.delay)
    return gpu.emit_pipeline_warp_specialized(
        add,
        grid=(size // tiles.k,),
        memory_registers=_MEMORY_REGISTERS,
        in_specs=[left_spec, *[right_spec] * num_rights],
        wg_axis="warpgroup",
        num_compute_wgs=WARPGROUPS,
        max_concurrent_steps=tiles.stages,
        compute_context=compute,
    )


def _stage(shape: tuple[int, int], along: int, delay: int) -> Any:
    def index(step: Any) -> tuple[Any, Any]:
        return (step, 0) if along == 0 else (0, step)

    return gpu.BlockSpec(
        shape,
        index,
        transforms=swizzled(shape, 2),
        delay_release=delay,
        memory_space=gpu.MemorySpace.SMEM,
    )


def _cut(ref: Any, place: Any, *, transposed: bool) -> Any:
    return ref.at[:, place] if transposed else ref.at[place, :]


def _as_rows(tile: Any, rows: Any, *, transposed: bool) -> Any:
    return tile.at[:, rows].transpose((1, 0)) if transposed else tile.at[rows, :]


def _nothing(*_: Any, **__: Any) -> None:
    """Functions do not change what a pipeline allocates."""
