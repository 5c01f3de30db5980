"""Choices of a pipeline's program, counted as often as its schedule makes them."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from planner_cases import DENSE

from jaxscale.parallel.pipeline.stages import balanced
from jaxscale.planner.costs.lockstep.stages import head_load, tick_shares
from jaxscale.planner.hlo.branches import TickShares, branch_shares
from jaxscale.planner.hlo.execution import executed
from jaxscale.planner.hlo.products import product_flops
from jaxscale.planner.hlo.text import Module, parse_module
from jaxscale.planner.model.parameters import parameter_groups
from jaxscale.planner.vocabulary.layout import Layout

TICKS, PLACES, WIDTH = 6, 3, 16
HALF, THIRD = Fraction(1, 2), Fraction(1, 3)


def products(module: Module, shares: TickShares | None) -> float:
    """How many [WIDTH, WIDTH] products a program runs."""
    flops = sum(
        each.times * (product_flops(each.computation, each.instruction) or 0)
        for each in executed(module, shares)
    )
    return float(flops / (2 * WIDTH**3))


def pass_of_a_tick(x: jax.Array, row: Any) -> tuple[jax.Array, None]:
    """One product a place with a layer, and three more at the end of the model."""
    is_on, is_end, kinds = row

    def layer(x: jax.Array, kind: jax.Array) -> tuple[jax.Array, None]:
        return jax.lax.cond(kind > 0, lambda: jnp.sin(x @ x), lambda: x), None

    def run() -> jax.Array:
        y, _ = jax.lax.scan(layer, x, kinds)
        chosen: jax.Array = jax.lax.cond(is_end > 0, lambda: jnp.cos(y @ y @ y) @ y, lambda: y)
        return chosen

    return jax.lax.cond(is_on > 0, run, lambda: x), None


@pytest.fixture(scope="module")
def module() -> Module:
    def step(x: jax.Array, rows: Any) -> jax.Array:
        return jax.lax.scan(pass_of_a_tick, x, rows)[0]

    flags = jnp.ones((TICKS,), jnp.int32)
    rows = flags, flags, jnp.ones((TICKS, PLACES), jnp.int32)
    text = jax.jit(step).lower(jnp.ones((WIDTH, WIDTH)), rows).compile().as_text()
    return parse_module(text or "")


def test_without_shares_everything_counts_as_if_it_always_ran(module: Module) -> None:
    assert products(module, None) == TICKS * (PLACES + 3)


def test_passes_ends_and_places_count_as_often_as_the_schedule_has_them(module: Module) -> None:
    """Of 6 ticks 2 have a pass, with 2 layers of 3 places; half of the passes are at the model's end."""
    shares = TickShares(passes=THIRD, ends=HALF, layers=Fraction(2, 3))
    assert products(module, shares) == 2 * (2 + 3 / 2)
    assert products(module, TickShares(Fraction(1), Fraction(0), Fraction(1))) == TICKS * PLACES


@pytest.mark.parametrize(
    ("lengths", "has_products", "shares"),
    [
        ([5, 40], [False, True], [1 - THIRD, THIRD]),
        # Two kinds of layers and no layer; two kinds alone.
        ([30, 40, 2], [True, True, False], [THIRD / 2, THIRD / 2, 1 - THIRD]),
        ([30, 40], [True, True], [HALF, HALF]),
        # A lookup has no product: the longer branch is the one that does something.
        ([2, 9], [False, False], [1 - THIRD, THIRD]),
    ],
)
def test_branches_share_what_a_choice_is_made(
    lengths: list[int], has_products: list[bool], shares: list[Fraction]
) -> None:
    known = TickShares(passes=THIRD, ends=HALF, layers=HALF)
    assert branch_shares(known, ("while",), lengths, has_products) == shares


def test_a_choice_elsewhere_counts_its_longest_branch() -> None:
    known = TickShares(passes=THIRD, ends=HALF, layers=HALF)
    for path in ((), ("conditional",), ("while", "conditional", "while", "while")):
        assert branch_shares(known, path, [3, 8], [True, True]) == [0, 1]


def test_shares_are_those_of_the_schedules_table() -> None:
    """1F1B of 4 stages has 8 + 2 x 3 ticks for 8 microbatches; ZB-H1 has 3 more; 10 layers are 3 + 3 + 3 + 1."""
    layout = Layout(pipeline=4, microbatches=8, schedule="1f1b", stage_layers=(3, 3, 3, 1))
    groups = parameter_groups(DENSE)
    expected = TickShares(Fraction(8, 14), Fraction(1, 4), Fraction(10, 12))
    assert tick_shares(layout, 10, groups) == expected
    later = tick_shares(Layout(pipeline=4, microbatches=8, schedule="zb-h1"), 8, groups)
    assert later is not None
    assert later.passes == Fraction(8, 17)
    # 4 microbatches through both chunks of 2 stages: 8 of 4 x 2 + 2 + 2 ticks; the ends are in one pass of 4.
    turns = Layout(pipeline=2, microbatches=4, schedule="interleaved", virtual_stages=2)
    assert tick_shares(turns, 4, groups) == TickShares(
        Fraction(8, 12), Fraction(1, 4), Fraction(4, 4 * max(balanced(4, 4, head_load(groups))))
    )
    assert tick_shares(Layout(), 10, groups) is None
