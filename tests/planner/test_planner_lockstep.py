"""What the planner says of pipelines that our trainer runs."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from planner_cases import DENSE, problem

from jaxscale.config.plan import Schedule as PlanSchedule
from jaxscale.parallel.pipeline.schedules import make_table
from jaxscale.parallel.pipeline.simulate import Costs, Times, tick_time
from jaxscale.parallel.pipeline.stages import balanced
from jaxscale.planner.costs.compute import head_part, layer_parts
from jaxscale.planner.costs.lockstep.setting import Pipeline
from jaxscale.planner.costs.lockstep.stages import head_load, stages_of
from jaxscale.planner.costs.lockstep.time import Work, work_of
from jaxscale.planner.costs.step import speeds_of
from jaxscale.planner.model.sizes import mesh_columns, sizes_of
from jaxscale.planner.search.exhaustive import Problem, Space, blocks, divisible_meshes
from jaxscale.planner.search.predict import predict, table_of
from jaxscale.planner.vocabulary.formula import Formula, Table
from jaxscale.planner.vocabulary.layout import Layout, Remat, Schedule
from jaxscale.planner.vocabulary.prediction import Prediction

SCHEDULES: tuple[Schedule, ...] = get_args(PlanSchedule)
GIB = 2**30
# Eight devices, all stages of data 2; 8 layers and a head worth 2.6 of them.
BASE = Layout(pipeline=4, data=2, microbatches=16, schedule="1f1b", remat="full")
QUESTION = problem(DENSE, "v5p:2x2x2", batch=64)
# Stages that are alike: the head is worth 0.04 layers.
EVEN = problem(replace(DENSE, layers=16, vocab=512), "v5p:2x2x2", batch=64)


def predicted(layout: Layout, question: Problem = QUESTION) -> Prediction:
    return predict(
        question.workload,
        question.cluster,
        layout,
        question.stack,
        groups=question.groups,
        efficiency=question.efficiency,
    )


def seconds(found: Prediction, *components: str) -> float:
    return sum(line.value for line in found.time if line.component in components)


def gigabytes(found: Prediction, component: str) -> float:
    return sum(line.value for line in found.memory if line.component == component)


def with_schedule(schedule: Schedule) -> Layout:
    return replace(BASE, schedule=schedule, virtual_stages=2 if schedule == "interleaved" else 1)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_is_the_schedules_table_with_the_planners_own_times(
    schedule: Schedule, remat: Remat
) -> None:
    """Simulated tick by tick with the layers that each chunk really has; what is sent and the optimizer come on top."""
    layout = replace(with_schedule(schedule), remat=remat)
    found = predicted(layout)
    inside = found.step_seconds - seconds(found, *_OUTSIDE_TICKS)
    assert inside == pytest.approx(simulated(layout), rel=0.03)


_OUTSIDE_TICKS = (
    "parameters and gradients over fsdp",
    "gradients over data",
    "activations over pipeline",
    "vocabulary tables over pipeline",
    "writing rings",
    "optimizer",
)


def simulated(layout: Layout) -> float:
    """A step in lockstep from the planner's times of a layer, the head and the embedding."""
    work, table = own_times(layout)

    def value(formula: Formula) -> float:
        return formula.at(table, 0)

    depths = layout.pipeline * layout.virtual_stages
    counts = balanced(DENSE.layers, depths, head_load(QUESTION.groups))
    layer = work.layer
    times = [
        Times(*(count * value(one) for one in (layer.forward, layer.backward, layer.weight)))
        for count in counts
    ]
    times[0] += Times(0, value(work.embedding))
    times[-1] += Times(value(work.head + work.adding_table), 0)
    ticks = make_table(
        layout.schedule,
        stages=layout.pipeline,
        microbatches=layout.microbatches,
        chunks=layout.virtual_stages,
    )
    return tick_time(ticks, Costs(tuple(times)))


def own_times(layout: Layout, question: Problem = QUESTION) -> tuple[Work, Table]:
    stack, groups, shape = question.stack, question.groups, question.workload.shape
    sizes = sizes_of(question.workload, mesh_columns(), sequence_parallel=stack.sequence_parallel)
    speeds = speeds_of(question.cluster, stack, question.efficiency)
    stages = stages_of(shape.layers, groups)
    pipeline = Pipeline(shape, groups, sizes, stack, stages, layout.remat, layout.schedule)
    parts = layer_parts(shape, sizes, stack, speeds)
    head = head_part(shape, sizes, stack, speeds)
    work = work_of(pipeline, speeds, parts, head)
    return work, table_of(question.cluster, layout, question.efficiency)


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1", "gpipe"])
def test_only_gpipes_memory_grows_with_microbatches(schedule: Schedule) -> None:
    """A row a microbatch, 64 or 128 of them: GPipe keeps each, and its gradient by the loss at the last stage."""
    peaks = [
        predicted(
            replace(BASE, data=1, microbatches=rows, schedule=schedule),
            problem(DENSE, "v5p:2x2x1", batch=rows),
        ).peak_bytes
        for rows in (64, 128)
    ]
    stream = 2048 * DENSE.embed * 2
    places = max(balanced(8, 4, head_load(QUESTION.groups)))
    grown = 64 * (places + 1) * stream if schedule == "gpipe" else 0
    assert peaks[1] - peaks[0] == pytest.approx(grown)


