"""What the compiler made of real train steps: products, bytes and collectives against traces and arithmetic."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.hardware.by_name import cluster_by_name
from jaxscale.models.traced_flops import traced_flops
from jaxscale.parallel.topology import abstract_devices, prepare_process
from jaxscale.planner.verification.compiled import (
    CompiledFacts,
    argument_parts,
    compile_facts,
    device_bytes,
)
from jaxscale.planner.verification.refusal import DoesNotFit, read_refusal
from jaxscale.training.lowering import abstract_job

ROWS, LENGTH, LAYERS, EMBED, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCAB = 32, 16, 2, 32, 8, 4, 8, 64, 64
TOKENS = ROWS * LENGTH
ONE = {"data": 1, "fsdp": 1, "tensor": 1}
needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")


def config(**model: Any) -> RunConfig:
    sizes = {
        "family": "llama3",
        "vocab_size": VOCAB,
        "max_positions": LENGTH,
        "num_layers": LAYERS,
        "embed_dim": EMBED,
        "num_heads": HEADS,
        "num_kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "mlp_dim": MLP,
    }
    return RunConfig.model_validate(
        {
            "model": sizes | model,
            "data": {"sequence_length": LENGTH},
            "training": {"steps": 10, "global_batch": ROWS},
        }
    )


def plan_of(mesh: dict[str, int], remat: str, microbatches: int = 1) -> Plan:
    return Plan.model_validate({**mesh, "remat": remat, "microbatches": microbatches})


@cache
def facts_of(sizes: tuple[tuple[str, int], ...], remat: str, microbatches: int) -> CompiledFacts:
    plan = plan_of(dict(sizes), remat, microbatches)
    job = abstract_job(config(), plan, jax.devices()[: plan.num_devices])
    return compile_facts(job.lower, plan.mesh_shape)


def traced(remat: str, microbatches: int) -> float:
    job = abstract_job(config(), plan_of({}, remat, microbatches), jax.devices()[:1])
    with jax.set_mesh(job.placement.mesh):
        return traced_flops(job.step, job.state, job.batch)


# One product of scores over the whole square, all layers: 2 rows heads length^2 head_dim.
SCORES = 2 * ROWS * HEADS * LENGTH**2 * HEAD_DIM * LAYERS
ATTENTION = EMBED * HEADS * HEAD_DIM * 2 + EMBED * KV_HEADS * HEAD_DIM * 2
LINEAR = 2 * TOKENS * (ATTENTION + 3 * EMBED * MLP) * LAYERS
OUTPUT = 2 * TOKENS * EMBED * VOCAB


def test_the_trace_of_the_step_is_what_arithmetic_says() -> None:
    """Forward, and twice that backward; attention: two products forward, five backward; the loss three."""
    assert traced("none", 1) == 3 * LINEAR + 7 * SCORES + 3 * OUTPUT


# Where the scores of a layer stand twice in one place the compiler forms them once: where remat=full makes them again
# beside the backward pass, which starts with them; and where layers are unrolled (one CPU device, no remat).
@pytest.mark.parametrize(
    ("mesh", "remat", "microbatches", "shared"),
    [
        ({}, "none", 1, 1),
        ({}, "full", 4, 1),
        ({"data": 8}, "none", 4, 0),
        ({"data": 8}, "full", 1, 1),
        ({"fsdp": 8}, "none", 1, 0),
        ({"fsdp": 8}, "dots", 4, 0),
        ({"tensor": 4}, "minimal", 1, 0),
        ({"data": 2, "fsdp": 2, "tensor": 2}, "full", 4, 1),
        ({"data": 2, "fsdp": 2, "tensor": 2}, "dots", 1, 0),
    ],
)
def test_compiled_products_are_those_of_the_trace(
    mesh: dict[str, int], remat: str, microbatches: int, shared: int
) -> None:
    plan = plan_of(mesh, remat, microbatches)
    facts = facts_of(tuple(mesh.items()), remat, microbatches)
    wanted = (traced(remat, microbatches) - shared * SCORES) / plan.num_devices
    assert facts.dot_flops == wanted
    assert (facts.opaque, facts.unread_loops) == ((), 0)


def test_argument_bytes_are_those_of_the_tree() -> None:
    """CPU does not pad, so the parts add up to the byte."""
    plan = plan_of({"data": 2, "fsdp": 2, "tensor": 2}, "dots")
    parts = argument_parts(abstract_job(config(), plan, jax.devices()).arguments())
    facts = facts_of((("data", 2), ("fsdp", 2), ("tensor", 2)), "dots", 1)
    assert sum(parts.values()) == facts.argument_bytes
    split = 2 * VOCAB * EMBED + LAYERS * (ATTENTION + 3 * EMBED * MLP)  # Over fsdp and tensor.
    whole = EMBED * (2 * LAYERS + 1)  # Norms are on every device.
    assert parts["parameters"] == 4 * (split // 4 + whole)
    assert parts["optimizer"] == 2 * parts["parameters"] + 8  # Two moments, two counters.
    assert parts["batch"] == 4 * 4 * TOKENS // 4
    assert (parts["step"], parts["average"]) == (4, 0)


def test_bytes_of_a_device_follow_the_sharding() -> None:
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    split = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    assert device_bytes(jax.ShapeDtypeStruct((8, 6), jnp.bfloat16, sharding=split)) == 2 * 3 * 2
    assert device_bytes([jax.ShapeDtypeStruct((3,), jnp.int32), None]) == 12


def small_mesh(**sizes: int) -> jax.sharding.Mesh:
    shape = ONE | sizes
    count = shape["data"] * shape["fsdp"] * shape["tensor"]
    return jax.make_mesh(
        tuple(shape.values()),
        tuple(shape),
        axis_types=(AxisType.Auto,) * 3,
        devices=jax.devices()[:count],
    )


def found_in(
    function: Callable[..., Any],
    mesh: jax.sharding.Mesh,
    specs: list[PartitionSpec],
    shapes: Sequence[tuple[int, ...]],
    out: PartitionSpec,
) -> list[tuple[str, tuple[str, ...], int, int]]:
    """(kind, axes, count, bytes) of the collectives of a function of fp32 arrays."""
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    jitted: Any = jax.jit(function, out_shardings=NamedSharding(mesh, out))
    facts = compile_facts(partial(jitted.lower, *arguments), dict(mesh.shape))
    return [(each.kind, each.axes, each.count, each.num_bytes) for each in facts.collectives]


P = PartitionSpec


def test_fsdp_gathers_the_weight_it_multiplies_with() -> None:
    """[64, 256] rows of x stay where they are; [256, 128] fp32 of w come together: 131,072 bytes."""
    mesh = small_mesh(fsdp=8)
    shapes = [(64, 256), (256, 16)]
    found = found_in(jnp.matmul, mesh, [P("fsdp"), P("fsdp")], shapes, P("fsdp"))
    assert found == [("all-gather", ("fsdp",), 1, 256 * 16 * 4)]


def test_a_tensor_parallel_mlp_reduces_its_output_once() -> None:
    """Each device has the [64, 32] fp32 sum over its part of the hidden dim."""
    mesh = small_mesh(data=2, tensor=4)

    def mlp(x: jax.Array, inward: jax.Array, outward: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ inward) @ outward

    specs = [P("data"), P(None, "tensor"), P("tensor")]
    found = found_in(mlp, mesh, specs, [(128, 32), (32, 64), (64, 32)], P("data"))
    assert found == [("all-reduce", ("tensor",), 1, 64 * 32 * 4)]


def test_collectives_in_a_loop_count_by_its_trips() -> None:
    """Explicit collectives on blocks of [4, 16] fp32, five times over: 256 bytes each, gathered over 2 x 2 1,024."""
    mesh = small_mesh(data=2, fsdp=2, tensor=2)

    def local(x: jax.Array) -> jax.Array:
        def body(y: jax.Array, _: None) -> tuple[jax.Array, None]:
            y = jax.lax.psum(y * 2, ("data", "tensor"))
            gathered = jnp.sin(jax.lax.all_gather(y, ("data", "fsdp"), tiled=True))
            y = jax.lax.psum_scatter(jnp.cos(gathered), "fsdp", tiled=True)[:4]
            y = jax.lax.ppermute(jnp.sin(y), "tensor", [(0, 1), (1, 0)])
            return jax.lax.all_to_all(jnp.cos(y), "data", 0, 0, tiled=True), None

        return jax.lax.scan(body, x, length=5)[0]

    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    found = found_in(sharded, mesh, [P("data")], [(8, 16)], P("data"))
    assert sorted(found) == [
        ("all-gather", ("data", "fsdp"), 5, 5 * 1024),
        ("all-reduce", ("data", "tensor"), 5, 5 * 256),
        ("all-to-all", ("data",), 5, 5 * 256),
        ("collective-permute", ("tensor",), 5, 5 * 256),
        ("reduce-scatter", ("fsdp",), 5, 5 * 1024),
    ]


def test_replicas_reduce_every_gradient_once_whatever_the_microbatches() -> None:
    """All of the data axis' bytes: one fp32 gradient of each parameter and a few scalars."""
    facts = facts_of((("data", 8),), "none", 4)
    gradient = 4 * (2 * VOCAB * EMBED + LAYERS * (ATTENTION + 3 * EMBED * MLP) + EMBED * 5)
    reduced = sum(each.num_bytes for each in facts.collectives if each.axes == ("data",))
    assert {each.kind for each in facts.collectives} == {"all-reduce"}
    assert gradient <= reduced <= gradient + 64


