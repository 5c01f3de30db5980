"""The fused loss in a train step over `fsdp` and `tensor`: what becomes of the sum of its table's gradient."""

from pathlib import Path

import jax

from jaxscale.config.loading import load_config
from jaxscale.config.plan import Plan
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
