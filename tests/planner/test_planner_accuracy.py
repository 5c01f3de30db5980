"""The scorer of published results: what it makes of a case, how it counts, and that it looks up nothing."""

import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts/bench"))

from planner_truth.cases import Case, CaseFile, Unsupported, load_cases
from planner_truth.closed import closed_form
from planner_truth.clusters import clusters_of
from planner_truth.conventions import counted_flops, model_flops
from planner_truth.evaluate import evaluate_case
from planner_truth.layouts import schedule_name
from planner_truth.meshes import given_mesh, parse_mesh
from planner_truth.models import parse_count, sequence_of, shape_of
from planner_truth.quantities import run_of
from planner_truth.remats import remat_of
from planner_truth.scoring import score
from planner_truth.settings import mesh_and_cluster, settings_of
from planner_truth.stacks import software_of
from planner_truth.summary import confusion, rank_correlations, spearman
from planner_truth.symbols import Symbolic, evaluate

from jaxscale.planner.parameters import num_parameters, parameter_groups
from jaxscale.planner.workload import Workload

CASES = ROOT / "tests/data/planner_truth/cases.json"
FILE = load_cases(CASES)


def a_case(given: dict[str, Any], expected: dict[str, Any] | None = None, **more: Any) -> Case:
    fields = {"id": "new-1", "kind": "throughput", "tolerance": {"rel": 0.05}, **more}
    return Case(given=given, expected=expected or {}, **fields)


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
        ("selective (op-level)", "torch", "dots"),
        ("per-op SAC", "torch", "dots"),
        ("minimal", "jax", "dots"),
        ("save_dot_except_mlpwi", "jax", "minimal"),
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
        ("qwen3-235b-a22b", 235), ("gpt-oss-120b", 117), ("deepseek-v3", 671), ("Llama 3.1-405B", 405.9), ("mixtral-8x7b", 46.7),
        ("gemma3-27b", 27), ("5.9B: L=32,h=3840,a=32", 5.9), ("GPT-2 style 1.4B", 1.4), ("91B", 91),
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
        "hw": "selene A100_80", "n_chips": 64, "model": "megatron-18.4B", "global_batch_seqs": 96, "seq": 2048, "remat": "full",
        "mesh": {"tensor": 8, "pipe": 4, "data": 2}, "schedule": "interleaved 1F1B",
    }  # fmt: skip
    settings = settings_of(a_case(given, id="sc21-new"), FILE)
    # 48 rows a replica; 40 layers over 4 stages are 10 a stage, which 2 and 5 chunks divide.
    assert {setting.layout.microbatches for setting in settings} == {48, 24, 12, 6, 3}
    assert {setting.layout.virtual_stages for setting in settings} == {2, 5}
    assert {setting.open for setting in settings} == {("microbatch", "virtual stages")}


def test_axes_that_are_said_to_cross_slices_do() -> None:
    given = {
        "hw": "tpu.v6e", "n_chips": 512, "slices": 2, "model": "llama3-8b", "per_chip_batch_seqs": 1, "remat": "full",
        "mesh": {"data": 8, "fsdp_ici": 32, "fsdp_dcn": 2},
    }  # fmt: skip
    (setting,) = settings_of(a_case(given, id="tr-new"), FILE)
    assert setting.layout.spread["fsdp"][-1] == 2
    assert setting.layout.spread["data"][-1] == 1


def test_software_is_told_by_prefix_then_by_source_then_by_hardware() -> None:
    assert software_of(a_case({}, id="llf-x")).stack.name == "llm-foundry"
    assert (
        software_of(a_case({}, id="l3-x", source="Llama 3 paper, Table 4")).stack.name
        == "megatron-core"
    )
    assert software_of(a_case({}, id="x", source="PaLM arXiv:2204.02311")).stack.name == "maxtext"
    assert software_of(a_case({"hw": "tpu.v6e"}, id="x")).stack.name == "maxtext"
    assert software_of(a_case({"hw": "gpu.H100"}, id="x")).stack.name == "torchtitan"
    # DeepSpeed's rows stand in the table of the paper that compares with it.
    assert software_of(a_case({"mesh": {"fsdp": 384}}, id="sc21-x")).stack.name == "deepspeed"


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


