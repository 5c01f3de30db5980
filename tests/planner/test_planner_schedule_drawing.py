"""Pipeline schedules as tables: valid, and idle for as long as the published bubbles say."""

import pytest

from jaxscale.planner.layout import Schedule
from jaxscale.planner.schedule_drawing import (
    Operation,
    Timetable,
    as_svg,
    as_text,
    shown_microbatches,
    timetable,
)

# Stages, microbatches, chunks: those of interleaving are a multiple of the stages.
CASES: list[tuple[Schedule, int, int, int]] = [
    (schedule, stages, microbatches, 1)
    for schedule in ("gpipe", "1f1b", "zb-h1")
    for stages in (1, 2, 3, 4, 8)
    for microbatches in (stages, stages + 3, 4 * stages)
] + [
    ("interleaved", stages, times * stages, chunks)
    for stages in (2, 3, 4)
    for times in (1, 2, 4)
    for chunks in (2, 3)
]


@pytest.mark.parametrize(("schedule", "stages", "microbatches", "chunks"), CASES)
def test_every_pass_runs_once_alone_and_after_what_it_needs(
    schedule: Schedule, stages: int, microbatches: int, chunks: int
) -> None:
    table = timetable(stages, microbatches, chunks, schedule)
    kinds = 3 if schedule == "zb-h1" else 2
    assert len({(one.stage, one.operation) for one in table.placed}) == len(table.placed)
    assert len(table.placed) == kinds * stages * microbatches * chunks
    for one, following in zip(table.placed, table.placed[1:], strict=False):
        assert one.stage != following.stage or one.end <= following.start
    _check_order(table)


def _check_order(table: Timetable) -> None:
    """Forward passes go down the model, backward passes up, weights last."""
    begin = {(p.stage, p.operation): p.start for p in table.placed}
    end = {(p.stage, p.operation): p.end for p in table.placed}
    depth = table.stages * table.chunks
    for microbatch in range(table.microbatches):
        for level in range(depth):
            here = level % table.stages, level // table.stages
            forward = here[0], Operation("F", microbatch, here[1])
            backward = here[0], Operation("B", microbatch, here[1])
            assert end[forward] <= begin[backward]
            if level + 1 < depth:
                below = (level + 1) % table.stages, (level + 1) // table.stages
                assert end[forward] <= begin[below[0], Operation("F", microbatch, below[1])]
                assert end[below[0], Operation("B", microbatch, below[1])] <= begin[backward]
            if table.schedule == "zb-h1":
                assert end[backward] <= begin[here[0], Operation("W", microbatch)]


@pytest.mark.parametrize(("schedule", "stages", "microbatches", "chunks"), CASES)
def test_stages_are_idle_for_the_published_bubble(
    schedule: Schedule, stages: int, microbatches: int, chunks: int
) -> None:
    """(p - 1)(F + B) of 1F1B and GPipe, the same in chunks when interleaved (Narayanan et al. 2021, section 2.2);
    (p - 1)(F + B - W) of ZB-H1 (Qi et al. 2023, table 2), where B is a tick as F and W are."""
    idle = 1 if schedule == "zb-h1" else 3
    assert timetable(stages, microbatches, chunks, schedule).idle == idle * (stages - 1)


def test_what_is_kept_is_what_the_papers_say() -> None:
    """1F1B keeps as many as stages follow; GPipe all; ZB-H1 no more than 1F1B's first; interleaving more by
    1 + (p - 1) / (p v) (Korthikanti et al. 2022, section 4.2.3), here 4 x 1.375 microbatches of two chunks."""
    assert [timetable(4, 8, 1, "1f1b").in_flight(stage) for stage in range(4)] == [4, 3, 2, 1]
    assert timetable(4, 8, 1, "gpipe").in_flight(0) == 8
    assert max(timetable(4, 8, 1, "zb-h1").in_flight(stage) for stage in range(4)) == 4
    assert timetable(4, 8, 2, "interleaved").in_flight(0) == 11


def test_a_table_is_drawn_as_text_and_as_a_picture() -> None:
    table = timetable(2, 3, 1, "1f1b")
    assert as_text(table) == "F0F1    B0B0F2B1B1  B2B2\n  F0B0B0F1B1B1F2B2B2"
    assert as_svg(table).count("<rect") == len(table.placed) == 12
    assert table.at(1, 1) == Operation("F", 0)
    assert table.at(0, 1) is None


@pytest.mark.parametrize(
    ("stages", "microbatches", "drawn"),
    [(4, 64, 8), (16, 512, 32), (2, 64, 8), (8, 8, 8), (3, 4, 4)],
)
def test_many_microbatches_are_cut_to_whole_groups(
    stages: int, microbatches: int, drawn: int
) -> None:
    assert shown_microbatches(stages, microbatches) == drawn
