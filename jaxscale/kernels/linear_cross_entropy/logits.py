"""Loss and its gradient on the logits of some tokens: the arithmetic that the plain and the chunked loss share.

With the vocabulary split over a mesh axis each device holds its own columns, and the sums over the vocabulary are sums
over devices too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxscale.kernels.linear_cross_entropy.sums import LossOptions, LossSums

VocabAxis = str | tuple[str, ...] | None


class _Terms(NamedTuple):
    capped: jax.Array
    probabilities: jax.Array
    is_target: jax.Array
    is_real: jax.Array
    log_normalizer: jax.Array
    valid: jax.Array
    vocab_size: jax.Array | int


def loss_sums(
    logits: Float[Array, "tokens vocab"],
    targets: Int[Array, " tokens"],
    options: LossOptions,
    vocab_axis: VocabAxis = None,
) -> LossSums:
    """Loss sums of fp32 (or wider) logits, before their soft-cap."""
    return _sums(_terms(logits, targets, options, vocab_axis), options, vocab_axis)


def loss_sums_and_gradient(
    logits: Float[Array, "tokens vocab"],
    targets: Int[Array, " tokens"],
    options: LossOptions,
    vocab_axis: VocabAxis = None,
) -> tuple[LossSums, Float[Array, "tokens vocab"]]:
    """The same, and the gradient of `loss_sum` by the logits.

    d loss / d logit = p (1 + 2 z log Z) - (1 - s) [target] - s / V, through the soft-cap: times 1 - (capped / cap)^2.
    """
    terms = _terms(logits, targets, options, vocab_axis)
    gradient = terms.probabilities * (1 + 2 * options.z_loss * terms.log_normalizer)[:, None]
    gradient -= terms.is_target * (1 - options.label_smoothing)
    gradient -= terms.is_real * (options.label_smoothing / terms.vocab_size)
    if options.softcap is not None:
        gradient *= 1 - jnp.square(terms.capped / options.softcap)
    gradient = jnp.where(terms.valid[:, None] & terms.is_real, gradient, 0)
    return _sums(terms, options, vocab_axis), gradient


def _terms(logits: jax.Array, targets: jax.Array, options: LossOptions, axis: VocabAxis) -> _Terms:
    columns, vocab_size = _columns(logits.shape[1], options, axis)
    is_real = columns < vocab_size
    capped = logits if options.softcap is None else _cap(logits, options.softcap)
    masked = jnp.where(is_real, capped, -jnp.inf)
    highest = _over(axis, jax.lax.pmax, masked.max(axis=1))
    exponentials = jnp.exp(masked - highest[:, None])
    normalizer = _over(axis, jax.lax.psum, exponentials.sum(axis=1))
    return _Terms(
        capped=capped,
        probabilities=exponentials / normalizer[:, None],
        is_target=columns == targets[:, None],
        is_real=is_real,
        log_normalizer=highest + jnp.log(normalizer),
        valid=targets != options.ignore,
        vocab_size=vocab_size,
    )


def _sums(terms: _Terms, options: LossOptions, axis: VocabAxis) -> LossSums:
    at_target = _over(axis, jax.lax.psum, jnp.where(terms.is_target, terms.capped, 0).sum(axis=1))
    nll = terms.log_normalizer - at_target
    loss = nll + options.z_loss * jnp.square(terms.log_normalizer)
    if options.label_smoothing:
        total = _over(axis, jax.lax.psum, jnp.where(terms.is_real, terms.capped, 0).sum(axis=1))
        loss += options.label_smoothing * (at_target - total / terms.vocab_size)
    return LossSums(
        loss_sum=jnp.where(terms.valid, loss, 0).sum(),
        nll_sum=jnp.where(terms.valid, nll, 0).sum(),
        weight=terms.valid.sum().astype(loss.dtype),
    )


def _columns(
    width: int, options: LossOptions, axis: VocabAxis
) -> tuple[Int[Array, "1 vocab"], int]:
    """The token ids of this device's columns, and the number of ids that are not padding."""
    columns = jnp.arange(width)[None]
    if axis is None:
        return columns, options.num_real_vocab or width
    whole = width * int(jax.lax.psum(1, axis))
    return columns + jax.lax.axis_index(axis) * width, options.num_real_vocab or whole


def _cap(logits: jax.Array, cap: float) -> jax.Array:
    return cap * jnp.tanh(logits / cap)


def _over(axis: VocabAxis, reduce: object, value: jax.Array) -> jax.Array:
    if axis is None:
        return value
    assert callable(reduce)
    reduced = reduce(value, axis)
    assert isinstance(reduced, jax.Array)
    return reduced
