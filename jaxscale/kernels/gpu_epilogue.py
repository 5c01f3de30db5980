"""How a warpgroup's sums leave the registers of a Hopper GPU: through `finish`, shared memory and TMA."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.kernels.pallas import gpu, pl
from jaxscale.kernels.tiles import TiledProduct

# Computing warpgroups of a block, of which each has its own rows of the tile.
WARPGROUPS = 2
# Rows and columns that leave a warpgroup's registers at a time, and how many such tiles are on their way.
_TILE = 64
_SLOTS = 2
# Bytes that arrays in shared memory begin at multiples of, and that sums over columns take of it (JAX 0.10.2 to 0.12).
_ALIGNED = 1024
_REDUCTIONS = 2048


@dataclass(frozen=True)
class RowNumbers:
    """Numbers of each row of a tile, taken of its sums while they are in registers.

    count: how many. take(sums, column, bounds): so many arrays [rows] of fp32 sums [rows, columns] of the first right
    operand. column: number of the first of these columns. bounds: the int32 array that the kernel was given.
    """

    count: int
    take: Callable[[jax.Array, Any, Any], Sequence[jax.Array]]


@dataclass(frozen=True)
class Place:
    """Where a block's tile is. row, column: of tiles. m: rows of a warpgroup, n: columns of a tile."""

    row: Any
    column: Any
    m: int
    n: int

    @property
    def rows(self) -> Any:
        return pl.ds(self.row * WARPGROUPS * self.m, WARPGROUPS * self.m)

    @property
    def columns(self) -> Any:
        return pl.ds(self.column * self.n, self.n)


@dataclass(frozen=True)
class Refs:
    """A kernel's arrays in the device's memory, but for the operands of its products."""

    extras: Sequence[Any]
    bounds: Any
    outs: Sequence[Any]
    numbers: Sequence[Any]


@dataclass(frozen=True)
class Leaving:
    """What leaves a tile: the product's results, of one dtype, and numbers of its rows."""

    product: TiledProduct
    num_extras: int = 0
    numbers: RowNumbers | None = None

    @property
    def num_numbers(self) -> int:
        return 0 if self.numbers is None else self.numbers.count

    def shared_bytes(self, m: int) -> int:
        """Of shared memory, where a warpgroup has m rows."""
        tiles = 0
        if self.product.out_dtypes:
            tile = _TILE**2 * int(jnp.dtype(self.product.out_dtypes[0]).itemsize)
            tiles = tile * (_SLOTS + self.num_extras)
        return WARPGROUPS * tiles + self._bytes_of_numbers(m)

    def _bytes_of_numbers(self, m: int) -> int:
        if not self.num_numbers:
            return 0
        return -(-WARPGROUPS * 4 * m * self.num_numbers // _ALIGNED) * _ALIGNED + _REDUCTIONS

    def scratch(self, m: int) -> dict[str, Any]:
        """Shared memory, by the names of `Epilogue`'s fields."""
        found: dict[str, Any] = {}
        if self.product.out_dtypes:
            tile = (_TILE, _TILE), self.product.out_dtypes[0]
            found["slots"] = _tiles(_SLOTS, *tile)
        if self.num_extras:
            found["fetched"] = _tiles(self.num_extras, *tile)
            found["arrivals"] = gpu.Barrier(num_barriers=WARPGROUPS * self.num_extras)
        if self.num_numbers:
            found["rows"] = gpu.SMEM((WARPGROUPS, self.num_numbers, m), jnp.float32)
        return found


@dataclass(frozen=True)
class Epilogue:
    """Takes a warpgroup's sums through `finish` and out, one small tile after another."""

    leaving: Leaving
    refs: Refs
    warpgroup: Any
    slots: Any = None
    fetched: Any = None
    arrivals: Any = None
    rows: Any = None

    def write(self, sums: Sequence[Any], place: Place) -> None:
        """All that leaves the tile at a place. sums: of each right operand, this warpgroup's rows."""
        totals = [total[...] for total in sums]
        gpu.wait_smem_to_gmem(0, wait_read_only=True)
        if self.refs.outs:
            self._write_tiles(totals, place)
        # Last: what it makes of the sums takes their place in registers.
        self._write_numbers(totals[0], place)

    def _write_numbers(self, totals: jax.Array, place: Place) -> None:
        numbers = self.leaving.numbers
        if numbers is None:
            return
        mine = self.rows.at[self.warpgroup]
        for index, each in enumerate(
            numbers.take(totals, place.column * place.n, self.refs.bounds)
        ):
            mine[index] = each
        gpu.commit_smem()
        first = (place.row * WARPGROUPS + self.warpgroup) * place.m
        for index, ref in enumerate(self.refs.numbers):
            gpu.copy_smem_to_gmem(mine.at[index], ref.at[place.column, pl.ds(first, place.m)])

    def _write_tiles(self, totals: Sequence[jax.Array], place: Place) -> None:
        here = [ref.at[place.rows, place.columns] for ref in (*self.refs.extras, *self.refs.outs)]
        extras, outs = here[: len(self.refs.extras)], here[len(self.refs.extras) :]
        number = 0
        for row in range(0, place.m, _TILE):
            for column in range(0, place.n, _TILE):
                part = slice(row, row + _TILE), slice(column, column + _TILE)
                there = pl.ds(self.warpgroup * place.m + row, _TILE), pl.ds(column, _TILE)
                met = tuple(self._fetch(i, extra.at[there]) for i, extra in enumerate(extras))
                results = self.leaving.product.finish(tuple(total[part] for total in totals), met)
                for result, out in zip(results, outs, strict=True):
                    self._send(number % _SLOTS, result, out.at[there])
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
        gpu.wait_smem_to_gmem(_SLOTS - 1, wait_read_only=True)
        self.slots[self.warpgroup, slot] = values.astype(self.leaving.product.out_dtypes[0])
        gpu.commit_smem()
        gpu.copy_smem_to_gmem(self.slots.at[self.warpgroup, slot], target)


def swizzled(shape: tuple[int, ...], itemsize: int) -> tuple[Any, Any]:
    """How a tile lies in shared memory, so that neither TMA nor wgmma meets bank conflicts."""
    swizzle = gpu.find_swizzle(shape[-1] * itemsize * 8)
    return gpu.TilingTransform((8, swizzle // itemsize)), gpu.SwizzleTransform(swizzle)


def _tiles(count: int, shape: tuple[int, int], dtype: Any) -> Any:
    transforms = swizzled(shape, jnp.dtype(dtype).itemsize)
    return gpu.SMEM((WARPGROUPS, count, *shape), dtype, transforms=transforms)
