"""Tiled kernels compiled for TPUs that are not there, and lowered for Hopper GPUs, at the sizes of real models.

A TPU's compiler says whether tiles fit its vector memory and layouts its units; lowering for CUDA says whether tiles
fit shared memory and operands `wgmma`. Neither says how fast they are.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import all_logits
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from jaxscale.cli.kernel_cases import OPS, Pass, cases_of_files
from jaxscale.config.loading import load_config, load_model
from jaxscale.config.model_section import ModelSection
from jaxscale.config.plan import Plan
from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.kernels import tiled_gpu
from jaxscale.kernels.cases import Case
from jaxscale.kernels.choice import Choice
from jaxscale.kernels.glu import api as glu
from jaxscale.kernels.glu.cases import cases as glu_cases
from jaxscale.kernels.linear_cross_entropy.cases import cases as loss_cases
from jaxscale.kernels.matmul import api as matmul
from jaxscale.kernels.matmul.cases import cases as matmul_cases
from jaxscale.kernels.measure import Measurement, entry_of
from jaxscale.kernels.ragged_matmul.cases import cases as ragged_cases
from jaxscale.kernels.registry import recording
from jaxscale.kernels.target import Target, target_of
from jaxscale.kernels.tuning import Entry, read
from jaxscale.models.families import resolve
from jaxscale.parallel.compiler_options import SPARSE_CORE
from jaxscale.parallel.topology import abstract_devices, prepare_process
from jaxscale.training.lowering import lower_step

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS, QUICKSTART = CONFIGS / "models", CONFIGS / "quickstart.yaml"
# Blocks of whole lanes on two devices of `tensor`.
SMALL = [
    "model.embed_dim=512",
    "model.num_heads=8",
    "model.num_kv_heads=4",
    "model.mlp_dim=1024",
    "model.num_layers=2",
]
H200 = Target("gpu", "NVIDIA H200")
ROWS = 8192  # Tokens of a device in a pass.
TOKENS = 16384  # Of a device in a whole step.
VOCAB, CHUNK = 128256, 1024

needs_libtpu = pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")


def _layer_sizes(model: str) -> set[tuple[int, int]]:
    """(inward, outward) of every product of a layer, all of it on one device."""
    arch = resolve(load_model(MODELS / f"{model}.yaml", [])[0])
    queries, keys = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    embed, mlp = arch.embed_dim, arch.mlp_dim
    return {(embed, queries), (embed, keys), (queries, embed), (mlp, embed), (embed, mlp)}


def _mlp_sizes(model: str) -> tuple[int, int]:
    arch = resolve(load_model(MODELS / f"{model}.yaml", [])[0])
    return arch.embed_dim, arch.mlp_dim


def _product(inward: int, outward: int, target: Target, rows: int = ROWS) -> tuple[Any, list[Any]]:
    """A product with both gradients, and the shapes of its operands."""
    kernels = matmul.choose_kernels(rows, inward, outward, "bfloat16", target, "pallas")
    run = partial(matmul.matmul, kernels=kernels, target=target)
    return _with_gradients(run), [_abstract(rows, inward), _abstract(inward, outward)]


def _gated(embed: int, mlp: int, target: Target, rows: int = ROWS) -> tuple[Any, list[Any]]:
    kernels = glu.choose_kernels(
        rows, embed, mlp, "bfloat16", target, wanted="pallas", wanted_matmul="xla"
    )
    run = partial(glu.gated_mlp, activation="silu", kernels=kernels)
    weights = [_abstract(embed, mlp), _abstract(embed, mlp), _abstract(mlp, embed)]
    return _with_gradients(run), [_abstract(rows, embed), *weights]


def _with_gradients(run: Callable[..., jax.Array]) -> Callable[..., Any]:
    def both(*operands: jax.Array) -> Any:
        out, pull = jax.vjp(run, *operands)
        return out, pull(out)

    return both


def _abstract(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama3.2-1b", "llama3-8b", "llama3-70b"])
def test_kernels_lower_for_hopper_at_production_sizes(model: str) -> None:
    programs = [_product(*sizes, H200) for sizes in sorted(_layer_sizes(model))]
    for function, operands in programs:
        lowered = jax.jit(function).trace(*operands).lower(lowering_platforms=("cuda",))
        assert lowered.as_text().count("mosaic_gpu") >= 3
    function, operands = _gated(*_mlp_sizes(model), H200)
    lowered = jax.jit(function).trace(*operands).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("mosaic_gpu") >= 2


def _lower(case: Case, config: Mapping[str, int]) -> None:
    function = case.run(Choice("pallas_gpu", {}, config=config), H200)
    jax.jit(function).trace(*case.operands).lower(lowering_platforms=("cuda",))


@pytest.mark.slow
@pytest.mark.parametrize("op", ["matmul", "glu"])
def test_every_configuration_that_tuning_tries_lowers(op: str) -> None:
    forward = next(matmul_cases(ROWS, 4096, 14336, "bfloat16"))
    case = forward if op == "matmul" else next(glu_cases(ROWS, 4096, 14336, "bfloat16"))
    for config in case.candidates["pallas_gpu"]:
        _lower(case, config)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mixtral-8x7b", "qwen3-30b-a3b"])
def test_every_configuration_that_tuning_tries_of_routed_products_lowers(model: str) -> None:
    path = CONFIGS / f"planned/{model}.yaml"
    cases = cases_of_files([str(path)], "ragged_matmul", Pass(ROWS))
    assert len(cases) == 6
    for case in cases:
        for config in ({}, *case.candidates["pallas_gpu"]):
            _lower(case, config)


@pytest.mark.parametrize("op", OPS)
def test_committed_measurements_are_of_kernels_that_lower(op: str) -> None:
    """Tables are empty until something was measured; then each entry is lowered at its bucket's sizes."""
    for entry in read(OPS[op].table):
        assert entry.seconds > 0
        if entry.implementation == "pallas_gpu":
            _lower(_case_of(entry), entry.config)


