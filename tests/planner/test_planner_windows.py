"""What TPU's compiler makes of parameters gathered over `fsdp` alone: products in windows, or whole gathers."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxscale.config.plan import Plan
from jaxscale.hardware.by_name import cluster_by_name
from jaxscale.parallel.compiler_options import step_options
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.topology import abstract_devices, prepare_process
from jaxscale.planner.hlo.collectives import Collective, collectives
from jaxscale.planner.hlo.execution import executed
from jaxscale.planner.hlo.text import parse_module

needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
EMBED, MLP, TOKENS = 1024, 4096, 1024
ROWS = PartitionSpec(("data", "fsdp"))


def moved(cluster: str, plan: Plan) -> tuple[Collective, ...]:
    """Collectives of a product with a weight that is gathered, and of the weight's gradient.

    A gather that two products read stays whole: a layer's products meet their weights in two loops.
    """
    prepare_process()
    devices = abstract_devices(cluster_by_name(cluster))
    sizes = plan.mesh_shape
    shape = {axis: sizes[axis] for axis in ("data", "fsdp")}
    mesh = Mesh(make_mesh(plan, devices).devices.reshape(tuple(shape.values())), tuple(shape))

    def loss(weight: jax.Array, x: jax.Array) -> jax.Array:
        held = jax.lax.with_sharding_constraint(x @ weight, NamedSharding(mesh, ROWS))
        return jnp.square(held.astype(jnp.float32)).sum()

    def abstract(dims: tuple[int, ...], spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    stored = PartitionSpec("fsdp")
    operands = (
        abstract((EMBED, MLP), stored),
        abstract((len(devices), TOKENS, EMBED), ROWS),
    )
    options = step_options(mesh, plan, pytest.fail)
    program = jax.jit(jax.grad(loss), out_shardings=NamedSharding(mesh, stored)).lower(*operands)
    text = program.compile(compiler_options=options).as_text()
    return collectives(executed(parse_module(text or "")), shape)


@needs_libtpu
@pytest.mark.parametrize(("cluster", "num"), [("v5e:2x4", 8), ("v5p:2x2x4", 16)])
def test_over_fsdp_alone_pieces_go_both_ways_round(cluster: str, num: int) -> None:
    found = moved(cluster, Plan(fsdp=num))
    assert {each.kind for each in found if each.num_bytes > 10**5} == {"collective-permute"}
    piece = 2 * EMBED * MLP // num
    pieces = sum(each.num_bytes for each in found if each.kind == "collective-permute") / piece
    assert pieces == 2 * (num + 1)


@needs_libtpu
@pytest.mark.parametrize(
    ("cluster", "data", "fsdp"), [("v5e:4x4", 2, 8), ("v5p:2x2x1", 1, 4), ("v5p:4x4x4", 1, 64)]
)
def test_beside_another_axis_and_over_few_or_many_devices_gathers_are_whole(
    cluster: str, data: int, fsdp: int
) -> None:
    found = moved(cluster, Plan(data=data, fsdp=fsdp))
    large = {each.kind for each in found if each.num_bytes > 10**6}
    assert large >= {"all-gather"}
    assert "collective-permute" not in large
