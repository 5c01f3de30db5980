"""What one attention call asks for beside its arrays, and which keys a query may see."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxscale.errors import UserError

SegmentIds = tuple[Int[Array, "batch sequence"], Int[Array, "batch kv_sequence"] | None]

# Stands for minus infinity in fp32 and wider: a row of it has a finite softmax, so that no NaN reaches a gradient.
MASKED = -1e30


@dataclass(frozen=True, kw_only=True)
class Form:
    """scale: multiplies the scores. softcap: scores become cap * tanh(score / cap), before the mask.

    window: a query sees itself and the `window - 1` keys before it; None sees all of the past.
    query_offset: position of the first query among the keys.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    query_offset: int = 0


def check_shapes(query: jax.Array, key: jax.Array, value: jax.Array, form: Form) -> None:
    """Raises UserError, with the numbers, for shapes that do not fit together."""
    heads, kv_heads = query.shape[2], key.shape[2]
    if key.shape != value.shape:
        raise UserError(f"keys of shape {key.shape} but values of shape {value.shape}")
    if (query.shape[0], query.shape[3]) != (key.shape[0], key.shape[3]):
        raise UserError(
            f"queries {query.shape} and keys {key.shape} differ in batch or head dimension"
        )
    if heads % kv_heads:
        raise UserError(f"{heads} heads cannot share {kv_heads} key heads evenly")
    if form.window is not None and form.window < 1:
        raise UserError(f"window {form.window}: a query sees at least itself, so 1 or more")
    end = form.query_offset + query.shape[1]
    if form.query_offset < 0 or end > key.shape[1]:
        raise UserError(
            f"queries stand at {form.query_offset} to {end - 1}, but there are {key.shape[1]} keys"
        )


def key_range(form: Form, first: int, last: int) -> tuple[int, int]:
    """Start and end of the keys that any of the queries `first .. last - 1` can see."""
    end = last + form.query_offset
    if form.window is None:
        return 0, end
    return max(0, first + form.query_offset - form.window + 1), end


def in_sight(
    form: Form, queries: Int[Array, " rows"], keys: Int[Array, " columns"]
) -> Bool[Array, "rows columns"]:
    """Whether a query may see a key, by their places alone."""
    back = queries[:, None] + form.query_offset - keys
    if form.window is None:
        return back >= 0
    return (back >= 0) & (back < form.window)


def same_document(
    segments: SegmentIds, queries: slice, keys: slice
) -> Bool[Array, "batch rows columns"]:
    """Whether a query and a key belong to the same document."""
    of_query, of_key = segments[0], segments[0] if segments[1] is None else segments[1]
    return of_query[:, queries, None] == of_key[:, None, keys]


def cap(scores: jax.Array, softcap: float | None) -> jax.Array:
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)
