"""Kernels on a mesh: each device runs them on its own blocks, with the collectives of its product written out.

Rows stay on the devices that have them. A weight's dims that are split for storage alone (`embed`, or whatever shares
mesh axes with the rows) are gathered before the kernel, so that its gradient is scattered after; the others (`heads`,
`mlp`) stay split, as Megatron splits a layer, and what a device has summed in part is summed over them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
from jax.sharding import Mesh, PartitionSpec

from jaxscale.kernels.attention.residuals import is_residual
from jaxscale.kernels.residuals import is_product
from jaxscale.models.context import Axes, BlockFunction

MeshAxes = tuple[str, ...]
# A weight's dim with this name is met by an activation's `embed_activation`.
_STORED, _MET = "embed", "embed_activation"
# What a map with gathered weights keeps for its backward pass, beside its operands: they are gathered again, or every
# layer's would stay whole until its gradient is formed.
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
class Blocks:
    """The hook of a placement (see `models.context.BlockHook`)."""

    placement: Layout

    def __call__(
        self, function: BlockFunction, operands: Sequence[Axes], out: Axes
    ) -> BlockFunction:
        """`function` of x and of weights, or of more activations, on blocks; gradients go through it."""
        placement = self.placement
        if placement.is_local:
            return function
        split = [tuple(self._mesh_axes(axis) for axis in axes) for axes in operands]
        gathered = [
            tuple(() if "batch" in axes else self._gathered(axis) for axis in axes)
            for axes in operands[1:]
        ]
        out_split = tuple(self._mesh_axes(axis) for axis in out)
        summed = _summed(split, gathered, out_split)

        def local(x: jax.Array, *others: jax.Array) -> jax.Array:
            whole = (_gather(each, axes) for each, axes in zip(others, gathered, strict=True))
            result = function(x, *whole)
            return _sum_over(summed, placement, result) if summed else result

        gathers = any(axes for dims in gathered for axes in dims)
        specs = tuple(PartitionSpec(*(axes or None for axes in dims)) for dims in split)
        mapped: BlockFunction = jax.shard_map(
            jax.checkpoint(local, policy=_KEPT, prevent_cse=False) if gathers else local,
            mesh=None if placement.manual else placement.mesh,
            in_specs=specs,
            out_specs=PartitionSpec(*(axes or None for axes in out_split)),
            axis_names=placement.automatic_axes,
            check_vma=False,  # Pallas calls do not say over which axes their results vary.
        )
        return mapped

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

    def _mesh_axes(self, axis: str | None) -> MeshAxes:
        return () if axis is None else self.placement.mesh_axes(axis)

    def _gathered(self, axis: str | None) -> MeshAxes:
        """Mesh axes over which a weight's dim is gathered."""
        rows = {*self._mesh_axes("batch"), *self._mesh_axes("sequence")}
        kept = self._mesh_axes(_MET) if axis == _STORED else self._mesh_axes(axis)
        return tuple(a for a in self._mesh_axes(axis) if a in rows or a not in kept)


def _gather(weight: jax.Array, dims: tuple[MeshAxes, ...]) -> jax.Array:
    for dim, axes in enumerate(dims):
        if axes:
            weight = jax.lax.all_gather(weight, axes, axis=dim, tiled=True)
    return weight


def _summed(
    split: Sequence[tuple[MeshAxes, ...]],
    gathered: Sequence[tuple[MeshAxes, ...]],
    out: tuple[MeshAxes, ...],
) -> MeshAxes:
    """Mesh axes over which a device has a part of each sum: those that split an operand's dims but no result's."""
    seen = [axis for dims in split[:1] for axes in dims for axis in axes]
    for dims, gathers in zip(split[1:], gathered, strict=True):
        for axes, gone in zip(dims, gathers, strict=True):
            seen += [axis for axis in axes if axis not in gone]
    kept = {axis for axes in out for axis in axes}
    return tuple(dict.fromkeys(axis for axis in seen if axis not in kept))


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
