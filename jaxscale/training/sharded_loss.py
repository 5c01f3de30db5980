"""The chunked loss over a mesh: each device takes its own tokens and its own part of the vocabulary."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxscale.kernels.linear_cross_entropy.api import (
    LossOptions,
    LossSums,
    Where,
    linear_cross_entropy,
    loss_and_gradients,
)
from jaxscale.parallel.errors import PlacementError
from jaxscale.parallel.placement import Placement, local_blocks
from jaxscale.parallel.rules import partition_spec


@dataclass(frozen=True)
class _Axes:
    """Mesh axes: rows split the batch; vocab the rows of the table; stored the batch and the columns of the table.

    gathered: what splits the vocabulary in the loss alone (the rule `vocab_activation`): `stored`, or nothing.
    """

    rows: tuple[str, ...]
    vocab: tuple[str, ...]
    stored: tuple[str, ...]
    gathered: tuple[str, ...]

    @property
    def split(self) -> tuple[str, ...]:
        """What splits the vocabulary where gradients are formed."""
        return (*self.vocab, *self.gathered)


def _axes_of(placement: Placement) -> _Axes:
    """Raises PlacementError where `vocab_activation` names axes that the table's columns are not stored over."""
    rows, vocab = placement.mesh_axes("batch"), placement.mesh_axes("vocab")
    stored = tuple(axis for axis in placement.mesh_axes("embed") if axis in rows)
    gathered = placement.mesh_axes("vocab_activation")
    if gathered and gathered != stored:
        raise PlacementError(
            f"plan.rules.vocab_activation is {', '.join(gathered)}: the loss splits the vocabulary over the axes that "
            f"split both `embed` and `batch` ({', '.join(stored) or 'here none'}), or over none of them"
        )
    return _Axes(rows, vocab, stored, gathered)


def sharded_loss(
    placement: Placement, options: LossOptions, chunk_tokens: int
) -> Callable[..., LossSums]:
    """The loss sums of (hidden, table, targets), all of the whole mesh.

    The gradient is formed beside the loss, on local blocks, and only scaled on the way back, so the map over devices is
    never differentiated: the gradient of the table is summed over the batch axes once, not once a chunk.
    """
    kernels = placement.wanted("linear_cross_entropy")
    if placement.is_local:
        here = Where(target=placement.target, kernels=kernels)
        return lambda hidden, table, targets: linear_cross_entropy(
            hidden, table, targets, options, chunk_tokens, here
        )
    axes = _axes_of(placement)
    where = Where(axes.vocab or None, placement.target, kernels)
    forward = _forward(placement, axes, (options, chunk_tokens, where))
    where = Where(axes.split or None, placement.target, kernels, axes.gathered)
    forward_and_gradients = _with_gradients(placement, axes, (options, chunk_tokens, where))

    @jax.custom_vjp
    def loss(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> LossSums:
        sums: LossSums = forward(hidden, table, targets)
        return sums

    def remember(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> Any:
        # Raises NotDivisible where the table's rows do not divide over the axes that split the logits.
        rules = {"vocab": axes.split}
        partition_spec("output table", table.shape, ("vocab", None), rules, placement.mesh_shape)
        # Gathered for the embedding, the table would stay whole until here.
        hidden, table = jax.lax.optimization_barrier((hidden, table))
        sums, *gradients = forward_and_gradients(hidden, table, targets)
        return sums, gradients

    def scale(gradients: list[jax.Array], cotangent: LossSums) -> Any:
        scaled = (gradient * cotangent.loss_sum.astype(gradient.dtype) for gradient in gradients)
        return (*scaled, None)

    loss.defvjp(remember, scale)
    return loss


# Those of `linear_cross_entropy`, from the options on.
_Settings = tuple[LossOptions, int, Where]


def _forward(placement: Placement, axes: _Axes, settings: _Settings) -> Callable[..., Any]:
    """The loss of one device's block, summed over the batch axes."""

    def loss(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> Any:
        return _summed(linear_cross_entropy(hidden, table, targets, *settings), axes.rows)

    rows = PartitionSpec(axes.rows)
    return local_blocks(loss, placement, (rows, PartitionSpec(axes.vocab), rows), PartitionSpec())


def _with_gradients(placement: Placement, axes: _Axes, settings: _Settings) -> Callable[..., Any]:
    """The same with its gradients, that of the table as the table is stored.

    The table is whole in its columns. Where tokens are gathered it is as it is stored: columns are exchanged for rows
    before the loss, and the other way behind it.
    """
    told_apart = tuple(axis for axis in axes.rows if axis not in axes.gathered)

    def gradients(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> Any:
        if axes.gathered:
            table = jax.lax.all_to_all(table, axes.gathered, 0, 1, tiled=True)
        sums, to_hidden, to_table = loss_and_gradients(hidden, table, targets, *settings)
        to_table = _as_stored(to_table, axes, table.dtype)
        # Left to itself the compiler keeps the fp32 sum of whole rows until the last layer's gradient is formed.
        to_hidden, to_table = jax.lax.optimization_barrier((to_hidden, to_table))
        return _summed(sums, told_apart), to_hidden, to_table

    rows, stored = PartitionSpec(axes.rows), PartitionSpec(axes.vocab, axes.stored)
    table = stored if axes.gathered else PartitionSpec(axes.vocab)
    return local_blocks(gradients, placement, (rows, table, rows), (PartitionSpec(), rows, stored))


def _as_stored(to_table: jax.Array, axes: _Axes, dtype: Any) -> jax.Array:
    """A device's sum for its rows of the table, summed over the batch axes and split as the table is stored.

    Scattered first: what is summed over the other axes is one device's part by then.
    """
    if axes.stored and not axes.gathered:
        to_table = jax.lax.psum_scatter(to_table, axes.stored, scatter_dimension=1, tiled=True)
    split: jax.Array = _summed(
        to_table, tuple(axis for axis in axes.rows if axis not in axes.stored)
    )
    if axes.gathered:
        split = jax.lax.all_to_all(split.astype(dtype), axes.gathered, 1, 0, tiled=True)
    return split.astype(dtype)


def _summed(tree: Any, axes: tuple[str, ...]) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.psum(leaf, axes), tree) if axes else tree
