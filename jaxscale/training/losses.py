"""The next-token loss of a model on a batch, on one device or on a mesh."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import jax
from flax import nnx
from jax.sharding import PartitionSpec

from jaxscale.config.run_sections import TrainingSection
from jaxscale.kernels.linear_cross_entropy.api import (
    LossOptions,
    LossSums,
    Where,
    linear_cross_entropy,
    loss_and_gradients,
    loss_from_logits,
)
from jaxscale.models.language_model import LanguageModel
from jaxscale.parallel.placement import Placement, local_blocks

Batch = Mapping[str, jax.Array]


def next_token_loss(
    module: nnx.Module, batch: Batch, placement: Placement, training: TrainingSection
) -> LossSums:
    """Sums over the valid targets of the batch, over every device of the mesh.

    A `LanguageModel` goes through the chunked loss: its logits never exist at one time. Any other module is called for
    its logits.
    """
    tokens, positions, segments = batch["tokens"], batch["positions"], batch["segment_ids"]
    options = loss_options(training, getattr(module, "logit_softcap", None))
    if isinstance(module, LanguageModel):
        hidden = module.hidden(tokens, positions, segments)
        loss = sharded_loss(placement, options, training.loss_chunk)
        return loss(hidden, module.output_table(), batch["targets"])
    as_function = cast("Callable[..., jax.Array]", module)
    logits = as_function(tokens, positions, segments)
    return loss_from_logits(logits, batch["targets"], replace(options, softcap=None))


def loss_options(training: TrainingSection, softcap: float | None) -> LossOptions:
    """What a run asks of its loss, and what the model does to its logits."""
    return LossOptions(
        z_loss=training.z_loss, label_smoothing=training.label_smoothing, softcap=softcap
    )


def sharded_loss(
    placement: Placement, options: LossOptions, chunk_tokens: int
) -> Callable[..., LossSums]:
    """The chunked loss over a mesh: each device takes its own tokens and its own part of the vocabulary.

    The gradient is formed beside the loss, on local blocks, and only scaled on the way back, so the map over devices is
    never differentiated: the gradient of the table is summed over the batch axes once, not once a chunk.
    """
    if placement.is_local:
        here = Where(target=placement.target, kernels=placement.wanted("linear_cross_entropy"))
        return lambda hidden, table, targets: linear_cross_entropy(
            hidden, table, targets, options, chunk_tokens, here
        )
    rows, vocab = placement.mesh_axes("batch"), placement.mesh_axes("vocab")
    in_specs = (PartitionSpec(rows), PartitionSpec(vocab), PartitionSpec(rows))
    where = Where(vocab or None, placement.target, placement.wanted("linear_cross_entropy"))
    stored = tuple(axis for axis in placement.mesh_axes("embed") if axis in rows)
    local_loss, local_gradients = _local(rows, stored, (options, chunk_tokens, where))
    forward = local_blocks(local_loss, placement, in_specs, PartitionSpec())
    out_specs = (PartitionSpec(), PartitionSpec(rows), PartitionSpec(vocab, stored))
    forward_and_gradients = local_blocks(local_gradients, placement, in_specs, out_specs)

    @jax.custom_vjp
    def loss(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> LossSums:
        sums: LossSums = forward(hidden, table, targets)
        return sums

    def remember(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> Any:
        # Gathered for the embedding, the table would stay whole until here.
        hidden, table = jax.lax.optimization_barrier((hidden, table))
        sums, *gradients = forward_and_gradients(hidden, table, targets)
        return sums, gradients

    def scale(gradients: list[jax.Array], cotangent: LossSums) -> Any:
        scaled = (gradient * cotangent.loss_sum.astype(gradient.dtype) for gradient in gradients)
        return (*scaled, None)

    loss.defvjp(remember, scale)
    return loss


def _local(
    rows: tuple[str, ...], stored: tuple[str, ...], settings: tuple[LossOptions, int, Where]
) -> Any:
    """The loss of one device's block, and the same with its gradients, summed over the batch axes.

    stored: those of them that split the columns of the table where it is stored, and of its gradient.
    settings: those of `linear_cross_entropy`, from the options on.
    """
    others = tuple(axis for axis in rows if axis not in stored)

    def over_rows(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.psum(leaf, rows), tree) if rows else tree

    def loss(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> LossSums:
        sums: LossSums = over_rows(linear_cross_entropy(hidden, table, targets, *settings))
        return sums

    def gradients(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> Any:
        sums, to_hidden, to_table = loss_and_gradients(hidden, table, targets, *settings)
        if others:
            to_table = jax.lax.psum(to_table, others)
        if stored:
            to_table = jax.lax.psum_scatter(to_table, stored, scatter_dimension=1, tiled=True)
        to_table = to_table.astype(table.dtype)
        # Left to itself the compiler keeps the fp32 sum of whole rows until the last layer's gradient is formed.
        to_hidden, to_table = jax.lax.optimization_barrier((to_hidden, to_table))
        return over_rows(sums), to_hidden, to_table

    return loss, gradients
