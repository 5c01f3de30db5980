"""One runtime for every schedule: a scan over the ticks of its table, inside a map that is manual over `pipeline`.

In a tick a stage runs at most one forward pass, one backward pass and some weight gradients, each under a conditional
whose predicate differs between stages; then outputs move one stage on and gradients one stage back. Both sends stand
outside the conditionals, so all stages meet in them. Forward and backward passes share the loop and gradients are added
up in its carry: nothing of hidden size grows with the number of microbatches but what the schedule itself keeps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.parallel.pipeline.layers import layer_kinds, plain_kinds
from jaxscale.parallel.pipeline.passes import (
    Carry,
    Model,
    Stage,
    backward_phase,
    forward_phase,
    weight_phase,
)
from jaxscale.parallel.pipeline.program import Program
from jaxscale.parallel.pipeline.rings import number_like, put
from jaxscale.parallel.pipeline.split import Arrays
from jaxscale.parallel.pipeline.sums import both, gradients_of, no_gradient

AXIS = "pipeline"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Results:
    """Of one stage: sums over its microbatches. The stages' add up, but for `layers`, which are each stage's own.

    layers, shared: gradients of the summed loss, auxiliary losses included. sums: of the loss, at the last stage.
    """

    layers: Any
    shared: Any
    sums: Any
    auxiliary: jax.Array


def run_schedule(
    program: Program,
    model: Model,
    places: np.ndarray,
    layers: Any,
    shared: Any,
    microbatches: Any,
    *,
    idle: float = 0.0,
) -> Results:
    """All passes of a step on this stage; to be called where `pipeline` is a manual axis.

    program: of a table without backward passes to evaluate only; then no gradients are returned.
    places: [stages, chunks, slots], the kind of layer in every place, SKIP for none. layers: this stage's parameters,
    stacked in that order. shared: the other parameters, whole on every stage. microbatches: stacked along dim 0.
    idle: what conditionals give, and rings begin with, where nothing was computed; it must not matter.
    """
    stage_index = jax.lax.axis_index(AXIS)
    stages, chunks, slots = places.shape
    first = jax.tree.map(lambda rows: rows[0], microbatches)
    prepared = jax.eval_shape(model.prepare, first)
    x = jax.eval_shape(model.embed, shared, first)
    one_layer = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), layers)
    uneven, trains = bool((places < 0).any()), bool(program.columns["b_on"].any())
    kinds = (
        layer_kinds(model.layers, one_layer, prepared, x, uneven=uneven)
        if trains
        else plain_kinds(model.layers, uneven=uneven)
    )
    stage = Stage(
        model=model,
        kinds=kinds,
        places=jnp.asarray(places.reshape(stages, -1))[stage_index],
        slots=slots,
        layers=layers,
        shared=shared,
        microbatches=microbatches,
        is_first=stage_index == 0,
        is_last=stage_index == stages - 1,
        chunks=chunks,
        idle=idle,
    )
    columns = {
        name: jnp.asarray(column)[:, stage_index] for name, column in program.columns.items()
    }
    tick = partial(_tick, stage, stages=stages, trains=trains)
    carry, _ = jax.lax.scan(tick, _start(stage, program, x, trains=trains), columns)
    total = both(carry.embedding, carry.head, shared) if trains else ()
    return Results(carry.layers, total, carry.sums, carry.auxiliary)


def _start(stage: Stage, program: Program, x: Any, *, trains: bool) -> Carry:
    def ring(slots: int, like: Any) -> jax.Array:
        return jnp.full((slots, *like.shape), number_like(like, stage.idle))

    def chunk_rings(slots: int, shapes: Any) -> Arrays:
        return tuple(
            ring(slots, jax.ShapeDtypeStruct((stage.slots, *shape.shape), shape.dtype))
            for shape in shapes
        )

    splits, model = program.table.splits_backward, stage.model
    first = stage.microbatch(jnp.int32(0))
    _, sums = jax.eval_shape(model.loss, stage.shared, x, first)
    by_embedding = gradients_of(model.embed, stage.shared, first) if trains else []
    by_head = gradients_of(model.loss, stage.shared, x, first) if trains else []
    return Carry(
        inbox=ring(program.inbox_slots, x),
        gradient=ring(program.gradient_slots if trains else 0, x),
        residuals=chunk_rings(program.residual_slots, stage.kinds.residuals),
        pending=chunk_rings(program.pending_slots, stage.kinds.pending) if splits else (),
        layers=no_gradient(stage.layers) if trains else (),
        embedding=by_embedding,
        head=by_head,
        sums=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sums),
        auxiliary=jnp.zeros((), jnp.float32),
    )


def _tick(
    stage: Stage, carry: Carry, row: Mapping[str, jax.Array], *, stages: int, trains: bool
) -> tuple[Carry, None]:
    carry, y = forward_phase(stage, carry, row, trains=trains)
    if trains:
        carry, dx = backward_phase(stage, carry, row)
        carry = weight_phase(stage, carry, row)
        back = [((k + 1) % stages, k) for k in range(stages)]
        arrived = jax.lax.ppermute(dx, AXIS, back)
        carry = replace(carry, gradient=put(carry.gradient, row["b_arrival"], arrived))
    on = [(k, (k + 1) % stages) for k in range(stages)]
    arrived = jax.lax.ppermute(y, AXIS, on)
    return replace(carry, inbox=put(carry.inbox, row["f_arrival"], arrived)), None
