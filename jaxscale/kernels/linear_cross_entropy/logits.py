"""Loss and its gradient on the logits of some tokens: the arithmetic that every form of the loss shares.

With the vocabulary split over a mesh axis each device holds its own columns, and the sums over the vocabulary are sums
over devices too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxscale.kernels.linear_cross_entropy.sums import LossOptions, LossSums

VocabAxis = str | tuple[str, ...] | None
Logits = Float[Array, "tokens vocab"]
Targets = Int[Array, " tokens"]
PerToken = Float[Array, " tokens"]

# Stands for minus infinity: the highest logit of a device that holds padding only.
MASKED = -1e30


class RowSums(NamedTuple):
    """Of each token's logits, after their soft-cap: what the loss needs to know of them.

    highest; normalizer: the sum of exp(logit - highest); at_target: the target's (0 without one); total: their sum, 0
    where nothing is smoothed.
    """

    highest: PerToken
    normalizer: PerToken
    at_target: PerToken
    total: PerToken

    @property
    def log_normalizer(self) -> PerToken:
        return self.highest + jnp.log(self.normalizer)


def row_sums(
    logits: Logits,
    targets: Targets,
    options: LossOptions,
    vocab_axis: VocabAxis = None,
    *,
    gather: bool = False,
) -> RowSums:
    """Of fp32 (or wider) logits before their soft-cap, over the whole vocabulary.

    gather: fetch the targets' logits. Otherwise they are picked out by a sum over all columns, which a TPU forms beside
    the others; a CPU would write an array as large as the logits for it, a GPU read them once more (compiled for an
    H200, JAX 0.10.2).
    """
    columns = _columns(logits.shape[1], vocab_axis)
    capped = cap(logits, options.softcap)
    masked = _where_real(columns, options, capped, -jnp.inf)
    highest = _over(vocab_axis, jax.lax.pmax, masked.max(axis=1))
    normalizer = jnp.exp(masked - highest[:, None]).sum(axis=1)
    if gather:
        at_target = cap(_gathered(logits, targets, vocab_axis), options.softcap)
    else:
        at_target = jnp.where(columns == targets[:, None], capped, 0).sum(axis=1)
    total = jnp.zeros_like(at_target)
    if options.label_smoothing:
        total = _where_real(columns, options, capped, 0).sum(axis=1)
    return RowSums(highest, *_over(vocab_axis, jax.lax.psum, (normalizer, at_target, total)))


def over_devices(sums: RowSums, vocab_axis: VocabAxis) -> RowSums:
    """Sums of each device's own columns, put together."""
    if vocab_axis is None:
        return sums
    highest = jax.lax.pmax(sums.highest, vocab_axis)
    rescaled = sums.normalizer * jnp.exp(sums.highest - highest)
    return RowSums(highest, *jax.lax.psum((rescaled, sums.at_target, sums.total), vocab_axis))


def loss_sums(sums: RowSums, targets: Targets, options: LossOptions, vocab_size: int) -> LossSums:
    """Sums over tokens. vocab_size: `real_vocab` of the whole table."""
    log_normalizer, valid = sums.log_normalizer, targets != options.ignore
    nll = log_normalizer - sums.at_target
    loss = nll + options.z_loss * jnp.square(log_normalizer)
    if options.label_smoothing:
        loss += options.label_smoothing * (sums.at_target - sums.total / vocab_size)
    return LossSums(
        loss_sum=jnp.where(valid, loss, 0).sum(),
        nll_sum=jnp.where(valid, nll, 0).sum(),
        weight=valid.sum().astype(loss.dtype),
    )


def logits_gradient(
    logits: Logits,
    sums: RowSums,
    targets: Targets,
    options: LossOptions,
    vocab_axis: VocabAxis = None,
) -> Logits:
    """Gradient of `loss_sum` by this device's logits.

    d loss / d logit = p (1 + 2 z log Z) - (1 - s) [target] - s / V, through the soft-cap: times 1 - (capped / cap)^2.
    """
    columns = _columns(logits.shape[1], vocab_axis)
    capped = cap(logits, options.softcap)
    masked = _where_real(columns, options, capped, -jnp.inf)
    # A number for each row, and the exponentials of `row_sums`, which the compiler forms once.
    scale = (1 + 2 * options.z_loss * sums.log_normalizer) / sums.normalizer
    gradient = jnp.exp(masked - sums.highest[:, None]) * scale[:, None]
    gradient -= (columns == targets[:, None]) * (1 - options.label_smoothing)
    if options.label_smoothing:
        evenly = options.label_smoothing / real_vocab(logits.shape[1], options, vocab_axis)
        gradient -= _where_real(columns, options, evenly, 0)
    if options.softcap is not None:
        gradient *= 1 - jnp.square(capped / options.softcap)
    return jnp.where((targets != options.ignore)[:, None], gradient, 0)


def real_vocab(width: int, options: LossOptions, axis: VocabAxis) -> int:
    """Number of token ids that are not padding, where a device holds `width` columns."""
    if options.num_real_vocab is not None:
        return options.num_real_vocab
    return width if axis is None else width * int(jax.lax.psum(1, axis))


def first_column(width: int, axis: VocabAxis) -> Int[Array, ""]:
    """The token id of this device's first column."""
    if axis is None:
        return jnp.zeros((), jnp.int32)
    return (jax.lax.axis_index(axis) * width).astype(jnp.int32)


def cap(logits: jax.Array, softcap: float | None) -> jax.Array:
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def _columns(width: int, axis: VocabAxis) -> Int[Array, "1 vocab"]:
    """The token ids of this device's columns."""
    return jnp.arange(width)[None] + first_column(width, axis)


def _gathered(logits: Logits, targets: Targets, axis: VocabAxis) -> PerToken:
    """The targets' logits; 0 for those that are not of this device's columns."""
    column = targets - first_column(logits.shape[1], axis)
    is_here = (column >= 0) & (column < logits.shape[1])
    found = jnp.take_along_axis(logits, jnp.where(is_here, column, 0)[:, None], axis=1)
    return jnp.where(is_here, found[:, 0], 0)


def _where_real(
    columns: jax.Array, options: LossOptions, values: jax.Array | float, other: float
) -> Any:
    """Values of columns that are token ids; `other` for padding, where there is any."""
    if options.num_real_vocab is None:
        return values
    return jnp.where(columns < options.num_real_vocab, values, other)


def _over(axis: VocabAxis, reduce: Callable[..., Any], values: Any) -> Any:
    return values if axis is None else reduce(values, axis)
