"""Pipelined training is training: the same numbers, by every schedule, and what the program does on its way."""

from typing import Any

import jax
import numpy as np
import pytest
from few_steps import WITHOUT_GRADIENT, Course, distance, train
from flax import nnx
from tiny import FAMILIES, packed_batch, tiny_model, tiny_training

from jaxscale.config.plan import Plan
from jaxscale.errors import UserError
from jaxscale.models.build import model_builder
from jaxscale.models.description import Blueprint, blueprint, init_params
from jaxscale.models.staged import staged
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.placement import place
from jaxscale.training.batches import batch_sharding, place_batch
from jaxscale.training.evaluation import make_evaluation_step
from jaxscale.training.stage_order import in_model_order, in_stage_order
from jaxscale.training.step import batch_gradient

# Five layers do not divide by 2 or 4, and Gemma's alternating windows make two kinds of layers.
NUM_LAYERS = 5
PLANS: dict[str, dict[str, Any]] = {
    "gpt2": {"pipeline": 4, "schedule": "zb-h1", "remat": "full"},
    "llama3": {"pipeline": 2, "fsdp": 2, "tensor": 2},
    "mistral": {"pipeline": 2, "schedule": "interleaved", "virtual_stages": 2, "tensor": 2},
    "qwen2": {"pipeline": 2, "data": 2, "fsdp": 2, "schedule": "zb-h1"},
    "qwen3": {"pipeline": 4, "schedule": "gpipe", "remat": "minimal", "data": 2},
    "gemma2": {"pipeline": 2, "tensor": 2, "schedule": "zb-h1", "remat": "dots"},
    "gemma3": {"pipeline": 4, "stage_layers": [1, 2, 1, 1], "fsdp": 2},
}

CLIPPED = tiny_training(clip_norm=0.1)


def gradients(model: Any, plan: Plan, host: Any) -> tuple[dict[str, np.ndarray], Any, Any]:
    """(gradient of the summed loss, layers in the model's order; its sums; the sums of an evaluation)."""
    placement = place(plan, make_mesh(plan, jax.devices()[: plan.num_devices]), model.description)
    specs = dict(placement.stored(model.description))
    params = jax.device_put(
        init_params(model, jax.random.key(0)), placement.unstaged().shardings(model.description)
    )
    stored = in_stage_order(params, specs, placement)
    rows = place_batch(host, batch_sharding(placement, 16, 16), 16)
    with jax.set_mesh(placement.mesh):
        step = jax.jit(batch_gradient(model, placement, tiny_training()))
        found, sums = step(stored, rows, jax.random.key(1))
    evaluated = make_evaluation_step(model, placement, tiny_training())(stored, rows)
    ordered = in_model_order(found, specs, placement)
    return {path: np.asarray(value) for path, value in ordered.items()}, sums, evaluated


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_pipelines_to_the_same_gradient(family: str) -> None:
    """Against one device that adds up the same 4 microbatches: documents of different lengths, z-loss, tied or untied.

    Sums over 16 tokens and up to 64 features in fp32 differ by their order where axes split them: 2e-6 of a leaf's
    2-norm leaves a factor of 4 over what was found. A gradient without one microbatch is off by 0.2.
    """
    model = blueprint(model_builder(tiny_model(family, num_layers=NUM_LAYERS)))
    plan = Plan.model_validate({"microbatches": 4, **PLANS[family]})
    # Written out, five layers take twice as long to compile.
    alone = Plan(microbatches=4, layer_unroll=1)
    wanted, sums, evaluated = gradients(model, alone, packed_batch(0))
    found, found_sums, found_evaluated = gradients(model, plan, packed_batch(0))
    for a, b in zip((found_sums, found_evaluated), (sums, evaluated), strict=True):
        np.testing.assert_allclose(jax.tree.leaves(a), jax.tree.leaves(b), rtol=1e-6)
    for path, gradient in wanted.items():
        if (family, path) not in WITHOUT_GRADIENT:
            assert distance(found[path], gradient) < 2e-6, path


@pytest.fixture(scope="module")
def llama() -> Blueprint:
    return blueprint(model_builder(tiny_model("llama3", num_layers=NUM_LAYERS)))


@pytest.fixture(scope="module")
def unstaged(llama: Blueprint) -> Course:
    """Two steps on one device."""
    return train(llama, Plan(microbatches=4, layer_unroll=1), CLIPPED, steps=2)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "zb-h1", "interleaved"])
def test_steps_clip_and_update_alike_by_every_schedule(
    schedule: str, llama: Blueprint, unstaged: Course
) -> None:
    """Two steps of AdamW, clipped: losses, gradient norms (so the factor of clipping), and parameters.

    AdamW's updates of near-zero gradients are rounding error: see the layouts' test.
    """
    stages, chunks = (2, 2) if schedule == "interleaved" else (4, 1)
    plan = {"pipeline": stages, "virtual_stages": chunks, "schedule": schedule, "microbatches": 4}
    found = train(llama, Plan.model_validate(plan), CLIPPED, steps=2)
    assert min(unstaged.norms) > CLIPPED.clip_norm
    np.testing.assert_allclose(found.losses, unstaged.losses, rtol=1e-6)
    np.testing.assert_allclose(found.norms, unstaged.norms, rtol=1e-6)
    for path, update in unstaged.updates.items():
        assert distance(found.updates[path], update) < 1e-3, path


class Alone(nnx.Module):
    """A module whose layers nobody knows."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.Param(rngs.params.normal((4, 8)), axes=("layers", "embed"))


def test_a_module_of_ones_own_is_refused() -> None:
    def build(rngs: nnx.Rngs) -> nnx.Module:
        return Alone(rngs)

    model = blueprint(build)
    with pytest.raises(UserError, match="Alone cannot be pipelined"):
        staged(model)
