"""Predictions against what the compiler made of the same steps (stored, with its versions, and two compiled here)."""

import json
from pathlib import Path
from typing import Any

import pytest
from planner_cases import MODELS

from jaxscale.config.loading import load_model
from jaxscale.config.model_section import ModelSection
from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.parallel.topology import abstract_devices
from jaxscale.planner.costs.lockstep.stages import tick_shares
from jaxscale.planner.model.source import groups_of, shape_of
from jaxscale.planner.model.workload import Workload
from jaxscale.planner.search.predict import predict
from jaxscale.planner.search.proposal import to_layout
from jaxscale.planner.verification.compiled import compile_facts
from jaxscale.planner.verification.expected import Expected, compiled_peak, expected
from jaxscale.planner.vocabulary.jaxscale_stack import jaxscale_stack
from jaxscale.training.lowering import abstract_job

STORED = Path(__file__).parents[2] / "docs/benchmarks/planner/compiled.json"
CASES: dict[str, Any] = {
    name: case for name, case in json.loads(STORED.read_text()).items() if "facts" in case
}
TPU = [name for name in CASES if not name.startswith("cpu")]
PIPELINES = [name for name in CASES if "pipeline" in name]
ONE_STAGE = [name for name in CASES if name not in PIPELINES]
TINY = {
    "family": "llama3",
    "vocab_size": 512,
    "max_positions": 256,
    "num_layers": 4,
    "embed_dim": 256,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 32,
    "mlp_dim": 512,
}
# Tables that weigh as much as layers.
WIDE = {**TINY, "vocab_size": 4096}
SMALL = {
    "tiny": TINY,
    "tiny-4k": {**WIDE, "tied_embeddings": False},
    "tiny-4k-tied": {**WIDE, "tied_embeddings": True},
}


def _section(model: str | ModelSection) -> ModelSection:
    if isinstance(model, ModelSection):
        return model
    if model in SMALL:
        return ModelSection.model_validate(SMALL[model])
    return load_model(MODELS / f"{model}.yaml", [])[0]


def _expected(case: dict[str, Any]) -> Expected:
    section, cluster = _section(case["model"]), parse_cluster(case["cluster"])
    workload = Workload(shape_of(section, ""), case["global_batch"], case["sequence_length"])
    layout = to_layout(Plan(**case["plan"]))
    stack = jaxscale_stack(cluster.kind)
    prediction = predict(workload, cluster, layout, stack, groups=groups_of(section))
    return expected(workload, layout, prediction, stack)


def _wire(case: dict[str, Any], axes: set[str]) -> float:
    """Bytes that the compiled step takes from others over these axes, alone or together."""
    found = case["facts"]["collectives"]
    return sum(one["wire_bytes"] for one in found if set(one["axes"]) <= axes)


@pytest.mark.parametrize("name", CASES)
def test_state_is_exact(name: str) -> None:
    parts = CASES[name]["argument_parts"]
    # The optimizer counts its steps in one or two integers, which are no parameter's.
    assert _expected(CASES[name]).state_bytes == pytest.approx(
        parts["parameters"] + parts["optimizer"], abs=16
    )


@pytest.mark.parametrize("name", CASES)
def test_executed_products_are_the_compilers(name: str) -> None:
    assert _expected(CASES[name]).dot_flops == pytest.approx(
        CASES[name]["facts"]["dot_flops"], rel=0.01
    )


@pytest.mark.parametrize("name", ONE_STAGE)
def test_collectives_move_what_was_predicted(name: str) -> None:
    """`data` and `fsdp` together, as gradients of tables are summed over both at once."""
    case = CASES[name]
    wire = _expected(case).wire_bytes
    allowed = 0.06 if "tensor" in name else 0.04
    batch = {"data", "fsdp"}
    assert sum(wire.get(axis, 0) for axis in batch) == pytest.approx(
        _wire(case, batch), rel=allowed
    )


@pytest.mark.parametrize("name", ONE_STAGE)
def test_activations_move_what_was_predicted(name: str) -> None:
    """What a layer moves over `tensor` is written out; the ends of a step are the compiler's."""
    case = CASES[name]
    wire = _expected(case).wire_bytes.get("tensor", 0)
    assert wire == pytest.approx(_wire(case, {"tensor"}), rel=0.03)


