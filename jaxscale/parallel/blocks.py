"""Products on a mesh: each device runs them on its own blocks, with the collectives of its product written out.

Rows of the batch stay on the devices that have them. A weight's dims that are split for storage alone (`embed`, or
whatever shares mesh axes with the rows) are gathered before the product, and its gradient is scattered after; the
others (`heads`, `mlp`) stay split, as Megatron splits a layer, and what a device has summed in part is summed over
them. Between the split products a sequence is split as well (`norm_sequence`; Korthikanti et al. 2022): it is gathered
once before the first ones, and what the last ones have summed in part is scattered over it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxscale.kernels.attention.residuals import is_residual
from jaxscale.kernels.residuals import is_product, product_residual
from jaxscale.models.context import Axes, BlockFunction, take_rows

MeshAxes = tuple[str, ...]
Dims = tuple[MeshAxes, ...]
# A weight's dim with this name is met by an activation's `embed_activation`.
_STORED, _MET = "embed", "embed_activation"
# An activation's dim with this name is split between the products of a layer, and whole inside them.
_BETWEEN = "norm_sequence"
# What a map that gathers keeps for its backward pass, beside its operands: they are gathered again, or every layer's
# would stay whole until its gradient is formed.
_KEPT = jax.checkpoint_policies.save_from_both_policies(is_product, is_residual)


class Layout(Protocol):
    """What is asked of a placement (`parallel.placement`, which makes the hook)."""

    @property
    def mesh(self) -> Mesh: ...
    @property
    def manual(self) -> frozenset[str]: ...
    @property
    def is_local(self) -> bool: ...
    @property
    def automatic_axes(self) -> frozenset[str]: ...
    def mesh_axes(self, logical: str) -> MeshAxes: ...


@dataclass(frozen=True)
class _Result:
    """How a result leaves its map. split: mesh axes of its dims. summed: over which a device has a part of its sum;
    scattered: those of them that leave it split along dim 1."""

    split: Dims
    summed: MeshAxes
    scattered: MeshAxes

    @property
    def spec(self) -> PartitionSpec:
        return _spec(self.split)


@dataclass(frozen=True)
class Blocks:
    """The hook of a placement (see `models.context.BlockHook`)."""

    placement: Layout

    def __call__(
        self, function: BlockFunction, operands: Sequence[Axes], out: Axes
    ) -> BlockFunction:
        """`function` of x and of weights, or of more activations, on blocks; gradients go through it."""
        if self.placement.is_local:
            return function
        mapped = self._mapped(
            lambda *blocks: [function(*blocks)], operands, [self._result(operands, out)]
        )
        return lambda *arrays: mapped(*arrays)[0]

    def each(
        self, function: BlockFunction, operands: Sequence[Axes], outs: Sequence[Axes]
    ) -> BlockFunction:
        """The same for a list of results, one of x and each weight: what x is gathered for is gathered once."""
        if self.placement.is_local:
            return function
        x, *weights = operands
        results = [
            self._result((x, weight), out) for weight, out in zip(weights, outs, strict=True)
        ]
        return self._mapped(function, operands, results)

    def look_up(self, table: jax.Array, rows: jax.Array) -> jax.Array:
        """A device looks its part of the table up for all devices that have others of it, and they exchange what they
        find: nobody gathers the table, nor sums its gradient over the devices that share it."""
        columns, vocab = self._mesh_axes(_STORED), self._mesh_axes("vocab")
        if not (columns or vocab) or not self._exchanges(columns, rows.shape):
            return take_rows(table, rows)
        operands = ("batch", "sequence"), ("vocab", _STORED)
        result = self._result(operands, ("batch", _BETWEEN, _MET))

        def local(table: jax.Array, rows: jax.Array) -> jax.Array:
            rows = _gather(rows, (columns,))
            found = _own_rows(table, rows, vocab) if vocab else take_rows(table, rows)
            part = _sum(found, result, self.placement)
            return jax.lax.all_to_all(part, columns, 0, 2, tiled=True) if columns else part

        found: jax.Array = jax.shard_map(
            local,
            mesh=self.placement.mesh,
            in_specs=(_spec(self._split(operands[1])), _spec(self._split(operands[0]))),
            out_specs=result.spec,
            axis_names=self.placement.automatic_axes,
            check_vma=False,
        )(table, rows)
        return found

    def _exchanges(self, columns: MeshAxes, rows: tuple[int, ...]) -> bool:
        """Whether rows of the batch, which have to divide, are split over all that the table's columns are split over.

        Inside a pipeline's map all of it is the compiler's.
        """
        batch, sequence = self._mesh_axes("batch"), self._mesh_axes(_BETWEEN)
        divide = all(
            size % self._size(axes) == 0 for size, axes in zip(rows, (batch, sequence), strict=True)
        )
        free = not (self.placement.manual or self._mesh_axes(_MET))
        return set(columns) <= set(batch) and divide and free

    def _size(self, axes: MeshAxes) -> int:
        return math.prod(self.placement.mesh.shape[axis] for axis in axes)

    def shape(self, shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
        """Sizes of what the kernel sees of an array: a device's block, gathered where weights are."""
        sizes = self.placement.mesh.shape
        sizes_over = []
        for size, axis in zip(shape, axes, strict=True):
            kept = set(self._mesh_axes(axis)) - set(self._gathered(axis))
            if axis in {"batch", "sequence"}:
                kept = set(self._mesh_axes(axis))
            parts = 1
            for mesh_axis in kept:
                parts *= sizes[mesh_axis]
            sizes_over.append(size // parts)
        return tuple(sizes_over)

    def _mapped(
        self, function: BlockFunction, operands: Sequence[Axes], results: Sequence[_Result]
    ) -> BlockFunction:
        placement = self.placement
        gathered = [self._gathered_dims(axes) for axes in operands]

        def local(*blocks: jax.Array) -> list[jax.Array]:
            whole = (_gather(block, dims) for block, dims in zip(blocks, gathered, strict=True))
            parts = function(*whole)
            return [_sum(p, result, placement) for p, result in zip(parts, results, strict=True)]

        gathers = any(axes for dims in gathered for axes in dims)
        mapped: BlockFunction = jax.shard_map(
            jax.checkpoint(local, policy=_KEPT, prevent_cse=False) if gathers else local,
            mesh=None if placement.manual else placement.mesh,
            in_specs=tuple(_spec(self._split(axes)) for axes in operands),
            out_specs=[result.spec for result in results],
            axis_names=placement.automatic_axes,
            check_vma=False,  # Pallas calls do not say over which axes their results vary.
        )
        return mapped

    def _result(self, operands: Sequence[Axes], out: Axes) -> _Result:
        split = self._split(out)
        between = tuple(dim for dim, axis in enumerate(out) if axis == _BETWEEN)
        inside = tuple(() if dim in between else axes for dim, axes in enumerate(split))
        summed = self._summed(operands, inside)
        if not between or not set(split[1]) <= set(summed):
            return _Result(inside, summed, ())
        return _Result(split, tuple(a for a in summed if a not in split[1]), split[1])

    def _summed(self, operands: Sequence[Axes], out: Dims) -> MeshAxes:
        """Mesh axes over which a device has a part of the sum: those that split an operand's dims, and no result's."""
        seen = [
            axis
            for axes in operands
            for dim, gone in zip(self._split(axes), self._gathered_dims(axes), strict=True)
            for axis in dim
            if axis not in gone
        ]
        kept = {axis for axes in out for axis in axes}
        return tuple(dict.fromkeys(axis for axis in seen if axis not in kept))

    def _split(self, axes: Axes) -> Dims:
        return tuple(self._mesh_axes(axis) for axis in axes)

    def _mesh_axes(self, axis: str | None) -> MeshAxes:
        return () if axis is None else self.placement.mesh_axes(axis)

    def _gathered_dims(self, axes: Axes) -> Dims:
        """Mesh axes over which each dim of an operand is gathered."""
        if "batch" in axes:
            return tuple(self._mesh_axes(axis) if axis == _BETWEEN else () for axis in axes)
        return tuple(self._gathered(axis) for axis in axes)

    def _gathered(self, axis: str | None) -> MeshAxes:
        """Mesh axes over which a weight's dim is gathered."""
        rows = {*self._mesh_axes("batch"), *self._mesh_axes("sequence")}
        kept = self._mesh_axes(_MET) if axis == _STORED else self._mesh_axes(axis)
        return tuple(a for a in self._mesh_axes(axis) if a in rows or a not in kept)


def _own_rows(block: jax.Array, rows: jax.Array, axes: MeshAxes) -> jax.Array:
    """What a device has of rows of a table that is split over mesh axes, zeros for the others'; as `take_rows`."""
    have, parts = block.shape[0], jax.lax.psum(1, axes)
    rows = jnp.where(rows < 0, rows + have * parts, rows)
    place = rows - jax.lax.axis_index(axes) * have
    found = jnp.take(block, jnp.where(place < 0, have, place), axis=0, mode="fill", fill_value=0)
    exists = (rows >= 0) & (rows < have * parts)
    return jnp.where(exists[..., None], found, jnp.nan)


def _spec(split: Dims) -> PartitionSpec:
    return PartitionSpec(*(axes or None for axes in split))


def _gather(block: jax.Array, dims: Dims) -> jax.Array:
    for dim, axes in enumerate(dims):
        if axes:
            block = jax.lax.all_gather(block, axes, axis=dim, tiled=True)
    return block


def _sum(part: jax.Array, result: _Result, placement: Layout) -> jax.Array:
    if not (result.summed or result.scattered):
        return part
    if result.scattered:
        part = jax.lax.psum_scatter(part, result.scattered, scatter_dimension=1, tiled=True)
    whole = _sum_over(result.summed, placement, part) if result.summed else part
    # Kept as a product, it spares a policy the part, which is whole over what the sum is scattered over.
    return product_residual(whole)


def _sum_over(axes: MeshAxes, placement: Layout, part: jax.Array) -> jax.Array:
    """The sum of the devices' parts. Its gradient costs no collective.

    Where a map's result is the same on n devices, JAX hands each 1/n of its gradient and would sum those again.
    """
    size = 1
    for axis in axes:
        size *= placement.mesh.shape[axis]

    @jax.custom_vjp
    def total(part: jax.Array) -> jax.Array:
        whole: jax.Array = jax.lax.psum(part, axes)
        return whole

    def backward(_: None, to_whole: jax.Array) -> tuple[Any]:
        return (to_whole * size,)

    total.defvjp(lambda part: (total(part), None), backward)
    return total(part)
