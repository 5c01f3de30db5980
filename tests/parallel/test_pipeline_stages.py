"""Which stage holds which layers, and the way there and back."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.config.model_section import ModelSection
from jaxscale.config.plan import Plan
from jaxscale.models.build import model_builder
from jaxscale.models.description import Description, ParamSpec, blueprint
from jaxscale.parallel.errors import PlacementError
from jaxscale.parallel.pipeline.stages import (
    StageLayout,
    balanced,
    head_load,
    loads,
    stage_layout,
)
from jaxscale.parallel.placement import check_plan


def described(num_layers: int, vocab: int = 64) -> Description:
    matrix = ParamSpec((num_layers, 8, 8), np.dtype("float32"), ("layers", "embed", "mlp"))
    table = ParamSpec((vocab, 8), np.dtype("float32"), ("vocab", "embed"))
    return {"layers/up": matrix, "embedding/table": table}


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 6), st.integers(1, 3), st.data())
def test_stored_layers_come_back(stages: int, chunks: int, data: st.DataObject) -> None:
    """Whatever the counts: places hold each layer once, empty ones are zero, and the model's order returns."""
    total = stages * chunks
    counts = tuple(data.draw(st.lists(st.integers(1, 4), min_size=total, max_size=total)))
    layout = StageLayout(stages, chunks, counts)
    array = jnp.arange(1, layout.num_layers + 1)[:, None] * jnp.ones((1, 2))
    stored = layout.stored(array)
    assert stored.shape == (layout.num_stored, 2)
    np.testing.assert_array_equal(layout.logical(stored), array)
    assert float(stored.sum()) == float(array.sum())
    for depth, count in enumerate(counts):
        held = layout.layers[depth % stages, depth // stages]
        first = sum(counts[:depth])
        assert list(held[held >= 0]) == list(range(first, first + count))


@given(st.integers(1, 12), st.integers(0, 60), st.floats(0, 8))
def test_balanced_stages_are_the_fastest(chunks: int, more: int, last: float) -> None:
    """No move of a layer between two chunks makes the slowest one faster."""
    counts = balanced(chunks + more, chunks, last)
    assert sum(counts) == chunks + more
    slowest = max(loads(StageLayout(chunks, 1, counts), last))
    for giver in range(chunks):
        for taker in range(chunks):
            moved = list(counts)
            moved[giver] -= 1
            moved[taker] += 1
            if min(moved) > 0:
                assert max(loads(StageLayout(chunks, 1, tuple(moved)), last)) >= slowest


def test_the_head_counts_as_load() -> None:
    """Llama 3.2 1B: 128,256 rows of 2,048 are the products of 4.3 layers of 60.8M, so the last of 4 stages has 1."""
    section = ModelSection.model_validate(
        {
            "family": "llama3.2",
            "vocab_size": 128256,
            "max_positions": 131072,
            "num_layers": 16,
            "embed_dim": 2048,
            "num_heads": 32,
            "num_kv_heads": 8,
            "mlp_dim": 8192,
        }
    )
    description = blueprint(model_builder(section)).description
    assert head_load(description) == pytest.approx(4.32, abs=0.01)
    layout = stage_layout(Plan(pipeline=4), description)
    assert layout is not None
    assert layout.counts == (5, 5, 5, 1)


def test_a_plan_may_say_which_layers_go_where() -> None:
    layout = stage_layout(Plan(pipeline=2, stage_layers=[4, 1]), described(5))
    assert layout is not None
    assert layout.layers.tolist() == [[[0, 1, 2, 3]], [[4, -1, -1, -1]]]


@pytest.mark.parametrize(
    ("plan", "num_layers", "words"),
    [
        (Plan(pipeline=8), 5, "pipeline=8 makes 8 chunks, but the model has 5 layers"),
        (Plan(pipeline=4, virtual_stages=2, schedule="interleaved"), 5, "use pipeline=2 or fewer"),
        (Plan(pipeline=2, virtual_stages=2), 5, "plan.schedule=interleaved"),
        (Plan(pipeline=2, stage_layers=[3, 3]), 5, "the model has 5 layers; for example"),
        (Plan(pipeline=2, stage_layers=[5]), 5, "makes 2 chunks"),
        (Plan(pipeline=2, stage_layers=[5, 0]), 5, "at least one layer"),
        (Plan(pipeline=2, remat="offload"), 5, "plan.remat=full or plan.pipeline=1"),
    ],
)
def test_what_does_not_fit_is_said_with_numbers(plan: Plan, num_layers: int, words: str) -> None:
    with pytest.raises(PlacementError, match=words.replace(".", r"\.")):
        check_plan(plan, described(num_layers))


def test_a_model_without_stacked_layers_cannot_be_pipelined() -> None:
    table = described(4)["embedding/table"]
    with pytest.raises(PlacementError, match="stacked along one leading"):
        check_plan(Plan(pipeline=2), {"embedding/table": table})


def test_tables_are_split_over_stages_where_their_rows_divide() -> None:
    rules, _ = check_plan(Plan(pipeline=2, tensor=2), described(4, vocab=64))
    assert rules["vocab"] == ("tensor", "pipeline")
    rules, _ = check_plan(Plan(pipeline=2, tensor=2), described(4, vocab=62))
    assert rules["vocab"] == ("tensor",)