def test_1f1b_keeps_2p_minus_1_chunks_and_writes_one() -> None:
    """Seven chunks and the one that is written, each with room for three layers, one input a layer."""
    kept = gigabytes(predicted(BASE), "kept activations")
    tokens = 64 * 2048 / 2 / 16
    assert balanced(8, 4, head_load(QUESTION.groups)) == (3, 2, 2, 1)
    assert kept == 8 * 3 * tokens * DENSE.embed * 2


def test_zero_bubble_trades_memory_for_idle_time() -> None:
    """Of 1F1B's p - 1 times F + B + W, ZB-H1 leaves F + B - W (Qi et al. 2023, table 1), here of a stage's four layers.

    Head and embedding are worth 0.04 layers together, which one stage more or less waits for: 1 % of four.
    """
    plain, zero = (predicted(with_schedule(name), EVEN) for name in ("1f1b", "zb-h1"))
    layer, table = own_times(with_schedule("zb-h1"), EVEN)
    forward, backward, weight = (
        one.at(table, 0) for one in (layer.layer.forward, layer.layer.backward, layer.layer.weight)
    )
    left = (forward + backward - weight) / (forward + backward + weight)
    ratio = seconds(zero, "pipeline bubble") / seconds(plain, "pipeline bubble")
    assert ratio == pytest.approx(left, rel=0.01)
    idle = 3 * 4 * (forward + backward - weight)
    assert seconds(zero, "pipeline bubble") == pytest.approx(idle, rel=0.01)
    assert gigabytes(zero, "waiting for weight gradients") > 0.1 * GIB
    assert gigabytes(plain, "waiting for weight gradients") == 0


def test_interleaving_waits_for_chunks_not_for_stages() -> None:
    """Chunks half as large: half the bubble, for twice as many microbatches' inputs sent."""
    plain, halves = (predicted(with_schedule(name), EVEN) for name in ("1f1b", "interleaved"))
    ratio = seconds(halves, "pipeline bubble") / seconds(plain, "pipeline bubble")
    assert 0.45 < ratio < 0.55
    sent = [seconds(one, "activations over pipeline") for one in (plain, halves)]
    # Ticks: 16 + 2 x 3, and twice 16 and 3 + 4 more at each end.
    assert sent[1] / sent[0] == pytest.approx((2 * 16 - 4 + 2 * 7) / 22)


def test_layers_that_a_plan_deals_out_count() -> None:
    """Five layers on the second stage of four: all stages have room for five, and wait for them."""
    even, uneven = predicted(BASE), predicted(replace(BASE, stage_layers=(1, 5, 1, 1)))
    assert uneven.step_seconds > 1.3 * even.step_seconds
    assert gigabytes(uneven, "parameters") > gigabytes(even, "parameters")


def test_tables_are_shared_among_stages_where_their_rows_divide() -> None:
    """32,000 rows over 4 stages, or 32,001 on each: the parameters differ by three quarters of both tables."""
    odd = replace(QUESTION, workload=replace(QUESTION.workload, shape=replace(DENSE, vocab=32001)))
    held = [gigabytes(predicted(BASE, one), "parameters") for one in (QUESTION, odd)]
    assert held[1] - held[0] == 0.75 * 2 * 32000 * DENSE.embed * 4
    traffic = [
        sum(line.moved_bytes for line in predicted(BASE, one).time if "tables" in line.component)
        for one in (QUESTION, odd)
    ]
    # Gathered in two bytes and scattered in four, against summed in four.
    assert traffic[0] / traffic[1] == pytest.approx(6 / 8)


def test_a_tied_table_is_held_once_and_has_two_gradients() -> None:
    """The head's in forward passes, the embedding's in backward passes; two tables that are not tied have one each."""
    tied = problem(replace(DENSE, tied=True), "v5p:2x2x2", batch=64)
    table = DENSE.vocab * DENSE.embed * 4
    one, two = predicted(BASE, tied), predicted(BASE)
    assert gigabytes(two, "parameters") - gigabytes(one, "parameters") == table / 4
    assert gigabytes(two, "gradients") == gigabytes(one, "gradients") > 2 * table


def test_parameters_move_once_a_step() -> None:
    """Over fsdp: gathered before the loop and reduced behind it, however many microbatches there are."""
    few, many = (
        replace(BASE, data=1, fsdp=2, microbatches=microbatches) for microbatches in (8, 16)
    )
    name = "parameters and gradients over fsdp"
    assert seconds(predicted(few), name) == seconds(predicted(many), name) > 0


def test_a_policy_that_needs_the_host_is_not_searched_with_stages() -> None:
    space = Space(axes=("pipeline", "data"), remats=("offload",), zeros=(0,))
    asked = replace(QUESTION, space=space)
    found = list(blocks(asked, divisible_meshes(asked).kept))
    assert all((one.columns["pipeline"] == 1).all() for one in found)
    other = replace(asked, stack=replace(asked.stack, lockstep=False))
    assert any(
        (one.columns["pipeline"] > 1).any() for one in blocks(other, divisible_meshes(other).kept)
    )


def test_uneven_chunks_are_searched() -> None:
    """Six layers over two stages of four chunks: some have one layer, some none but one."""
    shape = replace(DENSE, layers=10)
    asked = problem(shape, "v5p:2x2x1", space=Space(schedules=("interleaved",), zeros=(0,)))
    found = [
        one.layout(row)
        for one in blocks(asked, divisible_meshes(asked).kept)
        for row in range(one.peak.size)
    ]
    chunks = {one.pipeline * one.virtual_stages for one in found if one.pipeline > 1}
    assert {4, 6, 8, 10} <= chunks
    assert max(chunks) <= 10
    assert all(np.isfinite(predicted(one, asked).step_seconds) for one in found[:20])
