"""What a stage does in a tick: a forward pass, a backward pass, weight gradients, each under its conditional."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.parallel.pipeline.layers import LayerKinds
from jaxscale.parallel.pipeline.rings import at, number_like, put, read, written
from jaxscale.parallel.pipeline.split import Arrays, Layer
from jaxscale.parallel.pipeline.sums import added, added_at


@dataclass(frozen=True)
class Model:
    """What the runtime asks of a model. A microbatch is a pytree of small arrays (token ids), cut off the batch.

    prepare(microbatch) -> what its layers read beside the residual stream
    embed(shared, microbatch) -> x, run by the first stage
    layers: (parameters of a layer, prepared, x) -> (x, auxiliary loss), by kind
    loss(shared, x, microbatch) -> (loss summed over tokens, sums), run by the last stage
    stream(x): x where the axes that are not manual split it; XLA wants all branches of a conditional to say the same
    """

    prepare: Callable[[Any], Any]
    embed: Callable[[Any, Any], jax.Array]
    layers: Sequence[Layer]
    loss: Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]
    stream: Callable[[jax.Array], jax.Array] = lambda x: x


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Carry:
    """Rings of [slots, ...] and what is added up. residuals and pending: [slots, places of a chunk, ...].

    layers: gradients by the stage's layers. embedding, head: gradients by the shared parameters that each reads, as
    leaves, None for the others. A table that both read has two: TPUs lay them out differently, and would turn one
    around in every tick.
    """

    inbox: jax.Array
    gradient: jax.Array
    residuals: Arrays
    pending: Arrays
    layers: Any
    embedding: list[Any]
    head: list[Any]
    sums: Any
    auxiliary: jax.Array


@dataclass(frozen=True)
class Stage:
    """What the passes of one stage read.

    places: kind of the layer in each place, [chunks * slots]. idle: what passes that do not run give.
    """

    model: Model
    kinds: LayerKinds
    places: jax.Array
    slots: int
    layers: Any
    shared: Any
    microbatches: Any
    is_first: jax.Array
    is_last: jax.Array
    chunks: int
    idle: float

    def microbatch(self, index: jax.Array) -> Any:
        return jax.tree.map(lambda rows: at(rows, index), self.microbatches)

    def place(self, chunk: jax.Array, slot: jax.Array) -> jax.Array:
        return chunk * self.slots + slot

    def layer(self, place: jax.Array) -> Any:
        return jax.tree.map(lambda stacked: at(stacked, place), self.layers)

    def filled(self, like: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.full(leaf.shape, number_like(leaf, self.idle)), like)

    def idle_stream(self, like: Any) -> jax.Array:
        return self.model.stream(jnp.full(like.shape, number_like(like, self.idle)))


def forward_phase(
    stage: Stage, carry: Carry, row: Mapping[str, jax.Array], *, trains: bool
) -> tuple[Carry, jax.Array]:
    """The forward pass of a tick, the embedding before it on the first stage and the loss behind it on the last.

    Returns what goes to the next stage. trains: whether the loss's gradient and residuals are kept.
    """
    chunk, stream = row["f_chunk"], stage.model.stream
    at_start = stage.is_first & (chunk == 0)
    at_end = stage.is_last & (chunk == stage.chunks - 1)

    def run(gradients: Any, sums: Any, auxiliary: jax.Array) -> Any:
        microbatch = stage.microbatch(row["f_microbatch"])
        x = jax.lax.cond(
            at_start,
            lambda: stream(stage.model.embed(stage.shared, microbatch)),
            lambda: stream(at(carry.inbox, row["f_inbox"])),
        )
        y, added, kept = _forward_chunk(stage, chunk, stage.model.prepare(microbatch), x)
        head = partial(_head, stage, y, microbatch, trains=trains)
        dy, gradients, sums = jax.lax.cond(
            at_end, head, lambda *same: (stage.idle_stream(y), *same), gradients, sums
        )
        return stream(y), stream(dy), kept, gradients, sums, auxiliary + added

    def skip(*same: Any) -> Any:
        y = stage.idle_stream(shapes[0])
        return y, y, stage.filled(shapes[2]), *same

    given = carry.head, carry.sums, carry.auxiliary
    shapes = jax.eval_shape(run, *given)
    y, dy, kept, gradients, sums, auxiliary = jax.lax.cond(row["f_on"] > 0, run, skip, *given)
    carry = replace(carry, head=gradients, sums=sums, auxiliary=auxiliary)
    if trains:
        carry = replace(
            carry,
            gradient=put(carry.gradient, row["f_gradient"], dy),
            residuals=written(carry.residuals, row["f_residual"], kept),
        )
    return carry, y


def _head(
    stage: Stage, y: jax.Array, microbatch: Any, gradients: Any, sums: Any, *, trains: bool
) -> Any:
    """(gradient by y, the head's gradients so far, sums so far) behind the last layer."""
    if not trains:
        _, new = stage.model.loss(stage.shared, y, microbatch)
        return stage.idle_stream(y), gradients, jax.tree.map(jnp.add, sums, new)
    gradient = jax.value_and_grad(stage.model.loss, argnums=(0, 1), has_aux=True)
    (_, new), (to_shared, dy) = gradient(stage.shared, y, microbatch)
    return stage.model.stream(dy), added(gradients, to_shared), jax.tree.map(jnp.add, sums, new)


def _forward_chunk(stage: Stage, chunk: jax.Array, prepared: Any, x: jax.Array) -> Any:
    def step(carried: Any, slot: jax.Array) -> tuple[Any, Arrays]:
        x, auxiliary = carried
        place = stage.place(chunk, slot)
        y, added, kept = stage.kinds.forward(stage.places[place], stage.layer(place), prepared, x)
        return (y, auxiliary + added), kept

    start = x, jnp.zeros((), jnp.float32)
    (y, auxiliary), kept = jax.lax.scan(step, start, jnp.arange(stage.slots))
    return y, auxiliary, kept


def backward_phase(
    stage: Stage, carry: Carry, row: Mapping[str, jax.Array]
) -> tuple[Carry, jax.Array]:
    """The backward pass of a tick, that of the input alone where it is split; returns what goes to the stage before."""
    at_start = stage.is_first & (row["b_chunk"] == 0)

    def run(layers: Any, gradients: Any) -> Any:
        microbatch = stage.microbatch(row["b_microbatch"])
        dy = at(carry.gradient, row["b_gradient"])
        layers, dx, pending = _backward_chunk(
            stage, carry, row, stage.model.prepare(microbatch), dy, layers
        )
        gradients = jax.lax.cond(
            at_start, partial(_embedding, stage, microbatch, dx), lambda same: same, gradients
        )
        return stage.model.stream(dx), pending, layers, gradients

    def skip(*same: Any) -> Any:
        return stage.idle_stream(shapes[0]), stage.filled(shapes[1]), *same

    given = carry.layers, carry.embedding
    shapes = jax.eval_shape(run, *given)
    dx, pending, layers, gradients = jax.lax.cond(row["b_on"] > 0, run, skip, *given)
    carry = replace(carry, layers=layers, embedding=gradients)
    if carry.pending:
        carry = replace(carry, pending=written(carry.pending, row["b_pending"], pending))
    return carry, dx


def _embedding(stage: Stage, microbatch: Any, dx: jax.Array, gradients: Any) -> Any:
    """The embedding's gradients so far."""
    _, pull_back = jax.vjp(lambda shared: stage.model.embed(shared, microbatch), stage.shared)
    return added(gradients, pull_back(dx)[0])


def _backward_chunk(
    stage: Stage,
    carry: Carry,
    row: Mapping[str, jax.Array],
    prepared: Any,
    dy: jax.Array,
    gradients: Any,
) -> Any:
    """(gradients by the stage's layers so far, gradient by the chunk's input, pending)."""
    splits, chunk = bool(carry.pending), row["b_chunk"]
    back = stage.kinds.input_gradient if splits else stage.kinds.backward

    def step(carried: Any, slot: jax.Array) -> tuple[Any, Arrays]:
        dy, gradients = carried
        place = stage.place(chunk, slot)
        kept = read(carry.residuals, row["b_residual"], slot)
        to_layer, dx, *pending = back(stage.places[place], stage.layer(place), prepared, kept, dy)
        # A list of leaves already where it has gaps.
        leaves = to_layer if splits else jax.tree.leaves(to_layer)
        return (dx, added_at(gradients, place, leaves)), pending[0] if splits else ()

    slots = jnp.arange(stage.slots)
    (dx, gradients), pending = jax.lax.scan(step, (dy, gradients), slots, reverse=True)
    return gradients, dx, pending


def weight_phase(stage: Stage, carry: Carry, row: Mapping[str, jax.Array]) -> Carry:
    """The weight gradients of a tick, one after another."""
    if not carry.pending:
        return carry
    gradients = carry.layers
    for index in range(row["w_on"].shape[0]):
        one = {name: column[index] for name, column in row.items() if name.startswith("w_")}
        run = partial(_weight_chunk, stage, carry, one)
        gradients = jax.lax.cond(one["w_on"] > 0, run, lambda same: same, gradients)
    return replace(carry, layers=gradients)


def _weight_chunk(stage: Stage, carry: Carry, row: Mapping[str, jax.Array], gradients: Any) -> Any:
    prepared = stage.model.prepare(stage.microbatch(row["w_microbatch"]))

    def step(gradients: Any, slot: jax.Array) -> tuple[Any, None]:
        place = stage.place(row["w_chunk"], slot)
        kept = read(carry.residuals, row["w_residual"], slot)
        pending = read(carry.pending, row["w_pending"], slot)
        to_layer = stage.kinds.weight_gradient(
            stage.places[place], stage.layer(place), prepared, kept, pending
        )
        return added_at(gradients, place, to_layer), None

    return jax.lax.scan(step, gradients, jnp.arange(stage.slots))[0]
