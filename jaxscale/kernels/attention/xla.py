"""Attention in blocks of queries, so that no [sequence, sequence] array exists, forward or backward.

Queries are taken a block at a time against the keys that any of them can see: a static slice, so that keys of the
future, and keys before the window, cost nothing. The backward pass keeps only the output and the log of each row's
normalizer, and forms the probabilities again (FlashAttention-2, arXiv:2307.08691, section 3.1). A group's queries are
stacked as rows of one product with their key head, so keys are never repeated.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxscale.kernels.attention.form import (
    MASKED,
    Form,
    SegmentIds,
    cap,
    in_sight,
    key_range,
    same_document,
)
from jaxscale.kernels.attention.residuals import residual
from jaxscale.kernels.layout import transposed_copy

Query = Float[Array, "batch sequence heads head_dim"]
Key = Float[Array, "batch kv_sequence kv_heads head_dim"]
GroupedQuery = Float[Array, "batch kv_heads group sequence head_dim"]
GroupedKey = Float[Array, "batch kv_heads kv_sequence head_dim"]
Rows = Float[Array, "batch kv_heads group sequence"]
Scores = Float[Array, "batch kv_heads group rows columns"]

_MOST_BLOCKS = 64


@dataclass(frozen=True)
class Tiling:
    """block: queries taken at a time; more where there would be over 64 blocks, since each is compiled.

    pin_layouts: transpose in memory before a product (see `layout`), for arrays of one CPU.
    in_turn: no block of the backward pass begins before the last one has ended, nor takes scores from a forward pass
    that stands beside it, as with `remat: full`. The compiler for TPU would hold those of all blocks: 225 for 44 MB,
    and a third more memory traffic, at 4,096 tokens of 8 heads. It costs one product of nine.
    """

    block: int = 128
    pin_layouts: bool = False
    in_turn: bool = False


_DEFAULT = Tiling()


class _Saved(NamedTuple):
    query: Query
    key: Key
    value: Key
    segments: SegmentIds | None
    out: GroupedQuery
    log_normalizer: Rows


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def blocked_attention(
    query: Query,
    key: Key,
    value: Key,
    segments: SegmentIds | None,
    form: Form,
    tiling: Tiling = _DEFAULT,
) -> Query:
    """See `api.attention`. The largest array holds batch * heads * block * kv_sequence scores, in fp32 or wider."""
    return _remember(query, key, value, segments, form, tiling)[0]


def _remember(
    query: Query,
    key: Key,
    value: Key,
    segments: SegmentIds | None,
    form: Form,
    tiling: Tiling,
) -> tuple[Query, _Saved]:
    queries, keys, values = _grouped(query, key.shape[2]), _heads_first(key), _heads_first(value)
    outs, normalizers = [], []
    for rows, columns in _blocks(query.shape[1], form, tiling):
        scores = _scores(queries[..., rows, :], keys[..., columns, :], form)
        visible = _visible(segments, form, rows, columns)
        out, log_normalizer = _attend(scores, visible, values[..., columns, :], segments)
        outs.append(out)
        normalizers.append(log_normalizer)
    grouped = residual(jnp.concatenate(outs, axis=3))
    log_normalizers = residual(jnp.concatenate(normalizers, axis=3))
    saved = _Saved(query, key, value, segments, grouped, log_normalizers)
    return _ungrouped(grouped), saved


def _attend(
    scores: Scores, visible: jax.Array, values: GroupedKey, segments: SegmentIds | None
) -> tuple[GroupedQuery, Rows]:
    """Output of these rows, and the log of their normalizers (which a row that sees nothing has none of)."""
    scores = jnp.where(visible, scores, MASKED)
    highest = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    if segments is None:
        normalizer = weights.sum(axis=-1, keepdims=True)
    else:
        weights = jnp.where(visible, weights, 0)
        total = weights.sum(axis=-1, keepdims=True)
        normalizer = jnp.where(total == 0, 1, total)
    out = _rows_by_columns(weights.astype(values.dtype), values) / normalizer
    return out.astype(values.dtype), (highest + jnp.log(normalizer))[..., 0]


def _differentiate(
    form: Form, tiling: Tiling, saved: _Saved, cotangent: Query
) -> tuple[Query, Key, Key, None]:
    query, key, value, segments, out, log_normalizer = saved
    queries, keys, values = _grouped(query, key.shape[2]), _heads_first(key), _heads_first(value)
    to_out = _grouped(cotangent, key.shape[2])
    wide = log_normalizer.dtype
    # Row sums of p * dp, which softmax subtracts, are those of out * d out.
    shift = (out.astype(wide) * to_out.astype(wide)).sum(axis=-1, keepdims=True)
    to_keys = to_values = jnp.zeros(keys.swapaxes(2, 3).shape, wide)
    to_queries: list[jax.Array] = []
    for rows, columns in _blocks(query.shape[1], form, tiling):
        if tiling.in_turn and to_queries:
            behind = jax.lax.optimization_barrier((queries, to_keys, to_values))
            queries, to_keys, to_values = behind
        here, seen, given = queries[..., rows, :], keys[..., columns, :], to_out[..., rows, :]
        scores = _scores(here, seen, form)
        weights = jnp.exp(scores - log_normalizer[..., rows, None])
        weights = jnp.where(_visible(segments, form, rows, columns), weights, 0)
        to_weights = _rows_by_rows(given, values[..., columns, :])
        to_scores = weights * (to_weights - shift[..., rows, :]) * form.scale
        if form.softcap is not None:
            to_scores *= 1 - jnp.square(scores / form.softcap)
        to_scores, weights = to_scores.astype(query.dtype), weights.astype(query.dtype)
        to_values = to_values.at[..., columns].add(_rows_over_rows(given, weights, tiling))
        to_keys = to_keys.at[..., columns].add(_rows_over_rows(here, to_scores, tiling))
        to_queries.append(_rows_by_columns(to_scores, seen).astype(query.dtype))
    return (
        _ungrouped(jnp.concatenate(to_queries, axis=3)),
        to_keys.transpose(0, 3, 1, 2).astype(key.dtype),
        to_values.transpose(0, 3, 1, 2).astype(value.dtype),
        None,
    )


blocked_attention.defvjp(_remember, _differentiate)


def _blocks(length: int, form: Form, tiling: Tiling) -> Iterator[tuple[slice, slice]]:
    """Rows of each block of queries, and the columns of the keys that they can see."""
    block = max(tiling.block, -(-length // _MOST_BLOCKS))
    for first in range(0, length, block):
        last = min(first + block, length)
        yield slice(first, last), slice(*key_range(form, first, last))


def _visible(
    segments: SegmentIds | None, form: Form, rows: slice, columns: slice
) -> Bool[Array, "#batch 1 1 rows columns"]:
    places = jnp.arange(rows.start, rows.stop), jnp.arange(columns.start, columns.stop)
    visible = in_sight(form, *places)[None]
    if segments is not None:
        visible = visible & same_document(segments, rows, columns)
    return visible[:, None, None]


def _scores(queries: GroupedQuery, keys: GroupedKey, form: Form) -> Scores:
    return cap(_rows_by_rows(queries, keys) * form.scale, form.softcap)


# The three products below stack a group's queries as rows. An einsum with a dim of its own for the group takes 1.7x the
# time of repeated keys on CPU: its output has a layout that no batched product writes.


def _rows_by_rows(left: GroupedQuery, right: GroupedKey) -> Scores:
    product = jnp.einsum(
        "bkrd,bkcd->bkrc", _stacked(left), right, preferred_element_type=_wide(left)
    )
    return product.reshape(*left.shape[:4], right.shape[2])


def _rows_by_columns(left: Scores, right: GroupedKey) -> GroupedQuery:
    product = jnp.einsum(
        "bkrc,bkcd->bkrd", _stacked(left), right, preferred_element_type=_wide(left)
    )
    return product.reshape(*left.shape[:4], right.shape[3])


def _rows_over_rows(
    left: GroupedQuery, right: Scores, tiling: Tiling
) -> Float[Array, "batch kv_heads head_dim columns"]:
    """Summed over rows. The narrow side stands left, so that it is the one to be transposed."""
    rows = _stacked(left)
    transposed = transposed_copy(rows) if tiling.pin_layouts else rows.swapaxes(2, 3)
    return _product("bkdr,bkrc->bkdc", transposed, _stacked(right))


def _product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(equation, left, right, preferred_element_type=_wide(left))


def _stacked(array: jax.Array) -> Float[Array, "batch kv_heads rows width"]:
    batch, kv_heads, group, rows, width = array.shape
    return array.reshape(batch, kv_heads, group * rows, width)


def _wide(array: jax.Array) -> jnp.dtype:
    return jnp.promote_types(array.dtype, jnp.float32)


def _grouped(query: Query, kv_heads: int) -> GroupedQuery:
    batch, length, heads, head_dim = query.shape
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    return grouped.transpose(0, 2, 3, 1, 4)


def _ungrouped(grouped: GroupedQuery) -> Query:
    batch, kv_heads, group, length, head_dim = grouped.shape
    return grouped.transpose(0, 3, 1, 2, 4).reshape(batch, length, kv_heads * group, head_dim)


def _heads_first(array: jax.Array) -> jax.Array:
    """[batch, a, b, head_dim] to [batch, b, a, head_dim], and back."""
    return array.swapaxes(1, 2)