@pytest.mark.parametrize(
    ("printed", "values", "result"),
    [
        ("sbh(34+5as/h)", {"s": 2, "b": 3, "h": 4, "a": 5}, 2 * 3 * 4 * (34 + 5 * 5 * 2 / 4)),
        ("(PP/2-1)(F&B+B-3W)", {"PP": 8, "F&B": 5, "B": 4, "W": 1}, 3 * 6),
        ("2DF*31/(32*400e9)", {"D": 4, "F": 8}, 2 * 4 * 8 * 31 / (32 * 400e9)),
        ("b*s*h per direction", {"b": 2, "s": 3, "h": 4}, 24),
        ("2B/3 + O(n) overhead", {"B": 6, "n": 5}, 4),
        ("b'=B/b", {"B": 6, "b": 2}, 3),
        ("m % p == 0", {"m": 6, "p": 3}, 1),
        ("W N^2", {"W": 2, "N": 3}, 18),
    ],
)
def test_printed_formulas_are_read_as_meant(
    printed: str, values: dict[str, float], result: float
) -> None:
    assert evaluate(printed, values) == pytest.approx(result)


@pytest.mark.parametrize(
    "printed", ["__import__('os')", "x.y", "x[0]", "(lambda: x)()", "x +", "f(x)", "y"]
)
def test_what_is_no_formula_is_refused(printed: str) -> None:
    with pytest.raises(ValueError, match=""):
        evaluate(printed, {"x": 1.0})


