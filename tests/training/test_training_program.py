"""What the compiled train step does, read off the optimized program."""

import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from tiny import tiny_model, tiny_training

from jaxscale.config.plan import Plan
from jaxscale.models.build import model_builder
from jaxscale.models.context import use_forward_context
from jaxscale.models.description import bind, blueprint
from jaxscale.parallel.errors import PlacementError
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.placement import place
from jaxscale.parallel.remat import equations
from jaxscale.training.batches import batch_sharding
from jaxscale.training.optimizers import make_optimizer
from jaxscale.training.schedules import learning_rate
from jaxscale.training.state import abstract_state, state_shardings, state_specs
from jaxscale.training.step import make_train_step

ROWS, LENGTH, VOCAB = 16, 16, 72  # No other dim of the model has the size of the vocabulary.


def compiled(plan: Plan, *, num_layers: int = 2, **training_changes: Any) -> Any:
    """The train step of a tiny model, compiled for shapes alone."""
    training = tiny_training(**training_changes)
    model = blueprint(model_builder(tiny_model("llama3", vocab_size=VOCAB, num_layers=num_layers)))
    placement = place(plan, make_mesh(plan, jax.devices()[: plan.num_devices]), model.description)
    schedule = learning_rate(training.schedule, peak=1e-2, steps=training.steps)
    stored = placement.stored(model.description)
    optimizer = make_optimizer(training.optimizer, schedule, stored)
    specs = state_specs(stored, optimizer, averaged=False)
    rows = jax.ShapeDtypeStruct(
        (ROWS, LENGTH), jnp.int32, sharding=batch_sharding(placement, ROWS, LENGTH)
    )
    batch = dict.fromkeys(("tokens", "targets", "positions", "segment_ids"), rows)
    step = jax.jit(
        make_train_step(model, placement, optimizer, schedule, training),
        donate_argnums=0,
        out_shardings=(state_shardings(specs, placement), placement.replicated()),
    )
    with jax.set_mesh(placement.mesh):
        return step.lower(abstract_state(specs, placement), batch).compile()


def reductions(text: str) -> dict[str, int]:
    """Number of all-reduce and reduce-scatter operations by the computation that holds them."""
    found: dict[str, int] = {}
    name = ""
    for line in text.splitlines():
        header = re.match(r"^(ENTRY )?%?([\w.-]+) .*\{$", line)
        name = ("ENTRY" if header[1] else header[2]) if header else name
        found[name] = found.get(name, 0) + len(
            re.findall(r" (?:all-reduce|reduce-scatter)(?:-start)?\(", line)
        )
    return {name: count for name, count in found.items() if count}


def test_accumulation_over_replicas_reduces_once_a_step() -> None:
    """Four passes on data 8: every reduction stands behind the loop, and all gradients and sums share them."""
    found = reductions(compiled(Plan(data=8, microbatches=2)).as_text())
    assert found == {"ENTRY": 1}


PIPELINED = Plan(pipeline=2, data=2, fsdp=2, microbatches=4)


def test_a_pipeline_reduces_once_a_step() -> None:
    """Gradients over data and fsdp, tables over stages too: all behind the loop over ticks. No branch holds any."""
    text = compiled(PIPELINED, num_layers=5).as_text()
    assert set(reductions(text)) == {"ENTRY"}
    assert text.count(" collective-permute(") == 2


def test_a_pipeline_gathers_parameters_before_its_loop_and_activations_never() -> None:
    """Every gather is of a parameter, in the entry computation."""
    text = compiled(PIPELINED, num_layers=5).as_text()
    entry = text[text.index("\nENTRY ") :]
    assert text.count(" all-gather(") == entry.count(" all-gather(") > 0


def test_a_pipeline_reuses_every_buffer_of_the_state() -> None:
    """Donated, and without the warning that some could not be; 3 + 2 layers are stored as 3 + 3."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory = compiled(PIPELINED, num_layers=5).memory_analysis()
    state_bytes = memory.argument_size_in_bytes - 4 * 4 * ROWS * LENGTH // 4
    assert memory.alias_size_in_bytes >= 0.99 * state_bytes


def test_logits_of_all_tokens_never_exist() -> None:
    """256 tokens in chunks of 24: [24 or fewer, 72] is there, no array has 72 columns for 256 tokens."""
    text = compiled(Plan(), loss_chunk=24).as_text()
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", text)}
    sizes = [shape for shape in shapes if shape[-1] == VOCAB and len(shape) > 1]
    widest = max(_tokens(shape) for shape in sizes)
    assert widest < ROWS * LENGTH, sorted(sizes)


def _tokens(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape[:-1]:
        count *= size
    return count


def test_every_buffer_of_the_state_is_reused() -> None:
    memory = compiled(Plan()).memory_analysis()
    state_bytes = memory.argument_size_in_bytes - 4 * 4 * ROWS * LENGTH
    assert memory.alias_size_in_bytes >= 0.99 * state_bytes


@pytest.mark.parametrize("remat", ["full", "dots", "minimal"])
def test_rematerialization_needs_less_memory(remat: str) -> None:
    plain = compiled(Plan()).memory_analysis().temp_size_in_bytes
    assert compiled(Plan(remat=remat)).memory_analysis().temp_size_in_bytes < plain


@pytest.mark.parametrize(("remat", "times"), [("full", 3), ("dots", 2), ("minimal", 2)])
def test_attention_runs_forward_once_where_the_policy_keeps_it(remat: str, times: int) -> None:
    """Probabilities are formed in the forward pass and in the backward pass, and by `full` once more between them."""
    model = blueprint(model_builder(tiny_model("llama3", vocab_size=VOCAB)))
    plan = Plan(remat=remat)
    context = place(plan, make_mesh(plan, jax.devices()[:1]), model.description).forward_context()

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        with use_forward_context(context):
            return bind(model, params)(tokens).sum()

    params = {p: jax.ShapeDtypeStruct(s.shape, s.dtype) for p, s in model.description.items()}
    tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    traced = jax.make_jaxpr(jax.grad(loss))(params, tokens).jaxpr
    scores = [
        e for e in equations(traced) if e.primitive.name == "exp" and e.outvars[0].aval.ndim == 5
    ]
    assert len(scores) == times


def test_a_policy_that_would_keep_nothing_is_an_error() -> None:
    from jaxscale.parallel.remat import wrap_block

    with pytest.raises(
        PlacementError, match=r"plan.remat=minimal needs attention .* which this block has not"
    ):
        wrap_block("minimal")(jnp.sin)(jnp.ones(3))
