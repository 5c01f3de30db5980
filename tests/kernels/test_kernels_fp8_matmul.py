"""Products in fp8 against float64, within what rounding allows; scaling, saturation, delayed scaling's state."""

from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.errors import UserError
from jaxscale.kernels.fp8_matmul.api import (
    Fp8State,
    delayed_fp8_matmul,
    fp8_matmul,
    new_state,
    reason_against,
)
from jaxscale.kernels.fp8_matmul.reference import product_error, reference_matmul, rounding
from jaxscale.kernels.fp8_matmul.scaling import BACKWARD, FORWARD, Format, scaled
from jaxscale.kernels.target import Target

ROWS, INWARD, OUTWARD = 37, 50, 29


def _inputs(dtype: str = "float32", spread: float = 1.0) -> tuple[jax.Array, ...]:
    """Normal matrices; spread: rows and columns differ in size by up to its square."""
    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> jax.Array:
        sizes = spread ** rng.uniform(-1, 1, (shape[0], 1)), spread ** rng.uniform(-1, 1, shape[1])
        return jnp.asarray(rng.standard_normal(shape) * sizes[0] * sizes[1], dtype)

    return matrix(ROWS, INWARD), matrix(INWARD, OUTWARD), matrix(ROWS, OUTWARD)


def _products(x: Any, weight: Any, to_out: Any) -> list[tuple[Any, Any, Any, Any]]:
    """Operands and fp8 formats of the three GEMMs: forward, gradient of x, gradient of the weight."""
    return [
        (x, weight, FORWARD, FORWARD),
        (to_out, weight.T, BACKWARD, FORWARD),
        (x.T, to_out, FORWARD, BACKWARD),
    ]


@pytest.mark.parametrize("scaling", ["tensor", "row"])
@pytest.mark.parametrize("spread", [1.0, 100.0], ids=["even", "uneven"])
def test_errors_are_within_the_bound(scaling: str, spread: float) -> None:
    inputs = _inputs(spread=spread)
    x, weight, to_out = inputs
    out, pull = jax.vjp(partial(fp8_matmul, scaling=scaling), x, weight)
    with jax.enable_x64(True):
        wide = [np.asarray(each, np.float64) for each in inputs]
        for found, (left, right, *formats) in zip(
            (out, *pull(to_out)), _products(*wide), strict=True
        ):
            off = [
                rounding(each, dtype, scaled(jnp.asarray(each), dtype, over=over).scale)
                for each, dtype, over in zip(
                    (left, right),
                    formats,
                    (1, 0) if scaling == "row" else (None, None),
                    strict=True,
                )
            ]
            error = abs(np.asarray(found, np.float64) - left @ right)
            bound = product_error(left, right, *off)
            assert (error <= bound).all()
            # The bound is no blank check: errors of 50 terms add up at random to a tenth of it and more.
            assert error.max() > 0.05 * bound.max()


def test_a_scale_for_each_row_keeps_small_rows() -> None:
    """Rows of a millionth of the largest vanish in one scale for all: 2^-9 / 448 is the smallest that e4m3 holds."""
    x, weight, _ = _inputs()
    small = x.at[0].multiply(1e-6)
    exact = reference_matmul(small, weight)[0]
    assert (fp8_matmul(small, weight, "tensor")[0] == 0).all()
    error = abs(fp8_matmul(small, weight, "row")[0] - exact).max() / abs(exact).max()
    assert error < 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scaling", ["tensor", "row"])
def test_zeros_and_huge_numbers_give_finite_results(dtype: str, scaling: str) -> None:
    x, weight, to_out = _inputs(dtype)
    for one in (jnp.zeros_like(x), x * 1e18):
        out, pull = jax.vjp(partial(fp8_matmul, scaling=scaling), one, weight)
        assert all(jnp.isfinite(each).all() for each in (out, *pull(to_out)))
        assert out.dtype == one.dtype
        assert bool((out == 0).all()) is not bool(one.any())


def test_a_nan_is_not_hidden() -> None:
    x, weight, _ = _inputs()
    assert jnp.isnan(fp8_matmul(x.at[3, 4].set(jnp.nan), weight)).any()


