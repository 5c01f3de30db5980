"""Closed forms of lockstep against the tables that the runtime goes through."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import get_args

import numpy as np
import pytest

from jaxscale.config.plan import Schedule as PlanSchedule
from jaxscale.parallel.pipeline.program import make_program
from jaxscale.parallel.pipeline.schedules import make_table
from jaxscale.parallel.pipeline.simulate import Costs, Times, tick_time
from jaxscale.parallel.pipeline.table import Table as ScheduleTable
from jaxscale.planner.costs.lockstep.counts import (
    Load,
    Passes,
    slots,
    step_seconds,
    ticks,
    ticks_alone,
    ticks_with_both,
)
from jaxscale.planner.costs.lockstep.turns import InTurns
from jaxscale.planner.model.sizes import mesh_columns
from jaxscale.planner.vocabulary.formula import Formula, Number, Table
from jaxscale.planner.vocabulary.layout import Schedule

SCHEDULES = get_args(PlanSchedule)
Size = tuple[Schedule, int, int, int]


def sizes(schedule: Schedule) -> Iterator[Size]:
    """(schedule, stages, microbatches, chunks), m < p and m that p does not divide among them."""
    for stages, microbatches in product((2, 3, 4, 6), (1, 2, 3, 4, 5, 6, 8, 9, 12, 17, 24)):
        for chunks in (2, 3) if schedule == "interleaved" else (1,):
            yield schedule, stages, microbatches, chunks


def value(formula: Formula, size: Size) -> float:
    _, stages, microbatches, chunks = size
    columns = {"pipeline": stages, "microbatches": microbatches, "virtual_stages": chunks}
    return formula.at(Table({name: np.array([number]) for name, number in columns.items()}), 0)


def passes(times: Times) -> Passes:
    return Passes(Number(times.forward), Number(times.backward), Number(times.weight))


def predicted(size: Size, chunk: Times, last: Times) -> float:
    """All chunks but the last as `chunk`."""
    mesh, schedule = mesh_columns(), size[0]
    if schedule == "interleaved":
        assert chunk == last
        return value(_turns((1,) * (size[1] * size[3]), chunk), size)
    whole = passes(chunk)
    load = Load(chunk=whole, other=whole, last=passes(last), full=mesh.pipeline - 1)
    return value(step_seconds(schedule, mesh, load), size)


def simulated(size: Size, chunk: Times, last: Times) -> float:
    _, stages, _, chunks = size
    return tick_time(table(size), Costs(((chunk,) * (stages * chunks - 1)) + (last,)))


@cache
def table(size: Size) -> ScheduleTable:
    schedule, stages, microbatches, chunks = size
    return make_table(schedule, stages=stages, microbatches=microbatches, chunks=chunks)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ticks_are_those_of_the_table(schedule: Schedule) -> None:
    for size in sizes(schedule):
        assert value(ticks(schedule, mesh_columns()), size) == len(table(size).ticks), size


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_slots_are_those_of_the_program(schedule: Schedule) -> None:
    """A gradient may need one slot more in groups of uneven size: one stream of many."""
    found = slots(schedule, mesh_columns())
    for size in sizes(schedule):
        program = make_program(table(size))
        assert value(found.residual, size) == program.residual_slots, size
        assert value(found.pending, size) == program.pending_slots, size
        streams = program.inbox_slots + program.gradient_slots
        assert streams - 1 <= value(found.streams, size) <= streams, size


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("stage", [Times(1.0, 1.25, 0.75), Times(1.0, 2.1, 0.7), Times(1, 1, 1)])
def test_stages_that_are_alike_take_what_the_simulation_says(
    schedule: Schedule, stage: Times
) -> None:
    for size in sizes(schedule):
        assert predicted(size, stage, stage) == pytest.approx(simulated(size, stage, stage)), size


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb-h1"])
@pytest.mark.parametrize("head", [0.3, 0.7, 1.4, 3.0, 4.4])
def test_a_balanced_head_takes_what_the_simulation_says(schedule: Schedule, head: float) -> None:
    """The last chunk has fewer layers, so that all take about the same, and all of the head's time is in F.

    Never less than simulated. More by what the first and the last of the ticks with two passes spare, in which only the
    last stage has both: 3.5 % for two microbatches, less for more.
    """
    layer = Times(1.0, 2.1, 0.7)
    chunk, number = _layers(layer, 6), 6 - round(head)
    last = _layers(layer, number)
    last = replace(last, forward=last.forward + head * (1 + 2.1 + 0.7))
    for size in sizes(schedule):
        exact = simulated(size, chunk, last)
        assert exact * (1 - 1e-9) <= predicted(size, chunk, last) <= 1.035 * exact, size


@pytest.mark.parametrize("head", [0.0, 2.0, 6.0])
def test_turns_take_what_the_simulation_says_whatever_chunks_hold(head: float) -> None:
    """Layers 1, 2, 3, 1, 2, ... a chunk: within 2 %: the last ticks may be at another place of a turn."""
    layer = Times(1.0, 2.1, 0.7)
    for stages, chunks, groups in product((2, 3, 4), (2, 3), (1, 3, 6)):
        counts = tuple(1 + depth % 3 for depth in range(stages * chunks))
        size: Size = "interleaved", stages, groups * stages, chunks
        times = [_layers(layer, count) for count in counts]
        times[0] += Times(0, 3)
        times[-1] += Times(head, 0)
        exact = tick_time(table(size), Costs(tuple(times)))
        found = value(_turns(counts, layer, head, 3), size)
        assert found == pytest.approx(exact, rel=0.02), size


def _turns(counts: tuple[int, ...], layer: Times, head: float = 0, embedding: float = 0) -> InTurns:
    mesh, whole = mesh_columns(), passes(layer)
    return InTurns(
        lambda *_: counts,
        forward=whole.forward,
        backward=whole.whole_backward,
        head=Number(head),
        embedding=Number(embedding),
        alone=ticks_alone(mesh),
        both=ticks_with_both(mesh),
    )


def _layers(layer: Times, number: int) -> Times:
    return Times(number * layer.forward, number * layer.backward, number * layer.weight)
