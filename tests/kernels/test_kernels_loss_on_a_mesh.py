"""The fused loss in a train step over `fsdp` and `tensor`: what becomes of the sum of its table's gradient."""

from pathlib import Path
from typing import Any

import jax
import pytest

from jaxscale.config.loading import load_config
from jaxscale.config.plan import Plan
from jaxscale.parallel.errors import NotDivisible, PlacementError
from jaxscale.training.lowering import lower_step

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
# Chunks of another number of tokens than a device has rows of the table.
SMALL = ["model.num_layers=1", "model.num_kv_heads=6", "training.loss_chunk=512"]


def test_the_sum_of_the_tables_gradient_is_scattered_to_where_it_is_stored() -> None:
    """Never summed whole on every device: rows of 192 become the 96 that a device stores."""
    config = load_config(QUICKSTART, SMALL)
    step = lower_step(config, Plan(fsdp=2, tensor=2), jax.devices()[:4]).as_text()
    # The types behind the region of a collective.
    assert "}) : (tensor<1024x192xf32>) -> tensor<1024x96xf32>" in step
    assert "}) : (tensor<1024x192xf32>) -> tensor<1024x192xf32>" not in step


def test_logits_split_over_fsdp_too_leave_the_table_where_it_is() -> None:
    """A device's 1024 x 96 of the table become 512 x 192, and the tokens of a chunk meet there."""
    config = load_config(QUICKSTART, SMALL)
    plan = Plan(fsdp=2, tensor=2, rules={"vocab_activation": "fsdp"})
    step = lower_step(config, plan, jax.devices()[:4]).as_text()
    assert "(tensor<1024x96xf32>) -> tensor<512x192xf32>" in step
    assert "(tensor<512x192xf32>) -> tensor<1024x96xf32>" in step
    assert "tensor<1024x192xf32>" not in step
    # Chunks of 512 tokens, 256 of each of two devices; gathered, and their gradient scattered again.
    assert "(tensor<256x192xf32>) -> tensor<512x192xf32>" in step
    assert "(tensor<512x192xf32>) -> tensor<256x192xf32>" in step


@pytest.mark.parametrize(
    ("plan", "error", "words"),
    [
        ({"tensor": 2, "rules": {"vocab_activation": "tensor"}}, PlacementError, "(fsdp)"),
        ({"data": 2, "rules": {"vocab_activation": "data"}}, PlacementError, "is data"),
        (
            {"fsdp": 3, "tensor": 2, "rules": {"vocab_activation": "fsdp"}},
            NotDivisible,
            "size 2048 does not divide over tensor=2 x fsdp=3",
        ),
        (
            {"pipeline": 2, "microbatches": 2, "rules": {"vocab_activation": "fsdp"}},
            PlacementError,
            "plan.pipeline to 1",
        ),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(
    plan: dict[str, Any], error: type[Exception], words: str
) -> None:
    config = load_config(QUICKSTART, [*SMALL, "model.num_layers=2", "training.global_batch=12"])
    chosen = Plan(**{"fsdp": 2, **plan})
    with pytest.raises(error, match=words):
        lower_step(config, chosen, jax.devices()[: chosen.num_devices])
