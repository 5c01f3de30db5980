"""A plan on a mesh: shardings of parameters and batches, and the hooks that place activations."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxscale.config.plan import Plan
from jaxscale.kernels.target import Target, target_of
from jaxscale.models.context import Axes, ForwardContext
from jaxscale.models.description import Description
from jaxscale.parallel.blocks import Blocks
from jaxscale.parallel.errors import PlacementError
from jaxscale.parallel.pipeline.stages import StageLayout, stage_layout, stored_description
from jaxscale.parallel.remat import wrap_block
from jaxscale.parallel.rules import (
    Rules,
    check_rules_have_effect,
    check_rules_used,
    make_rules,
    mesh_axes_of,
    parameter_specs,
    partition_spec,
    pipeline_rules,
    unstaged_rules,
)

_CPU_LAYER_UNROLL = 16
# One token at a time, a long program is only longer to compile; there is no backward pass.
_DECODING = {"remat": "none", "layer_unroll": 1}


@dataclass(frozen=True)
class Placement:
    """Where everything of a run lives.

    stages: the layers of each pipeline stage; None without a pipeline.
    unstaged_rules: the table for arrays whose layers are in the model's order, where it is another one.
    outer: mesh axes that a surrounding `jax.vmap(..., spmd_axis_name=axis)` runs over; arrays have no dim for them.
    manual: mesh axes over which a surrounding `jax.shard_map` is manual; arrays are one device's blocks along them.
    """

    mesh: Mesh
    plan: Plan
    rules: Rules
    stages: StageLayout | None = None
    unstaged_rules: Rules | None = None
    outer: frozenset[str] = frozenset()
    manual: frozenset[str] = frozenset()

    @property
    def mesh_shape(self) -> Mapping[str, int]:
        return dict(self.mesh.shape)

    @property
    def platform(self) -> str:
        """`cpu`, `gpu` or `tpu`."""
        return self.target.platform

    @property
    def target(self) -> Target:
        """What kernels are compiled for."""
        return target_of(self.mesh)

    def wanted(self, op: str) -> str:
        """What the plan says of an op's kernels (see `ForwardContext.wanted`)."""
        return ForwardContext(kernels=self.plan.kernels).wanted(op)

    @property
    def is_local(self) -> bool:
        """Whether arrays are whole on one device."""
        sizes = (size for axis, size in self.mesh.shape.items() if axis not in self.manual)
        return bool(math.prod(sizes) == 1)

    @property
    def automatic_axes(self) -> frozenset[str]:
        """Mesh axes that the compiler partitions over here."""
        return frozenset(self.mesh.axis_names) - self.manual

    def mesh_axes(self, logical: str) -> tuple[str, ...]:
        """Mesh axes of size over one that split a logical axis here, without the outer and manual ones."""
        axes, hidden = mesh_axes_of(logical, (logical,), self.rules)[0], self.outer | self.manual
        return tuple(axis for axis in axes if self.mesh.shape[axis] > 1 and axis not in hidden)

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

    def inside_map(self, axes: frozenset[str]) -> "Placement":
        """The placement inside a `jax.shard_map` that is manual over mesh axes."""
        return replace(self, manual=self.manual | axes)

    def stored(self, description: Description) -> Description:
        """What is stored of a model under this placement: stages may be padded."""
        return stored_description(description, self.stages)

    def unstaged(self) -> "Placement":
        """The placement of arrays whose layers are in the model's order: for checkpoints and for generation.

        The same where that is the stored order; otherwise no stage owns layers, and `pipeline` splits `embed`.
        """
        if self.stages is None or self.stages.is_identity:
            return self
        return replace(self, rules=self.unstaged_rules or self.rules)

    def constrain(self, array: jax.Array, axes: Axes) -> jax.Array:
        """Pin an activation by its logical axes; a no-op on a single device."""
        if self.is_local:
            return array
        hidden = self.outer | self.manual
        shape = {axis: 1 if axis in hidden else size for axis, size in self.mesh.shape.items()}
        spec = partition_spec("activation", array.shape, axes, self.rules, shape)
        placed: jax.Array = jax.lax.with_sharding_constraint(array, _without(spec, hidden))
        return placed

    def forward_context(self) -> ForwardContext:
        """The hooks of this placement for a traced forward pass."""
        return ForwardContext(
            constrain=self.constrain,
            wrap_block=wrap_block(self.plan.remat),
            over_heads=self.over_heads,
            kernels=self.plan.kernels,
            layer_unroll=self._layer_unroll(),
            local=self.is_local,
            platform=self.platform,
            target=self.target,
            on_blocks=Blocks(self),
            writes_collectives=bool(self.mesh_axes("norm_sequence")) and not self.manual,
        )

    def over_heads(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function (query, key, value, segment ids) on each device's heads, inside a map; as it is outside of one.

        Inside a map TPUs' compiler loses track of the heads in the backward pass of attention, and gathers its blocks
        over `tensor` (JAX 0.10.2, v5e). Outside it does not.
        """
        heads = self.mesh_axes("heads")
        if not self.manual or not heads or heads != self.mesh_axes("kv_heads"):
            return function
        split = PartitionSpec(None, None, heads)
        specs = (split, split, split, PartitionSpec())
        return jax.shard_map(
            function, in_specs=specs, out_specs=split, axis_names=frozenset(heads), check_vma=False
        )

    def _layer_unroll(self) -> int:
        """XLA copies each layer's weights and residuals in and out of a loop: on CPU, a fifth of a step.

        Unrolled, a program takes longer to compile, which pretended devices do not repay, and rematerialization saves
        nothing on CPU, where only a loop bounds what lives at once. On accelerators it is the plan's to ask for.
        """
        alone = self.platform == "cpu" and self.mesh.size == 1 and self.plan.remat == "none"
        return self.plan.layer_unroll or (_CPU_LAYER_UNROLL if alone else 1)

    def for_decoding(self) -> "Placement":
        """The placement for generation: few rows, one token at a time, so neither rows nor sequences are split.

        Nor is it pipelined: every device runs every layer. `pipeline` then splits `embed` as `fsdp` does, so that a
        layer's parameters are gathered when it runs and no device holds the model.
        """
        table = self.unstaged_rules or self.rules
        rules = {**table, "batch": (), "sequence": (), "norm_sequence": ()}
        plan = self.plan.model_copy(update=_DECODING)
        return replace(self, rules=rules, plan=plan, stages=None)


def place(plan: Plan, mesh: Mesh, description: Description) -> Placement:
    """Check a plan against a model and bind it to a mesh. Raises PlacementError before anything is compiled."""
    rules, layout = check_plan(plan, description)
    unstaged = None if layout is None else unstaged_rules(rules, plan, description)
    return Placement(mesh, plan, rules, layout, unstaged)


def check_plan(plan: Plan, description: Description) -> tuple[Rules, StageLayout | None]:
    """The rules and stages of a plan for a model, no device needed. Raises PlacementError where it does not fit."""
    check_rules_used(plan.rules, description)
    check_rules_have_effect(plan)
    rules, layout = make_rules(plan.rules), stage_layout(plan, description)
    rules = {**rules, **pipeline_rules(plan, description)}
    parameter_specs(stored_description(description, layout), rules, plan.mesh_shape)
    if layout is not None and plan.remat == "offload":
        raise PlacementError(
            "plan.remat=offload does not work with a pipeline, whose stages keep activations in rings on the device; "
            "use plan.remat=full or plan.pipeline=1"
        )
    return rules, layout


def local_blocks(
    function: Callable[..., Any], placement: Placement, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`function` on each device's block of its operands, along the axes that are not manual already.

    It is not to be differentiated: what it returns as replicated is taken at its word (no check of varying axes), and
    gradients through it are its caller's, as results of their own.
    """
    if placement.is_local:
        return function
    # Inside another map the mesh is that map's, which the trace knows.
    mesh = None if placement.manual else placement.mesh
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=placement.automatic_axes,
        check_vma=False,
    )


def _without(spec: PartitionSpec, outer: frozenset[str]) -> PartitionSpec:
    def keep(entry: Any) -> Any:
        axes = [entry] if isinstance(entry, str) else entry or ()
        return tuple(axis for axis in axes if axis not in outer) or None

    return PartitionSpec(*(keep(entry) for entry in spec))