def test_what_is_larger_than_the_device_is_refused_with_its_parts() -> None:
    """[512, 512] fp32 in and out, 1 MiB each, and one between them for the first sine."""
    square = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    lower = partial(jax.jit(lambda x: jnp.sin(x @ x) @ x).lower, square)
    facts = compile_facts(lower, ONE)
    assert facts.argument_bytes == facts.output_bytes == 2**20
    assert facts.needed_bytes == 2 * 2**20 + facts.temp_bytes
    compile_facts(lower, ONE, available=facts.needed_bytes)
    with pytest.raises(DoesNotFit, match=r"arguments .* GiB, temporaries .* GiB") as raised:
        compile_facts(lower, ONE, available=facts.needed_bytes - 1)
    assert raised.value.needed == facts.needed_bytes


# What libtpu 0.0.42 (JAX 0.10.2) said of Llama-3-8B on eight v5e.
EARLY = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (17.85G) exceeds "
    "available HBM (15.75G)."
)
# The form of XLA's full report.
FULL = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. \
Used 19.74G of 15.75G hbm. Exceeded hbm capacity by 3.99G.

  Largest program allocations in hbm:

  1. Size: 512.00M
     Shape: f32[32000,4096]{1,0:T(8,128)}
     Unpadded size: 512.00M
     ==========================

  2. Size: 4.00G
     Operator: op_name="jit(step)/transpose(jvp())/while/body/dot_general" source_file="x.py" source_line=3
     Shape: bf16[32,16,4096,1024]{3,2,1,0:T(8,128)(2,1)}
     Unpadded size: 4.00G
     ==========================
