"""Training with Pallas kernels, interpreted: the same losses as with XLA, on one device and on every mesh."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from few_steps import distance, train
from tiny import tiny_model, tiny_training

from jaxscale.config.loading import load_config
from jaxscale.config.plan import Plan
from jaxscale.errors import UserError
from jaxscale.kernels.choice_table import choice_table
from jaxscale.kernels.registry import recording
from jaxscale.kernels.target import Target
from jaxscale.models.build import model_builder
from jaxscale.models.description import blueprint
from jaxscale.training.kernel_choices import kernel_choices

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
KERNELS = {"matmul": "interpret_tpu", "glu": "interpret_tpu"}
# `full` and `dots` meet kernels in a checkpoint; microbatches in a vmap over replicas; a pipeline in another map.
LAYOUTS = {
    "fsdp and tensor": {"fsdp": 2, "tensor": 2, "remat": "dots"},
    "replicas and tensor": {"data": 2, "tensor": 2, "microbatches": 2},
    "stages and fsdp": {"pipeline": 2, "fsdp": 2, "microbatches": 2, "remat": "full"},
}


@pytest.mark.slow
def test_a_hundred_steps_lose_as_with_xla() -> None:
    model = blueprint(model_builder(tiny_model("llama3")))
    training = tiny_training(steps=100)
    with recording() as choices:
        ours, *_ = train(model, Plan(kernels=KERNELS), training, steps=100)
    assert {c.name for c in choices if c.op in KERNELS} == {"pallas_tpu"}
    xla, *_ = train(model, Plan(), training, steps=100)
    assert ours[-1] < 0.5 * ours[0]
    # Two ways of summing fp32 products differ by about 1e-7; a hundred steps of Adam at 1e-2 may amplify that a
    # thousand times while the loss falls by half. A wrong gradient shows in the first digit.
    np.testing.assert_allclose(ours, xla, rtol=1e-3)
    np.testing.assert_allclose(ours[:10], xla[:10], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mesh_trains_as_one_device_does(layout: str, alone: tuple[Any, Any, Any]) -> None:
    model = blueprint(model_builder(tiny_model("llama3")))
    plan = Plan(**LAYOUTS[layout], kernels=KERNELS)
    losses, _, updates = train(model, plan, tiny_training(), steps=2)
    np.testing.assert_allclose(losses, alone[0], rtol=1e-5)
    for path, update in alone[2].items():
        # Adam divides by the root of the second moment: small gradients keep their relative errors, about 1e-5.
        assert distance(updates[path], update) < 1e-2, path


@pytest.fixture(scope="module")
def alone() -> tuple[Any, Any, Any]:
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
