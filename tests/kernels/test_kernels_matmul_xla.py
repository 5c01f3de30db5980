"""Products with weights against einsum, values and gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.kernels.matmul.xla import linear

# Product, equation, shapes of activations and weight, and the number of dims summed over.
CASES = {
    "matrix": ("bsi,io->bso", (2, 5, 6), (6, 4), 1),
    "into heads": ("bsi,ihd->bshd", (2, 5, 6), (6, 2, 3), 1),
    "out of heads": ("bshd,hdo->bso", (2, 5, 2, 3), (2, 3, 4), 2),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("local", [False, True])
def test_product_and_gradients_are_those_of_einsum(case: str, local: object) -> None:
    equation, left, right, num_inward = CASES[case]
    with jax.enable_x64(True):
        x, weight = _normal(left, "float64"), _normal(right, "float64")
        actual = _all(
            lambda a, b: linear(a, b, num_inward=num_inward, local=bool(local)), x, weight
        )
        wanted = _all(lambda a, b: jnp.einsum(equation, a, b), x, weight)
    for ours, theirs in zip(actual, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e3 * np.finfo(np.float64).eps)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_on_cpu_rounds_once(case: str) -> None:
    equation, left, right, num_inward = CASES[case]
    x, weight = _normal(left, "bfloat16"), _normal(right, "bfloat16")
    actual = _all(lambda a, b: linear(a, b, num_inward=num_inward, local=True), x, weight)
    wide = x.astype(jnp.float32), weight.astype(jnp.float32)
    wanted = _all(lambda a, b: jnp.einsum(equation, a, b), *wide)
    assert [a.dtype for a in actual] == ["bfloat16"] * 3
    # Half a unit in the last place of a bfloat16 (8 significant bits), and fp32 sums in another order. The cotangent is
    # the output itself, rounded once already: twice as much for the gradients, on sums that may cancel.
    out, *gradients = zip(actual, wanted, strict=True)
    np.testing.assert_allclose(*map(_wide, out), rtol=2**-8, atol=1e-5)
    for ours, theirs in gradients:
        np.testing.assert_allclose(_wide(ours), theirs, atol=2 * 2**-8 * abs(theirs).max())


def test_bfloat16_weight_gradient_reads_a_transposed_copy() -> None:
    x, weight = _normal((64, 32), "bfloat16"), _normal((32, 48), "bfloat16")

    def total(w: jax.Array) -> jax.Array:
        return linear(x, w, local=True, platform="cpu").astype(jnp.float32).sum()

    text = jax.jit(jax.grad(total)).lower(weight).as_text()
    assert re.search(r"LayoutConstraint.*tensor<32x64xbf16>", text)


def test_weights_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=re.escape("x of shape (2, 5) does not end in (6,)")):
        linear(jnp.zeros((2, 5)), jnp.zeros((6, 4)))


def _normal(shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), dtype)


def _all(product: object, x: jax.Array, weight: jax.Array) -> list[jax.Array]:
    """The product, and the gradients that its own value as cotangent gives."""
    assert callable(product)
    out, pull = jax.vjp(product, x, weight)
    return [out, *pull(out)]


def _wide(array: jax.Array) -> np.ndarray:
    return np.asarray(array, np.float32)
