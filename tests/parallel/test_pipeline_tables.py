"""Lockstep tables: complete, in an order that can run, as long and as full as the closed forms say."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import Case, cases

from jaxscale.errors import UserError
from jaxscale.parallel.pipeline.advice import few_microbatches
from jaxscale.parallel.pipeline.schedules import SCHEDULES, forward_table, make_table
from jaxscale.parallel.pipeline.simulate import Times, bubble, in_flight, tick_time, uniform
from jaxscale.parallel.pipeline.table import Kind, Operation, Table, check_table

many = settings(deadline=None, max_examples=120)


def f(microbatch: int, chunk: int = 0) -> Operation:
    return Operation("F", microbatch, chunk)


def b(microbatch: int) -> Operation:
    return Operation("B", microbatch)


def w(microbatch: int) -> Operation:
    return Operation("W", microbatch)


def ticks_of(table: Table, kind: Kind) -> dict[tuple[int, int, int], int]:
    """(microbatch, chunk, stage) -> tick."""
    return {
        (one.microbatch, one.chunk, stage): tick
        for tick, stage, one in table.cells()
        if one.kind == kind
    }


@given(cases())
@many
def test_every_table_can_run_in_lockstep(case: Case) -> None:
    table = case.table()
    check_table(table)
    passes = Counter(one for _, _, one in table.cells())
    kinds = "FBW" if case.schedule == "zb-h1" else "FB"
    assert set(passes.values()) == {case.stages}
    assert len(passes) == len(kinds) * case.microbatches * case.chunks


@given(cases())
@many
def test_gradients_add_up_in_the_order_of_microbatches(case: Case) -> None:
    """So that schedules differ in no bit: the passes that make weight gradients are W, or B where there is no W."""
    table = case.table()
    adds = "W" if case.schedule == "zb-h1" else "B"
    for stage in range(case.stages):
        for chunk in range(case.chunks):
            order = [
                one.microbatch
                for row in table.ticks
                for one in row[stage]
                if one.kind == adds and one.chunk == chunk
            ]
            assert order == list(range(case.microbatches))


@given(cases(("gpipe", "1f1b", "interleaved")), st.integers(1, 9), st.integers(1, 9))
@many
def test_steps_take_as_long_as_the_closed_forms(case: Case, forward: int, backward: int) -> None:
    """(m + p - 1)(F + B), and (m v + p - 1)(F + B) / v interleaved, of any m from p on.

    Fewer microbatches than stages wait for the first one to come back to stage 0 between two chunks, p parts after it
    left: p (v - 1) + m + p - 1 parts, which no schedule can beat, for that is the way of the last microbatch.
    """
    p, m, v = case.stages, case.microbatches, case.chunks
    parts = m * v + p - 1 if m >= p else p * (v - 1) + m + p - 1
    costs = uniform(p, v, stage=Times(forward, backward))
    assert tick_time(case.table(), costs) == pytest.approx(parts * (forward + backward) / v)


@given(cases(("zb-h1",)))
@many
def test_zero_bubble_keeps_the_published_bubble(case: Case) -> None:
    """(p - 1)(F + B - W), which is p - 1 where all take 1 (Qi et al. 2023, table 2). A stage's own work is 3m.

    In lockstep that takes 2p - 2 microbatches, so that the first B of stage 0 finds the last stage still busy with F.
    """
    p, m = case.stages, case.microbatches
    time = tick_time(case.table(), uniform(p))
    if m >= 2 * p - 2:
        assert time == 3 * m + p - 1
    else:
        assert 3 * m + p - 1 < time <= 3 * (m + p - 1)


@given(cases(("1f1b", "zb-h1")))
@many
def test_one_forward_one_backward_runs_when_it_is_defined_to(case: Case) -> None:
    """F of microbatch k at stage i in tick k + i, B in tick k + 2 (p - 1) - i; splitting off W moves neither."""
    table, p = case.table(), case.stages
    forward, backward = ticks_of(table, "F"), ticks_of(table, "B")
    for microbatch in range(case.microbatches):
        for stage in range(p):
            assert forward[microbatch, 0, stage] == microbatch + stage
            assert backward[microbatch, 0, stage] == microbatch + 2 * (p - 1) - stage


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 3))
@many
def test_whole_groups_interleave_as_published(p: int, groups: int, v: int) -> None:
    """Microbatch k enters at (k // p) p v + k % p and needs a tick a part; the way back mirrors it."""
    table = make_table("interleaved", stages=p, microbatches=groups * p, chunks=v)
    forward, backward = ticks_of(table, "F"), ticks_of(table, "B")
    for microbatch in range(groups * p):
        enters = (microbatch // p) * p * v + microbatch % p
        for chunk in range(v):
            for stage in range(p):
                depth = chunk * p + stage
                assert forward[microbatch, chunk, stage] == enters + depth
                assert backward[microbatch, chunk, stage] == enters + 2 * (p * v - 1) - depth


@given(cases(("gpipe",)))
@many
def test_gpipe_goes_back_when_all_is_forward(case: Case) -> None:
    table = case.table()
    assert min(ticks_of(table, "B").values()) >= max(ticks_of(table, "F").values())
    assert all(in_flight(table, stage) == case.microbatches for stage in range(case.stages))


@given(cases(("1f1b",)))
@many
def test_1f1b_keeps_what_is_between_forward_and_backward(case: Case) -> None:
    """2 (p - 1 - i) ticks lie between F and B of stage i, and a microbatch starts in each."""
    for stage in range(case.stages):
        most = 2 * (case.stages - 1 - stage) + 1
        assert in_flight(case.table(), stage) == min(case.microbatches, most)


@given(cases(("zb-h1",)))
@many
def test_zero_bubble_keeps_no_more_than_the_first_stage_of_1f1b(case: Case) -> None:
    most = min(case.microbatches, 2 * case.stages - 1)
    assert max(in_flight(case.table(), stage) for stage in range(case.stages)) == most


@given(cases(("interleaved",)))
@many
def test_interleaving_keeps_a_group_for_every_further_chunk(case: Case) -> None:
    """Groups have p microbatches, and what is left over is spread: fewer than 2p, p and one of m >= p (p - 1)."""
    p, m, v = case.stages, case.microbatches, case.chunks
    group = -(-m // max(1, m // p))
    for stage in range(p):
        most = (v - 1) * group + 2 * (p - 1 - stage) + 1
        assert in_flight(case.table(), stage) <= min(m * v, most)


def test_interleaving_wastes_nothing_where_groups_are_not_whole() -> None:
    """4 stages, 2 chunks, 5 microbatches: 13 parts forward, of which 3 idle. A last group of one alone takes 16."""
    table = make_table("interleaved", stages=4, microbatches=5, chunks=2)
    assert bubble(table, uniform(4, 2)) == pytest.approx(3 / 13)


@given(st.integers(1, 8), st.integers(1, 40), st.integers(1, 3))
@many
def test_evaluation_runs_forward_only(p: int, m: int, v: int) -> None:
    table = forward_table(stages=p, microbatches=m, chunks=v)
    check_table(table)
    assert {one.kind for _, _, one in table.cells()} == {"F"}
    least = m * v + p - 1 if m >= p else p * (v - 1) + m + p - 1
    assert len(table.ticks) == least


GOOD = make_table("zb-h1", stages=2, microbatches=3)


def changed(table: Table, tick: int, stage: int, *operations: Operation) -> Table:
    """With other operations in one cell."""
    rows = [list(row) for row in table.ticks]
    rows[tick][stage] = operations
    return replace(table, ticks=tuple(tuple(row) for row in rows))


def test_the_table_that_is_broken_below_is_this_one() -> None:
    assert GOOD.ticks[:4] == (
        ((f(0),), ()),
        ((f(1),), (f(0), b(0))),
        ((f(2), b(0), w(0)), (f(1), b(1), w(0))),
        ((b(1), w(1)), (f(2), b(2))),
    )


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (changed(GOOD, 0, 0), "F of microbatch 0 at stage 0 never runs"),
        (changed(GOOD, 0, 1, f(1)), "F of microbatch 1 at stage 1 runs twice, in ticks 0 and 2"),
        (changed(GOOD, 0, 1, f(3)), "F of microbatch 3 at stage 1 in tick 0 is none of this table"),
        (changed(GOOD, 0, 1, f(0, chunk=1)), "microbatch 0 at stage 1 in tick 0 is none of this"),
        (changed(GOOD, 1, 1, b(0), f(0)), "tick 1, stage 1: B F does not run as F, B, W"),
        (changed(GOOD, 2, 0, f(2), b(0), b(1)), "tick 2, stage 0: 2 B in one tick"),
        (changed(GOOD, 1, 0, f(1), f(2)), "tick 1, stage 0: 2 F in one tick"),
        (
            changed(changed(GOOD, 1, 1, b(0)), 0, 1, f(0)),
            (
                "F of microbatch 0 at stage 1 in tick 0 must run in a later tick than "
                "F of microbatch 0 at stage 0 in tick 0"
            ),
        ),
        (
            changed(changed(GOOD, 1, 1, f(0)), 0, 1, b(0)),
            (
                "B of microbatch 0 at stage 1 in tick 0 must not run before "
                "F of microbatch 0 at stage 1 in tick 1"
            ),
        ),
        (
            changed(changed(GOOD, 2, 0, f(2), w(0)), 1, 0, f(1), b(0)),
            (
                "B of microbatch 0 at stage 0 in tick 1 must run in a later tick than "
                "B of microbatch 0 at stage 1 in tick 1"
            ),
        ),
        (
            changed(changed(GOOD, 2, 0, f(2), b(0)), 1, 0, f(1), w(0)),
            (
                "W of microbatch 0 at stage 0 in tick 1 must not run before "
                "B of microbatch 0 at stage 0 in tick 2"
            ),
        ),
        (replace(GOOD, ticks=(*GOOD.ticks, ((),))), "tick 6 has 1 stages, not 2"),
    ],
)
def test_a_broken_table_is_told_what_is_wrong(broken: Table, message: str) -> None:
    check_table(GOOD)
    with pytest.raises(ValueError, match=message):
        check_table(broken)


def test_a_table_that_adds_up_gradients_in_another_order_is_refused() -> None:
    """GPipe's own order, the last microbatch first: correct, but rounded otherwise."""
    table = make_table("gpipe", stages=1, microbatches=2)
    assert table.ticks == (((f(0),),), ((f(1), b(0)),), ((b(1),),))
    reverse = changed(changed(table, 1, 0, f(1), b(1)), 2, 0, b(0))
    with pytest.raises(ValueError, match=r"B of microbatch 1 .* before that of microbatch 0"):
        check_table(reverse)


def test_all_schedules_of_the_plan_have_tables() -> None:
    from typing import get_args

    from jaxscale.config.plan import Schedule

    assert set(SCHEDULES) == set(get_args(Schedule))


@pytest.mark.parametrize(
    ("schedule", "chunks", "message"),
    [
        ("1f1", 1, r"no schedule is named '1f1' \(did you mean '1f1b'\?\): there are gpipe, 1f1b"),
        ("1f1b", 2, "virtual_stages is 2, and schedule 1f1b has one chunk"),
        ("gpipe", 2, "take schedule interleaved, or virtual_stages 1"),
        ("zb-h1", 3, "virtual_stages is 3"),
        ("interleaved", 0, "virtual_stages is 0"),
    ],
)
def test_a_table_that_does_not_exist_is_refused(schedule: str, chunks: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_table(schedule, stages=4, microbatches=8, chunks=chunks)


@given(cases())
@many
def test_too_few_microbatches_are_warned_of_with_how_many_halve_the_idle_share(case: Case) -> None:
    p, m, v = case.stages, case.microbatches, case.chunks
    said = few_microbatches(case.schedule, stages=p, microbatches=m, chunks=v)
    if m >= p:
        assert said is None
        return
    assert said is not None
    idle = bubble(case.table(), uniform(p, v))
    enough = int(said.split("; microbatches=")[1].split()[0])
    halved = [
        bubble(replace(case, microbatches=n).table(), uniform(p, v)) for n in (enough - 1, enough)
    ]
    assert f"microbatches={m} for pipeline={p}: stages are idle for {idle:.0%}" in said
    assert halved[0] > idle / 2 + 1e-9
    assert halved[1] <= idle / 2 + 1e-9


def test_the_warning_in_words() -> None:
    """2 microbatches of 4 stages: 3 of 5 parts are idle. 3 / (m + 3) is half of it with 7 of them."""
    assert few_microbatches("1f1b", stages=4, microbatches=2) == (
        "microbatches=2 for pipeline=4: stages are idle for 60% of a step; microbatches=7 would halve that"
    )
    assert few_microbatches("1f1b", stages=4, microbatches=4) is None
