"""What the tables of the vocabulary move over the axes that share their columns, a microbatch.

Our trainer never gathers the embedding: a device looks its columns up for all devices that have others, and they
exchange rows, and gradients on the way back (`parallel/blocks.py`). The loss gathers its table in the compute dtype,
and scatters the table's gradient in fp32; or, where it splits the vocabulary over `fsdp` (`training/sharded_loss.py`),
exchanges columns of the table for rows, those of the gradient back, and gathers tokens and scatters their gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxscale.planner.costs.network import exchange_seconds, gather_seconds, wire_share
from jaxscale.planner.model.parameters import ParameterGroup, end_elements, local_elements
from jaxscale.planner.model.shape import ModelShape
from jaxscale.planner.model.sizes import Sizes
from jaxscale.planner.vocabulary.formula import (
    Formula,
    Named,
    Number,
    if_less,
    if_split,
    rounded_up,
)
from jaxscale.planner.vocabulary.stack import Stack
from jaxscale.planner.vocabulary.terms import Term

TOKENS_OF_LOSS = "tokens of the loss over fsdp"

# Compiled over v5p:4x4x4 (libtpu 0.0.42): gradients of tables with 16,384, 65,536, 98,304, 129,024 and 131,072 rows are
# scattered, and with 32,000; with 64,128, 128,256, 128,384, 128,512 and 130,048 they are summed. 128,256 over v4:4x4x4,
# v5e:8x8, v5p:4x4x8, v6e:8x8 and 16x16, too.
_SCATTERED_ROWS = 2048


@dataclass(frozen=True)
class Traffic:
    """moved: V, of which a device takes (n - 1) / n from others; seconds. Both of one microbatch."""

    moved: Formula
    seconds: Formula


def table_traffic(
    axis: str,
    shape: ModelShape,
    groups: Sequence[ParameterGroup],
    sizes: Sizes,
    stack: Stack,
    kept: Sequence[str],
) -> Traffic:
    """Over one axis; kept: axes that still split what is gathered over it."""
    if not stack.looks_up:
        return _gathered(axis, end_elements(groups, sizes.mesh, kept), stack)
    table = end_elements(loss_tables(groups), sizes.mesh, kept)
    of_loss = _table_of_loss(axis, shape, Named(table, "of the loss's table"), sizes, stack)
    rows = _rows(axis, shape, sizes, stack)
    return Traffic(of_loss.moved + rows.moved, of_loss.seconds + rows.seconds)


def loss_tables(groups: Sequence[ParameterGroup]) -> list[ParameterGroup]:
    """The table that the loss multiplies with: the head, or the embedding where they are tied."""
    tables = [group for group in groups if group.is_table]
    return [group for group in tables if group.place == "head"] or tables


def gradient_bytes(
    groups: Sequence[ParameterGroup], sizes: Sizes, stack: Stack, kept: Sequence[str]
) -> Formula:
    """Of all parameters, as they are summed. Ours are as wide as activations, but for the loss's table; where that is
    the embedding, each of its two uses has a gradient of its own."""
    narrow = local_elements(groups, sizes.mesh, kept) * stack.reduce_bytes
    tables = loss_tables(groups)
    if not stack.looks_up or not tables:
        return narrow
    wider = stack.table_gradient_bytes - stack.reduce_bytes * (tables[0].place == "head")
    return narrow + wider * end_elements(tables, sizes.mesh, kept) if wider else narrow


def where_copied(sizes: Sizes, stack: Stack, value: Formula) -> Formula:
    """`value` where the compiler copies the loss's table, and sums most gradients of it (`Stack.copies_table`)."""
    if not stack.copies_table:
        return Number(0)
    many = if_less(stack.copies_table, sizes.mesh.fsdp, value, 0)
    return if_split(sizes.mesh.beside_fsdp, 0, many)


def loss_tokens(shape: ModelShape, sizes: Sizes, stack: Stack) -> Term:
    """Of every chunk, gathered before its logits and their gradients scattered behind: in a loop, beside nothing."""
    shards, microbatches = sizes.mesh.fsdp, sizes.mesh.microbatches
    tokens = Named(sizes.tokens * shards, "tokens")
    volume = Named(tokens * (2 * shape.embed * stack.compute_bytes), "B there and back")
    chunks = rounded_up(tokens / Number(stack.loss_chunk, "a chunk")) if stack.loss_chunk else 1
    seconds = microbatches * gather_seconds(volume, "fsdp", 2 * chunks)
    wire = microbatches * volume * wire_share(shards)
    return Term(TOKENS_OF_LOSS, if_split(shards, seconds), "fsdp", if_split(shards, wire))


def _gathered(axis: str, elements: Formula, stack: Stack) -> Traffic:
    """All tables gathered forward and backward, and their gradients scattered."""
    scatter = (1.0 if stack.scatters else 2.0) * stack.reduce_bytes
    volume = Named((2 * stack.gather_bytes + scatter) * elements, "B of embedding and head")
    return Traffic(volume, gather_seconds(slowed(volume, stack), axis, 3))


def _table_of_loss(
    axis: str, shape: ModelShape, table: Formula, sizes: Sizes, stack: Stack
) -> Traffic:
    if sizes.splits_logits and axis == "fsdp":
        volume = Named(table * stack.compute_bytes, "B exchanged")
        return Traffic(2 * volume / sizes.mesh.fsdp, 2 * exchange_seconds(volume, axis))
    each: Formula = Number(stack.gather_bytes + stack.table_gradient_bytes)
    if axis == "fsdp" and shape.vocab % _SCATTERED_ROWS:
        each = each + where_copied(sizes, stack, Number(stack.table_gradient_bytes))
    volume = Named(each * table, "B of the loss's table")
    return Traffic(volume, gather_seconds(slowed(volume, stack), axis, 2))


def _rows(axis: str, shape: ModelShape, sizes: Sizes, stack: Stack) -> Traffic:
    """Rows of the embedding that a device's tokens need, and their gradients."""
    own = Named(sizes.tokens * (shape.embed * stack.compute_bytes) * sizes.share, "B of rows")
    return Traffic(2 * own, 2 * exchange_seconds(own * getattr(sizes.mesh, axis), axis))


def slowed(volume: Formula, stack: Stack) -> Formula:
    """As many bytes as would take the links that long at their best."""
    return volume if stack.gather_share == 1 else volume / Number(stack.gather_share, "reached")
