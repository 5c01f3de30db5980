"""Published runs as questions to the planner: clusters, meshes, models, batches, stacks in the spellings of papers."""

from typing import Any

import pytest
from planner_truth.cases import Unsupported
from planner_truth.clusters import clusters_of
from planner_truth.conventions import counted_flops, model_flops
from planner_truth.evaluate import evaluate_case
from planner_truth.layouts import schedule_name
from planner_truth.meshes import given_mesh, parse_mesh
from planner_truth.models import parse_count, sequence_of, shape_of
from planner_truth.quantities import run_of
from planner_truth.remats import remat_of
from planner_truth.settings import best, mesh_and_cluster, settings_of
from planner_truth.stacks import software_of
from published import FILE, a_case

from jaxscale.planner.model.parameters import num_parameters, parameter_groups
from jaxscale.planner.model.workload import Workload


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"hw": "tpu.v5p", "n_chips": 2048}, "v5p:8x16x16"),
        ({"hw": "tpu.v5p", "n_chips": 1024, "slices": 2}, "v5p:8x8x8*2"),
        ({"hw": "tpu.v5e", "topology": [16, 16], "slices": 4}, "v5e:16x16*4"),
        ({"hw": "tpu.v6e", "n_chips": 1024}, "v6e:16x16*4"),
        ({"hw": "tpu.v7x", "jax_devices": 512}, "v7x:4x8x8"),
        ({"hw": "tpu.v4p", "n_chips": 6144, "pods": 2}, "v4:12x16x16*2"),
        ({"hw": "tpu.v3", "n_chips": "v3-256 (256 cores = 128 chips)"}, "v3:8x16"),
        ({"hw": "tpu.v5p-1024"}, "v5p:8x8x8"),
        ({"hw": "gpu.H100", "nodes": 4}, "h100:8x4"),
        ({"hw": "gpu.A100 (DGX-A100)", "n_chips": 2}, "a100:2"),
        ({"hw": "gpu.A100_40", "n_chips": 96}, "a100-40:8x12"),
        ({"hw": "selene A100_80", "mesh": {"tensor": 8, "pipe": 12, "data": 4}}, "selene:48"),
        ({"hw": "llama3_roce", "n_chips": 16384}, "llama3_roce:2048"),
        ({"hw": "gpu.B200", "n_chips": 64}, "b200:8x8"),
    ],
)
def test_clusters_are_found_in_the_spellings_of_papers(given: dict[str, Any], name: str) -> None:
    assert next(clusters_of(a_case(given))).name == name


def test_a_count_that_no_cluster_has_is_named() -> None:
    with pytest.raises(Unsupported, match="100 GPUs are no whole number of nodes"):
        next(clusters_of(a_case({"hw": "gpu.H100", "n_chips": 100})))
    with pytest.raises(Unsupported, match="no cluster of the catalogue"):
        next(clusters_of(a_case({"hw": "abacus", "n_chips": 8})))


@pytest.mark.parametrize(
    ("given", "mesh"),
    [
        ({"mesh": {"data_dcn": 2, "fsdp": 16, "tensor": 4}}, {"data": 2, "fsdp": 16, "tensor": 4}),
        ({"mesh": {"fsdp_ici": 256, "fsdp_dcn": 2}}, {"fsdp": 512}),
        ({"mesh": {"fsdp": 256, "fsdp_transpose": 2}}, {"fsdp": 512}),
        ({"mesh": {"ici_tensor_parallelism": 4, "dcn_data_parallelism": 2}}, {"tensor": 4, "data": 2}),
        # Megatron's sequence parallelism uses the tensor devices; alone it is another axis.
        ({"mesh": {"tensor": 8, "sequence": 8, "pipe": 8}}, {"tensor": 8, "pipeline": 8}),
        ({"mesh": {"sequence": 4, "fsdp": 8}}, {"fsdp": 8, "context": 4}),
        ({"mesh": {"pipe": 16, "expert": 64, "expert_nodes": 8, "data": "ZeRO-1"}}, {"pipeline": 16, "expert": 64}),
        ({"tensor": 8, "pipe": 4}, {"tensor": 8, "pipeline": 4}),
    ],
)  # fmt: skip
def test_mesh_axes_are_understood_in_every_spelling(
    given: dict[str, Any], mesh: dict[str, int]
) -> None:
    assert given_mesh(given) == mesh