def _case_of(entry: Entry) -> Case:
    """Of an op that has a Hopper kernel."""
    sizes = tuple(int(part[1:]) for part in entry.bucket.split("_"))
    found = {
        "matmul": _matmul_of,
        "glu": _glu_of,
        "ragged_matmul": _routed_of,
        "linear_cross_entropy": _loss_of,
    }[entry.op]
    made = found(sizes, entry)
    return next(case for case in made if case.call.layout == entry.layout)


def _matmul_of(sizes: tuple[int, ...], entry: Entry) -> Iterator[Case]:
    m, n, k = sizes
    rows = {"nn": (m, k, n), "nt": (m, n, k), "tn": (k, m, n)}[entry.layout]
    return matmul_cases(*rows, entry.dtype)


def _glu_of(sizes: tuple[int, ...], entry: Entry) -> Iterator[Case]:
    m, n, k = sizes
    return glu_cases(m, k, n, entry.dtype)


def _loss_of(sizes: tuple[int, ...], entry: Entry) -> Iterator[Case]:
    tokens, embed, vocab = sizes
    return loss_cases(tokens, embed, vocab, entry.dtype)


def _routed_of(sizes: tuple[int, ...], entry: Entry) -> Iterator[Case]:
    tokens, inward, outward, groups = sizes
    return ragged_cases(tokens, inward, outward, groups, entry.dtype)


@pytest.mark.parametrize(
    "case",
    [
        *matmul_cases(64, 128, 256, "bfloat16"),
        *glu_cases(64, 128, 256, "bfloat16"),
        *ragged_cases(64, 128, 256, 8, "bfloat16"),
        *loss_cases(64, 128, 256, "bfloat16"),
    ],
    ids=lambda case: f"{case.op} {case.call.layout}",
)
def test_an_entry_says_of_which_call_it_is(case: Case) -> None:
    """Sizes that are powers of two are their own bucket."""
    (kernel,) = (each for each in case.implementations if each.name == "pallas_gpu")
    ran = Measurement(case, "pallas_gpu", {}, 1.0)
    assert _case_of(entry_of(ran, kernel, ran, H200)).name == case.name


