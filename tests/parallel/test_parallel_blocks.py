"""A layer that `tensor` splits moves what is written: counted in the compiled step, per layer and in bytes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.config.model_section import ModelSection
from jaxscale.config.plan import Plan, Remat
from jaxscale.config.run import RunConfig
from jaxscale.hardware.catalogue import parse_cluster
from jaxscale.models.build import model_builder
from jaxscale.models.context import take_rows
from jaxscale.models.description import blueprint
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.placement import Placement, place
from jaxscale.parallel.topology import abstract_devices
from jaxscale.planner.hlo.collectives import Collective
from jaxscale.planner.verification.compiled import compile_facts
from jaxscale.training.lowering import abstract_job

LAYERS, ROWS, SEQUENCE, EMBED = 3, 4, 128, 64
VOCAB = 128
# An axis of four divides queries' and keys' heads.
HEADS = {"num_heads": 4, "num_kv_heads": 4, "head_dim": 16}


def collectives(plan: Plan) -> tuple[Collective, ...]:
    config = RunConfig.model_validate(
        {
            "model": {
                "family": "llama3",
                "vocab_size": VOCAB,
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
    # The head's input, and the gradient of the embedding's rows.
    assert streams(found, "all-gather", ROWS) == 6 * LAYERS + 2
    # The embedding's rows.
    assert streams(found, "reduce-scatter", ROWS) == scatters * LAYERS + 1
    # The gradient of the head's input.
    assert streams(found, "all-reduce", ROWS) == 1


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
    assert streams(found, "all-gather", ROWS) == (6 + 2) * LAYERS + 2
    assert streams(found, "reduce-scatter", ROWS) == 4 * LAYERS + 1


MESHES = (
    Plan(fsdp=4),
    Plan(data=2, fsdp=2),
    Plan(fsdp=2, tensor=2),
    Plan(fsdp=2, tensor=2, rules={"norm_sequence": None}),
    Plan(data=2, fsdp=2, tensor=2),
    Plan(tensor=4),
    Plan(data=4),
)


def placed(plan: Plan) -> Placement:
    model = {"family": "llama3", "vocab_size": VOCAB, "max_positions": 8, "num_layers": 1}
    section = ModelSection.model_validate({**model, "embed_dim": 8, "mlp_dim": 8, **HEADS})
    description = blueprint(model_builder(section)).description
    return place(plan, make_mesh(plan, jax.devices()[: plan.num_devices]), description)


@pytest.mark.parametrize("plan", MESHES, ids=str)
def test_rows_of_the_vocabulary_are_looked_up_as_on_one_device(plan: Plan) -> None:
    """Values and gradients of whole numbers, so no order of a sum matters; a row twice, negative ones, and one that the
    table does not have, which is NaN."""
    placement, rng = placed(plan), np.random.default_rng(0)
    table = jnp.asarray(rng.integers(-8, 8, (VOCAB, 8)), jnp.float32)
    rows = jnp.asarray(rng.integers(-VOCAB, VOCAB, (4, 8)), jnp.int32).at[0, :2].set(VOCAB - 1)
    beyond = rows.at[3, 3].set(VOCAB)
    weights = jnp.asarray(rng.integers(-4, 4, (4, 8, 8)), jnp.float32)

    def found_by(look_up: Any, table: jax.Array, *arrays: jax.Array) -> Any:
        def weighted(table: jax.Array, rows: jax.Array, weights: jax.Array) -> jax.Array:
            return jnp.sum(look_up(table, rows) * weights)

        rows, beyond, weights = arrays
        value, gradient = jax.value_and_grad(weighted)(table, rows, weights)
        return value, gradient, look_up(table, beyond)

    on_mesh = partial(found_by, placement.forward_context().on_blocks.look_up)
    with jax.set_mesh(placement.mesh):
        found = jax.jit(on_mesh)(table, rows, beyond, weights)
    wanted = found_by(take_rows, table, rows, beyond, weights)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert np.isnan(found[2]).sum() == 8


def test_devices_exchange_rows_of_the_embedding_and_never_its_table() -> None:
    """Over `fsdp` rows go there, and gradients back. Left to the compiler the whole gradient is summed over all devices
    of a mesh that has `data`, too (2 x 4 bytes an element of the table); over `data` a device's part is left."""
    found = collectives(Plan(data=2, fsdp=2, remat="full"))
    rows = ROWS // 4 * SEQUENCE * EMBED * 4
    exchanged = [one for one in found if one.kind == "all-to-all"]
    assert [(one.axes, one.num_bytes) for one in exchanged] == [(("fsdp",), 2 * rows)]
    table = VOCAB * EMBED * 4
    assert not [one for one in found if one.axes == ("data", "fsdp") and one.num_bytes >= table]
