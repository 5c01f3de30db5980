"""A layer that `tensor` splits moves what is written: counted in the compiled step, per layer and in bytes."""

import pytest

from jaxscale.config.plan import Plan, Remat
from jaxscale.config.run import RunConfig
from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.parallel.topology import abstract_devices
from jaxscale.planner.hlo.collectives import Collective
from jaxscale.planner.verification.compiled import compile_facts
from jaxscale.training.lowering import abstract_job

LAYERS, ROWS, SEQUENCE, EMBED = 3, 4, 128, 64
# An axis of four divides queries' and keys' heads.
HEADS = {"num_heads": 4, "num_kv_heads": 4, "head_dim": 16}


def collectives(plan: Plan) -> tuple[Collective, ...]:
    config = RunConfig.model_validate(
        {
            "model": {
                "family": "llama3",
                "vocab_size": 128,
                "max_positions": SEQUENCE,
                "num_layers": LAYERS,
                "embed_dim": EMBED,
                "mlp_dim": 192,
                **HEADS,
            },
            "data": {"sequence_length": SEQUENCE},
            "training": {"steps": 10, "global_batch": ROWS},
        }
    )
    devices = abstract_devices(parse_cluster(f"cpu:{plan.num_devices}"))
    job = abstract_job(config, plan, devices)
    return compile_facts(job.lower, plan.mesh_shape).collectives


def streams(found: tuple[Collective, ...], kind: str, rows: int) -> float:
    """How often a step moves the residual stream of these rows over `tensor` by a kind of collective."""
    size = rows * SEQUENCE * EMBED * 4
    ours = [one for one in found if one.axes == ("tensor",) and one.kind == kind]
    return sum(one.count for one in ours if one.bytes_each == size)


@pytest.mark.parametrize(("remat", "scatters"), [("dots", 4), ("full", 5)])
def test_a_layer_gathers_its_input_once_for_all_its_products(remat: Remat, scatters: int) -> None:
    """As Korthikanti et al. 2022 (section 4.2.2): a gather before each half of a layer and a scatter
    behind it, the same for gradients, and the input gathered again for the weights' gradients. What is computed again
    scatters once more, for what stands behind attention; `dots` keeps that sum, not the larger part of a device.
    """
    found = collectives(Plan(tensor=4, remat=remat))
    ends = 1  # The head's input.
    assert streams(found, "all-gather", ROWS) == 6 * LAYERS + ends
    assert streams(found, "reduce-scatter", ROWS) == scatters * LAYERS
    # The embedding's rows, and the gradient of the head's input.
    assert streams(found, "all-reduce", ROWS) <= 2


def test_beside_fsdp_weights_are_gathered_twice_and_their_gradients_scattered() -> None:
    """7 matrices of a layer, each gathered forward and backward and its gradient scattered: bytes, not counts."""
    found = collectives(Plan(fsdp=2, tensor=2, remat="full"))
    wide = HEADS["num_heads"] * HEADS["head_dim"]
    layer = (4 * EMBED * wide + 3 * EMBED * 192) * 4 / 2
    of_layers = [one for one in found if one.axes == ("fsdp",) and one.count % LAYERS == 0]
    moved = {
        kind: sum(one.num_bytes for one in of_layers if one.kind == kind)
        for kind in ("all-gather", "reduce-scatter", "all-reduce")
    }
    assert moved["all-gather"] == 2 * LAYERS * layer
    assert moved["reduce-scatter"] == LAYERS * layer
    assert moved["all-reduce"] == 2 * LAYERS * EMBED * 4  # Scales of norms, which nothing splits.


def test_key_heads_that_no_axis_splits_are_projected_on_every_device() -> None:
    """A rule keeps them whole: their products have no part of a sum. Attention gathers keys and values, and no more."""
    found = collectives(Plan(tensor=4, rules={"kv_heads": None}))
    assert streams(found, "all-gather", ROWS) == (6 + 2) * LAYERS + 1
    assert streams(found, "reduce-scatter", ROWS) == 4 * LAYERS
