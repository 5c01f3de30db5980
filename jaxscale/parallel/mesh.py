"""Devices as a mesh, and the plan that stands in for `auto` until a planner chooses."""

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxscale.config.plan import MESH_AXES, Plan
from jaxscale.models.description import Description
from jaxscale.parallel.errors import NotDivisible, PlacementError
from jaxscale.parallel.rules import make_rules, parameter_specs


def make_mesh(plan: Plan, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The plan's axes over `devices` (all attached ones by default): the last axes on the fastest links, the first ones
    between slices. A torus dim may be split between axes.

    Raises PlacementError unless the axis sizes multiply to the number of devices and split over their slices.
    """
    devices = jax.devices() if devices is None else devices
    if plan.num_devices != len(devices):
        raise PlacementError(_wrong_size(plan, len(devices)))
    sizes = tuple(plan.mesh_shape[axis] for axis in MESH_AXES)
    slices = {getattr(device, "slice_index", 0) for device in devices}
    if len(slices) == 1:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        between = _between_slices(plan, len(slices))
        within = tuple(size // part for size, part in zip(sizes, between, strict=True))
        grid = mesh_utils.create_hybrid_device_mesh(
            within, between, devices, allow_split_physical_axes=True
        )
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))


def check_batch(plan: Plan, global_batch: int, sequence_length: int) -> None:
    """Raises PlacementError unless rows split over microbatches and batch axes, and the sequence over `tensor`."""
    parts = plan.microbatches * plan.batch_shards
    if global_batch % parts:
        below, above = (
            global_batch - global_batch % parts,
            global_batch - global_batch % parts + parts,
        )
        sizes = " or ".join(str(size) for size in (below, above) if size)
        raise PlacementError(
            f"training.global_batch={global_batch} does not divide over microbatches={plan.microbatches} x "
            f"data={plan.data} x fsdp={plan.fsdp} = {parts}; nearest batches that do: {sizes}"
        )
    if sequence_length % plan.tensor:
        raise PlacementError(
            f"data.sequence_length={sequence_length} does not divide over tensor={plan.tensor} (norms split the "
            f"sequence); nearest that does: {sequence_length - sequence_length % plan.tensor + plan.tensor}"
        )


def auto_plan(
    description: Description, num_devices: int, global_batch: int, plan: Plan | None = None
) -> Plan:
    """`plan` with all devices on `fsdp`; on `data` where a parameter does not divide.

    Raises PlacementError where the batch does not divide either way.
    """
    start = {**(plan or Plan()).model_dump(), **dict.fromkeys(MESH_AXES, 1)}
    sharded = Plan.model_validate({**start, "fsdp": num_devices})
    check_batch(sharded, global_batch, 1)
    try:
        parameter_specs(description, make_rules(sharded.rules), sharded.mesh_shape)
    except NotDivisible:
        return Plan.model_validate({**start, "data": num_devices})
    return sharded


def _between_slices(plan: Plan, num_slices: int) -> tuple[int, ...]:
    """What of each axis crosses slices: as much as possible of the first, then of the next."""
    left, parts = num_slices, []
    for size in plan.mesh_shape.values():
        parts.append(math.gcd(size, left))
        left //= parts[-1]
    if left > 1:
        used = [f"{axis}={size}" for axis, size in plan.mesh_shape.items() if size > 1]
        raise PlacementError(
            f"the plan's axes ({' x '.join(used) or 'all 1'}) do not split over {num_slices} slices: sizes that share "
            f"the factors of {num_slices} would"
        )
    return tuple(parts)


def _wrong_size(plan: Plan, num_devices: int) -> str:
    product = " x ".join(f"{axis}={size}" for axis, size in plan.mesh_shape.items())
    rest = plan.num_devices // plan.fsdp
    fixes = []
    if num_devices % rest == 0:
        fixes.append(f"plan.fsdp={num_devices // rest}")
    fixes.append(f"plan.data=1 plan.fsdp={num_devices} plan.tensor=1")
    fixes.append("plan=auto, which lays the run out anew for what is attached")
    return (
        f"the plan's mesh {product} = {plan.num_devices} devices, but {num_devices} are attached; "
        f"these work: {'; '.join(dict.fromkeys(fixes))}"
    )