def test_formulas_are_compared_by_value() -> None:
    ours = Symbolic("(p - 1)/(v m)", ("p", "m", "v"), lambda p, m, v: (p - 1) / (v * m))
    assert ours.largest_difference("(p-1)/m/v") < 1e-12
    assert ours.largest_difference("p/(v*m)") > 0.01


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        # Variants of worked problems with other chips and numbers; expected values reasoned here.
        ("comm", {"hw": "tpu.any", "collective": "ReduceScatter", "n_axes": 2}, {"time_over_V_per_W": 0.5}),
        ("comm", {"hw": "tpu.v6e", "strategy": "FSDP", "ici_axes": 2}, {"critical_tokens_per_chip": 9.2e14 / (2 * 1.8e11)}),
        ("comm", {"hw": "gpu.H100", "strategy": "DP within a node"}, {"critical_tokens_per_gpu": 990 / 450 * 1000}),
        ("comm", {"hw": "gpu.H100", "strategy": "DP across nodes", "E": 128, "k": 4}, {"critical_tokens_per_gpu": 32 * 2475}),
        ("comm", {"hw": "gpu.H100", "strategy": "DP", "nodes": 2}, {"critical_tokens_per_gpu": 2475 / 2}),
        ("comm", {"hw": "tpu.v7x", "mesh": {"tensor": 16}}, {"min_mlp_dim": 16 * 12800}),
        ("comm", {"net": "v5p DCN", "layers_per_stage": 2, "topk": 4, "ai": "1.5*layers_per_stage*M*topk"}, {"min_mlp_dim": 73440 / 12}),
        ("comm", {"hw": "tpu.v4p", "n_chips": 32, "params": 200e9, "dtype": "bf16"}, {"time_s": 400e9 / (32 * 1.2e12)}),
        ("memory", {"per": "layer", "policy": "tensor"}, {"formula": "sbh(10+24/t+5as/(ht))"}),
        ("memory", {"D": 6144, "N": 64, "L": 48, "seq": 2048, "microbatch": 4, "tensor": 8}, {"first_stage_layers_worth": 48}),
        ("memory", {"params": 405e9, "optimizer": "Adam"}, {"bytes_bf16_mixed": 6.48e12}),
        ("memory", {"model": "llama2-13b", "kv_dtype": "bf16"}, {"kv_bytes_per_token": 2 * 40 * 5120 * 2, "seq8k_bytes": 8192 * 819200}),
        ("bubble", {"PP": 8, "microbatches": 32, "virtual": 2}, {"bubble_over_ideal": 7 / 64, "bubble_fraction_of_total": 7 / 71}),
        ("bubble", {"schedule": "ZB1P"}, {"bubble_time": "(PP-1)(F+B-2W)", "param_copies": "1x", "activation_microbatches": "PP"}),
        ("bubble", {"schedule": "1F1B"}, {"bubble_time": "(p-1)(TF+TB+TW)", "bubble_rate": "(p-1)/(m+p-1)=B"}),
        ("bubble", {"schedule": "V-Half"}, {"bubble_rate": "B/2", "activation_memory_vs_1f1b": "1/2", "pp_comm_vs_1f1b": 2}),
        ("choice", {"hw": "tpu.v5p", "n_chips": 256, "batch_tokens": 262144, "F": 16384}, {"X_opt_continuous": math.sqrt(16 * 2 * 256)}),
        ("throughput", {"hw": "H800", "tokens": 14.8e12, "active_params": 37e9, "params": 671e9, "gpu_hours": 2.788e6, "flops": 1.513e15}, {"mfu": 0.2164}),
    ],
)  # fmt: skip
def test_variants_of_worked_problems_are_solved(
    kind: str, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    case = a_case(given, expected, kind=kind, tolerance={"rel": 0.01})
    found = score(case, evaluate_case(case, FILE))
    assert found.status == "pass", found.reason


def test_a_stated_figure_is_taken_before_the_tables() -> None:
    case = a_case({"hw": "tpu.v5e", "bw": 4e11, "flops": 2e14})
    assert closed_form(case, FILE, "critical_batch_tokens") == 500
    empty = CaseFile((), {}, {})
    assert (
        closed_form(a_case({"hw": "tpu.v5p", "bytes_per_param": 10}), empty, "max_params")
        == 95 * 2**30 / 10
    )


def test_more_tensor_parallelism_overlap_is_not_slower() -> None:
    given = {
        "hw": "torchtitan_grand_teton", "n_chips": 64, "model": "llama3-8b", "mesh": {"fsdp": 8, "tensor": 8}, "local_batch": 12,
        "remat": "full",
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


def a_file(tmp_path: Path, cases: list[dict[str, Any]]) -> Path:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"cases": cases}))
    return path


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "scripts/bench/planner_accuracy")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


TINY = [
    {"id": "a-1", "kind": "bubble", "given": {"pipe": 5, "microbatches": 4}, "expected": {"bubble_over_ideal": 1.0}, "tolerance": {"rel": 0.01}},
    {"id": "a-2", "kind": "bubble", "given": {"pipe": 5, "microbatches": 4}, "expected": {"bubble_over_ideal": 0.8}, "tolerance": {"rel": 0.01}},
    {"id": "b-1", "kind": "memory", "given": {"params": 1e9}, "expected": {"bytes_bf16_mixed": 1.6e10, "color": "blue"}, "tolerance": {"rel": 0.01}},
    {"id": "b-2", "kind": "throughput", "given": {"hw": "abacus"}, "expected": {"step_s": 1.0, "fits": True}, "tolerance": {"rel": 0.01}},
]  # fmt: skip


