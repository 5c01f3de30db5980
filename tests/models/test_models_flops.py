"""The FLOP formulas against the products in the traced program, and against counts made by hand."""

import math
import re
from dataclasses import replace

import jax
import jax.extend
import numpy as np
import pytest
from models_cases import CASES, architecture, make_blueprint, section

from jaxscale.models.architecture import Architecture
from jaxscale.models.context import ForwardContext, use_forward_context
from jaxscale.models.description import bind
from jaxscale.models.families import resolve
from jaxscale.models.flops import (
    flops_terms,
    forward_flops_per_token,
    keys_seen,
    training_flops_per_token,
)

SEQUENCE = 24


def _inner(equation: jax.extend.core.JaxprEqn) -> list[jax.extend.core.Jaxpr]:
    leaves = jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr"))
    return [leaf.jaxpr for leaf in leaves if hasattr(leaf, "jaxpr")]


def _dot_flops(jaxpr: jax.extend.core.Jaxpr) -> int:
    """2 m n k of every product of a trace, scans counted by their trips."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = np.prod([equation.invars[0].aval.shape[dim] for dim in contracted])
            total += 2 * int(depth) * equation.outvars[0].aval.size
        trips = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += trips * sum(_dot_flops(inner) for inner in _inner(equation))
    return total


@pytest.mark.parametrize("name", CASES)
def test_the_full_convention_counts_every_product_of_the_traced_forward_pass(name: str) -> None:
    model = make_blueprint(name)
    params = {path: jax.ShapeDtypeStruct(s.shape, s.dtype) for path, s in model.description.items()}
    tokens = jax.ShapeDtypeStruct((2, SEQUENCE), "int32")
    context = ForwardContext(kernels={"attention": "reference"})  # The whole square, masked.

    with use_forward_context(context):
        traced = jax.make_jaxpr(lambda p, t: bind(model, p)(t))(params, tokens)

    formula = forward_flops_per_token(architecture(name), SEQUENCE, convention="full")
    assert sum(formula.values()) * 2 * SEQUENCE == _dot_flops(traced.jaxpr)


def test_gpt2_small_costs_what_a_count_by_hand_gives() -> None:
    sizes = {"vocab_size": 50257, "max_positions": 1024, "num_layers": 12, "embed_dim": 768}
    arch = resolve(section("gpt2", **sizes, num_heads=12))
    by_hand = {
        "attention projections": 12 * 4 * 2 * 768 * 768,
        "attention scores": 12 * 2 * 2 * 768 * 512.5,  # Queries see 1 to 1024 keys: 512.5.
        "mlp": 12 * 2 * 2 * 768 * 3072,
        "head": 2 * 768 * 50257,
    }
    assert forward_flops_per_token(arch, 1024) == by_hand
    assert training_flops_per_token(arch, 1024) == 3 * sum(by_hand.values())


@pytest.mark.parametrize("window", [None, 1, 5, 24, 100])
def test_keys_seen_is_the_mean_over_the_mask(window: int | None) -> None:
    back = np.arange(SEQUENCE)[:, None] - np.arange(SEQUENCE)
    mask = (back >= 0) & (back < (window or SEQUENCE))
    assert keys_seen(SEQUENCE, window) == mask.sum() / SEQUENCE


def test_windows_are_counted_in_the_layers_that_have_them() -> None:
    # Gemma 3, pattern of three, seven layers: layers 2 and 5 are global, five have a window of 4.
    arch = architecture("gemma3, pattern of three")
    keys = 2 * keys_seen(SEQUENCE, None) + 5 * keys_seen(SEQUENCE, 4)
    scores = forward_flops_per_token(arch, SEQUENCE)["attention scores"]
    assert scores == pytest.approx(2 * 2 * arch.num_heads * arch.head_dim * keys, rel=1e-15)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("convention", ["causal", "full"])
def test_a_formula_evaluates_to_its_figure(name: str, convention: str) -> None:
    for term in flops_terms(architecture(name), SEQUENCE, convention=convention):
        assert _evaluate(term.formula) == pytest.approx(term.flops, rel=1e-9)


def _evaluate(formula: str) -> float:
    """A product of named numbers, one factor of which may be a sum of such products in brackets."""
    factors = re.split(r" x (?![^(]*\))", formula)
    return math.prod(
        sum(_product(part) for part in factor.strip("()").split(" + ")) for factor in factors
    )


def _product(words: str) -> float:
    return math.prod(float(word.split()[0].replace(",", "")) for word in words.split(" x "))


def test_longer_sequences_cost_more_a_token_in_attention_only() -> None:
    arch: Architecture = architecture("llama3, grouped")
    short, long = (forward_flops_per_token(arch, length) for length in (128, 256))
    assert {name for name in short if long[name] != short[name]} == {"attention scores"}
    untied = forward_flops_per_token(replace(arch, tied_embeddings=True), 128)
    assert untied == short
