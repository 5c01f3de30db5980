"""Products in tiles on a Hopper GPU (sm90): one memory warpgroup feeds two computing ones through shared memory.

Persistent: each multiprocessor takes output tiles in an order that keeps operands in L2, and never ends until all are
written. The memory warpgroup fetches operand tiles by TMA, `stages` ahead; the computing ones, each with half of the
tile's rows, sum by `wgmma` in registers, then pass their sums through `finish` and out through small shared tiles,
while the next operands are on their way. The design follows JAX's own `hopper_matmul_mgpu`. Sizes that tiles do not
divide are padded with zeros.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.kernels.pallas import gpu, gpu_kernel, pl
from jaxscale.kernels.target import Target
from jaxscale.kernels.tiles import Layout, TiledProduct, sizes_of

# Bytes of shared memory that one block of an H100 or H200 can have, less a little for barriers.
SHARED_MEMORY = 232448 - 2048
_WARPGROUPS = 2
_MEMORY_REGISTERS = 40
_OUT_SLOTS = 2
# Rows and columns that leave a warpgroup's registers at a time.
_OUT_TILE = 64


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

    def shared_bytes(self, product: TiledProduct, num_rights: int, num_extras: int) -> int:
        """Bytes of shared memory of a kernel with these tiles, for two-byte operands."""
        stage = 2 * self.k * (_WARPGROUPS * self.m + num_rights * self.n)
        out = int(jnp.dtype(product.out_dtypes[0]).itemsize)
        slots = _WARPGROUPS * _OUT_TILE**2 * out * (_OUT_SLOTS + num_extras)
        return self.stages * stage + slots

    def fitted(self, product: TiledProduct, num_rights: int, num_extras: int) -> "GpuTiles":
        """With as many stages as fit into shared memory, at most those asked for."""
        tiles = self
        while tiles.shared_bytes(product, num_rights, num_extras) > SHARED_MEMORY:
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
    detect_races: bool = False,
) -> tuple[jax.Array, ...]:
    """See `TiledProduct`. Operands are this device's own, of one 16-bit dtype; results and extras of one dtype.

    `in_place` is left to XLA, which reuses the memory of a donated extra.
    """
    m, n, k = sizes_of(product.layout, left, rights[0])
    tiles = tiles.fitted(product, len(rights), len(extras))
    padded = _up(m, _WARPGROUPS * tiles.m), _up(n, tiles.n), _up(k, tiles.k)
    kernel = gpu_kernel(
        partial(_body, product=product, tiles=tiles, sizes=padded, num_rights=len(rights)),
        target,
        detect_races=detect_races,
        out_type=[jax.ShapeDtypeStruct(padded[:2], dtype) for dtype in product.out_dtypes],
        grid=(num_multiprocessors(target),),
        grid_names=("multiprocessor",),
        num_threads=_WARPGROUPS + 1,
        thread_name="warpgroup",
    )
    across, down = _padded_operands(product.layout, padded)
    operands = [_pad(left, across), *(_pad(right, down) for right in rights)]
    out_dtype = product.out_dtypes[0]
    arrays = *operands, *(_pad(extra, padded[:2]).astype(out_dtype) for extra in extras)
    outs = _one_at_a_time(kernel)(*arrays)
    return tuple(out[:m, :n] for out in outs)


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


def _pad(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if array.shape == shape:
        return array
    return jnp.pad(array, [(0, to - size) for size, to in zip(array.shape, shape, strict=True)])


def _body(
    *refs: Any,
    product: TiledProduct,
    tiles: GpuTiles,
    sizes: tuple[int, int, int],
    num_rights: int,
) -> None:
    """One persistent block. refs: operands, extras and results in the device's memory."""
    num_outs = len(product.out_dtypes)
    operands, extras = refs[: 1 + num_rights], refs[1 + num_rights : -num_outs]
    outs = refs[-num_outs:]
    blocks = (sizes[0] // (_WARPGROUPS * tiles.m), sizes[1] // tiles.n)
    out_tile = _shared((_OUT_TILE, _OUT_TILE), product.out_dtypes[0])
    idle = _pipeline(product.layout, tiles, sizes[2], num_rights, _nothing, _nothing)
    scratch = {
        "staged": idle.get_allocations(*operands),
        "slots": _stacked(out_tile, _WARPGROUPS, _OUT_SLOTS),
    }
    if extras:
        scratch["fetched"] = _stacked(out_tile, _WARPGROUPS, len(extras))
        scratch["arrivals"] = gpu.Barrier(num_barriers=_WARPGROUPS * len(extras))

    @partial(pl.run_scoped, collective_axes="warpgroup", **scratch)
    def _(staged: Any, slots: Any, fetched: Any = None, arrivals: Any = None) -> None:
        warpgroup = jax.lax.axis_index("warpgroup")
        epilogue = _Epilogue(product, tiles, warpgroup, slots, fetched, arrivals)

        def block(loop: Any) -> None:
            row, column = gpu.planar_snake(loop.index[0], blocks, 1, tiles.width)
            rows = pl.ds(row * _WARPGROUPS * tiles.m, _WARPGROUPS * tiles.m)
            columns = pl.ds(column * tiles.n, tiles.n)
            # Cut to this block here, so that the index of a stage depends on the sum alone.
            left = _cut(operands[0], rows, transposed=product.layout[0] == "t")
            rights = [
                _cut(right, columns, transposed=product.layout[1] != "t") for right in operands[1:]
            ]
            here = [ref.at[rows, columns] for ref in (*extras, *outs)]

            def compute(run: Any) -> None:
                def summed(*sums: Any) -> None:
                    run(sums)
                    epilogue.write(sums, here[: len(extras)], here[len(extras) :])

                accumulator = gpu.ACC((tiles.m, tiles.n), jnp.float32)
                pl.run_scoped(summed, *[accumulator] * num_rights)

            def add(_: Any, left_tile: Any, *rest: Any) -> Any:
                right_tiles, sums = rest[:num_rights], rest[num_rights]
                mine = pl.ds(warpgroup * tiles.m, tiles.m)
                left_part = _as_rows(left_tile, mine, transposed=product.layout[0] == "t")
                for right_tile, total in zip(right_tiles, sums, strict=True):
                    turned = right_tile.transpose((1, 0))
                    gpu.wgmma(total, left_part, turned if product.layout[1] == "t" else right_tile)
                gpu.wgmma_wait(tiles.delay)
                return sums

            pipeline = _pipeline(product.layout, tiles, sizes[2], num_rights, add, compute)
            pipeline(left, *rights, allocations=staged)

        gpu.nd_loop((blocks[0] * blocks[1],), collective_axes="multiprocessor")(block)

    gpu.wait_smem_to_gmem(0, wait_read_only=True)


@dataclass(frozen=True)
class _Epilogue:
    """Takes a warpgroup's sums through `finish` and out, one small tile after another."""

    product: TiledProduct
    tiles: GpuTiles
    warpgroup: Any
    slots: Any
    fetched: Any
    arrivals: Any

    def write(self, sums: tuple[Any, ...], extras: list[Any], outs: list[Any]) -> None:
        totals = [total[...] for total in sums]
        gpu.wait_smem_to_gmem(0, wait_read_only=True)
        number = 0
        for row in range(0, self.tiles.m, _OUT_TILE):
            for column in range(0, self.tiles.n, _OUT_TILE):
                part = slice(row, row + _OUT_TILE), slice(column, column + _OUT_TILE)
                place = (
                    pl.ds(self.warpgroup * self.tiles.m + row, _OUT_TILE),
                    pl.ds(column, _OUT_TILE),
                )
                met = tuple(
                    self._fetch(index, extra.at[place]) for index, extra in enumerate(extras)
                )
                results = self.product.finish(tuple(total[part] for total in totals), met)
                for result, out in zip(results, outs, strict=True):
                    self._send(number % _OUT_SLOTS, result, out.at[place])
                    number += 1

    def _fetch(self, index: int, source: Any) -> jax.Array:
        tile = self.fetched.at[self.warpgroup, index]
        count = self.fetched.shape[1]
        barrier = self.arrivals.at[self.warpgroup * count + index]
        gpu.copy_gmem_to_smem(source, tile, barrier)
        gpu.barrier_wait(barrier)
        values: jax.Array = tile[...].astype(jnp.float32)
        return values

    def _send(self, slot: int, values: jax.Array, target: Any) -> None:
        # All but the newest copy have been read from their slots, so this one is free.
        gpu.wait_smem_to_gmem(_OUT_SLOTS - 1, wait_read_only=True)
        self.slots[self.warpgroup, slot] = values.astype(self.product.out_dtypes[0])
        gpu.commit_smem()
        gpu.copy_smem_to_gmem(self.slots.at[self.warpgroup, slot], target)


def _pipeline(
    layout: Layout, tiles: GpuTiles, size: int, num_rights: int, add: Any, compute: Any
) -> Any:
    """Stages of operand tiles: `add` sees each of them, inside `compute`."""
    rows = _WARPGROUPS * tiles.m
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
        num_compute_wgs=_WARPGROUPS,
        max_concurrent_steps=tiles.stages,
        compute_context=compute,
    )