def test_the_script_prints_what_it_promises(tmp_path: Path) -> None:
    done = run_script("--cases", str(a_file(tmp_path, TINY)), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"cases", "summary"}
    cases = {case["id"]: case for case in document["cases"]}
    fields = {"id", "kind", "status", "predicted", "expected", "rel_error", "reason"}
    assert all(set(case) == fields for case in cases.values())
    assert {name: case["status"] for name, case in cases.items()} == {
        "a-1": "pass", "a-2": "miss", "b-1": "miss", "b-2": "unsupported",
    }  # fmt: skip
    assert cases["a-1"]["predicted"] == cases["a-2"]["predicted"] == {"bubble_over_ideal": 1.0}
    assert cases["a-2"]["rel_error"] == pytest.approx(0.25)
    assert "color" in cases["b-1"]["reason"]
    assert "abacus" in cases["b-2"]["reason"]


def test_the_summary_counts_by_kind_and_by_prefix(tmp_path: Path) -> None:
    summary = json.loads(run_script("--cases", str(a_file(tmp_path, TINY)), "--json").stdout)[
        "summary"
    ]
    bubbles = summary["by_kind"]["bubble"]
    assert (bubbles["count"], bubbles["pass"], bubbles["miss"]) == (2, 1, 1)
    assert (bubbles["median_rel_error"], bubbles["worst_rel_error"]) == pytest.approx((0.125, 0.25))
    assert summary["by_prefix"]["a"] == bubbles
    assert summary["by_prefix"]["b"]["unsupported"] == 1
    # A row without a prediction is not one that fits.
    assert summary["all"]["feasibility"]["expected_fits_predicted_oom"] == 1


def test_a_file_that_is_none_ends_in_one_line(tmp_path: Path) -> None:
    done = run_script("--cases", str(tmp_path / "absent.json"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_rank_correlation() -> None:
    assert spearman([(1, 10), (2, 20), (3, 30)]) == 1
    assert spearman([(1, 3), (2, 2), (3, 1)]) == -1
    # Ranks 1 2 3 against 1 3 2: 1 - 6 * 2 / (3 * 8).
    assert spearman([(1, 1), (2, 3), (3, 2)]) == 0.5
    assert spearman([(1, 5), (2, 5), (3, 5)]) is None


def scored(name: str, published: float, predicted: float, **given: Any):
    case = a_case(given, {"tok_s_chip": published, "fits": True}, id=name)
    found = score(case, evaluate_case(case, CaseFile((), {}, {})))
    return replace(found, predicted={"tok_s_chip": predicted, "fits": predicted > 1})


def test_rows_are_ranked_within_one_model_and_cluster() -> None:
    rows = [scored(f"x-{n}", n, n, model="a", hw="gpu.H100") for n in (1, 2, 3)]
    others = [scored(f"x-{n}", n, -n, model="b", hw="gpu.H100") for n in (1, 2, 3)]
    assert rank_correlations([*rows, *others]) == {"x a gpu.H100": 1, "x b gpu.H100": -1}
    assert confusion(rows)["expected_fits_predicted_fits"] == 2


def test_predictions_do_not_look_at_what_is_expected() -> None:
    """Other published numbers, other ids, the same predictions. What describes a published layout stays: it is laid out."""
    sample = random.Random(0).sample(FILE.cases, 60)
    for case in sample:
        changed = replace(case, id=f"{case.prefix}-{case.kind}", expected=_scaled(case))
        before, after = evaluate_case(case, FILE), evaluate_case(changed, FILE)
        assert _numbers(before) == _numbers(after), case.id


def _scaled(case: Case) -> dict[str, Any]:
    layout = {"mesh", "remat", "per_chip_batch_seqs", "fits"}
    return {
        name: value * 1.37 if isinstance(value, float | int) and name not in layout else value
        for name, value in case.expected.items()
    }


def _numbers(evaluation: Any) -> dict[str, object]:
    return {
        name: value
        for name, value in evaluation.predicted.items()
        if not isinstance(value, Symbolic)
    }


def test_every_given_case_is_evaluated_or_says_why_not() -> None:
    for case in random.Random(1).sample(FILE.cases, 60):
        found = score(case, evaluate_case(case, FILE))
        assert "not understood" not in (found.reason or ""), f"{case.id}: {found.reason}"
        assert found.predicted or found.reason
