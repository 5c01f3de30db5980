"""Attention forward and backward, as a train step runs both by one choice, to be measured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.kernels.attention.api import attention
from jaxscale.kernels.attention.call import IMPLEMENTATIONS, call_of
from jaxscale.kernels.attention.form import Form
from jaxscale.kernels.cases import Case, moved_bytes, normals
from jaxscale.kernels.choice import Choice
from jaxscale.kernels.target import Target
from jaxscale.kernels.tuning import Config

# Scores and their output forward; scores again, and the gradients of probabilities, queries, keys and values backward.
_PRODUCTS = 7
# Documents of a packed row, on average.
_DOCUMENTS = 4
# Beside the default of 512.
_BLOCKS = (256, 1024)
# Elements of a block's queries beyond which the backward kernel has no room in vector memory (compiled for v5p).
_MOST_ELEMENTS = 1024 * 128


def cases(
    batch: int, length: int, heads: int, kv_heads: int, head_dim: int, dtype: str, form: Form
) -> Iterator[Case]:
    """Causal self-attention with the gradients of queries, keys and values: of whole rows, and of packed documents.

    Its work is that of every key before a query, within the window: no implementation skips what documents hide.
    """
    kind = jnp.dtype(dtype)
    query = jax.ShapeDtypeStruct((batch, length, heads, head_dim), kind)
    key = jax.ShapeDtypeStruct((batch, length, kv_heads, head_dim), kind)
    rows = jax.ShapeDtypeStruct((batch, length), jnp.dtype("int32"))
    whole = (query, key, key, query)
    flops = 2.0 * _PRODUCTS * batch * heads * head_dim * num_pairs(length, form.window)
    plain = call_of(query, key, form)
    packed = replace(plain, documents="shared")
    for call, operands in ((plain, whole), (packed, (*whole, rows))):
        yield Case(
            op="attention",
            call=call,
            implementations=[each for each in IMPLEMENTATIONS if each.name != "reference"],
            flops=flops,
            moved=moved_bytes((*operands, *whole)),
            operands=operands,
            run=_runner(form),
            candidates={"pallas_splash": _blocks(length, head_dim)},
            draw=None if operands == whole else _packed(operands),
        )


def num_pairs(length: int, window: int | None) -> int:
    """Pairs of a query and a key that it sees, of one row: a triangle up to the window, then a band."""
    full = min(window or length, length)
    return full * (full + 1) // 2 + (length - full) * full


def _blocks(length: int, head_dim: int) -> Sequence[Config]:
    """Those that divide the length, as others would be halved until they do, and that fit vector memory."""
    fitting = (block for block in _BLOCKS if block * head_dim <= _MOST_ELEMENTS)
    return [{"block": block} for block in fitting if length % block == 0]


def _packed(
    operands: Sequence[jax.ShapeDtypeStruct],
) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
    """Normal numbers, and the document of each token: ends at random places."""
    *wide, rows = operands

    def draw(key: jax.Array) -> tuple[jax.Array, ...]:
        of_numbers, of_ends = jax.random.split(key)
        ends = jax.random.bernoulli(of_ends, _DOCUMENTS / rows.shape[1], rows.shape)
        return *normals(of_numbers, wide), jnp.cumsum(ends, axis=1, dtype=rows.dtype)

    return draw


def _runner(form: Form) -> Callable[[Choice, Target], Callable[..., Any]]:
    def run(choice: Choice, target: Target) -> Callable[..., Any]:
        def once(
            query: jax.Array,
            key: jax.Array,
            value: jax.Array,
            to_out: jax.Array,
            documents: jax.Array | None = None,
        ) -> Any:
            def forward(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
                return attention(
                    query,
                    key,
                    value,
                    scale=form.scale,
                    segment_ids=None if documents is None else (documents, None),
                    window=form.window,
                    softcap=form.softcap,
                    implementation=choice,
                    local=True,
                    target=target,
                )

            out, pull = jax.vjp(forward, query, key, value)
            return out, *pull(to_out)

        return once

    return run
