"""What the compiler is told: options of ours, of a plan, of the environment, and what TPU's compiler makes of them."""

import re
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxscale.config.plan import Plan
from jaxscale.hardware.by_name import cluster_by_name
from jaxscale.parallel.compiler_options import (
    GATHERS,
    SPARSE_CORE,
    Options,
    Value,
    compiler_options,
    default_options,
    step_options,
)
from jaxscale.parallel.errors import PlacementError
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.topology import abstract_devices, prepare_process

needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
CPU = jax.devices("cpu")[0]
# Options that XLA's CPU compiler has: a flag, a number, and one that takes words.
OURS: Options = {"xla_cpu_enable_fast_min_max": True, "xla_dump_max_hlo_modules": "3"}
GATHER = "xla_tpu_enable_sparse_core_collective_offload_all_gather"


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)


def compiled_with(options: Options) -> None:
    """Raises what the compiler raises."""
    jax.jit(jnp.negative).lower(jnp.ones(())).compile(compiler_options=dict(options))


def test_a_plan_adds_to_what_is_ours_and_overrides_it() -> None:
    plan = Plan(
        compiler_options={"xla_dump_max_hlo_modules": 5, "xla_embed_ir_in_executable": True}
    )
    found = compiler_options(CPU, OURS, plan.compiler_options)
    asked = {"xla_dump_max_hlo_modules": "5", "xla_embed_ir_in_executable": True}
    assert found == {**OURS, **asked}
    compiled_with(found)


def test_null_leaves_one_of_ours_out() -> None:
    found = compiler_options(CPU, OURS, {"xla_cpu_enable_fast_min_max": None})
    assert found == {"xla_dump_max_hlo_modules": "3"}


@pytest.mark.parametrize("value", [True, False, "True", "False"])
def test_a_flag_is_given_as_a_truth_value_or_in_words(value: Value) -> None:
    found = compiler_options(CPU, {}, {"xla_cpu_enable_fast_min_max": value})
    assert found == {"xla_cpu_enable_fast_min_max": value}
    compiled_with(found)


def test_an_option_that_is_not_one_is_refused_with_the_nearest() -> None:
    message = (
        r"plan\.compiler_options\.xla_cpu_enable_fast_minmax: the compiler for cpu does not know "
        r"this option \(did you mean 'xla_cpu_enable_fast_min_max'\?\)"
    )
    with pytest.raises(PlacementError, match=message):
        compiler_options(CPU, OURS, {"xla_cpu_enable_fast_minmax": True})


def test_a_value_that_cannot_be_read_is_refused_in_the_compilers_words() -> None:
    with pytest.raises(PlacementError, match=r"the compiler says: .*'often' is not a valid bool"):
        compiler_options(CPU, {}, {"xla_cpu_enable_fast_min_max": "often"})


def test_a_compiler_that_refuses_what_is_ours_does_without_all_of_it() -> None:
    """A run that asked for nothing does not end for it."""
    said: list[str] = []
    device = jax.devices("cpu")[0]
    assert compiler_options(device, {"xla_cpu_enable_fast_math": "perhaps"}, {}, said.append) == {}
    assert "xla_cpu_enable_fast_math" in said[0]


def test_options_of_ours_that_a_compiler_does_not_know_are_left_out_and_said() -> None:
    """As a CPU compiler has none of a TPU's, and another release of libtpu may have lost some."""
    said: list[str] = []
    ours = {**SPARSE_CORE, **OURS}
    found = compiler_options(CPU, ours, {}, said.append)
    assert {**OURS}.items() <= found.items()
    assert GATHER not in found
    [line] = said
    assert line.startswith("this compiler does without what it does not take: ")
    assert set(line.split(": ")[1].split(", ")) == ours.keys() - found.keys()
    compiled_with(found)


