"""Gated MLPs by kernels, interpreted, against float64, and what they keep for the backward pass."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.kernels.activations import WITH_SLOPE
from jaxscale.kernels.glu.api import Kernels, choose_kernels, gated_mlp
from jaxscale.kernels.glu.reference import reference_gated_mlp
from jaxscale.kernels.residuals import is_product
from jaxscale.kernels.target import Target, reason_without

CPU = Target("cpu", "cpu")
# Rows, embed, mlp: over the edge of the tiles, and one tile alone.
SIZES = {"odd": (37, 70, 90), "row": (1, 9, 5)}
TILES = {
    "xla": {},
    "interpret_tpu": {"m": 16, "n": 64, "k": 32},
    "interpret_gpu": {"m": 64, "n": 64, "k": 64, "stages": 2},
}


def _kernels(operands: dict[str, jax.Array], wanted: str) -> Kernels:
    rows, embed = operands["x"].shape
    sizes = rows, embed, operands["gate"].shape[1]
    kernels = choose_kernels(*sizes, operands["x"].dtype, CPU, wanted=wanted, wanted_matmul="xla")
    up = replace(kernels.up, config=TILES[wanted])
    return replace(
        kernels, up=up, down_gradient=replace(kernels.down_gradient, config=TILES[wanted])
    )


def _operands(size: str) -> dict[str, jax.Array]:
    rows, embed, mlp = SIZES[size]
    random = np.random.default_rng(embed)
    shapes = {"x": (rows, embed), "gate": (embed, mlp), "up": (embed, mlp), "down": (mlp, embed)}
    return {
        name: jnp.asarray(random.standard_normal(shape), "bfloat16")
        for name, shape in shapes.items()
    }


def _value_and_gradients(function: Any, operands: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    out, pull = jax.vjp(function, operands)
    weights = np.linspace(-1, 1, out.size).reshape(out.shape)
    (gradients,) = pull(jnp.asarray(weights, out.dtype))
    return {name: np.asarray(a, np.float64) for name, a in {"out": out, **gradients}.items()}


def _computed(operands: dict[str, jax.Array], activation: str, wanted: str) -> Any:
    kernels = _kernels(operands, wanted)

    def run(operands: dict[str, jax.Array]) -> jax.Array:
        return gated_mlp(**operands, activation=activation, kernels=kernels)

    return _value_and_gradients(jax.jit(run), operands)


@pytest.mark.parametrize("wanted", ["interpret_tpu", "interpret_gpu"])
@pytest.mark.parametrize(("size", "activation"), [("odd", "silu"), ("row", "gelu_tanh")])
def test_errors_are_no_larger_than_those_of_plain_products(
    size: str, activation: str, wanted: str
) -> None:
    platform = wanted.removeprefix("interpret_")
    reason = reason_without(Target(platform, "NVIDIA H200", interpreted=True))
    if reason is not None:
        pytest.skip(reason)
    operands = _operands(size)
    with jax.enable_x64(True):
        wide = {name: jnp.asarray(np.asarray(a, np.float64)) for name, a in operands.items()}
        exact = _value_and_gradients(
            lambda operands: reference_gated_mlp(**operands, activation=activation), wide
        )
    ours = _computed(operands, activation, wanted)
    plain = _value_and_gradients(partial(_as_autodiff_sees_it, activation=activation), operands)
    for name in exact:
        error = abs(ours[name] - exact[name]).max()
        assert error <= 1.5 * abs(plain[name] - exact[name]).max(), name


def _as_autodiff_sees_it(operands: dict[str, jax.Array], activation: str) -> jax.Array:
    """The layer as the model writes it where XLA runs it: each product in fp32, rounded to bfloat16."""

    def dot(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.dot(left, right, preferred_element_type=jnp.float32).astype(left.dtype)

    gate, up = dot(operands["x"], operands["gate"]), dot(operands["x"], operands["up"])
    return dot(WITH_SLOPE[activation](gate)[0] * up, operands["down"])


def test_the_hidden_layer_is_not_kept() -> None:
    operands = _operands("odd")
    run = partial(gated_mlp, activation="silu", kernels=_kernels(operands, "xla"))
    _, pull = jax.vjp(lambda operands: run(**operands), operands)
    rows, embed, mlp = SIZES["odd"]
    kept = sum(leaf.size for leaf in jax.tree.leaves(pull) if isinstance(leaf, jax.Array))
    assert kept == rows * embed + 3 * embed * mlp + 2 * rows * mlp


def test_a_policy_that_keeps_products_keeps_gate_and_up() -> None:
    operands = _operands("odd")
    run = partial(gated_mlp, activation="silu", kernels=_kernels(operands, "xla"))
    block = jax.checkpoint(lambda operands: run(**operands), policy=is_product)
    _, pull = jax.vjp(block, operands)
    shapes = [leaf.shape for leaf in jax.tree.leaves(pull) if isinstance(leaf, jax.Array)]
    assert shapes.count((37, 90)) == 2


@pytest.mark.parametrize("activation", WITH_SLOPE)
def test_slopes_are_those_of_autodiff(activation: str) -> None:
    with jax.enable_x64(True):
        places = jnp.linspace(-6, 6, 41)
        value, slope = WITH_SLOPE[activation](places)
        library = {"silu": jax.nn.silu, "gelu_tanh": partial(jax.nn.gelu, approximate=True)}
        # Near -6 the value is x times 1 - tanh, of which 6 eps are left.
        np.testing.assert_allclose(value, library[activation](places), rtol=1e-12, atol=1e-14)
        wanted = jax.vmap(jax.grad(library[activation]))(places)
        np.testing.assert_allclose(slope, wanted, rtol=1e-10, atol=1e-12)
