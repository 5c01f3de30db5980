"""A model small enough to pipeline in a second, written twice: in parts, and layer after layer."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxscale.parallel.pipeline.layers import SKIP
from jaxscale.parallel.pipeline.passes import Model
from jaxscale.parallel.pipeline.program import make_program
from jaxscale.parallel.pipeline.runtime import run_schedule
from jaxscale.parallel.pipeline.schedules import make_table
from jaxscale.parallel.pipeline.stages import StageLayout, balanced

NUM_LAYERS, WIDTH, HIDDEN, ROWS, VOCAB = 17, 8, 12, 16, 11


def mixing(params: Any, prepared: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A gated layer with an auxiliary loss; `prepared` shifts its input. Zero parameters do not make it nothing."""
    hidden = jnp.tanh((x + prepared) @ params["up"]) * jax.nn.sigmoid(x @ params["gate"])
    return 0.9 * x + hidden @ params["down"] * params["scale"], 1e-2 * jnp.sum(hidden**2)


def halving(params: Any, prepared: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A layer of another kind, which keeps other things for its backward pass and no auxiliary loss."""
    hidden = jnp.sin(x @ params["up"] + x @ params["gate"])
    return 0.9 * x + hidden @ params["down"] + prepared, jnp.zeros((), jnp.float32)


def embed(shared: Any, rows: Any) -> jax.Array:
    return jnp.take(shared["table"], rows["tokens"], axis=0)


def loss(shared: Any, x: jax.Array, rows: Any) -> tuple[jax.Array, Any]:
    """Squared distance of tied logits to a one-hot target, over the tokens that are not masked."""
    logits = (x * shared["norm"]) @ shared["table"].T
    wanted = jax.nn.one_hot(rows["tokens"], VOCAB)
    total = jnp.sum(rows["mask"] * jnp.sum((logits - wanted) ** 2, -1))
    return total, {"loss": total, "weight": jnp.sum(rows["mask"])}


def prepare(rows: Any) -> jax.Array:
    return 0.1 * jnp.cos(rows["tokens"][:, None].astype(jnp.float32))


TOY = Model(prepare=prepare, embed=embed, layers=(mixing, halving), loss=loss)


@dataclass(frozen=True)
class Case:
    schedule: str
    stages: int
    microbatches: int
    chunks: int = 1


def parameters() -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"up": (WIDTH, HIDDEN), "gate": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    layers = {
        name: 0.3 * jax.random.normal(key, (NUM_LAYERS, *shape))
        for key, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    layers["scale"] = jnp.linspace(0.5, 1.5, NUM_LAYERS)[:, None] * jnp.ones(WIDTH)
    table = jax.random.normal(keys[3], (VOCAB, WIDTH))
    return layers, {"table": table, "norm": jnp.linspace(0.8, 1.2, WIDTH)}


def batch(microbatches: int) -> Any:
    """Token masks of different weight in every microbatch, one of them all zero."""
    random = np.random.default_rng(1)
    mask = random.random((microbatches, ROWS)) < 0.6
    mask[microbatches // 2] = False
    tokens = random.integers(0, VOCAB, (microbatches, ROWS))
    return {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask, jnp.float32)}


def sequential(layers: Any, shared: Any, rows: Any) -> tuple[Any, Any]:
    """(total loss with auxiliary losses, gradients) layer after layer, microbatch after microbatch, added up."""

    def of_one(layers: Any, shared: Any, one: Any) -> jax.Array:
        x, total = embed(shared, one), jnp.zeros(())
        for index in range(NUM_LAYERS):
            layer = jax.tree.map(lambda stacked, index=index: stacked[index], layers)
            x, added = TOY.layers[index % 2](layer, prepare(one), x)
            total += added
        return total + loss(shared, x, one)[0]

    def add(sums: Any, one: Any) -> tuple[Any, None]:
        found = jax.value_and_grad(of_one, argnums=(0, 1))(layers, shared, one)
        return jax.tree.map(jnp.add, sums, found), None

    start = jnp.zeros(()), jax.tree.map(jnp.zeros_like, (layers, shared))
    return jax.lax.scan(add, start, rows)[0]


def pipelined(case: Case, layers: Any, shared: Any, rows: Any, *, idle: float = 0.0) -> Any:
    """The same through a schedule: (total loss, weight, gradients), layers in the model's order."""
    layout = layout_of(case)
    function = mapped(case, idle=idle)
    stored = jax.tree.map(layout.stored, layers)
    to_layers, to_shared, sums, auxiliary = jax.jit(function)(stored, shared, rows)
    return sums["loss"] + auxiliary, (jax.tree.map(layout.logical, to_layers), to_shared), sums


def layout_of(case: Case) -> StageLayout:
    chunks = case.stages * case.chunks
    return StageLayout(case.stages, case.chunks, balanced(NUM_LAYERS, chunks, 0.7))


def mapped(case: Case, *, idle: float = 0.0) -> Any:
    """The function of stored layers, shared parameters and microbatches that runs a schedule over devices."""
    layout = layout_of(case)
    kinds = np.array([*(layer % 2 for layer in range(NUM_LAYERS)), SKIP])
    table = make_table(
        case.schedule, stages=case.stages, microbatches=case.microbatches, chunks=case.chunks
    )
    devices = np.array(jax.devices()[: case.stages])
    mesh = Mesh(devices, ("pipeline",), axis_types=(AxisType.Auto,))
    own, everywhere = PartitionSpec("pipeline"), PartitionSpec()

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(own, everywhere, everywhere),
        out_specs=(own, everywhere, everywhere, everywhere),
        check_vma=False,
    )
    def run(layers: Any, shared: Any, rows: Any) -> Any:
        found = run_schedule(
            make_program(table), TOY, kinds[layout.layers], layers, shared, rows, idle=idle
        )
        total = jax.lax.psum((found.shared, found.sums, found.auxiliary), "pipeline")
        return found.layers, *total

    return run
