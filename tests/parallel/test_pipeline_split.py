"""A backward pass in parts is the backward pass: the same numbers, the same products, no weight kept."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pipeline_toy import HIDDEN, ROWS, WIDTH, mixing

from jaxscale.config.model_section import ModelSection
from jaxscale.models.build import model_builder
from jaxscale.models.context import ForwardContext, use_forward_context
from jaxscale.models.description import blueprint, init_params
from jaxscale.models.staged import is_of_layers, staged
from jaxscale.models.traced_flops import traced_flops
from jaxscale.parallel.pipeline.split import split_layer
from jaxscale.parallel.remat import wrap_block

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "max_positions": 32,
    "num_layers": 2,
    "embed_dim": 32,
    "num_heads": 4,
    "mlp_dim": 56,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama3": {"num_kv_heads": 2, "head_dim": 16},
    "gemma2": {"num_kv_heads": 2, "head_dim": 16, "window": 5},
    "gpt2": {},
}


def layer_of(family: str, dtype: Any) -> tuple[Any, Any, Any, Any]:
    """(layer, its parameters, what it reads, x) of a block of a real model."""
    model = blueprint(
        model_builder(ModelSection.model_validate({"family": family, **SIZES, **FAMILIES[family]}))
    )
    parts = staged(model)
    params = {
        path: value[0].astype(dtype)
        for path, value in init_params(model, jax.random.key(0)).items()
        if is_of_layers(path)
    }
    rows = {
        "tokens": jnp.zeros((2, 16), jnp.int32),
        "positions": None,
        "segment_ids": jnp.ones((2, 16), jnp.int32),
    }
    x = jax.random.normal(jax.random.key(1), (2, 16, 32), dtype)
    return parts.layers[0], params, parts.prepare(rows), x


@pytest.mark.parametrize("remat", ["none", "dots", "minimal", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_block_are_the_whole(family: str, remat: Any) -> None:
    """The same equations, so within a rounding or two of `jax.vjp`; and F + B + W makes the products of F + (B with W).

    The gradient of the key bias of GPT-2 is rounding error itself, so differences are relative to all gradients.
    """
    with use_forward_context(ForwardContext(wrap_block=wrap_block(remat))):
        layer, params, inputs, x = layer_of(family, jnp.float32)
        split = split_layer(layer, params, inputs, x)
        dy = jax.random.normal(jax.random.key(2), x.shape)
        whole, found, parts = jax.jit(partial(all_ways, layer, split))(params, inputs, x, dy)
    y, to_params, to_x = whole
    found_y, found_params, found_x = found
    part_params, part_x = parts
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(to_params))
    for leaves in (jax.tree.leaves(found_params), part_params):
        for a, b in zip(leaves, jax.tree.leaves(to_params), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 * largest)
    for a, b in ((found_y, y), (found_x, to_x), (part_x, to_x)):
        np.testing.assert_allclose(a, b, atol=1e-6 * float(jnp.abs(b).max()))
    kept = split.residuals
    both = traced_flops(split.input_gradient, params, inputs, kept, dy) + traced_flops(
        split.weight_gradient, params, inputs, kept, split.pending
    )
    assert both == traced_flops(split.backward, params, inputs, kept, dy)


def all_ways(layer: Any, split: Any, params: Any, inputs: Any, x: Any, dy: Any) -> Any:
    """(y, gradients by parameters and x) by `jax.vjp`; the same in two parts; gradients in three."""
    (y, _), pull_back = jax.vjp(lambda params, x: layer(params, inputs, x), params, x)
    found_y, _, kept = split.forward(params, inputs, x)
    early, dx, pending = split.input_gradient(params, inputs, kept, dy)
    late = split.weight_gradient(params, inputs, kept, pending)
    assert all((a is None) != (b is None) for a, b in zip(early, late, strict=True))
    three = [a if b is None else b for a, b in zip(early, late, strict=True)]
    whole = y, *pull_back((dy, jnp.float32(1)))
    return whole, (found_y, *split.backward(params, inputs, kept, dy)), (three, dx)


def test_without_recomputation_nothing_is_computed_twice() -> None:
    """A block's backward pass makes twice the products of its forward pass, and here a score product more or less."""
    layer, params, inputs, x = layer_of("llama3", jnp.float32)
    split = split_layer(layer, params, inputs, x)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
    late = traced_flops(split.weight_gradient, params, inputs, split.residuals, split.pending)
    assert late == 2 * weights * x.shape[0] * x.shape[1]
    forward = traced_flops(split.forward, params, inputs, x)
    back = traced_flops(split.backward, params, inputs, split.residuals, x)
    scores = forward - late
    assert back - 2 * forward <= scores


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_parameter_is_kept(dtype: Any) -> None:
    """Residuals of a microbatch have its rows; a parameter, cast or turned, has none."""
    layer, params, inputs, x = layer_of("llama3", dtype)
    split = split_layer(layer, params, inputs, x)
    for kept in (*split.residuals, *split.pending):
        assert kept.shape[0] == x.shape[0], kept


def test_full_rematerialization_keeps_the_input_alone() -> None:
    with use_forward_context(ForwardContext(wrap_block=wrap_block("full"))):
        layer, params, inputs, x = layer_of("llama3", jnp.bfloat16)
        split = split_layer(layer, params, inputs, x)
    assert [(kept.shape, kept.dtype) for kept in split.residuals] == [(x.shape, x.dtype)]


def test_gradients_without_a_product_are_not_put_off() -> None:
    """The scale of a toy layer is a sum over rows of what is there already; its matrices are products."""
    params = {
        "up": jnp.ones((WIDTH, HIDDEN)),
        "gate": jnp.ones((WIDTH, HIDDEN)),
        "down": jnp.ones((HIDDEN, WIDTH)),
        "scale": jnp.ones(WIDTH),
    }
    split = split_layer(mixing, params, jnp.ones(()), jnp.ones((ROWS, WIDTH)))
    assert dict(zip(sorted(params), split.is_late, strict=True)) == {
        "down": True,
        "gate": True,
        "scale": False,
        "up": True,
    }