def test_tiles_that_overflow_shared_memory_are_caught_by_lowering(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What keeps the stages within bounds is right: without it the same tiles are refused."""
    case = next(matmul_cases(ROWS, 4096, 4096, "bfloat16"))
    _lower(case, {"stages": 6})
    monkeypatch.setattr(tiled_gpu, "SHARED_MEMORY", 2**20)
    with pytest.raises(ValueError, match="shared memory"):
        _lower(case, {"stages": 6})


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("chip", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_kernels_compile_for_tpus(chip: str) -> None:
    prepare_process()
    device = abstract_devices(parse_cluster(chip))[0]
    target = target_of([device])
    place = SingleDeviceSharding(device)
    for function, operands in (
        _product(4096, 1024, target, rows=4096),
        _product(1500, 777, target, rows=1000),  # Masks at all edges.
        _gated(4096, 3584, target, rows=4096),  # A fourth of an 8B layer, as `tensor: 4` gives.
    ):
        here = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place) for a in operands]
        compiled = jax.jit(function).lower(*here).compile()
        assert "tpu_custom_call" in compiled.as_text()


@pytest.mark.slow
@needs_libtpu
def test_a_whole_train_step_compiles_with_tpu_kernels_under_fsdp_and_tensor() -> None:
    """On four v5p: each device runs kernels on its blocks, and weights' gradients are scattered, not summed whole."""
    prepare_process()
    plan = Plan(fsdp=2, tensor=2, remat="dots", kernels={"matmul": "pallas", "glu": "pallas"})
    devices = abstract_devices(parse_cluster("v5p:2x2x1"))
    with recording() as choices:
        compiled = lower_step(load_config(QUICKSTART, SMALL), plan, devices).compile()
    assert {c.name for c in choices if c.op in {"matmul", "glu"}} == {"pallas_tpu"}
    text = compiled.as_text()
    # Forward: 4 products of attention and the MLP's outward one, and the gated kernel. The policy keeps their results.
    assert text.count("tpu_custom_call") >= 18
    assert "reduce-scatter" in text


@pytest.mark.slow
@needs_libtpu
def test_a_kernel_in_a_loop_has_the_memory_it_asks_for() -> None:
    """Stacked over layers, its results would be written by a fusion with 16 MiB of vector memory: it needs 16.8."""
    prepare_process()
    device = abstract_devices(parse_cluster("v5p:2x2x1"))[0]
    target, place = target_of([device]), SingleDeviceSharding(device)
    kernels = glu.choose_kernels(
        4096, 2048, 2048, "bfloat16", target, wanted="pallas", wanted_matmul="xla"
    )
    gated = partial(glu.gated_mlp, activation="silu", kernels=kernels)

    def layers(x: jax.Array, weights: Any) -> Any:
        return jax.vjp(lambda x: jax.lax.scan(lambda x, w: (gated(x, *w), None), x, weights)[0], x)

    x = jax.ShapeDtypeStruct((4096, 2048), jnp.bfloat16, sharding=place)
    weight = jax.ShapeDtypeStruct((2, 2048, 2048), jnp.bfloat16, sharding=place)
    compiled = jax.jit(layers).lower(x, (weight,) * 3).compile()
    assert compiled.as_text().count("tpu_custom_call") == 1


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("chips", "tensor", "over_fsdp"), [("v5p:2x2x4", 8, 0), ("v5p:2x2x1", 2, 1)]
)
def test_the_fused_loss_takes_its_logits_out_of_a_whole_step(
    chips: str, tensor: int, over_fsdp: int
) -> None:
    """Two layers of Llama 3.2 1B, `fsdp` 2, 16,384 tokens a device, all kernels on. Peaks of a device, as compiled.

    What it removes are the logits of all tokens but a chunk's. With `tensor` 8 what the fused loss holds instead of
    them, which grows with a device's part of the vocabulary, is small beside what both hold of its tokens. With 2 it
    has to split the vocabulary over `fsdp` too (`vocab_activation`): a chunk is then of both devices' tokens.
    """
    kept = CHUNK // 2 if over_fsdp else CHUNK
    removed = _removed(chips, tensor, over_fsdp=bool(over_fsdp))
    assert removed >= 4 * (TOKENS - kept) * VOCAB // tensor


@pytest.mark.slow
@needs_libtpu
def test_what_the_fused_loss_leaves_is_its_own_and_not_a_layers() -> None:
    """With `tensor` 4: the logits, but for a chunk's and the gathered table, which the loss needs at its own peak."""
    needed = 4 * CHUNK * VOCAB + 2 * VOCAB * 2048
    assert _removed("v5p:2x2x2", 4) >= (4 * TOKENS * VOCAB - needed) // 4


def _removed(chips: str, tensor: int, *, over_fsdp: bool = False) -> int:
    """Bytes that the fused loss takes from the peak of a device."""
    prepare_process()
    devices = abstract_devices(parse_cluster(chips))
    run = load_config(QUICKSTART, ["data.sequence_length=4096", "training.global_batch=8"])
    assert run.training.loss_chunk == CHUNK
    llama = load_model(all_logits.LLAMA, all_logits.LAYERS)[0]
    plain = ModelSection(build=f"{Path(all_logits.__file__)}:AllLogits")
    # Told nothing: what is asked is the memory of kernels, not what collectives beside them take.
    told = dict.fromkeys(SPARSE_CORE)
    make = partial(
        Plan, fsdp=2, tensor=tensor, remat="dots", kernels="pallas", compiler_options=told
    )
    whole, split = make(), make(rules={"vocab_activation": "fsdp"} if over_fsdp else {})
    logits = f"f32[4,4096,{VOCAB // tensor}]"

    def peak(model: ModelSection, plan: Plan, *, has_logits: bool) -> int:
        config = run.model_copy(update={"model": model})
        compiled = lower_step(config, plan, devices).compile()
        assert (logits in compiled.as_text()) == has_logits
        return int(compiled.memory_analysis().peak_memory_in_bytes)

    return peak(plain, whole, has_logits=True) - peak(llama, split, has_logits=False)
