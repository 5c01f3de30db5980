"""Kernels run on one device's own arrays. Nothing partitions a Pallas call: on sharded operands it would be wrong."""

import jax
from jax.sharding import AxisType

from jaxscale.errors import UserError


def check_local(op: str, *arrays: jax.Array) -> None:
    """Raises UserError where operands are, or may be, spread over devices: outside `shard_map` on a mesh.

    Seen are arrays that exist, tracers with a sharding in their type, and a mesh in context (`jax.set_mesh`) with an
    axis that is not manual. Not seen: sharded arguments of a jit that no mesh surrounds.
    """
    mesh = jax.sharding.get_abstract_mesh()
    loose = [
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != AxisType.Manual and mesh.shape[name] > 1
    ]
    if loose:
        raise UserError(_message(op, f"the mesh has axes {', '.join(loose)} that are not manual"))
    for array in arrays:
        if not isinstance(array, jax.core.Tracer) and len(array.sharding.device_set) > 1:
            count = len(array.sharding.device_set)
            raise UserError(
                _message(op, f"an operand of shape {array.shape} is on {count} devices")
            )


def _message(op: str, why: str) -> str:
    return (
        f"a Pallas kernel of {op} was called on arrays of the whole mesh ({why}): call it inside "
        "jax.shard_map, on each device's own blocks"
    )
