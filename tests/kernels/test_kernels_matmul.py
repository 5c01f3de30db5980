"""Products by kernels, interpreted, against float64: values, gradients, edges, races, repeatability."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UserError
from jaxscale.kernels.matmul.api import Kernels, choose_kernels, matmul, weight_gradient
from jaxscale.kernels.matmul.reference import reference_matmul
from jaxscale.kernels.registry import recording
from jaxscale.kernels.target import Target, reason_without

CPU = Target("cpu", "cpu")
ROLES = ("forward", "input_gradient", "weight_gradient")
KERNELS = ("interpret_tpu", "interpret_gpu")
SIZES = {"odd": (37, 70, 45), "whole": (128, 128, 64), "row": (1, 9, 3)}
# Small enough that each size but a row takes several tiles, some of them over the edge.
TILES = {
    "interpret_tpu": {"m": 16, "n": 32, "k": 32},
    "interpret_gpu": {"m": 64, "n": 64, "k": 64, "stages": 2},
}


def _skip_unless_it_interprets(wanted: str) -> None:
    platform = wanted.removeprefix("interpret_")
    reason = reason_without(Target(platform, "NVIDIA H200", interpreted=True))
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(params=KERNELS)
def wanted(request: pytest.FixtureRequest) -> str:
    _skip_unless_it_interprets(request.param)
    return str(request.param)


def _operands(size: str, dtype: str = "bfloat16", scale: float = 1.0) -> dict[str, jax.Array]:
    rows, inward, outward = SIZES[size]
    random = np.random.default_rng(rows)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(scale * random.standard_normal(shape), dtype)

    return {
        "x": normal(rows, inward),
        "weight": normal(inward, outward),
        "bias": normal(outward),
        "residual": normal(rows, outward),
    }


def _exact(operands: dict[str, jax.Array], activation: str | None) -> dict[str, np.ndarray]:
    """The reference and its gradients in float64, for a cotangent that counts every element differently."""
    with jax.enable_x64(True):
        wide = {name: jnp.asarray(np.asarray(a, np.float64)) for name, a in operands.items()}
        return _value_and_gradients(partial(_reference, activation=activation), wide)


def _reference(operands: dict[str, jax.Array], activation: str | None) -> jax.Array:
    return reference_matmul(**operands, activation=activation)


def _value_and_gradients(function: Any, operands: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    out, pull = jax.vjp(function, operands)
    weights = np.linspace(-1, 1, out.size).reshape(out.shape)
    (gradients,) = pull(jnp.asarray(weights, out.dtype))
    return {name: np.asarray(a, np.float64) for name, a in {"out": out, **gradients}.items()}


def _computed(
    operands: dict[str, jax.Array], activation: str | None, wanted: str
) -> dict[str, np.ndarray]:
    rows, inward = operands["x"].shape
    dtype = operands["x"].dtype
    kernels = choose_kernels(rows, inward, operands["weight"].shape[1], dtype, CPU, wanted)
    kernels = _tiled(kernels, TILES.get(wanted, {}))

    def run(operands: dict[str, jax.Array]) -> jax.Array:
        return matmul(**operands, activation=activation, kernels=kernels, target=CPU)

    return _value_and_gradients(jax.jit(run), operands)


def _tiled(kernels: Kernels, config: Mapping[str, int]) -> Kernels:
    choices = {name: replace(getattr(kernels, name), config=config) for name in ROLES}
    return replace(kernels, **choices)


def _errors(found: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(abs(found[name] - exact[name]).max()) for name in exact}


@pytest.mark.parametrize(
    ("size", "activation"),
    [("odd", None), ("odd", "silu"), ("whole", "gelu_tanh"), ("row", None)],
)
def test_errors_are_no_larger_than_those_of_xla(
    wanted: str, size: str, activation: str | None
) -> None:
    operands = _operands(size)
    exact = _exact(operands, activation)
    ours = _errors(_computed(operands, activation, wanted), exact)
    xla = _errors(_computed(operands, activation, "xla"), exact)
    for name, error in ours.items():
        assert error <= 1.5 * xla[name], name


@pytest.mark.parametrize("scale", [0.0, 2.0**40])
def test_zeros_and_large_magnitudes_stay_exact_to_rounding(wanted: str, scale: float) -> None:
    operands = {name: a for name, a in _operands("odd", scale=scale).items() if name != "bias"}
    del operands["residual"]
    exact = _exact(operands, None)
    found = _computed(operands, None, wanted)
    for name in exact:
        # Sums of up to 70 fp32 products, then one rounding to bfloat16 (8 bits): half a unit is 2^-8.
        bound = (2.0**-8 + 70 * 2.0**-24) * abs(exact[name]).max()
        assert abs(found[name] - exact[name]).max() <= bound, name


def test_fp32_products_are_fp32_products() -> None:
    operands = _operands("odd", "float32")
    exact = _exact(operands, None)
    found = _computed(operands, None, "interpret_tpu")
    for name in exact:
        assert abs(found[name] - exact[name]).max() <= 70 * 2.0**-23 * abs(exact[name]).max(), name


def test_the_same_bits_every_run(wanted: str) -> None:
    operands = _operands("odd")
    first, second = (_computed(operands, "silu", wanted) for _ in range(2))
    assert all((first[name] == second[name]).all() for name in first)


def test_weight_gradients_add_up_in_fp32(wanted: str) -> None:
    x, to_out = (_operands("odd")[name] for name in ("x", "residual"))
    start = jnp.asarray(np.random.default_rng(1).standard_normal((70, 45)), jnp.float32)

    @jax.jit
    def twice(total: jax.Array) -> jax.Array:
        for _ in range(2):
            total = weight_gradient(x, to_out, into=total, wanted=wanted, target=CPU)
        return total

    wide = np.asarray(x, np.float64), np.asarray(to_out, np.float64)
    exact = np.asarray(start, np.float64) + 2 * wide[0].T @ wide[1]
    # bfloat16 could not hold 3 digits of these sums; fp32 sums of 37 products hold 6.
    np.testing.assert_allclose(twice(start), exact, atol=1e-5 * abs(exact).max())


def test_kernels_of_each_product_are_chosen_and_recorded_apart() -> None:
    with recording() as choices:
        choose_kernels(4096, 2048, 8192, "bfloat16", Target("gpu", "NVIDIA H200"))
    assert [choice.call for choice in choices] == [
        "nn bfloat16 m=4096 n=8192 k=2048",
        "nt bfloat16 m=4096 n=2048 k=8192",
        "tn bfloat16 m=2048 n=8192 k=4096",
    ]
    assert {choice.name for choice in choices} == {"xla"}
    assert all("not measured on NVIDIA H200" in c.declined["pallas_gpu"] for c in choices)


@pytest.mark.parametrize(
    ("target", "dtype", "reason"),
    [
        (CPU, "bfloat16", "needs a TPU, and this is cpu"),
        (
            Target("gpu", "NVIDIA B200"),
            "bfloat16",
            "written for Hopper .*, and this is NVIDIA B200",
        ),
        (Target("gpu", "NVIDIA H200"), "float32", "bfloat16 or float16, not float32"),
    ],
)
def test_kernels_say_why_they_decline(target: Target, dtype: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        choose_kernels(64, 64, 64, dtype, target, "pallas")