@pytest.mark.parametrize("variable", ["LIBTPU_INIT_ARGS", "XLA_FLAGS"])
@pytest.mark.parametrize(
    "text", ["--xla_dump_max_hlo_modules=9", "--xla_x=1  --xla_dump_max_hlo_modules --xla_y=2"]
)
def test_what_the_environment_names_is_left_to_it(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    assert compiler_options(CPU, OURS, {}) == {"xla_cpu_enable_fast_min_max": True}
    asked = {"xla_dump_max_hlo_modules": "5"}
    assert compiler_options(CPU, OURS, asked) == {**OURS, **asked}


def test_a_longer_name_in_the_environment_is_another_option(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_dump_max_hlo_modules_of_all=9")
    assert compiler_options(CPU, OURS, {}) == OURS


def test_a_cpu_has_no_options_of_ours_and_a_mesh_without_devices_none_at_all() -> None:
    mesh = make_mesh(Plan(fsdp=8), jax.devices("cpu"))
    assert step_options(mesh, Plan(fsdp=8)) == {}
    plan = Plan(compiler_options={"xla_embed_ir_in_executable": True})
    assert step_options(mesh, plan) == {"xla_embed_ir_in_executable": True}
    abstract = AbstractMesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    assert step_options(abstract, plan) == {}


def compiled_layers(mesh: Mesh, options: Options) -> str:
    """A scan over two gated layers whose weights are split over all devices, and its gradient, as the chips run it."""
    embed, inner, rows = 1024, 4096, 128 * mesh.size
    over = mesh.axis_names[0]

    def layer(x: jax.Array, weights: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        up = jax.lax.all_gather(weights[0], over, axis=0, tiled=True)
        down = jax.lax.all_gather(weights[1], over, axis=1, tiled=True)
        return x + jax.nn.silu(x @ up) @ down, None

    specs = PartitionSpec(over), (PartitionSpec(over), PartitionSpec(None, over))
    local = jax.shard_map(
        lambda x, weights: layer(x, weights)[0],
        mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False,
    )  # fmt: skip

    def loss(weights: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
        step = jax.checkpoint(lambda x, weights: (local(x, weights), None))
        return jnp.sum(jax.lax.scan(step, x, weights)[0].astype(jnp.float32) ** 2)

    def array(shape: tuple[int, ...], *axes: str | None) -> jax.ShapeDtypeStruct:
        split = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=split)

    weights = array((2, embed, inner), None, over), array((2, inner, embed), None, None, over)
    lowered = jax.jit(jax.grad(loss)).lower(weights, array((rows, embed), over))
    return lowered.compile(compiler_options=dict(options)).as_text() or ""


def kinds(text: str) -> set[str]:
    """Kinds of the collectives in a compiled program, that it waits for or not."""
    found: list[str] = re.findall(r" (all-gather|all-reduce|reduce-scatter)\(", text)
    return set(found)


@needs_libtpu
@pytest.mark.parametrize("name", ["v5p:4x4x4", "v6e:4x4"])
def test_gathers_and_scatters_of_a_whole_slice_are_what_they_are_and_run_beside_products(
    name: str,
) -> None:
    """Two gathers forward, two again backward, and two scatters: six calls of a SparseCore."""
    prepare_process()
    devices = abstract_devices(cluster_by_name(name))
    mesh = Mesh(make_mesh(Plan(fsdp=len(devices)), devices).devices.reshape(-1), ("fsdp",))
    plain, ours = (
        compiled_layers(mesh, options) for options in ({}, step_options(mesh, Plan(), _nobody))
    )
    started = 'async_execution_thread="sparsecore"'
    assert "all-reduce" in kinds(plain)
    assert "all-gather" in kinds(plain) or name == "v5p:4x4x4"
    assert plain.count(started) == 0
    assert kinds(ours) == {"all-gather", "reduce-scatter"}
    assert ours.count(started) == 6


@needs_libtpu
def test_gathers_of_a_whole_torus_of_v4_are_gathers() -> None:
    """Its gradients stay sums: two gathers forward and two backward for four all-reduces."""
    prepare_process()
    devices = abstract_devices(cluster_by_name("v4:4x4x4"))
    mesh = Mesh(make_mesh(Plan(fsdp=len(devices)), devices).devices.reshape(-1), ("fsdp",))
    plain, ours = (
        compiled_layers(mesh, options) for options in ({}, step_options(mesh, Plan(), _nobody))
    )
    assert kinds(plain) == {"all-reduce"}
    assert kinds(ours) == {"all-gather", "all-reduce"}


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "expected"),
    [("v5p:2x2x1", SPARSE_CORE), ("v6e:2x2", SPARSE_CORE), ("v4:2x2x1", GATHERS)],
)
def test_every_option_of_ours_is_known_to_the_compiler_that_it_is_for(
    name: str, expected: Options
) -> None:
    prepare_process()
    device = abstract_devices(cluster_by_name(name))[0]
    assert default_options(device) == expected
    assert compiler_options(device, expected, {}, pytest.fail) == expected


@needs_libtpu
def test_a_chip_whose_compiler_does_well_alone_is_told_nothing() -> None:
    prepare_process()
    assert default_options(abstract_devices(cluster_by_name("v5e:2x2"))[0]) == {}


def _nobody(line: str) -> None:
    pytest.fail(line)
