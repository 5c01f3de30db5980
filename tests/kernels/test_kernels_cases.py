"""What is measured of routed products and of attention: their work, their inputs, what they are measured beside."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.kernels.attention.cases import cases as attention_cases
from jaxscale.kernels.attention.form import Form
from jaxscale.kernels.cases import Case
from jaxscale.kernels.choice import Choice
from jaxscale.kernels.matmul.cases import cases as matmul_cases
from jaxscale.kernels.measure import inputs_of
from jaxscale.kernels.ragged_matmul.cases import cases as ragged_cases
from jaxscale.kernels.target import Target

CPU, V5P, H200 = Target("cpu", "cpu"), Target("tpu", "TPU v5"), Target("gpu", "NVIDIA H200")
INTERPRETED = Target("tpu", "TPU v5", interpreted=True)
TOKENS, INWARD, OUTWARD, GROUPS = 24, 6, 10, 4
PLAIN = Form(scale=0.25)


def _ragged(dtype: str = "float32") -> dict[str, Case]:
    found = ragged_cases(TOKENS, INWARD, OUTWARD, GROUPS, dtype)
    return {case.call.layout: case for case in found}


def _attention(
    form: Form = PLAIN, *, dtype: str = "float32", length: int = 128, head_dim: int = 16
) -> dict[str, Case]:
    found = attention_cases(2, length, 4, 2, head_dim, dtype, form)
    return {case.call.layout: case for case in found}


def _flops(function: Callable[..., Any], *shapes: tuple[int, ...]) -> float:
    """As the compiler counts them."""
    operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    costs: Any = jax.jit(function).lower(*operands).compile().cost_analysis()
    return float(costs["flops"])


def test_a_routed_product_multiplies_each_row_once() -> None:
    product = _flops(jnp.matmul, (TOKENS, INWARD), (INWARD, OUTWARD))
    rows, others, matrices = TOKENS * INWARD, TOKENS * OUTWARD, GROUPS * INWARD * OUTWARD
    for case in _ragged("bfloat16").values():
        assert case.flops == product
        assert case.moved == 2 * (rows + others + matrices) + 4 * GROUPS


@pytest.mark.parametrize("window", [None, 1, 48, 128, 4096])
def test_attention_multiplies_what_queries_see_seven_times(window: int | None) -> None:
    """Two products forward; the scores again and four gradients backward."""
    square = _flops(partial(jnp.einsum, "bqhd,bkhd->bhqk"), *[(2, 128, 4, 16)] * 2)
    seen = np.tri(128) - np.tri(128, k=-(window or 128))
    for case in _attention(Form(scale=1.0, window=window)).values():
        assert case.flops == 7 * square * seen.mean()
        queries, keys, documents = 2 * 128 * 4 * 16, 2 * 128 * 2 * 16, 2 * 128
        is_packed = case.call.documents == "shared"
        assert case.moved == 4 * (4 * queries + 4 * keys + is_packed * documents)


def test_group_sizes_are_uneven_and_hold_all_tokens() -> None:
    case = next(ragged_cases(4096, 8, 8, 16, "bfloat16"))
    drawn = [sizes for *_, sizes in inputs_of(case, count=3)]
    for sizes in drawn:
        assert sizes.dtype == jnp.int32
        assert sizes.sum() == 4096
        # 256 for each; a Dirichlet of concentration 2 has a coefficient of variation of 0.69.
        assert float(jnp.std(sizes)) > 0.3 * 256
    assert not np.array_equal(drawn[0], drawn[1])


def test_documents_of_packed_rows_follow_one_another() -> None:
    (documents,) = inputs_of(_attention(length=256)["causal_documents"], count=1)[0][4:]
    steps = np.diff(documents, axis=1)
    assert set(steps.ravel().tolist()) == {0, 1}


def test_inputs_have_the_shapes_that_are_promised() -> None:
    for case in (*_ragged().values(), *_attention().values()):
        drawn = inputs_of(case, count=1)[0]
        assert [(a.shape, a.dtype) for a in drawn] == [(o.shape, o.dtype) for o in case.operands]


@pytest.mark.parametrize(
    ("case", "target", "name"),
    [
        (_ragged()["nn"], CPU, "xla"),
        (_ragged()["nn"], V5P, "ragged_dot"),
        (_ragged()["nt"], V5P, "ragged_dot"),
        (_ragged()["tn"], V5P, "xla"),
        (_ragged()["nn"], INTERPRETED, "xla"),
        (_ragged()["nn"], H200, "xla"),
        (_attention(dtype="bfloat16")["causal"], H200, "cudnn"),
        (_attention(dtype="float32")["causal"], H200, "xla"),
        (_attention(dtype="bfloat16")["causal_documents"], H200, "xla"),
        (_attention(dtype="bfloat16")["causal"], V5P, "xla"),
        (next(matmul_cases(8, 8, 8, "bfloat16")), V5P, "xla"),
    ],
)
def test_the_baseline_is_what_runs_untuned(case: Case, target: Target, name: str) -> None:
    assert case.baseline(target) == name


def _one_by_one(layout: str, left: Any, right: Any, sizes: Any) -> np.ndarray:
    """Group by group, in float64."""
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    ends = np.cumsum(sizes)
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    if layout == "tn":
        return np.stack([left[part].T @ right[part] for part in parts])
    matrices = right.swapaxes(1, 2) if layout == "nt" else right
    return np.concatenate([left[part] @ matrices[g] for g, part in enumerate(parts)])


@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
@pytest.mark.parametrize(("name", "target"), [("xla", CPU), ("pallas_tpu", INTERPRETED)])
def test_a_routed_product_is_of_its_layout(layout: str, name: str, target: Target) -> None:
    case = _ragged()[layout]
    inputs = inputs_of(case, count=1)[0]
    config = {} if name == "xla" else {"m": 8, "n": 8, "k": 8}
    found = jax.jit(case.run(Choice(name, {}, config=config), target))(*inputs)
    # Sums of at most 24 products of size 10, each rounded once.
    np.testing.assert_allclose(found, _one_by_one(layout, *inputs), rtol=0, atol=24 * 10 * 2**-24)


@pytest.mark.parametrize("window", [None, 48])
@pytest.mark.parametrize(("name", "target"), [("xla", CPU), ("pallas_splash", INTERPRETED)])
def test_attention_gives_its_result_and_three_gradients(
    window: int | None, name: str, target: Target
) -> None:
    case = _attention(Form(scale=0.25, window=window)).popitem()[1]
    query, key, value, to_out, documents = inputs_of(case, count=1)[0]
    mask = documents[:, None, :, None] == documents[:, None, None, :]
    past = None if window is None else (window - 1, 0)

    def theirs(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            query, key, value, scale=0.25, is_causal=True, mask=mask, local_window_size=past
        )

    run = case.run(Choice(name, {}, config={"block": 128}), target)
    found = jax.jit(run)(query, key, value, to_out, documents)
    out, pull = jax.vjp(theirs, query, key, value)
    for ours, exact in zip(found, (out, *pull(to_out)), strict=True):
        # Sums of at most 128 terms of size 10, twice.
        np.testing.assert_allclose(ours, exact, rtol=0, atol=2 * 128 * 10 * 2**-24)


def test_a_configuration_reaches_the_kernel() -> None:
    plain = _attention(dtype="bfloat16", length=256)["causal"]
    abstract = plain.operands

    def traced(block: int) -> str:
        choice = Choice("pallas_splash", {}, config={"block": block})
        return str(jax.make_jaxpr(plain.run(choice, INTERPRETED))(*abstract))

    assert traced(128) != traced(256)
    routed = next(ragged_cases(4096, 512, 512, 8, "bfloat16"))
    choice = Choice("pallas_gpu", {}, config={"stages": 8})
    with pytest.raises(ValueError, match="shared memory"):
        jax.jit(routed.run(choice, H200)).trace(*routed.operands).lower(
            lowering_platforms=("cuda",)
        )


def test_blocks_that_would_be_halved_are_not_tried() -> None:
    def blocks(length: int, head_dim: int) -> list[int]:
        case = _attention(length=length, head_dim=head_dim)["causal"]
        return [config["block"] for config in case.candidates["pallas_splash"]]

    assert blocks(4096, 128) == [256, 1024]
    assert blocks(512, 128) == [256]
    assert blocks(4096, 256) == [256]
