"""Decoding one token at a time gives what attention over the whole sequence gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import inputs

from jaxscale.kernels.attention.api import decode_attention
from jaxscale.kernels.attention.form import Form
from jaxscale.kernels.attention.reference import reference_attention

LENGTH, CAPACITY = 9, 12
# fp32 sums of about ten terms of size 1.
FLOAT32 = 100 * np.finfo(np.float32).eps


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (4, None), (None, 2.0)])
def test_token_by_token_equals_all_at_once(window: int | None, softcap: float | None) -> None:
    (query, key, value), _ = inputs(queries=LENGTH, dtype="float32")
    form = Form(scale=0.5, window=window, softcap=softcap)
    wanted = reference_attention(query, key, value, None, form)
    keys, values = _cache(key), _cache(value)
    for place in range(LENGTH):
        positions = jnp.full((2, 1), place)
        one = query[:, place : place + 1]
        out = decode_attention(
            one, keys, values, positions, scale=0.5, window=window, softcap=softcap
        )
        np.testing.assert_allclose(out[:, 0], wanted[:, place], atol=FLOAT32)


def test_slots_may_be_in_any_order_and_partly_empty() -> None:
    (query, key, value), _ = inputs(queries=LENGTH, dtype="float32")
    wanted = reference_attention(query, key, value, None, Form(scale=0.5))
    order = np.random.default_rng(1).permutation(CAPACITY)
    of_slot = jnp.where(jnp.arange(CAPACITY) < LENGTH, jnp.arange(CAPACITY), -1)[order]
    keys, values = _cache(key)[:, order], _cache(value)[:, order]
    positions = jnp.tile(jnp.arange(LENGTH), (2, 1))
    slots = jnp.tile(of_slot, (2, 1))
    out = decode_attention(query, keys, values, positions, slots, scale=0.5)
    np.testing.assert_allclose(out, wanted, atol=FLOAT32)


def test_a_token_at_a_negative_position_gets_zeros() -> None:
    (query, key, value), _ = inputs(queries=LENGTH, dtype="float32")
    positions = jnp.array([[3], [-1]])
    out = decode_attention(query[:, :1], _cache(key), _cache(value), positions, scale=0.5)
    assert out[0].any()
    assert not out[1].any()


def _cache(array: jax.Array) -> jax.Array:
    """Slots beyond the sequence hold something large, so that reading one shows."""
    return jnp.pad(array, ((0, 0), (0, CAPACITY - LENGTH), (0, 0), (0, 0)), constant_values=1e4)
