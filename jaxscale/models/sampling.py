"""Choosing the next token from logits."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxscale.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How to choose. Filters apply in this order: temperature, top_k, top_p.

    temperature: 0 takes the most likely token.
    top_k: keeps the k most likely tokens; None keeps all.
    top_p: keeps the most likely tokens that together reach this probability (arXiv:1904.09751); 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:  # Nor a NaN.
            raise UserError(f"temperature {self.temperature}: use 0 for greedy, or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k {self.top_k} keeps no token: use 1 or more, or leave it out")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p} is not in (0, 1]")


def sample(
    logits: Float[Array, "batch vocab"], keys: Key[Array, " batch"], sampling: Sampling
) -> Int[Array, " batch"]:
    """One token a row, drawn with the row's own key."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1)
    kept = _keep_top_p(_keep_top_k(logits / sampling.temperature, sampling.top_k), sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys, kept)


def _keep_top_k(logits: jax.Array, top_k: int | None) -> jax.Array:
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    threshold = jax.lax.top_k(logits, top_k)[0][:, -1:]
    return jnp.where(logits < threshold, -jnp.inf, logits)


def _keep_top_p(logits: jax.Array, top_p: float) -> jax.Array:
    if top_p == 1:
        return logits
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    # A token stays while those before it have not reached top_p: the first always does.
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    threshold = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < threshold, -jnp.inf, logits)