def test_meshes_in_words() -> None:
    assert parse_mesh("TP8xPP12xDP16") == {"tensor": 8, "pipeline": 12, "data": 16}
    assert parse_mesh("dp4tp8pp12") == {"data": 4, "tensor": 8, "pipeline": 12}
    assert parse_mesh("pure ZeRO-3") == {}


def test_devices_that_a_mesh_leaves_over_are_data_parallel() -> None:
    given = {"hw": "gpu.H100", "n_chips": 64, "mesh": {"tensor": 8}}
    assert mesh_and_cluster(a_case(given))[0] == {"tensor": 8, "data": 8}
    with pytest.raises(Unsupported, match="tensor 48 is not 64 devices"):
        mesh_and_cluster(a_case({**given, "mesh": {"tensor": 48}}))


@pytest.mark.parametrize(
    ("words", "family", "remat"),
    [
        ("full", "jax", "full"),
        ("full, no sequence parallelism", "megatron", "full"),
        ("selective (attention core)", "megatron", "attention"),
        ("selective", "megatron", "attention"),
        ("selective (op-level)", "torch", "alternate"),
        ("per-op SAC", "torch", "alternate"),
        ("minimal", "jax", "dots"),
        ("save_dot_except_mlpwi", "jax", "projections"),
        ("qkv_proj_offloaded", "jax", "offload"),
        ("custom: offload context,mlpwo", "jax", "offload"),
        ("custom; dropped", "jax", None),
        ("none", "torch", "none"),
        ("", "jax", None),
    ],
)
def test_rematerialization_in_each_familys_words(
    words: str, family: str, remat: str | None
) -> None:
    assert remat_of(words, family) == remat


def test_schedules_in_words() -> None:
    assert schedule_name("interleaved 1F1B (+scatter/gather)") == "interleaved"
    assert schedule_name("1F1B non-interleaved (DeepSpeed)") == "1f1b"
    assert schedule_name("GPipe") == "gpipe"
    assert schedule_name("ZB1P") == schedule_name("DualPipe") == "zb-h1"


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        # Sizes as their model cards print them.
        ("qwen3-235b-a22b", 235), ("gpt-oss-120b", 117), ("deepseek-v3", 671), ("Llama 3.1-405B", 405.9),
        ("mixtral-8x7b", 46.7), ("gemma3-27b", 27), ("5.9B: L=32,h=3840,a=32", 5.9), ("GPT-2 style 1.4B", 1.4),
        ("91B", 91),
        ({"L": 105, "D": 20480, "N": 128}, 530), ({"L": 70, "D": 14336, "N": 112, "V": 250880, "tied": True}, 176.2),
        ({"L": 80, "D": 8192, "F": 28672, "N": 64, "K": 8, "V": 128256}, 70.6),
    ],
)  # fmt: skip
def test_models_have_the_size_that_they_are_known_for(model: Any, billions: float) -> None:
    shape = shape_of(a_case({"model": model}), FILE)
    assert num_parameters(parameter_groups(shape)) / 1e9 == pytest.approx(billions, rel=0.02)


def test_parameter_counts_agree_with_those_of_the_rows() -> None:
    """llm-foundry prints exact counts; the planner's has one norm without its bias, `embed` elements."""
    for case in FILE.cases:
        if case.prefix == "llf":
            shape = shape_of(case, FILE, sequence_of(case))
            printed = case.given["params"]
            assert abs(num_parameters(parameter_groups(shape)) - printed) <= shape.embed


def test_counts_in_words() -> None:
    assert parse_count("181B") == 181e9
    assert parse_count("GPT-2 style 345M") == 345e6
    with pytest.raises(Unsupported):
        parse_count("a few")


@pytest.mark.parametrize(
    ("given", "sequences"),
    [
        ({"global_batch_seqs": 96}, 96),
        ({"global_batch_tokens": 64 * 4096}, 64),
        ({"per_chip_batch_seqs": 2}, 2 * 64),
        # Of 64 devices, tensor parallelism leaves 16 with rows of their own.
        ({"local_batch": 3, "mesh": {"fsdp": 16, "tensor": 4}}, 3 * 16),
        ({"microbatch": 2, "grad_accum": 4}, 2 * 4 * 64),
    ],
)
def test_batches_are_understood_in_every_unit(given: dict[str, Any], sequences: int) -> None:
    base = {"hw": "gpu.H100", "n_chips": 64, "model": "llama2-7b", "seq": 4096, "remat": "full"}
    settings = settings_of(a_case({"mesh": {"fsdp": 64}, **base, **given}), FILE)
    assert {setting.workload.global_batch for setting in settings} == {sequences}


