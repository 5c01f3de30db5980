"""Both clocks: hand-made cases, published bubbles, and what must hold between them."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import Case, cases

from jaxscale.parallel.pipeline.classical import Classical, Orders, classical_orders
from jaxscale.parallel.pipeline.schedules import make_table
from jaxscale.parallel.pipeline.simulate import (
    Costs,
    Placed,
    Times,
    asynchronous,
    asynchronous_time,
    bubble,
    in_flight,
    lockstep,
    peak_pending,
    tick_time,
    uniform,
)
from jaxscale.parallel.pipeline.table import Kind, Operation

many = settings(deadline=None, max_examples=80)
TWICE = Times(1, 2)


@pytest.mark.parametrize(
    ("stages", "microbatches", "units", "share"),
    [(4, 8, 33, 0.2727), (8, 24, 93, 0.2258), (8, 64, 213, 0.0986)],
)
def test_reference_bubbles_of_1f1b(
    stages: int, microbatches: int, units: int, share: float
) -> None:
    """(p - 1) of m + p - 1, with F = 1 and B = 2; the same in lockstep and in the classical order."""
    costs = uniform(stages, stage=TWICE)
    table = make_table("1f1b", stages=stages, microbatches=microbatches)
    orders = classical_orders("1f1b", stages=stages, microbatches=microbatches)
    assert tick_time(table, costs) == asynchronous_time(orders, costs) == units
    assert round(bubble(table, costs), 4) == share
    assert round(asynchronous(orders, costs).bubble, 4) == share


# Qi et al. 2024 (ICLR), table 5: bubble rates of 1F1B, interleaved 1F1B, ZB-H1 and ZB-H2, and the times that they are
# of, profiled on A100s (microseconds; `iclr_bubble_rates` in the scheduler that the authors published): p, m, F, B, W,
# what a send takes, and chunks, one a layer.
PUBLISHED = [
    (8, 24, 18522, 18086, 9337, 601, 3, 0.2431, 0.1055, 0.1585, 0.1083),
    (8, 32, 18513, 18086, 9331, 626, 3, 0.1985, 0.0818, 0.1242, 0.0837),
    (8, 64, 18546, 18097, 9321, 762, 3, 0.1240, 0.0443, 0.0674, 0.0444),
    (8, 24, 29718, 29444, 19927, 527, 4, 0.2347, 0.0808, 0.1323, 0.0698),
    (8, 32, 29802, 29428, 19530, 577, 4, 0.1898, 0.0628, 0.1045, 0.0559),
    (8, 64, 29935, 29621, 19388, 535, 4, 0.1091, 0.0320, 0.0554, 0.0294),
    (16, 48, 11347, 11248, 8132, 377, 3, 0.2552, 0.1104, 0.1397, 0.0672),
    (16, 64, 11307, 11254, 8101, 379, 3, 0.2082, 0.0852, 0.1088, 0.0516),
    (16, 128, 11325, 11308, 8109, 378, 3, 0.1251, 0.0445, 0.0576, 0.0266),
    (32, 96, 10419, 10207, 7715, 408, 2, 0.2646, 0.1493, 0.1421, 0.0641),
    (32, 128, 10408, 10204, 7703, 408, 2, 0.2168, 0.1164, 0.1106, 0.0490),
    (32, 256, 10402, 10248, 7698, 460, 2, 0.1352, 0.0624, 0.0594, 0.0257),
]


@pytest.mark.parametrize("row", PUBLISHED)
def test_the_zero_bubble_papers_table_of_bubble_rates(row: tuple[float, ...]) -> None:
    """To its four digits.

    Their simulator of interleaving has only the first microbatch of each group wait until it is back at stage 0. Where
    all wait, as they must, the bubble is up to 0.0036 larger.
    """
    p, m, chunks = int(row[0]), int(row[1]), int(row[6])
    stage, send = Times(*row[2:5]), row[5]
    work = m * sum(row[2:5])
    costs = uniform(p, stage=stage, send=send)

    def rate(schedule: Classical) -> float:
        orders = classical_orders(schedule, stages=p, microbatches=m)
        timeline = asynchronous(orders, costs)
        length = timeline.longest_stage if schedule == "zb-h2" else timeline.length
        return round(1 - work / length, 4)

    assert (rate("1f1b"), rate("zb-h1"), rate("zb-h2")) == (row[7], row[9], row[10])
    orders = classical_orders("interleaved", stages=p, microbatches=m, chunks=chunks)
    theirs, ours = (
        1
        - work
        / asynchronous_time(orders, uniform(p, chunks, stage=stage, send=send, all_wrap=all_wrap))
        for all_wrap in (False, True)
    )
    assert round(theirs, 4) == row[8]
    assert theirs <= ours <= theirs + 0.0036


# Stages, microbatches, chunks: those of interleaving are a multiple of the stages.
CLASSICAL: list[tuple[Classical, int, int, int]] = [
    (schedule, stages, microbatches, 1)
    for schedule in ("gpipe", "1f1b", "zb-h1", "zb-h2")
    for stages in (1, 2, 3, 4, 8)
    for microbatches in (2 * stages, 2 * stages + 1, 4 * stages)
] + [
    ("interleaved", stages, times * stages, chunks)
    for stages in (2, 3, 4)
    for times in (1, 2, 4)
    for chunks in (2, 3)
]


@pytest.mark.parametrize(("schedule", "stages", "microbatches", "chunks"), CLASSICAL)
def test_classical_passes_run_once_alone_and_after_what_they_need(
    schedule: Classical, stages: int, microbatches: int, chunks: int
) -> None:
    orders = classical_orders(schedule, stages=stages, microbatches=microbatches, chunks=chunks)
    placed = asynchronous(orders, uniform(stages, chunks)).placed
    kinds = 3 if schedule.startswith("zb") else 2
    assert len({(one.stage, one.operation) for one in placed}) == len(placed)
    assert len(placed) == kinds * stages * microbatches * chunks
    for one, following in pairwise(placed):
        assert one.stage != following.stage or one.end <= following.start + 1e-9
    at = {(one.operation, one.stage): one for one in placed}
    for microbatch in range(microbatches):
        check_way(at, microbatch, stages, chunks)


def check_way(
    at: dict[tuple[Operation, int], Placed], microbatch: int, stages: int, chunks: int
) -> None:
    """Forward passes go down the model, backward passes up, weights last."""
    down: list[tuple[Kind, int]] = [("F", depth) for depth in range(stages * chunks)]
    up: list[tuple[Kind, int]] = [("B", depth) for depth in reversed(range(stages * chunks))]
    way = [
        at[Operation(kind, microbatch, depth // stages), depth % stages]
        for kind, depth in down + up
    ]
    assert all(one.end <= following.start + 1e-9 for one, following in pairwise(way))
    for (operation, stage), one in at.items():
        if operation.kind == "W":
            backward = Operation("B", operation.microbatch, operation.chunk)
            assert at[backward, stage].end <= one.start + 1e-9


@pytest.mark.parametrize(("schedule", "stages", "microbatches", "chunks"), CLASSICAL)
def test_classical_stages_are_idle_for_the_published_bubble(
    schedule: Classical, stages: int, microbatches: int, chunks: int
) -> None:
    """(p - 1)(F + B) of 1F1B and GPipe, the same in chunks when interleaved (Narayanan et al. 2021, section 2.2);
    (p - 1)(F + B - W) of ZB-H1 and (p - 1)(F + B - 2W) of ZB-H2 (Qi et al. 2023, table 2), whose step is as long as its
    busiest stage. Here F = B = W = 1, and B is 2 where it is not split."""
    orders = classical_orders(schedule, stages=stages, microbatches=microbatches, chunks=chunks)
    timeline = asynchronous(orders, uniform(stages, chunks))
    length = timeline.longest_stage if schedule == "zb-h2" else timeline.length
    idle = {"zb-h1": 1.0, "zb-h2": 0.0, "interleaved": 3 / chunks}.get(schedule, 3.0)
    assert length - 3 * microbatches == pytest.approx(idle * (stages - 1))


def test_what_classical_stages_keep_is_what_the_papers_say() -> None:
    """1F1B keeps as many as stages follow; GPipe all; ZB-H1's stages as many as 1F1B's first, ZB-H2's 2p - 1.

    Interleaving 1 + (p - 1) / (p v) times as many (Korthikanti et al. 2022, section 4.2.3): 4 x 1.375, of 2 chunks.
    """

    def kept(schedule: Classical, chunks: int = 1) -> list[int]:
        orders: Orders = classical_orders(schedule, stages=4, microbatches=8, chunks=chunks)
        return [in_flight(orders, stage) for stage in range(4)]

    assert kept("1f1b") == [4, 3, 2, 1]
    assert kept("gpipe") == [8] * 4
    assert kept("zb-h1") == [4] * 4
    assert kept("zb-h2") == [7] * 4
    assert kept("interleaved", 2)[0] == 11


def test_a_lockstep_step_by_hand() -> None:
    """Two stages, two microbatches, 1F1B; F 1 and 3, B 2 and 5, a send 0.5.

    Ticks: F of stage 0 (1); F of 0 beside F and B of 1 (8); B of 0 beside F and B of 1 (8); B of 0 (2); four sends.
    """
    table = make_table("1f1b", stages=2, microbatches=2)
    timeline = lockstep(table, Costs((Times(1, 2), Times(3, 5)), send=0.5))
    assert timeline.length == 1 + 8 + 8 + 2 + 4 * 0.5
    assert list(timeline.ticks) == [0, 1.5, 10, 18.5]
    assert [timeline.idle(stage) for stage in range(2)] == [21 - 2 * 3, 21 - 2 * 8]
    assert timeline.bubble == pytest.approx(1 - (6 + 16) / 42)
    last = [(one.start, one.duration) for one in timeline.placed if one.stage == 1]
    assert last == [(1.5, 3), (4.5, 5), (10, 3), (13, 5)]


def test_stages_that_wait_for_each_other_only_by_hand() -> None:
    """The same without lockstep: stage 1 starts at 1.5 and is busy for 16; then a send and the B of stage 0."""
    table = make_table("1f1b", stages=2, microbatches=2)
    costs = Costs((Times(1, 2), Times(3, 5)), send=0.5)
    assert asynchronous_time(table, costs) == 1.5 + 16 + 0.5 + 2


def test_embedding_and_head_are_times_of_the_first_and_the_last_piece() -> None:
    """A head of 4 takes 4 longer wherever the last stage has an F, which is m times: 2 stages, 3 microbatches."""
    table = make_table("1f1b", stages=2, microbatches=3)
    plain = tick_time(table, uniform(2, stage=TWICE))
    assert tick_time(table, uniform(2, stage=TWICE, head=Times(4, 0))) == plain + 3 * 4
    costs = uniform(2, 2, stage=Times(2, 4, 6), embedding=Times(0.5, 1), head=Times(4, 3, 2))
    assert costs.depths == (Times(1.5, 3, 3), Times(1, 2, 3), Times(1, 2, 3), Times(5, 5, 5))


@given(cases(), st.data())
@many
def test_lockstep_is_never_faster_than_stages_that_wait_for_each_other_only(
    case: Case, data: st.DataObject
) -> None:
    """And no step is shorter than what its busiest stage does."""
    number = st.integers(1, 9)
    depths = tuple(
        Times(*data.draw(st.tuples(number, number, number)))
        for _ in range(case.stages * case.chunks)
    )
    table, costs = case.table(), Costs(depths)
    free = asynchronous(table, costs)
    work = [sum(one.duration for one in free.placed if one.stage == s) for s in range(case.stages)]
    assert max(work) <= free.length <= tick_time(table, costs)


@given(cases(("gpipe", "1f1b", "interleaved")))
@many
def test_of_equal_stages_lockstep_costs_nothing(case: Case) -> None:
    """The same order without waiting for ticks is no faster where all stages take the same time."""
    costs = uniform(case.stages, case.chunks, stage=Times(2, 5))
    table = case.table()
    assert asynchronous_time(table, costs) == pytest.approx(tick_time(table, costs))


def test_an_order_that_cannot_run_is_not_waited_for() -> None:
    """A backward pass before its own forward pass, and two stages that each want the other one first."""
    backward_first = [[Operation("B", 0), Operation("F", 0)]]
    with pytest.raises(AssertionError, match="wait for each other"):
        asynchronous(backward_first, uniform(1))
    crossed = [
        [Operation("F", 1), Operation("B", 1), Operation("F", 0), Operation("B", 0)],
        [Operation("F", 0), Operation("B", 0), Operation("F", 1), Operation("B", 1)],
    ]
    with pytest.raises(AssertionError, match="wait for each other"):
        asynchronous(crossed, uniform(2))


def test_what_is_owed_of_split_backward_passes() -> None:
    """Of 4 stages the last starts its Ws 3 ticks after its Bs, and 3 more are put off when stage 0 has no F left.

    Stage 0 has its first W beside its first B, and puts off its last 3. A whole B owes nothing.
    """
    table = make_table("zb-h1", stages=4, microbatches=12)
    assert peak_pending(table, 3) == 6
    assert peak_pending(table, 0) == 3
    assert peak_pending(make_table("1f1b", stages=4, microbatches=12), 0) == 0
