"""Logits of tokens on a TPU, with what the loss needs of each row summed while they are still in vector memory.

The grid runs over tiles of tokens, of the vocabulary, and innermost over the embedding; at the end of a tile's sum its
rows go into the running maximum and normalizer (the online softmax of arXiv:1805.02867). XLA would write the logits and
read them twice for the same sums. Where no gradient is wanted they are never written at all.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxscale.kernels.linear_cross_entropy.logits import MASKED, Logits, RowSums, Targets, cap
from jaxscale.kernels.linear_cross_entropy.sums import LossOptions
from jaxscale.kernels.pallas import pl, tpu, tpu_call
from jaxscale.kernels.target import Target
from jaxscale.kernels.tiles import Tiles
from jaxscale.kernels.tpu_blocks import dot, vector_memory, within

TILES = Tiles(m=512, n=2048, k=512)


def logits_and_sums(
    states: Float[Array, "tokens embed"],
    table: Float[Array, "vocab embed"],
    targets: Targets,
    options: LossOptions,
    target: Target,
    tiles: Tiles = TILES,
    *,
    first_column: Int[Array, ""] | int = 0,
    real_vocab: int | None = None,
    keep_logits: bool = True,
    detect_races: bool = False,
) -> tuple[Logits | None, RowSums]:
    """fp32 logits before their soft-cap (None unless kept), and the sums of this device's columns.

    first_column: token id of the table's first row. real_vocab: ids from it on are padding; all of the table's are real
    unless given.
    """
    (tokens, embed), vocab = states.shape, table.shape[0]
    tiles = Tiles(min(tiles.m, tokens), min(tiles.n, vocab), min(tiles.k, embed))
    column = pl.BlockSpec((tiles.m, 1), lambda i, _j, _k, _first: (i, 0))
    outs = [jax.ShapeDtypeStruct((tokens, 1), jnp.float32)] * 4
    out_specs = [column] * 4
    if keep_logits:
        outs.append(jax.ShapeDtypeStruct((tokens, vocab), jnp.float32))
        out_specs.append(pl.BlockSpec((tiles.m, tiles.n), lambda i, j, _k, _first: (i, j)))
    in_specs = [
        pl.BlockSpec((tiles.m, tiles.k), lambda i, _j, k, _first: (i, k)),
        pl.BlockSpec((tiles.n, tiles.k), lambda _i, j, k, _first: (j, k)),
        column,
    ]
    column_of_targets = jax.ShapeDtypeStruct((tokens, 1), jnp.int32)
    blocks = zip((*in_specs, *out_specs), (states, table, column_of_targets, *outs), strict=True)
    grid_spec = tpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(pl.cdiv(tokens, tiles.m), pl.cdiv(vocab, tiles.n), pl.cdiv(embed, tiles.k)),
        in_specs=in_specs,
        out_specs=out_specs,
        scratch_shapes=[tpu.VMEM((tiles.m, tiles.n), jnp.float32)],
    )
    if real_vocab is None:
        real_vocab = 2**31 - 1
    call = tpu_call(
        partial(_kernel, options=options, real_vocab=real_vocab, vocab=vocab, embed=embed),
        target,
        detect_races=detect_races,
        out_shape=outs,
        grid_spec=grid_spec,
        compiler_params=tpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=vector_memory(blocks, 4 * tiles.m * tiles.n),
        ),
        cost_estimate=_cost(states, table, keep_logits=keep_logits),
        name="logits_and_sums",
    )
    first = jnp.asarray(first_column, jnp.int32).reshape(1)
    sums = call(first, states, table, targets.astype(jnp.int32)[:, None])
    return sums[4] if keep_logits else None, RowSums(*(each[:, 0] for each in sums[:4]))


def _kernel(
    first: Any,
    states: Any,
    rows: Any,
    targets: Any,
    *refs: Any,
    options: LossOptions,
    real_vocab: int,
    vocab: int,
    embed: int,
) -> None:
    (highest, normalizer, at_target, total), logits = refs[:4], refs[-1]
    tile, step = pl.program_id(1), pl.program_id(2)

    def begin_row() -> None:
        highest[...] = jnp.full_like(highest, MASKED)
        for each in (normalizer, at_target, total):
            each[...] = jnp.zeros_like(each)

    pl.when((tile == 0) & (step == 0))(begin_row)

    def begin_tile() -> None:
        logits[...] = jnp.zeros_like(logits)

    pl.when(step == 0)(begin_tile)

    left, right = within(states[...], 1, step, embed), within(rows[...], 1, step, embed)
    logits[...] += dot(left, right, over=(1, 1))

    def end_tile() -> None:
        for out in refs[4:-1]:
            out[...] = logits[...]
        capped = cap(logits[...], options.softcap)
        local = tile * logits.shape[1] + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        column = first[0] + local
        is_real = (local < vocab) & (column < real_vocab)
        masked = jnp.where(is_real, capped, MASKED)
        before = highest[...]
        now = jnp.maximum(before, masked.max(axis=1, keepdims=True))
        weights = jnp.where(is_real, jnp.exp(masked - now), 0.0)
        rescaled = normalizer[...] * jnp.exp(before - now)
        normalizer[...] = rescaled + weights.sum(axis=1, keepdims=True)
        highest[...] = now
        is_target = (column == targets[...]) & (local < vocab)
        at_target[...] += jnp.where(is_target, capped, 0.0).sum(axis=1, keepdims=True)
        if options.label_smoothing:
            total[...] += jnp.where(is_real, capped, 0.0).sum(axis=1, keepdims=True)

    pl.when(step == pl.num_programs(2) - 1)(end_tile)


def _cost(states: jax.Array, table: jax.Array, *, keep_logits: bool) -> Any:
    """For XLA's scheduler, which cannot see into the kernel: each array read or written once."""
    products = states.shape[0] * table.shape[0]
    moved = (states.size + table.size) * states.dtype.itemsize + 4 * products * keep_logits
    return pl.CostEstimate(
        flops=2 * products * states.shape[1], bytes_accessed=moved, transcendentals=products
    )