"""


def test_an_early_refusal_says_that_temporaries_alone_are_too_many() -> None:
    refusal = read_refusal(EARLY)
    assert refusal is not None
    assert (refusal.needed, refusal.available) == (round(17.85 * 2**30), round(15.75 * 2**30))
    assert refusal.is_partial
    assert "temporaries alone need 17.85 GiB of the 15.75 GiB" in str(refusal)
    assert "2.10 GiB too much" in str(refusal)


def test_a_full_refusal_lists_the_largest_arrays_in_plain_words() -> None:
    refusal = read_refusal(FULL)
    assert refusal is not None
    assert not refusal.is_partial
    assert "it needs 19.74 GiB of the 15.75 GiB" in str(refusal)
    assert [str(each) for each in refusal.largest] == [
        "4.00 GiB bf16[32,16,4096,1024] (backward dot_general)",
        "0.50 GiB f32[32000,4096] (an argument)",
    ]


def test_other_errors_of_the_compiler_are_not_taken_for_a_refusal() -> None:
    assert read_refusal("INVALID_ARGUMENT: shapes do not match") is None


@needs_libtpu
def test_a_tpu_program_has_the_products_of_the_trace_and_its_collectives_have_names() -> None:
    prepare_process()
    plan = plan_of({"data": 2, "fsdp": 2, "tensor": 2}, "full")
    job = abstract_job(config(), plan, abstract_devices(cluster_by_name("v5e:2x4")))
    facts = compile_facts(job.lower, plan.mesh_shape)
    # A TPU program turns small products into sums; what it keeps is within a percent.
    assert facts.dot_flops == pytest.approx((traced("full", 1) - SCORES) / 8, rel=0.01)
    assert facts.unread_loops == 0
    assert {axis for each in facts.collectives for axis in each.axes} == {"data", "fsdp", "tensor"}


@needs_libtpu
def test_a_tpu_compiler_that_runs_out_of_memory_is_understood() -> None:
    """An 8 GiB table, and its gradient, on one chip of 15.75 GiB."""
    prepare_process()
    huge = config(vocab_size=2**20, embed_dim=2048, head_dim=256, tied_embeddings=True)
    job = abstract_job(huge, Plan(), abstract_devices(cluster_by_name("v5e:1x1")))
    with pytest.raises(DoesNotFit) as raised:
        compile_facts(job.lower, ONE)
    assert raised.value.available == round(15.75 * 2**30)
    assert raised.value.needed > raised.value.available
