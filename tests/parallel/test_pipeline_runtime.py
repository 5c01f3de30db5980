"""Every schedule computes what one device computes layer after layer."""

import math
import re
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from pipeline_toy import (
    HIDDEN,
    NUM_LAYERS,
    ROWS,
    WIDTH,
    Case,
    batch,
    layout_of,
    mapped,
    parameters,
    pipelined,
    sequential,
)

from jaxscale.models.traced_flops import inner_jaxprs, traced_flops
from jaxscale.parallel.remat import equations

SCHEDULES = ("1f1b", "gpipe", "zb-h1", "interleaved")
# As few microbatches as stages, one more, and many: from 2p - 1 on, only the loop gets longer.
FIRST = {(1, 1), (2, 3), (2, 16), (4, 4), (4, 5), (4, 32), (8, 9), (8, 16)}
SIZES = [
    pytest.param(
        stages, microbatches, marks=[] if (stages, microbatches) in FIRST else pytest.mark.slow
    )
    for stages in (1, 2, 4, 8)
    for microbatches in sorted({stages, stages + 1, 2 * stages, 8 * stages})
]


@cache
def expected(microbatches: int) -> Any:
    return jax.jit(sequential)(*parameters(), batch(microbatches))


def distance(found: Any, wanted: Any) -> list[float]:
    """Of each leaf, in the 2-norm, relative."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in jax.device_get([*pairs])]


@pytest.mark.parametrize(("stages", "microbatches"), SIZES)
def test_every_schedule_is_sequential_accumulation(stages: int, microbatches: int) -> None:
    """Uneven stages, two kinds of layers, a tied table, masks of different weight, auxiliary losses.

    The products of a microbatch are the same ones, summed over the same 16 rows, and gradients are added over
    microbatches in the same order; what differs is how XLA fuses the sums in between. 17 layers of some 10 roundings of
    2^-24 each, in a backward pass that amplifies them a little, stay under 2e-6 (found: 4e-7); a single gradient left
    out or counted twice is 1e-2. Between schedules the operations and their order are the same: bitwise equal.
    """
    rows = batch(microbatches)
    total, gradients = expected(microbatches)
    first = None
    for schedule in SCHEDULES:
        chunks = 2 if schedule == "interleaved" else 1
        found, to_parameters, sums = pipelined(
            Case(schedule, stages, microbatches, chunks), *parameters(), rows
        )
        np.testing.assert_allclose(found, total, rtol=2e-6)
        assert float(sums["weight"]) == float(rows["mask"].sum())
        assert max(distance(to_parameters, gradients)) < 2e-6, schedule
        if chunks == 1:
            first = first or to_parameters
            assert bitwise_equal(to_parameters, first), schedule


def bitwise_equal(some: Any, others: Any) -> bool:
    pairs = zip(jax.tree.leaves(some), jax.tree.leaves(others), strict=True)
    return all(np.array_equal(a, b) for a, b in jax.device_get([*pairs]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_idle_stages_compute_goes_nowhere(schedule: str) -> None:
    """Rings that begin with NaN, and passes that do not run and give NaN, change no bit."""
    case = Case(schedule, stages=4, microbatches=3, chunks=2 if schedule == "interleaved" else 1)
    clean = pipelined(case, *parameters(), batch(3))
    poisoned = pipelined(case, *parameters(), batch(3), idle=float("nan"))
    assert bitwise_equal(poisoned, clean)


@cache
def compiled(case: Case) -> Any:
    layers, shared = parameters()
    stored = jax.tree.map(layout_of(case).stored, layers)
    return jax.jit(mapped(case)).lower(stored, shared, batch(case.microbatches)).compile()


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zb-h1"])
def test_memory_does_not_grow_with_microbatches(schedule: str) -> None:
    """From 2p - 1 microbatches on, all that 1F1B in lockstep ever keeps; token ids and the schedule's table grow."""
    chunks = 2 if schedule == "interleaved" else 1
    few, many = (
        compiled(Case(schedule, 4, microbatches, chunks)).memory_analysis().temp_size_in_bytes
        for microbatches in (8, 32)
    )
    assert many <= 1.03 * few