def test_a_microbatch_that_is_not_given_is_tried_in_all_sizes() -> None:
    given = {
        "hw": "selene A100_80", "n_chips": 64, "model": "megatron-18.4B", "global_batch_seqs": 96, "seq": 2048,
        "remat": "full", "mesh": {"tensor": 8, "pipe": 4, "data": 2}, "schedule": "interleaved 1F1B",
    }  # fmt: skip
    settings = settings_of(a_case(given, id="sc21-new"), FILE)
    # 48 rows a replica; 40 layers over 4 stages are 10 a stage, which 2 and 5 chunks divide.
    assert {setting.layout.microbatches for setting in settings} == {48, 24, 12, 6, 3}
    assert {setting.layout.virtual_stages for setting in settings} == {2, 5}
    assert {setting.open for setting in settings} == {("microbatch", "virtual stages")}


def test_rows_that_nothing_divides_are_cut_as_nearly_as_they_can() -> None:
    """976 sequences over 124 replicas: batches given in tokens are rounded in print."""
    given = {
        "hw": "gpu.A100_80",
        "n_chips": 992,
        "model": "opt-175b",
        "mesh": {"data": 124, "tensor": 8},
        "seq": 2048,
    }
    settings = settings_of(a_case({**given, "global_batch_tokens": 2e6}, id="bloom-new"), FILE)
    assert {setting.layout.microbatches for setting in settings} == {8, 4, 2, 1}


@pytest.mark.parametrize(
    ("mesh", "axis"),
    [
        ({"data": 8, "fsdp_ici": 32, "fsdp_dcn": 2}, "fsdp"),
        ({"data_dcn": 2, "data": 4, "fsdp": 64}, "data"),
    ],
)
def test_axes_that_are_said_to_cross_slices_do(mesh: dict[str, int], axis: str) -> None:
    base = {"hw": "tpu.v6e", "n_chips": 512, "slices": 2, "model": "llama3-8b", "remat": "full"}
    given = {**base, "per_chip_batch_seqs": 1, "mesh": mesh}
    setting, prediction = best(settings_of(a_case(given, id="tr-new"), FILE))
    crossing = {name for name, factors in setting.layout.spread.items() if factors[-1] > 1}
    assert crossing == {axis}
    # Where nothing is said, what is best for the mesh: no slower.
    free = a_case({**given, "mesh": {"data": 8, "fsdp": 64}}, id="tr-new")
    assert best(settings_of(free, FILE))[1].step_seconds <= prediction.step_seconds


def test_software_is_told_by_prefix_then_by_source_then_by_hardware() -> None:
    assert software_of(a_case({}, id="llf-x")).stack.name == "llm-foundry"
    assert (
        software_of(a_case({}, id="l3-x", source="Llama 3 paper, Table 4")).stack.name == "llama3"
    )
    assert software_of(a_case({}, id="x", source="PaLM arXiv:2204.02311")).stack.name == "maxtext"
    assert software_of(a_case({"hw": "tpu.v6e"}, id="x")).stack.name == "maxtext"
    assert software_of(a_case({"hw": "gpu.H100"}, id="x")).stack.name == "torchtitan"
    # DeepSpeed's rows stand in the table of the paper that compares with it.
    assert software_of(a_case({"mesh": {"fsdp": 384}}, id="sc21-x")).stack.name == "deepspeed"


