"""Next-token loss straight from hidden states and the output table.

The logits of `chunk_tokens` tokens exist at one time. Where a gradient is wanted it is formed in the same pass, which
takes three matrix products a chunk; the backward pass only scales it. `loss_from_logits` is the plain form that the
chunked one is tested against.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxscale.kernels.layout import transposed_copy
from jaxscale.kernels.linear_cross_entropy.logits import (
    VocabAxis,
    loss_sums,
    loss_sums_and_gradient,
)
from jaxscale.kernels.linear_cross_entropy.sums import LossOptions, LossSums

Hidden = Float[Array, "*rows embed"]
Table = Float[Array, "vocab embed"]
Targets = Int[Array, "*rows"]

__all__ = [
    "LossOptions",
    "LossSums",
    "linear_cross_entropy",
    "loss_and_gradients",
    "loss_from_logits",
]


def loss_from_logits(
    logits: Float[Array, "*rows vocab"], targets: Targets, options: LossOptions
) -> LossSums:
    """The plain loss of logits that exist, in fp32 (in their own dtype where it is wider)."""
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return loss_sums(wide.reshape(-1, wide.shape[-1]), targets.reshape(-1), options)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def linear_cross_entropy(
    hidden: Hidden,
    table: Table,
    targets: Targets,
    options: LossOptions,
    chunk_tokens: int,
    vocab_axis: VocabAxis = None,
    platform: str | None = None,
) -> LossSums:
    """Loss sums of logits = hidden @ table.T against targets.

    vocab_axis: mesh axes over which the table's rows are split, inside `shard_map`. Differentiable in `hidden` and
    `table` through `loss_sum` alone: the other sums are statistics. platform: `jax.default_backend()` unless given.
    """
    del platform  # Only the gradient's products have a layout to choose.

    def add(total: LossSums, chunk: tuple[jax.Array, jax.Array]) -> tuple[LossSums, None]:
        states, wanted = chunk
        sums = loss_sums(_logits(states, table), wanted, options, vocab_axis)
        return jax.tree.map(jnp.add, total, sums), None

    return jax.lax.scan(add, _no_loss(hidden), _chunks(hidden, targets, options, chunk_tokens))[0]


def loss_and_gradients(
    hidden: Hidden,
    table: Table,
    targets: Targets,
    options: LossOptions,
    chunk_tokens: int,
    vocab_axis: VocabAxis = None,
    platform: str | None = None,
) -> tuple[LossSums, Hidden, Table]:
    """The loss sums, and the gradient of `loss_sum` by `hidden` (whole) and by this device's rows of `table` (fp32).

    All arrays are this device's own: one device, or inside `shard_map`.
    """
    pin_layouts = (platform or jax.default_backend()) == "cpu"

    def add(carry: Any, chunk: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        total, to_table = carry
        states, wanted = chunk
        sums, gradient = loss_sums_and_gradient(_logits(states, table), wanted, options, vocab_axis)
        gradient = gradient.astype(hidden.dtype)
        turned = transposed_copy(states) if pin_layouts else states.T
        to_table += jnp.einsum("et,tv->ev", turned, gradient, preferred_element_type=to_table.dtype)
        to_states = jnp.einsum("tv,ve->te", gradient, table, preferred_element_type=to_table.dtype)
        to_states = to_states.astype(hidden.dtype)
        if vocab_axis is not None:
            to_states = jax.lax.psum(to_states, vocab_axis)
        return (jax.tree.map(jnp.add, total, sums), to_table), to_states

    start = _no_loss(hidden), jnp.zeros(table.shape[::-1], _wide(table))
    chunks = _chunks(hidden, targets, options, chunk_tokens)
    (sums, to_table), to_states = jax.lax.scan(add, start, chunks)
    flat = to_states.reshape(-1, hidden.shape[-1])[: targets.size]
    if pin_layouts:
        # Over one chunk XLA would turn the transposed sum into another product, which its CPU backend cannot run in
        # bfloat16 ("BF16 x BF16 = F32", JAX 0.10.2 and 0.12).
        to_table = jax.lax.optimization_barrier(to_table)
    return sums, flat.reshape(hidden.shape), to_table.T


def _remember(
    hidden: Hidden,
    table: Table,
    targets: Targets,
    options: LossOptions,
    chunk_tokens: int,
    vocab_axis: VocabAxis,
    platform: str | None,
) -> tuple[LossSums, tuple[Hidden, Table]]:
    sums, *gradients = loss_and_gradients(
        hidden, table, targets, options, chunk_tokens, vocab_axis, platform
    )
    return sums, (gradients[0], gradients[1].astype(table.dtype))


def _scale(
    _options: LossOptions,
    _chunk_tokens: int,
    _vocab_axis: VocabAxis,
    _platform: str | None,
    gradients: tuple[Hidden, Table],
    cotangent: LossSums,
) -> tuple[Hidden, Table, None]:
    to_hidden, to_table = (
        gradient * cotangent.loss_sum.astype(gradient.dtype) for gradient in gradients
    )
    return to_hidden, to_table, None


linear_cross_entropy.defvjp(_remember, _scale)


def _logits(states: Float[Array, "tokens embed"], table: Table) -> Float[Array, "tokens vocab"]:
    return jnp.einsum("te,ve->tv", states, table, preferred_element_type=_wide(states))


def _wide(array: jax.Array) -> Any:
    return jnp.promote_types(array.dtype, jnp.float32)


def _no_loss(hidden: Hidden) -> LossSums:
    zero = jnp.zeros((), _wide(hidden))
    return LossSums(zero, zero, zero)


def _chunks(
    hidden: Hidden, targets: Targets, options: LossOptions, chunk_tokens: int
) -> tuple[jax.Array, jax.Array]:
    """Tokens in equal chunks of at most `chunk_tokens`; the last one is filled up with tokens that are ignored."""
    num_tokens, embed = targets.size, hidden.shape[-1]
    num_chunks = -(-num_tokens // chunk_tokens)
    size = -(-num_tokens // num_chunks)
    fill = num_chunks * size - num_tokens
    states = jnp.pad(hidden.reshape(num_tokens, embed), ((0, fill), (0, 0)))
    wanted = jnp.pad(targets.reshape(num_tokens), (0, fill), constant_values=options.ignore)
    return states.reshape(num_chunks, size, embed), wanted.reshape(num_chunks, size)
