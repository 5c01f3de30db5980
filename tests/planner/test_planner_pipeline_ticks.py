"""The calibrated tick model of scripts/bench/pipeline_ticks.py: from times of passes to a step."""

from dataclasses import asdict, replace
from typing import Any

import pytest
from pipeline_ticks import Measured, measure, parts_seconds, pipeline_of, predictions

from jaxscale.config.plan import Plan
from jaxscale.config.run import RunConfig
from jaxscale.errors import UserError

ONES = Measured(
    forward=1, backward=2, input_gradient=1, weight_gradient=1, head=0, embedding=0, plain=192
)


def config(**plan: Any) -> RunConfig:
    """Eight layers, and a vocabulary so small that the head counts for nothing."""
    sizes = {"num_layers": 8, "embed_dim": 32, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 64}
    return RunConfig.model_validate(
        {
            "model": {"family": "llama3", "vocab_size": 8, "max_positions": 32, **sizes},
            "data": {"sequence_length": 16},
            "training": {"steps": 1, "global_batch": 8},
            "plan": plan,
        }
    )


def test_steps_are_those_of_the_tables() -> None:
    """Four stages of two layers, eight microbatches; F = 2, B = 4 of a stage.

    1F1B and GPipe take (m + p - 1)(F + B) = 66, chunks of one layer (m v + p - 1)(F + B) / v = 57, ZB-H1 3 m + p - 1
    times 2 = 54. One device alone takes 8 x 8 x 3 = 192.
    """
    plan = Plan(pipeline=4, microbatches=8)
    made = {one["schedule"]: one for one in predictions(config(), plan, ONES)}
    steps = {schedule: one["seconds"] for schedule, one in made.items()}
    assert steps == {"gpipe": 66, "1f1b": 66, "interleaved": 57, "zb-h1": 54}
    assert made["1f1b"]["bubble"] == pytest.approx(3 / 11)
    assert made["1f1b"]["speedup"] == pytest.approx(192 / 66)
    assert parts_seconds(ONES, num_layers=8, microbatches=8) == 192


def test_the_head_waits_on_the_last_stage_and_the_embedding_on_the_first() -> None:
    """Two stages of four layers, two microbatches: 4, twice 4 + 8 and the head's 5, then 8 and the embedding's 1."""
    found = replace(ONES, head=5, embedding=1)
    plan = Plan(pipeline=2, microbatches=2)
    made = {one["schedule"]: one for one in predictions(config(), plan, found)}
    assert made["1f1b"]["seconds"] == 4 + 17 + 17 + 9


def test_chunks_without_a_layer_are_left_out() -> None:
    made = predictions(config(), Plan(pipeline=8, microbatches=8), ONES)
    assert "interleaved" not in {one["schedule"] for one in made}


def test_a_run_without_stages_is_refused() -> None:
    for plan in ({}, {"data": 2}, {"pipeline": 2, "tensor": 2}):
        with pytest.raises(UserError, match=r"plan\.pipeline=4"):
            pipeline_of(config(**plan))


@pytest.mark.slow
def test_passes_are_measured() -> None:
    """That each runs, and takes time; how much is this machine's affair."""
    found = measure(config(), Plan(pipeline=2, microbatches=2, remat="full"))
    assert min(asdict(found).values()) > 0