@pytest.mark.parametrize("name", [name for name in CASES if "tiny-4k" in name])
def test_tables_move_what_was_predicted(name: str) -> None:
    """As heavy as layers, tied or not, beside every other axis, and in both ways of the loss."""
    wire = sum(_expected(CASES[name]).wire_bytes.values())
    compiled = sum(one["wire_bytes"] for one in CASES[name]["facts"]["collectives"])
    assert wire == pytest.approx(compiled, rel=0.01)


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_move_what_was_predicted(name: str) -> None:
    """All axes: tables are gathered over `pipeline` and `fsdp` at once. Means over the stages on both sides."""
    case = CASES[name]
    wire = sum(_expected(case).wire_bytes.values())
    compiled = sum(one["wire_bytes"] for one in case["facts"]["collectives"])
    assert wire == pytest.approx(compiled, rel=0.01)


@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in TPU])
def test_memory_of_pipelines_on_cpu_is_about_that(name: str) -> None:
    """Rings are what they are on any backend; the rest is as without a pipeline, where less is predicted."""
    keys = ("argument_bytes", "temp_bytes", "peak_bytes")
    facts = (CASES[name]["facts"][key] for key in keys)
    ratio = _expected(CASES[name]).peak_bytes / compiled_peak(parse_cluster("cpu:8"), *facts)
    assert 0.65 < ratio < 1.1


@pytest.mark.parametrize("name", TPU)
def test_peaks_are_the_compilers_within_seven_percent(name: str) -> None:
    """Too little by 3 % at most: a plan leaves 5 % of the memory free."""
    peak = CASES[name]["facts"]["peak_bytes"]
    assert 0.97 < _expected(CASES[name]).peak_bytes / peak < 1.07


def test_memory_on_cpu_is_in_the_right_order() -> None:
    """XLA's CPU backend keeps about twice as much as the formulas say; which of two steps needs more is right.

    Of one model: with tables as heavy as layers it is 0.55 to 1.2 of the formulas, and splitting logits saves nothing.
    """
    names = [name for name in ONE_STAGE if name.startswith("cpu:8 tiny ")]
    predicted = [_expected(CASES[name]).peak_bytes for name in names]
    compiled = [
        compiled_peak(
            parse_cluster("cpu:8"),
            *(CASES[name]["facts"][key] for key in ("argument_bytes", "temp_bytes", "peak_bytes")),
        )
        for name in names
    ]
    pairs = [(a, b) for a in range(len(names)) for b in range(a)]
    agree = [(predicted[a] - predicted[b]) * (compiled[a] - compiled[b]) >= 0 for a, b in pairs]
    assert sum(agree) / len(agree) > 0.85


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [
        Plan(fsdp=8, remat="full"),
        Plan(data=2, fsdp=2, tensor=2, remat="dots"),
        Plan(pipeline=2, fsdp=2, tensor=2, microbatches=4, remat="dots"),
        Plan(pipeline=4, data=2, microbatches=8, remat="full", schedule="zb-h1"),
        # Five layers in chunks of 2, 1, 1, 1.
        Plan(pipeline=2, data=4, microbatches=4, schedule="interleaved", virtual_stages=2),
    ],
    ids=str,
)
def test_a_step_compiled_here_is_as_predicted(plan: Plan) -> None:
    """So that a change of the trainer, or of JAX, shows: the stored cases stay as they are."""
    layers = 5 if plan.virtual_stages > 1 else TINY["num_layers"]
    config = RunConfig.model_validate(
        {
            "model": {**TINY, "num_layers": layers},
            "data": {"sequence_length": 256},
            "training": {"steps": 10, "global_batch": 32},
        }
    )
    cluster = parse_cluster("cpu:8")
    job = abstract_job(config, plan, abstract_devices(cluster))
    shares = tick_shares(to_layout(plan), layers, groups_of(config.model))
    facts = compile_facts(job.lower, plan.mesh_shape, shares=shares)
    case = {
        "model": config.model,
        "cluster": "cpu:8",
        "global_batch": 32,
        "sequence_length": 256,
        "plan": plan.model_dump(exclude_defaults=True),
    }
    found = _expected(case)
    wire = sum(collective.wire_bytes for collective in facts.collectives)
    assert found.dot_flops == pytest.approx(facts.dot_flops, rel=0.01)
    assert sum(found.wire_bytes.values()) == pytest.approx(wire, rel=0.06)
