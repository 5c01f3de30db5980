"""Blocked attention against its definition, in float64, where nothing hides behind rounding."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import inputs, output_and_gradients, plain, worst

from jaxscale.errors import UserError
from jaxscale.kernels.attention.api import attention
from jaxscale.kernels.attention.form import Form, SegmentIds
from jaxscale.kernels.attention.reference import reference_attention
from jaxscale.kernels.attention.xla import Tiling, blocked_attention

# Sums of at most 64 products of numbers of size 1, a few of them one after the other: far under 1e4 roundings.
FLOAT64 = 1e4 * np.finfo(np.float64).eps


@pytest.mark.parametrize(
    ("length", "block"),
    [(16, 8), (17, 8), (7, 8), (1, 8), (33, 16)],
    ids=["whole", "odd", "shorter than a block", "one token", "last block of one"],
)
@pytest.mark.parametrize("window", [None, 1, 5, 16, 100])
def test_blocks_give_what_the_definition_gives(length: int, block: int, window: int | None) -> None:
    with jax.enable_x64(True):
        form = Form(scale=0.3, window=window)
        arrays, cotangent = inputs(queries=length)
        blocked = partial(_blocked, None, form, block)
        actual = output_and_gradients(blocked, arrays, cotangent)
        wanted = output_and_gradients(plain(None, form), arrays, cotangent)
    _assert_close(actual, wanted)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 1), (6, 2)])
def test_heads_share_keys_in_order(heads: int, kv_heads: int) -> None:
    with jax.enable_x64(True):
        arrays, cotangent = inputs(queries=13, heads=heads, kv_heads=kv_heads)
        form = Form(scale=0.3)
        actual = output_and_gradients(partial(_blocked, None, form, 4), arrays, cotangent)
        wanted = output_and_gradients(plain(None, form), arrays, cotangent)
    _assert_close(actual, wanted)


@pytest.mark.parametrize("window", [None, 6])
def test_softcap_has_its_gradient(window: int | None) -> None:
    with jax.enable_x64(True):
        # Scores reach about 10, so a cap of 2 bends most of them.
        arrays, cotangent = inputs(queries=19)
        form = Form(scale=1.0, softcap=2.0, window=window)
        actual = output_and_gradients(partial(_blocked, None, form, 8), arrays, cotangent)
        wanted = output_and_gradients(plain(None, form), arrays, cotangent)
    _assert_close(actual, wanted)


@pytest.mark.parametrize("window", [None, 3])
def test_documents_of_a_row_do_not_see_each_other(window: int | None) -> None:
    with jax.enable_x64(True):
        arrays, cotangent = inputs(queries=14)
        segments = jnp.array([[1] * 5 + [2] * 9, [1] * 10 + [0] * 4]), None
        form = Form(scale=0.3, window=window)
        actual = output_and_gradients(partial(_blocked, segments, form, 4), arrays, cotangent)
        wanted = output_and_gradients(plain(segments, form), arrays, cotangent)
        second = tuple(x[:1, 5:] for x in arrays)
        alone = reference_attention(*second, None, form)
    _assert_close(actual, wanted)
    np.testing.assert_allclose(actual[0][:1, 5:], alone, atol=FLOAT64)


def test_a_query_that_sees_no_key_gives_zero_and_passes_nothing_back() -> None:
    with jax.enable_x64(True):
        arrays, cotangent = inputs(queries=10)
        # The last four queries of row 0 belong to a document that has no keys; so do all of row 1.
        of_query = jnp.array([[1] * 6 + [7] * 4, [7] * 10])
        segments = of_query, jnp.ones((2, 10), int)
        form = Form(scale=0.3)
        actual = output_and_gradients(partial(_blocked, segments, form, 4), arrays, cotangent)
        wanted = output_and_gradients(plain(segments, form), arrays, cotangent)
    _assert_close(actual, wanted)
    out, to_query, to_key, to_value = actual
    for rows in (out[0, 6:], out[1], to_query[0, 6:], to_query[1], to_key[1], to_value[1]):
        assert not rows.any()
    assert out[0, :6].all()


def test_queries_may_start_behind_earlier_keys() -> None:
    with jax.enable_x64(True):
        (query, key, value), cotangent = inputs(queries=11)
        form = Form(scale=0.3, window=6)
        whole = reference_attention(query, key, value, None, form)
        late = Form(scale=0.3, window=6, query_offset=7)
        arrays = query[:, 7:], key, value
        actual = output_and_gradients(partial(_blocked, None, late, 3), arrays, cotangent[:, 7:])
        wanted = output_and_gradients(plain(None, late), arrays, cotangent[:, 7:])
    _assert_close(actual, wanted)
    np.testing.assert_allclose(actual[0], whole[:, 7:], atol=FLOAT64)


def test_the_definition_is_right_by_hand() -> None:
    # Two keys with scores 0 and log 3 at the second query: weights 1/4 and 3/4.
    query = jnp.array([0.0, 1.0]).reshape(1, 2, 1, 1)
    key = jnp.array([0.0, np.log(3)]).reshape(1, 2, 1, 1)
    value = jnp.array([8.0, 4.0]).reshape(1, 2, 1, 1)
    out = reference_attention(query, key, value, None, Form(scale=1.0))
    np.testing.assert_allclose(out.ravel(), [8.0, 0.25 * 8 + 0.75 * 4], rtol=1e-6)


@pytest.mark.parametrize("window", [None, 20])
def test_bfloat16_is_as_exact_in_blocks_as_in_one_matrix(window: int | None) -> None:
    form = Form(scale=8**-0.5, window=window)
    arrays, cotangent = inputs(queries=96, head_dim=16, dtype="bfloat16")
    in_blocks = output_and_gradients(partial(_blocked, None, form, 32), arrays, cotangent)
    in_one = output_and_gradients(plain(None, form), arrays, cotangent)
    with jax.enable_x64(True):
        wide = tuple(x.astype(jnp.float64) for x in arrays)
        exact = output_and_gradients(plain(None, form), wide, cotangent.astype(jnp.float64))
    # Both round probabilities, scores' gradients and results to bf16, in different orders: no more than 1.5x the error
    # of the one-matrix form, and two roundings of the largest value for luck of the draw.
    for blocked, single in zip(worst(in_blocks, exact), worst(in_one, exact), strict=True):
        assert blocked <= 1.5 * single + 2 * float(jnp.finfo(jnp.bfloat16).eps)


def test_large_scores_do_not_overflow() -> None:
    (query, key, value), cotangent = inputs(queries=9, dtype="float32")
    arrays = query * 1e3, key * 1e3, value
    actual = output_and_gradients(partial(_blocked, None, Form(scale=1.0), 4), arrays, cotangent)
    assert all(np.isfinite(x).all() for x in actual)


@pytest.mark.parametrize("window", [None, 64])
def test_no_square_of_the_sequence_is_ever_allocated(window: int | None) -> None:
    length = 512

    def train(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        out = attention(query, key, value, scale=0.125, window=window, local=True)
        return (out**2).sum()

    arrays, _ = inputs(queries=length, head_dim=16, dtype="float32")
    assert not _has_square(jax.grad(train, (0, 1, 2)), arrays, length)
    definition = plain(None, Form(scale=0.125))
    assert _has_square(definition, arrays, length), "the search must find a square that is there"


def test_blocks_in_turn_give_what_the_definition_gives() -> None:
    with jax.enable_x64(True):
        form = Form(scale=0.3)
        arrays, cotangent = inputs(queries=41)

        def call(*arrays: jax.Array) -> jax.Array:
            return blocked_attention(*arrays, None, form, Tiling(block=8, in_turn=True))

        found = output_and_gradients(call, arrays, cotangent)
        _assert_close(found, output_and_gradients(plain(None, form), arrays, cotangent))


def test_keys_outside_the_window_are_not_computed() -> None:
    def products(window: int | None) -> float:
        form = Form(scale=0.125, window=window)
        arrays, _ = inputs(queries=512, head_dim=16, dtype="float32")
        compiled = jax.jit(partial(_blocked, None, form, 64)).lower(*arrays).compile()
        cost = compiled.cost_analysis()
        return float(cost["flops"])

    # 8 blocks of 64: causal, 1 + 2 + ... + 8 = 36 squares; with a window of 64, at most two each, 15.
    assert products(64) / products(None) == pytest.approx(15 / 36, rel=0.05)


@pytest.mark.parametrize(
    ("shapes", "keywords", "message"),
    [
        (((2, 4, 3, 8), (2, 4, 2, 8)), {}, "3 heads cannot share 2 key heads"),
        (((2, 4, 4, 8), (2, 4, 2, 16)), {}, "differ in batch or head dimension"),
        (((2, 4, 4, 8), (2, 4, 2, 8)), {"window": 0}, "window 0"),
        (((2, 4, 4, 8), (2, 4, 2, 8)), {"query_offset": 1}, "stand at 1 to 4, but there are 4"),
        (
            ((2, 4, 4, 8), (2, 4, 2, 8)),
            {"implementation": "flash"},
            "pallas_splash, cudnn, xla, reference",
        ),
        (((2, 4, 4, 8), (2, 4, 2, 8)), {"implementation": "cudnn"}, "NVIDIA GPU"),
    ],
)
def test_calls_that_cannot_work_say_why(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], keywords: dict[str, object], message: str
) -> None:
    query, key = (jnp.zeros(shape) for shape in shapes)
    with pytest.raises(UserError, match=re.escape(message)):
        attention(query, key, key, scale=1.0, **keywords)


def _blocked(
    segments: SegmentIds | None,
    form: Form,
    block: int,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
) -> jax.Array:
    tiling = Tiling(block, pin_layouts=True)
    return blocked_attention(query, key, value, segments, form, tiling)


def _assert_close(actual: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for ours, theirs in zip(actual, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=FLOAT64 * max(1, abs(theirs).max()))


def _has_square(function: object, arrays: object, length: int) -> bool:
    text = jax.jit(function).lower(*arrays).compile().as_text()
    return bool(re.search(rf"\[(\d+,)*{length},(\d+,)*{length}(,\d+)*\]", text))
