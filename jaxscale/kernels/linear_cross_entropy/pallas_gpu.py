"""Logits of tokens on a Hopper GPU, with what the loss needs of each row taken while they are still in registers.

A tile of `tiled_gpu` has some columns of each row: it leaves their maximum and the sum of exponentials relative to it,
two numbers for 128 logits, which are put together afterwards (as the online softmax does, arXiv:1805.02867). XLA would
read the logits twice for the same. Where no gradient is wanted they are never written at all.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxscale.kernels.gpu_epilogue import RowNumbers
from jaxscale.kernels.linear_cross_entropy.logits import (
    MASKED,
    Logits,
    PerToken,
    RowSums,
    Targets,
    cap,
)
from jaxscale.kernels.linear_cross_entropy.sums import LossOptions
from jaxscale.kernels.pallas import gpu
from jaxscale.kernels.target import Target
from jaxscale.kernels.tiled_gpu import GpuTiles, tiled_product
from jaxscale.kernels.tiles import TiledProduct

TILES = GpuTiles()
# Columns whose exponentials are in registers beside the sums at a time: 32 of a thread's, of 255.
_STRIP = 32


def logits_and_sums(
    states: Float[Array, "tokens embed"],
    table: Float[Array, "vocab embed"],
    targets: Targets,
    options: LossOptions,
    target: Target,
    tiles: GpuTiles = TILES,
    *,
    first_column: Int[Array, ""] | int = 0,
    real_vocab: int | None = None,
    keep_logits: bool = True,
    detect_races: bool = False,
) -> tuple[Logits | None, RowSums]:
    """See `pallas_tpu.logits_and_sums`; of 16-bit states and tables."""
    vocab = table.shape[0]
    real = vocab if real_vocab is None else jnp.clip(real_vocab - first_column, 0, vocab)
    num_numbers = 3 if options.label_smoothing else 2
    out_dtypes = (jnp.float32,) if keep_logits else ()
    outs = tiled_product(
        TiledProduct("nt", lambda sums, _extras: sums, out_dtypes),
        tiles,
        target,
        states,
        (table,),
        numbers=RowNumbers(num_numbers, partial(_of_tile, options=options)),
        bounds=jnp.asarray(real, jnp.int32).reshape(1),
        detect_races=detect_races,
    )
    logits = outs[0] if keep_logits else None
    found = _at_target(states, table, logits, targets - first_column)
    return logits, _joined(outs[-num_numbers:], cap(found, options.softcap))


def _of_tile(
    sums: jax.Array, column: Any, bounds: Any, *, options: LossOptions
) -> tuple[jax.Array, ...]:
    """The highest logit of each row, the sum of exp(logit - highest) and, where wanted, that of the logits.

    Columns from `bounds[0]` on are padding.
    """
    strips = [
        _real_logits(sums[:, first : first + _STRIP], column + first, bounds[0], options)
        for first in range(0, sums.shape[1], _STRIP)
    ]
    highest = strips[0].max(axis=1)
    for logits in strips[1:]:
        highest = jnp.maximum(highest, logits.max(axis=1))
    normalizer, total = jnp.zeros_like(highest), jnp.zeros_like(highest)
    for logits in strips:
        relative = logits - jax.lax.broadcast_in_dim(highest, logits.shape, [0])
        normalizer += jnp.exp(relative).sum(axis=1)
        if options.label_smoothing:
            total += jnp.where(logits > MASKED, logits, 0.0).sum(axis=1)
    # A tile of nothing but padding counts its columns, and is weighed with 0 where tiles are put together.
    return (highest, normalizer, total) if options.label_smoothing else (highest, normalizer)


def _real_logits(sums: jax.Array, column: Any, end: Any, options: LossOptions) -> jax.Array:
    """Logits after their soft-cap, far below all others where they are padding."""
    local = gpu.broadcasted_iota(jnp.int32, sums.shape, 1, layout=gpu.Layout.WGMMA)
    return jnp.where(local < end - column, cap(sums, options.softcap), MASKED)


def _joined(numbers: tuple[jax.Array, ...], at_target: PerToken) -> RowSums:
    """Of whole rows. numbers: of each tile of columns, as `_of_tile` gives them, [tiles, tokens]."""
    highest = numbers[0].max(axis=0)
    normalizer = (numbers[1] * jnp.exp(numbers[0] - highest)).sum(axis=0)
    total = numbers[2].sum(axis=0) if len(numbers) > 2 else jnp.zeros_like(highest)
    return RowSums(highest, normalizer, at_target, total)


def _at_target(
    states: Float[Array, "tokens embed"],
    table: Float[Array, "vocab embed"],
    logits: Logits | None,
    column: Targets,
) -> PerToken:
    """The targets' logits before their soft-cap, 0 for those of no column here; formed again where none are kept."""
    is_here = (column >= 0) & (column < table.shape[0])
    index = jnp.where(is_here, column, 0)
    if logits is None:
        found = jnp.einsum("te,te->t", states, table[index], preferred_element_type=jnp.float32)
    else:
        found = jnp.take_along_axis(logits, index[:, None], axis=1)[:, 0]
    return jnp.where(is_here, found, 0)
