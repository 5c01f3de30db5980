"""A plan on a mesh: shardings of parameters and batches, and the hooks that place activations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxscale.config.plan import Plan
from jaxscale.models.context import Axes, ForwardContext
from jaxscale.models.description import Description
from jaxscale.parallel.remat import wrap_block
from jaxscale.parallel.rules import (
    Rules,
    check_rules_used,
    make_rules,
    mesh_axes_of,
    partition_spec,
)

_CPU_LAYER_UNROLL = 16
# One token at a time, a long program is only longer to compile; there is no backward pass.
_DECODING = {"remat": "none", "layer_unroll": 1}


@dataclass(frozen=True)
class Placement:
    """Where everything of a run lives.

    outer: mesh axes that a surrounding `jax.vmap(..., spmd_axis_name=axis)` runs over; arrays have no dim for them.
    """

    mesh: Mesh
    plan: Plan
    rules: Rules
    outer: frozenset[str] = frozenset()

    @property
    def mesh_shape(self) -> Mapping[str, int]:
        return dict(self.mesh.shape)

    @property
    def platform(self) -> str:
        """`cpu`, `gpu` or `tpu`."""
        return str(self.mesh.devices.flat[0].platform)

    def mesh_axes(self, logical: str) -> tuple[str, ...]:
        """Mesh axes of size over one that split a logical axis here, without the outer ones."""
        axes = mesh_axes_of(logical, (logical,), self.rules)[0]
        return tuple(axis for axis in axes if self.mesh.shape[axis] > 1 and axis not in self.outer)

    def sharding(self, name: str, shape: tuple[int, ...], axes: Axes) -> NamedSharding:
        """Sharding of an array by the logical axes of its dims; raises PlacementError where it does not fit."""
        return NamedSharding(
            self.mesh, partition_spec(name, shape, axes, self.rules, self.mesh_shape)
        )

    def shardings(self, description: Description) -> dict[str, NamedSharding]:
        """Sharding of every parameter, by path."""
        return {
            path: self.sharding(path, spec.shape, spec.axes) for path, spec in description.items()
        }

    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def inside(self, axis: str) -> "Placement":
        """The placement inside a `jax.vmap` that runs over a mesh axis."""
        return replace(self, outer=self.outer | {axis})

    def constrain(self, array: jax.Array, axes: Axes) -> jax.Array:
        """Pin an activation by its logical axes; a no-op on a single device."""
        if self.mesh.size == 1:
            return array
        shape = {axis: 1 if axis in self.outer else size for axis, size in self.mesh.shape.items()}
        spec = partition_spec("activation", array.shape, axes, self.rules, shape)
        placed: jax.Array = jax.lax.with_sharding_constraint(array, _without(spec, self.outer))
        return placed

    def forward_context(self) -> ForwardContext:
        """The hooks of this placement for a traced forward pass."""
        return ForwardContext(
            constrain=self.constrain,
            wrap_block=wrap_block(self.plan.remat),
            kernels=self.plan.kernels,
            layer_unroll=self._layer_unroll(),
            local=self.mesh.size == 1,
            platform=self.platform,
        )

    def _layer_unroll(self) -> int:
        """XLA copies each layer's weights and residuals in and out of a loop: on CPU, a fifth of a step.

        Unrolled, a program takes longer to compile, which pretended devices do not repay, and rematerialization saves
        nothing on CPU, where only a loop bounds what lives at once. On accelerators it is the plan's to ask for.
        """
        alone = self.platform == "cpu" and self.mesh.size == 1 and self.plan.remat == "none"
        return self.plan.layer_unroll or (_CPU_LAYER_UNROLL if alone else 1)

    def for_decoding(self) -> "Placement":
        """The placement for generation: few rows, one token at a time, so neither rows nor sequences are split."""
        rules = {**self.rules, "batch": (), "sequence": (), "norm_sequence": ()}
        return replace(self, rules=rules, plan=self.plan.model_copy(update=_DECODING))


def place(plan: Plan, mesh: Mesh, description: Description) -> Placement:
    """Check a plan against a model and bind it to a mesh. Raises PlacementError before anything is compiled."""
    check_rules_used(plan.rules, description)
    placement = Placement(mesh, plan, make_rules(plan.rules))
    placement.shardings(description)
    return placement


def local_blocks(
    function: Callable[..., Any], placement: Placement, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`function` on each device's block of its operands.

    It is not to be differentiated: what it returns as replicated is taken at its word (no check of varying axes), and
    gradients through it are its caller's, as results of their own.
    """
    if placement.mesh.size == 1:
        return function
    return jax.shard_map(
        function, mesh=placement.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def _without(spec: PartitionSpec, outer: frozenset[str]) -> PartitionSpec:
    def keep(entry: Any) -> Any:
        axes = [entry] if isinstance(entry, str) else entry or ()
        return tuple(axis for axis in axes if axis not in outer) or None

    return PartitionSpec(*(keep(entry) for entry in spec))