def test_delayed_scaling_is_current_scaling_once_it_has_seen_the_arrays() -> None:
    x, weight, to_out = _inputs()

    @jax.jit
    def step(state: Fp8State) -> tuple[list[jax.Array], Fp8State]:
        out, pull = jax.vjp(delayed_fp8_matmul, x, weight, state)
        *gradients, after = pull(to_out)
        return [out, *gradients], after

    _, seen = step(new_state(4))
    assert [float(history[0]) for history in (seen.x, seen.weight, seen.to_out)] == [
        float(abs(each).max()) for each in (x, weight, to_out)
    ]
    delayed, again = step(seen)
    out, pull = jax.vjp(fp8_matmul, x, weight)
    for one, other in zip(delayed, (out, *pull(to_out)), strict=True):
        # The same fp8 values; compiled together or apart, the two scales round the sums in another order.
        np.testing.assert_allclose(one, other, rtol=4 * 2**-24, atol=4 * 2**-24)
    assert again.x.tolist() == [float(abs(x).max())] * 2 + [0, 0]


def test_what_exceeds_the_known_range_is_cut_to_it_and_remembered() -> None:
    x, weight = jnp.array([[1000.0]]), jnp.ones((1, 1))
    state = Fp8State(jnp.array([448.0, 0.0]), jnp.array([448.0, 0.0]), jnp.zeros(2))
    out, pull = jax.vjp(delayed_fp8_matmul, x, weight, state)
    assert out.item() == 448
    assert pull(jnp.ones((1, 1)))[2].x.tolist() == [1000, 448]
    assert delayed_fp8_matmul(x, weight, pull(jnp.ones((1, 1)))[2]).item() == 1000


@pytest.mark.parametrize("form", [FORWARD, BACKWARD], ids=["e4m3", "e5m2"])
def test_formats_are_those_of_the_dtypes(form: Format) -> None:
    facts = jnp.finfo(form.dtype)
    stated = (form.largest, form.epsilon, form.smallest)
    assert stated == (facts.max, facts.eps, facts.smallest_subnormal)


def test_runs_are_bitwise_the_same() -> None:
    x, weight, _ = _inputs("bfloat16")
    assert (jax.jit(fp8_matmul)(x, weight) == jax.jit(fp8_matmul)(x, weight)).all()


# Rows of a step and the four products of a layer: Llama 3.2 1B, Llama 3 8B, 70B over eight devices.
SHAPES = [
    (8192, 2048, 8192),
    (8192, 4096, 14336),
    (8192, 8192, 3584),
]


@pytest.mark.parametrize(("rows", "inward", "outward"), SHAPES)
@pytest.mark.parametrize("scaling", ["tensor", "row"])
def test_three_products_of_fp8_reach_the_gpu(
    rows: int, inward: int, outward: int, scaling: str
) -> None:
    x, weight = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((rows, inward), (inward, outward))
    )

    def total(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.square(fp8_matmul(x, weight, scaling)).sum()

    traced = jax.jit(jax.value_and_grad(total, (0, 1))).trace(x, weight)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3
    assert all("f8E4M3FN" in line for line in products)
    assert sum("f8E5M2" in line for line in products) == 2


@pytest.mark.skipif(find_spec("jax_cuda13_plugin") is None, reason="no CUDA compiler is installed")
@pytest.mark.parametrize("scaling", ["tensor", "row"])
def test_xla_gives_all_three_to_cublaslt(scaling: str) -> None:
    """Compiled for an H200 that is not there, so without the autotuner, which chooses between it and Triton."""
    from jaxscale.hardware.by_name import cluster_by_name
    from jaxscale.parallel.topology import abstract_devices, prepare_process

    prepare_process()
    here = jax.sharding.SingleDeviceSharding(abstract_devices(cluster_by_name("h200:1"))[0])
    x, weight = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=here)
        for shape in ((1024, 512), (512, 2048))
    )

    def total(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.square(fp8_matmul(x, weight, scaling)).sum()

    lowered = jax.jit(jax.value_and_grad(total, (0, 1))).lower(x, weight)
    compiled = lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})
    assert compiled.as_text().count('custom_call_target="__cublas$lt$matmul$f8"') == 3


def test_what_is_wrong_is_said() -> None:
    x, weight, _ = _inputs()
    with pytest.raises(UserError, match="there are 'tensor' and 'row'"):
        jax.vjp(partial(fp8_matmul, scaling="block"), x, weight)
    assert reason_against(Target("gpu", "NVIDIA H200")) is None
    assert "NVIDIA A100" in str(reason_against(Target("gpu", "NVIDIA A100-SXM4-80GB")))
    assert "cpu has no fp8 units" in str(reason_against(Target("cpu", "cpu")))