@pytest.mark.parametrize(
    ("prefix", "source", "embed", "has_time"),
    [
        ("bloom", "", 14336, True),
        ("mtnlg", "", 20480, True),
        ("x", "bigscience tr11", 12288, True),
        # It was found with wide layers: of a narrow one it would be most.
        ("bloom", "", 4096, False),
        ("gptneox", "", 14336, False),
        ("x", "DeepSpeed's blog", 14336, False),
        ("sc21", "", 14336, False),
    ],
)
def test_blooms_time_of_a_layer_is_of_its_own_wide_layers(
    prefix: str, source: str, embed: int, has_time: object
) -> None:
    given = {
        "hw": "gpu.A100_80",
        "model": {"L": 24, "D": embed, "F": 4 * embed, "N": 32, "V": 50000},
        "mesh": {"tensor": 8, "pipe": 8, "data": 1},
        "global_batch_seqs": 64,
        "microbatch": 1,
        "seq": 2048,
    }
    found = settings_of(a_case(given, id=f"{prefix}-x", source=source), FILE)
    assert {setting.stack.layer_seconds > 0 for setting in found} == {bool(has_time)}


def test_dtypes_and_sharding_of_a_row_reach_the_stack() -> None:
    def stack(prefix: str, **given: Any):
        return software_of(a_case(given, id=f"{prefix}-x")).stack

    assert stack("tt", compute_dtype="fp8-tensorwise").matmul_dtype == "float8_e4m3fn"
    assert stack("tt", compute_dtype="fp8 + fp8 all-gather").gather_bytes == 1
    assert stack("llf", mixed_precision="amp_fp8").matmul_dtype == "float8_e4m3fn"
    assert (
        stack("llf", mixed_precision="bf16").reduce_bytes,
        stack("llf", mixed_precision="amp_bf16").reduce_bytes,
    ) == (2, 4)
    assert not stack("llf", sharding="SHARD_GRAD_OP").regather
    assert stack("llf", sharding="FULL_SHARD").regather
    assert (
        stack("bloom", precision="BF16 optimizer").gradient_bytes
        == 4 + stack("bloom", precision="fp16").gradient_bytes
    )
    assert stack("kor", mesh={"tensor": 8, "sequence": 8}).sequence_parallel
    assert not stack("kor", remat="full, no sequence parallelism").sequence_parallel


def test_flop_conventions_differ_as_their_sources_say() -> None:
    shape = shape_of(a_case({"model": "llama2-7b"}), FILE)
    workload = Workload(shape, 4, 4096)

    def counted(convention: str) -> float:
        return counted_flops(a_case({}, flops_convention=convention), workload, "active+causal")

    matrices = num_parameters(parameter_groups(shape)) - shape.vocab * shape.embed
    square = 12 * shape.layers * 4096 * 4096
    assert counted("6N_excl_input_embed + noncausal attention") / workload.tokens == pytest.approx(
        6 * matrices + square, rel=1e-3
    )
    halved = counted("6N_excl_input_embed + noncausal attention") - counted(
        "6N_excl_input_embed + causal attention"
    )
    assert halved / workload.tokens == pytest.approx(square / 2, rel=1e-3)
    # A second forward pass over two and a forward: 4/3, but for the head, which is not computed twice.
    megatron = counted("72BLsh^2(1+s/6h+v/12hL)")
    assert 1.25 < counted("96Bslh^2(1+s/6h+V/16lh)") / megatron < 4 / 3
    assert model_flops(a_case({}, flops_convention="96Bslh^2(...)"), workload, "") == megatron


def test_more_tensor_parallelism_overlap_is_not_slower() -> None:
    given = {
        "hw": "torchtitan_grand_teton", "n_chips": 64, "model": "llama3-8b", "mesh": {"fsdp": 8, "tensor": 8},
        "local_batch": 12, "remat": "full",
    }  # fmt: skip
    case = a_case(given, {"tok_s_chip_vanilla_tp": 1, "tok_s_chip_async_tp": 1}, id="tt-x")
    predicted = evaluate_case(case, FILE).predicted
    assert predicted["tok_s_chip_async_tp"] > predicted["tok_s_chip_vanilla_tp"]


def test_chips_of_two_devices_are_counted_once() -> None:
    """One chip's tokens/s and TFLOP/s are those of both of its devices."""
    given = {
        "hw": "tpu.v7x",
        "n_chips": 64,
        "jax_devices": 128,
        "model": "llama3-70b",
        "mesh": {"fsdp": 128},
        "remat": "full",
    }
    run = run_of(a_case({**given, "seq": 8192, "global_batch_seqs": 256}, id="tr-x"), FILE)
    assert run.prediction.tokens_per_second_per_chip == pytest.approx(
        256 * 8192 / run.prediction.step_seconds / 64
    )
    assert run.peak == pytest.approx(2307e12)
