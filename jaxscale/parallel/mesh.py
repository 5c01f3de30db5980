"""Devices as a mesh, and the plan that stands in for `auto` until a planner chooses."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from jaxscale.config.plan import MESH_AXES, Plan
from jaxscale.models.description import Description
from jaxscale.parallel.errors import NotDivisible, PlacementError
from jaxscale.parallel.rules import make_rules, parameter_specs


def make_mesh(plan: Plan, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The plan's axes over `devices` (all attached ones by default), placed so that inner axes get the fastest links.

    Raises PlacementError unless the axis sizes multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if plan.num_devices != len(devices):
        raise PlacementError(_wrong_size(plan, len(devices)))
    sizes = tuple(plan.mesh_shape[axis] for axis in MESH_AXES)
    return jax.make_mesh(
        sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes), devices=devices
    )


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


def _wrong_size(plan: Plan, num_devices: int) -> str:
    product = " x ".join(f"{axis}={size}" for axis, size in plan.mesh_shape.items())
    rest = plan.num_devices // plan.fsdp
    fixes = []
    if num_devices % rest == 0:
        fixes.append(f"plan.fsdp={num_devices // rest}")
    fixes.append(f"plan.data=1 plan.fsdp={num_devices} plan.tensor=1")
    return (
        f"the plan's mesh {product} = {plan.num_devices} devices, but {num_devices} are attached; "
        f"these work: {'; '.join(dict.fromkeys(fixes))}"
    )