def test_gpipe_keeps_every_microbatch() -> None:
    """The slope that the others do not have: a microbatch more is its residuals more, on every stage."""
    sizes = [
        compiled(Case("gpipe", 4, microbatches)).memory_analysis().temp_size_in_bytes
        for microbatches in (8, 32)
    ]
    stream = 4 * ROWS * WIDTH
    hidden = 4 * ROWS * HIDDEN
    places = layout_of(Case("gpipe", 4, 8)).slots
    assert sizes[1] - sizes[0] > 24 * places * (stream + 3 * hidden)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_array_of_hidden_size_counts_microbatches(schedule: str) -> None:
    """With 29 microbatches, a number that no other size has, only token ids and masks have a dim of 29."""
    case = Case(schedule, 4, 29, 2 if schedule == "interleaved" else 1)
    shapes = set(re.findall(r"\w\d+\[([\d,]+)\]", compiled(case).as_text()))
    long = {shape for shape in shapes if {"29", "30"} & set(shape.split(","))}
    ids = {f"{count},{ROWS}" for count in (29, 30)} | {"29", "30"}
    assert (long - ids == set()) == (schedule != "gpipe"), sorted(long)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_stages_meet_in_one_permute_each_way_a_tick(schedule: str) -> None:
    """Both in the body of the loop over ticks, none in a branch of a conditional, and nothing is gathered."""
    case = Case(schedule, 4, 8, 2 if schedule == "interleaved" else 1)
    text = compiled(case).as_text()
    holders = [name for name, body in computations(text).items() if " collective-permute" in body]
    assert text.count(" collective-permute(") == 2
    (holder,) = holders
    assert " conditional(" in computations(text)[holder]  # the loop's body, which holds the passes
    assert " all-gather(" not in text
    assert " all-to-all(" not in text


def computations(text: str) -> dict[str, str]:
    """Of a compiled program, by name."""
    found = re.findall(
        r"^(?:ENTRY )?%?([\w.-]+) \([^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL
    )
    return dict(found)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_product_is_made_that_one_device_would_not_make(schedule: str) -> None:
    """Products of the traced program, counted by how often its table runs each pass, over those of `jax.grad`: 1.

    Layers run once each way a microbatch, the loss once, on the last stage; nothing outside the conditionals multiplies
    matrices. Both kinds of layers make the same number of products.
    """
    case = Case(schedule, 4, 5, 2 if schedule == "interleaved" else 1)
    layers, shared = parameters()
    rows = batch(case.microbatches)
    stored = jax.tree.map(layout_of(case).stored, layers)
    traced = jax.make_jaxpr(mapped(case))(stored, shared, rows).jaxpr
    loops = [e for e in equations(traced) if e.primitive.name == "scan"]
    (tick,) = (e.params["jaxpr"].jaxpr for e in loops if has_permute(e))
    assert sum(products(e) for e in tick.eqns if e.primitive.name != "cond") == 0
    per_layer, per_loss = 0.0, 0.0
    for passes in (e for e in tick.eqns if e.primitive.name == "cond"):
        branches = [branch.jaxpr for branch in passes.params["branches"]]
        for inner in max(branches, key=lambda branch: len(branch.eqns)).eqns:
            if inner.primitive.name == "cond":
                per_loss += products(inner)
            elif inner.primitive.name == "scan":
                per_layer += products(inner) / inner.params["length"]
            else:
                assert products(inner) == 0
    if schedule == "zb-h1":  # Two or more weight gradients stand in a tick; each layer has one.
        width = sum(e.primitive.name == "cond" for e in tick.eqns) - 2
        weights = 3 * 2 * ROWS * WIDTH * HIDDEN
        per_layer -= (width - 1) * weights
    executed = case.microbatches * (NUM_LAYERS * per_layer + per_loss)
    assert executed == traced_flops(sequential, layers, shared, rows)


def has_permute(equation: Any) -> bool:
    body = equation.params["jaxpr"].jaxpr
    return any(inner.primitive.name == "ppermute" for inner in body.eqns)


def products(equation: Any) -> float:
    """FLOPs of the matrix products of one traced operation, a loop's by its trips, a conditional's dearest branch."""
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[dim] for dim in contracted)
        return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
    inner = [sum(map(products, jaxpr.eqns)) for jaxpr in inner_jaxprs(equation.params)]
    if equation.primitive.name == "cond":
        return max(inner)
    return equation.params.get("length", 1) * sum(inner)
