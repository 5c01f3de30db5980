"""The one table from logical axes to mesh axes, and the check of every array against it."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from jax.sharding import PartitionSpec

from jaxscale.config.explain import nearest
from jaxscale.config.plan import MESH_AXES, Plan
from jaxscale.models.description import Description
from jaxscale.parallel.errors import AxisCollision, NotDivisible, PlacementError

MeshAxes = tuple[str, ...]
MeshShape = Mapping[str, int]
Rules = Mapping[str, MeshAxes]

# Megatron's split of a layer over `tensor` (heads, mlp and vocab), ZeRO-3 over `fsdp` (embed), rows over both batch
# axes, and sequence parallelism (Korthikanti et al. 2022) between the split products (norm_sequence). What splits the
# logits' vocabulary in the loss beside the axes of `vocab` is `vocab_activation`.
DEFAULT_RULES: Rules = MappingProxyType(
    {
        "vocab": ("tensor",),
        "vocab_activation": (),
        "embed": ("fsdp",),
        "heads": ("tensor",),
        "kv_heads": ("tensor",),
        "head_dim": (),
        "mlp": ("tensor",),
        "layers": (),
        "norm": (),
        "positions": (),
        "batch": ("data", "fsdp"),
        "sequence": (),
        "norm_sequence": ("tensor",),
        "embed_activation": (),
    }
)


def make_rules(overrides: Mapping[str, str | list[str] | None]) -> Rules:
    """The table with a plan's overrides. Raises PlacementError for a mesh axis that does not exist."""
    named = {name: _as_axes(name, axes) for name, axes in overrides.items()}
    return MappingProxyType({**DEFAULT_RULES, **named})


def pipeline_rules(plan: Plan, description: Description) -> Rules:
    """What a pipeline adds to the table: stages own layers, and share the tables of the vocabulary.

    A table is needed on one stage only, but every device of a mesh holds the same shapes: split over `pipeline` too, it
    is held once, gathered for a step. Not where its rows do not divide, or where the plan has a rule of its own.
    """
    if plan.pipeline == 1:
        return {}
    added: dict[str, MeshAxes] = {"layers": ("pipeline",)}
    rows = [
        size
        for spec in description.values()
        for size, axis in zip(spec.shape, spec.axes, strict=True)
        if axis == "vocab"
    ]
    if all(size % (plan.pipeline * plan.tensor) == 0 for size in rows):
        added["vocab"] = ("tensor", "pipeline")
    return {axis: axes for axis, axes in added.items() if axis not in plan.rules}


def unstaged_rules(rules: Rules, plan: Plan, description: Description) -> Rules:
    """The table for arrays whose layers are in the model's order: `pipeline` splits `embed`, as `fsdp` does.

    Where `embed` does not divide by both, every stage holds such arrays whole.
    """
    unstaged = {
        **rules,
        "layers": (),
        "vocab": tuple(axis for axis in rules["vocab"] if axis != "pipeline"),
        "embed": (*rules["embed"], "pipeline"),
    }
    try:
        parameter_specs(description, unstaged, plan.mesh_shape)
    except PlacementError:
        return {**unstaged, "embed": rules["embed"]}
    return unstaged


def check_rules_used(overrides: Iterable[str], description: Description) -> None:
    """Raises PlacementError for an override whose logical axis neither the model nor its activations have."""
    used = {axis for spec in description.values() for axis in spec.axes if axis} | set(
        DEFAULT_RULES
    )
    for name in overrides:
        if name not in used:
            raise PlacementError(
                f"plan.rules.{name} matches no dim of the model{nearest(name, used)}; it has: {', '.join(sorted(used))}"
            )


def check_rules_have_effect(plan: Plan) -> None:
    """Raises PlacementError for an override that the plan's pipeline would pass over."""
    if plan.pipeline > 1 and plan.rules.get("vocab_activation"):
        raise PlacementError(
            "plan.rules.vocab_activation splits the logits of a loss that gathers its table, and a pipeline gathers "
            "tables once a step for all microbatches: leave it out, or set plan.pipeline to 1"
        )


def mesh_axes_of(name: str, axes: Iterable[str | None], rules: Rules) -> tuple[MeshAxes, ...]:
    """Mesh axes of each dim of the array called `name`.

    Raises PlacementError for a logical axis without a rule, AxisCollision if two dims share a mesh axis.
    """
    found = tuple(() if axis is None else _rule(name, axis, rules) for axis in axes)
    owner: dict[str, str | None] = {}
    for logical, mesh_axes in zip(axes, found, strict=True):
        for axis in mesh_axes:
            if axis in owner:
                raise AxisCollision(
                    f"{name}: logical axes {owner[axis]!r} and {logical!r} both map to mesh axis {axis!r}; "
                    f"send one of them elsewhere (plan.rules.{logical}: null keeps it whole)"
                )
            owner[axis] = logical
    return found


def partition_spec(
    name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], rules: Rules, mesh: MeshShape
) -> PartitionSpec:
    """How the dims of an array are split over the mesh.

    Raises AxisCollision if two dims would share a mesh axis, NotDivisible if a dim does not split evenly; both name the
    array, the numbers and what would work.
    """
    found = mesh_axes_of(name, axes, rules)
    for size, logical, mesh_axes in zip(shape, axes, found, strict=True):
        _check_divides(name, size, logical, mesh_axes, mesh)
    return PartitionSpec(*(_entry(mesh_axes) for mesh_axes in found))


def parameter_specs(
    description: Description, rules: Rules, mesh: MeshShape
) -> dict[str, PartitionSpec]:
    """The partition of every parameter, or the first problem as an error."""
    return {
        path: partition_spec(path, spec.shape, spec.axes, rules, mesh)
        for path, spec in description.items()
    }


def _entry(axes: MeshAxes) -> str | MeshAxes | None:
    if not axes:
        return None
    return axes[0] if len(axes) == 1 else axes


def _as_axes(name: str, axes: str | list[str] | None) -> MeshAxes:
    listed = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
    for axis in listed:
        if axis not in MESH_AXES:
            raise PlacementError(
                f"plan.rules.{name}: no mesh axis {axis!r}{nearest(axis, MESH_AXES)}; there are {', '.join(MESH_AXES)}"
            )
    return listed


def _rule(name: str, axis: str, rules: Rules) -> MeshAxes:
    if axis not in rules:
        raise PlacementError(
            f"{name}: logical axis {axis!r} has no rule{nearest(axis, rules)}; "
            f"add one (plan.rules.{axis}: null keeps the dim whole)"
        )
    return rules[axis]


def _check_divides(
    name: str, size: int, logical: str | None, axes: MeshAxes, mesh: MeshShape
) -> None:
    parts = 1
    for axis in axes:
        parts *= mesh[axis]
    if size % parts == 0:
        return
    product = " x ".join(f"{axis}={mesh[axis]}" for axis in axes)
    below, above = size - size % parts, size - size % parts + parts
    sizes = " or ".join(str(near) for near in (below, above) if near > 0)
    fits = [str(count) for count in range(1, parts) if size % count == 0]
    raise NotDivisible(
        f"{name}: dim {logical!r} of size {size} does not divide over {product}; "
        f"nearest sizes that do: {sizes}; shards that divide {size}: {', '.join(fits[-4:])}"
    )
