"""Training with Pallas kernels, interpreted: the same losses as with XLA, on one device and on every mesh."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from few_steps import Course, distance, train
from tiny import packed_batch, tiny_model, tiny_training
from tiny_mixture import TinyMixture

from jaxscale.config.loading import load_config
from jaxscale.config.plan import Plan
from jaxscale.errors import UserError
from jaxscale.kernels.choice_table import choice_table
from jaxscale.kernels.registry import recording
from jaxscale.kernels.target import Target, reason_without
from jaxscale.models.build import model_builder
from jaxscale.models.context import use_forward_context
from jaxscale.models.description import Blueprint, blueprint
from jaxscale.models.products import fused_mlp
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.placement import place
from jaxscale.training.batches import batch_sharding, place_batch
from jaxscale.training.kernel_choices import kernel_choices
from jaxscale.training.optimizers import make_optimizer
from jaxscale.training.schedules import learning_rate
from jaxscale.training.state import init_state, state_shardings, state_specs
from jaxscale.training.step import compile_step, make_train_step

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
KERNELS = {"matmul": "interpret_tpu", "glu": "interpret_tpu"}
HOPPER = dict.fromkeys(["glu", "linear_cross_entropy", "matmul"], "interpret_gpu")
# Every op that has a kernel for TPUs, and its name.
PALLAS = {
    "attention": "pallas_splash",
    "glu": "pallas_tpu",
    "linear_cross_entropy": "pallas_tpu",
    "matmul": "pallas_tpu",
    "ragged_matmul": "pallas_tpu",
}
# Relative changes of the first parameters: a unit in the last place of float32 is 2**-23 to 2**-24 of a number.
NUDGES = [2**-22, 2**-21, 2**-20, -(2**-22)]
# `full` and `dots` meet kernels in a checkpoint; microbatches in a vmap over replicas; a pipeline in another map.
LAYOUTS = {
    "fsdp and tensor": {"fsdp": 2, "tensor": 2, "remat": "dots"},
    "replicas and tensor": {"data": 2, "tensor": 2, "microbatches": 2},
    "stages and fsdp": {"pipeline": 2, "fsdp": 2, "microbatches": 2, "remat": "full"},
}


@pytest.mark.slow
def test_a_hundred_steps_with_every_kernel_lose_as_with_xla() -> None:
    model = blueprint(TinyMixture)
    forced = dict.fromkeys(PALLAS, "interpret_tpu")
    with recording() as choices:
        (ours,) = _courses(model, Plan(kernels=forced), nudges=[0])
    assert {c.op: c.name for c in choices} == PALLAS
    xla, *nudged = _courses(model, Plan(), nudges=[0, *NUDGES])
    assert xla[-1, 0] < 0.05 * xla[0, 0]
    # How far training carries rounding: the same step from parameters that were moved once by a few units in the last
    # place. One such course is a single draw, a few times apart from the next; kernels round each of their sums in
    # every step, so they may do four times the farthest (they did 0.3 and 0.4, on JAX 0.10 and 0.12).
    spread = np.max([abs(course / xla - 1) for course in nudged], axis=(0, 1))
    assert (spread < 1e-2).all()
    assert (abs(ours / xla - 1).max(axis=0) < 4 * spread).all()
    # While nothing has grown: some ten units in the last place of the loss, and of the norm, which is a long sum.
    np.testing.assert_allclose(ours[:10, 0], xla[:10, 0], rtol=1e-6)
    np.testing.assert_allclose(ours[:10, 1], xla[:10, 1], rtol=1e-5)


def _courses(model: Blueprint, plan: Plan, nudges: list[float]) -> list[np.ndarray]:
    """Losses and gradient norms of a hundred steps, for each relative change of the first parameters."""
    training = tiny_training(steps=100, global_batch=2, loss_chunk=96)
    placement = place(plan, make_mesh(plan, jax.devices()[:1]), model.description)
    schedule = learning_rate(training.schedule, peak=1e-2, steps=training.steps)
    optimizer = make_optimizer(training.optimizer, schedule, model.description)
    shardings = state_shardings(
        state_specs(model.description, optimizer, averaged=False), placement
    )
    step = compile_step(
        make_train_step(model, placement, optimizer, schedule, training), shardings, placement
    )
    sharding = batch_sharding(placement, 2, 128)
    courses = []
    for nudge in nudges:
        state = init_state(model, optimizer, placement, seed=0, averaged=False)
        state = replace(state, params={k: _nudged(v, nudge) for k, v in state.params.items()})
        course = []
        for index in range(training.steps):
            # 128 tokens a row: what splash attention takes at least.
            batch = place_batch(packed_batch(index % 2, rows=2, length=128), sharding, 2)
            state, metrics = step(state, batch)
            course.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        courses.append(np.array(course))
    return courses


def _nudged(values: jax.Array, by: float) -> jax.Array:
    signs = np.random.default_rng(0).choice(np.float32([-1, 1]), values.shape)
    return values * (1 + by * signs)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mesh_trains_as_one_device_does(layout: str, alone: Course) -> None:
    model = blueprint(model_builder(tiny_model("llama3")))
    plan = Plan(**LAYOUTS[layout], kernels=KERNELS)
    losses, _, updates, _ = train(model, plan, tiny_training(), steps=2, first=alone.first)
    np.testing.assert_allclose(losses, alone.losses, rtol=1e-5)
    for path, update in alone.updates.items():
        # Adam divides by the root of the second moment: small gradients keep their relative errors, about 1e-5.
        assert distance(updates[path], update) < 1e-2, path


def test_a_step_with_hopper_kernels_is_as_exact_as_with_xla() -> None:
    """In bfloat16, which they multiply, over fp32 parameters; what a step in fp32 does is the truth."""
    reason = reason_without(Target("gpu", "NVIDIA H200", interpreted=True))
    if reason is not None:
        pytest.skip(reason)
    model = blueprint(model_builder(tiny_model("llama3", num_layers=1)))
    training = tiny_training(loss_chunk=256)
    exact = train(model, Plan(), training, steps=1)
    narrow = partial(train, model, training=training, steps=1, first=exact.first)
    xla = narrow(plan=Plan(precision="bfloat16"))
    with recording() as choices:
        ours = narrow(plan=Plan(precision="bfloat16", kernels=HOPPER))
    assert {c.name for c in choices if c.op in HOPPER} == {"pallas_gpu"}
    for name in ("losses", "norms"):
        (truth,), (theirs,), (found,) = (getattr(course, name) for course in (exact, xla, ours))
        # A few roundings of bfloat16's eight bits, of many thousands, that fall the other way.
        assert abs(found - truth) <= 1.5 * abs(theirs - truth) + 2**-10 * abs(truth), name


def test_gathered_weights_are_gathered_again_not_kept() -> None:
    """What the backward pass is given of each layer: its operands as they are stored, and named sums."""
    model = blueprint(model_builder(tiny_model("llama3")))
    plan = Plan(fsdp=2, tensor=2, kernels=KERNELS)
    placement = place(plan, make_mesh(plan, jax.devices()[:4]), model.description)
    x, inward, outward = (
        jax.ShapeDtypeStruct(s, "float32") for s in ((8, 16, 32), (32, 64), (64, 32))
    )

    def saved(*operands: jax.Array) -> Any:
        return jax.vjp(lambda *a: fused_mlp(*a, "silu"), *operands)[1]

    with jax.set_mesh(placement.mesh), use_forward_context(placement.forward_context()):
        kept = jax.eval_shape(saved, x, inward, inward, outward)
    # Gate and up are 64 rows by 32 columns on each of four devices.
    sums = [(4 * 64, 32)] * 2
    shapes = [(8, 16, 32), (32, 64), (32, 64), (64, 32), *sums]
    assert sorted(a.shape for a in jax.tree.leaves(kept)) == sorted(shapes)


@pytest.fixture(scope="module")
def alone() -> Course:
    """Two steps on one device, by XLA."""
    model = blueprint(model_builder(tiny_model("llama3")))
    return train(model, Plan(), tiny_training(), steps=2)


@pytest.mark.parametrize(
    "target", [Target("cpu", "cpu"), Target("tpu", "TPU v5"), Target("gpu", "NVIDIA H200")]
)
def test_nothing_unmeasured_is_chosen(target: Target) -> None:
    choices = kernel_choices(load_config(QUICKSTART), Plan(fsdp=8, tensor=2), target)
    products = [choice for choice in choices if choice.op in KERNELS]
    assert {choice.name for choice in products} == {"xla"}
    # Of 16 rows of 256 tokens on 8 devices, 512 are here; tensor halves heads and the hidden layer.
    assert "nn bfloat16 m=512 n=96 k=192" in {
        c.call.replace("float32", "bfloat16") for c in products
    }


def test_what_is_chosen_elsewhere_can_be_asked_without_being_there() -> None:
    plan = Plan(fsdp=8, kernels={"matmul": "pallas", "glu": "pallas"})
    choices = kernel_choices(load_config(QUICKSTART), plan, Target("gpu", "NVIDIA H200"))
    table = choice_table(choices)
    assert re.search(r"matmul +pallas_gpu +\d+ calls +asked for", table)
    assert re.search(r"glu +pallas_gpu +2 calls +asked for", table)


def test_a_kernel_that_declines_ends_the_run_with_its_reason() -> None:
    plan = Plan(kernels={"matmul": "pallas"})
    with pytest.raises(UserError, match=r"matmul of nn float32 .* needs a TPU, and this is cpu"):
        kernel_choices(load_config(QUICKSTART), plan, Target("cpu", "cpu"))


def test_an_unknown_op_is_an_error_of_the_plan() -> None:
    with pytest.raises(ValueError, match="no op is called matmull; there are attention"):
        Plan(kernels={"matmull": "xla"})


def test_choices_cost_no_device() -> None:
    before = len(jax.live_arrays())
    kernel_choices(load_config(QUICKSTART), Plan(fsdp=4), Target("tpu", "TPU v5 lite"))
    assert len(jax.live_arrays()) == before
