"""Norms against their definition in fp64, and the scan over stacked layers against a plain loop."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models_cases import architecture

from jaxscale.models.layer_scan import scan_layers
from jaxscale.models.layers import LayerNorm, RMSNorm

WIDTH = 512


def _input() -> Any:
    values = np.random.default_rng(0).standard_normal((16, WIDTH)) * 3 + 2
    return jnp.asarray(values, jnp.bfloat16)


def _definition(x: Any, norm: RMSNorm | LayerNorm, epsilon: float) -> np.ndarray:
    wide = np.asarray(x, np.float64)
    scale = np.asarray(norm.scale[...], np.float64)
    if isinstance(norm, LayerNorm):
        centered = wide - wide.mean(-1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + epsilon) * scale
    return wide / np.sqrt((wide**2).mean(-1, keepdims=True) + epsilon) * scale


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
def test_norms_of_half_precision_round_once(kind: type) -> None:
    arch = architecture("llama3, grouped")
    norm, x = kind(arch, nnx.Rngs(0), width=WIDTH), _input()
    scale = np.random.default_rng(1).uniform(0.5, 2, WIDTH)
    norm.scale.set_value(jnp.asarray(scale, jnp.bfloat16))

    out = norm(x)

    assert out.dtype == jnp.bfloat16
    expected = _definition(x, norm, arch.norm_epsilon)
    # One rounding to 8 bits is half a unit of 2^-7 at most relative; statistics in bf16 would add several more.
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=1.01 * 2**-8, atol=1e-6)


@pytest.mark.parametrize("unroll", [1, 2, 100])
@pytest.mark.parametrize("num_layers", [2, 3, 6, 8])
def test_scanned_layers_are_a_loop_whose_steps_repeat_in_order(
    num_layers: int, unroll: int
) -> None:
    def step(kind: int) -> Any:
        return lambda layer, x: (x * 3 + layer["weight"] * kind, {"kind": x * 0 + kind, "x": x})

    weights = jnp.arange(1, num_layers + 1, dtype=jnp.int32)
    steps = [step(kind) for kind in (5, 7, 11)]

    x, outputs = scan_layers(steps, {"weight": weights}, jnp.int32(1), unroll=unroll)

    expected, kinds, seen = 1, [], []
    for layer in range(num_layers):
        kind = (5, 7, 11)[layer % 3]
        kinds.append(kind)
        seen.append(expected)
        expected = expected * 3 + (layer + 1) * kind
    assert int(x) == expected
    assert (outputs["kind"].tolist(), outputs["x"].tolist()) == (kinds, seen)


@pytest.mark.parametrize(("unroll", "iterations"), [(1, 1), (3, 1), (6, 2), (100, 4)])
def test_unroll_counts_layers_not_periods(unroll: int, iterations: int) -> None:
    steps = [lambda layer, x: (x + layer, None)] * 3
    trace = jax.make_jaxpr(lambda w: scan_layers(steps, w, jnp.float32(0), unroll=unroll))(
        jnp.ones(13)
    )
    (scan,) = (e for e in trace.jaxpr.eqns if e.primitive.name == "scan")
    assert (scan.params["length"], scan.params["unroll"]) == (4, iterations)