def _stage(shape: tuple[int, int], along: int, delay: int) -> Any:
    def index(step: Any) -> tuple[Any, Any]:
        return (step, 0) if along == 0 else (0, step)

    return gpu.BlockSpec(
        shape,
        index,
        transforms=_transforms(shape, 2),
        delay_release=delay,
        memory_space=gpu.MemorySpace.SMEM,
    )


def _transforms(shape: tuple[int, ...], itemsize: int) -> tuple[Any, Any]:
    """How a tile lies in shared memory, so that neither TMA nor wgmma meets bank conflicts."""
    swizzle = gpu.find_swizzle(shape[-1] * itemsize * 8)
    return gpu.TilingTransform((8, swizzle // itemsize)), gpu.SwizzleTransform(swizzle)


def _shared(shape: tuple[int, int], dtype: Any) -> tuple[tuple[int, int], Any, Any]:
    return shape, dtype, _transforms(shape, jnp.dtype(dtype).itemsize)


def _stacked(tile: tuple[tuple[int, int], Any, Any], *counts: int) -> Any:
    shape, dtype, transforms = tile
    return gpu.SMEM((*counts, *shape), dtype, transforms=transforms)


def _cut(ref: Any, place: Any, *, transposed: bool) -> Any:
    return ref.at[:, place] if transposed else ref.at[place, :]


def _as_rows(tile: Any, rows: Any, *, transposed: bool) -> Any:
    return tile.at[:, rows].transpose((1, 0)) if transposed else tile.at[rows, :]


def _nothing(*_: Any, **__: Any) -> None:
    """Functions do not change what a pipeline allocates."""
