"""Printed formulas are read and compared by value, and worked problems solved whatever their numbers."""

import math
from typing import Any

import pytest
from planner_truth.cases import CaseFile
from planner_truth.closed import closed_form
from planner_truth.evaluate import evaluate_case
from planner_truth.scoring import score
from planner_truth.symbols import Symbolic, evaluate
from published import FILE, a_case

from jaxscale.hardware.chips import TPU_V5P


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
    with pytest.raises(ValueError, match=r"no formula|unknown quantity|more than arithmetic"):
        evaluate(printed, {"x": 1.0})


def test_formulas_are_compared_by_value() -> None:
    ours = Symbolic("(p - 1)/(v m)", ("p", "m", "v"), lambda p, m, v: (p - 1) / (v * m))
    assert ours.largest_difference("(p-1)/m/v") < 1e-12
    assert ours.largest_difference("p/(v*m)") > 0.01
    # Equal where all variables are.
    assert ours.largest_difference("(m-1)/(v*p)") > 0.01


# Variants of worked problems with other chips and numbers; expected values reasoned here.
VARIANTS = [
    ({"hw": "tpu.any", "collective": "ReduceScatter", "n_axes": 2}, {"time_over_V_per_W": 0.5}),
    (
        {"hw": "tpu.v6e", "strategy": "FSDP", "ici_axes": 2},
        {"critical_tokens_per_chip": 9.2e14 / (2 * 1.8e11)},
    ),
    ({"hw": "gpu.H100", "strategy": "DP within a node"}, {"critical_tokens_per_gpu": 2200}),
    (
        {"hw": "gpu.H100", "strategy": "DP across nodes", "E": 128, "k": 4},
        {"critical_tokens_per_gpu": 32 * 2475},
    ),
    ({"hw": "gpu.H100", "strategy": "DP", "nodes": 2}, {"critical_tokens_per_gpu": 2475 / 2}),
    ({"hw": "tpu.v7x", "mesh": {"tensor": 16}}, {"min_mlp_dim": 16 * 12800}),
    (
        {"net": "v5p DCN", "layers_per_stage": 2, "topk": 4, "ai": "1.5*layers_per_stage*M*topk"},
        {"min_mlp_dim": 73440 / 12},
    ),
    # All weights once: 400 GB over 32 x 1.2 TB/s.
    (
        {"hw": "tpu.v4p", "n_chips": 32, "params": 200e9, "dtype": "bf16"},
        {"time_s": 400e9 / (32 * 1.2e12)},
    ),
    ({"per": "layer", "policy": "tensor"}, {"formula": "sbh(10+24/t+5as/(ht))"}),
    (
        {"D": 6144, "N": 64, "L": 48, "seq": 2048, "microbatch": 4, "tensor": 8},
        {"first_stage_layers_worth": 48},
    ),
    ({"params": 405e9, "optimizer": "Adam"}, {"bytes_bf16_mixed": 16 * 405e9}),
    (
        {"model": "llama2-13b", "kv_dtype": "bf16"},
        {"kv_bytes_per_token": 2 * 40 * 5120 * 2, "seq8k_bytes": 8192 * 2 * 40 * 5120 * 2},
    ),
    (
        {"PP": 8, "microbatches": 32, "virtual": 2},
        {"bubble_over_ideal": 7 / 64, "bubble_fraction_of_total": 7 / 71},
    ),
    (
        {"schedule": "ZB1P"},
        {"bubble_time": "(PP-1)(F+B-2W)", "param_copies": "1x", "activation_microbatches": "PP"},
    ),
    ({"schedule": "1F1B"}, {"bubble_time": "(p-1)(TF+TB+TW)", "bubble_rate": "(p-1)/(m+p-1)=B"}),
    (
        {"schedule": "V-Half"},
        {"bubble_rate": "B/2", "activation_memory_vs_1f1b": "1/2", "pp_comm_vs_1f1b": 2},
    ),
    (
        {"hw": "tpu.v5p", "n_chips": 256, "batch_tokens": 262144, "F": 16384},
        {"X_opt_continuous": math.sqrt(262144 / 16384 * 2 * 256)},
    ),
    # DeepSeek-V3's 14.8e12 tokens in 2.788e6 hours at 1.513e15: the book's 21.7 %.
    (
        {
            "hw": "H800",
            "tokens": 14.8e12,
            "active_params": 37e9,
            "gpu_hours": 2.788e6,
            "flops": 1.513e15,
            "params": 671e9,
        },
        {"mfu": 0.217},
    ),
]


@pytest.mark.parametrize(("given", "expected"), VARIANTS, ids="-".join)
def test_variants_of_worked_problems_are_solved(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    case = a_case(given, expected, kind="comm", tolerance={"rel": 0.01})
    found = score(case, evaluate_case(case, FILE))
    assert found.status == "pass", found.reason


def test_a_stated_figure_is_taken_before_the_tables() -> None:
    case = a_case({"hw": "tpu.v5e", "bw": 4e11, "flops": 2e14})
    assert closed_form(case, FILE, "critical_batch_tokens") == 500
    empty = CaseFile((), {}, {})
    without = a_case({"hw": "tpu.v5p", "bytes_per_param": 10})
    assert closed_form(without, empty, "max_params") == TPU_V5P.hbm_bytes / 10
    own = CaseFile((), {}, {"tpu": {"v5p": {"hbm_bytes": 5e10}}})
    assert closed_form(without, own, "max_params") == 5e9
