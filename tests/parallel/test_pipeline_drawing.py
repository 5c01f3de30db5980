"""Pictures: every pass where and as long as the clock says, and nothing that a page could choke on."""

from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from jaxscale.parallel.pipeline.classical import classical_orders
from jaxscale.parallel.pipeline.drawing import (
    as_document,
    as_svg,
    as_text,
    legend,
    schedule_style,
    shown_microbatches,
)
from jaxscale.parallel.pipeline.schedules import forward_table, make_table
from jaxscale.parallel.pipeline.simulate import Times, asynchronous, lockstep, uniform

SVG = "{http://www.w3.org/2000/svg}"


def drawn(svg: str) -> dict[str, list[tuple[float, float, float]]]:
    """Title of each pass -> (x, y, width) of its boxes, one a stage."""
    boxes: dict[str, list[tuple[float, float, float]]] = {}
    for group in ET.fromstring(svg).iter("g"):
        title, box = group.find("title"), group.find("rect")
        if title is not None and title.text and box is not None:
            place = tuple(float(box.attrib[name]) for name in ("x", "y", "width"))
            boxes.setdefault(title.text, []).append((place[0], place[1], place[2]))
    return boxes


def test_a_table_as_text() -> None:
    assert as_text(make_table("1f1b", stages=2, microbatches=3)) == (
        "tick     0    1    2    3    4\n"
        "stage 0  F0   F1   F2B0 B1   B2\n"
        "stage 1  .    F0B0 F1B1 F2B2 ."
    )


def test_chunks_are_told_apart_in_text() -> None:
    text = as_text(make_table("interleaved", stages=1, microbatches=1, chunks=2))
    assert text.splitlines()[1] == "stage 0  F0.0     F0.1B0.1 B0.0"


def test_ticks_that_do_not_fit_follow_below() -> None:
    """9 characters for names, 5 a tick: three ticks in 25 characters."""
    table = make_table("1f1b", stages=2, microbatches=3)
    blocks = as_text(table, width=25).split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [
        "tick     0    1    2",
        "tick     3    4",
    ]
    assert blocks[1].splitlines()[1:] == ["stage 0  B1   B2", "stage 1  F2B2 ."]
    assert len(as_text(table, width=1).split("\n\n")) == 5


def test_every_pass_is_drawn_once_a_stage_and_as_long_as_it_takes() -> None:
    """B takes twice an F. Rows are one below the other, and nothing of a row overlaps."""
    table = make_table("1f1b", stages=3, microbatches=4)
    boxes = drawn(as_svg(lockstep(table, uniform(3, stage=Times(1, 2)))))
    assert len(boxes) == 8
    assert {len(places) for places in boxes.values()} == {3}
    forward, backward = (
        boxes[f"{kind} of microbatch 3, chunk 0"] for kind in ("forward", "backward")
    )
    # A gap of a pixel between passes is taken from each.
    assert [width + 1 for _, _, width in backward] == [2 * (width + 1) for _, _, width in forward]
    for stage in range(3):
        row = sorted(places[stage] for places in boxes.values())
        assert len({y for _, y, _ in row}) == 1
        assert all(x + width < after for (x, _, width), (after, _, _) in pairwise(row))


def test_passes_stand_where_they_start() -> None:
    """F of microbatch 1 on stage 1 starts in tick 2, behind ticks of 1 and 3: at 4 units, B of it at 5."""
    timeline = lockstep(make_table("1f1b", stages=2, microbatches=2), uniform(2, stage=Times(1, 2)))
    boxes = drawn(as_svg(timeline))
    first = boxes["forward of microbatch 0, chunk 0"][0]
    unit = first[2] + 1
    assert boxes["forward of microbatch 1, chunk 0"][1][0] - first[0] == pytest.approx(4 * unit)
    assert boxes["backward of microbatch 1, chunk 0"][1][0] - first[0] == pytest.approx(5 * unit)


def test_ticks_are_ruled_in_lockstep_only() -> None:
    costs = uniform(2)
    rules = as_svg(lockstep(make_table("1f1b", stages=2, microbatches=4), costs)).count('"tick"')
    assert rules == 4 + 2
    free = asynchronous(classical_orders("1f1b", stages=2, microbatches=4), costs, schedule="1f1b")
    assert as_svg(free).count('"tick"') == 0


def test_numbers_are_left_out_where_they_do_not_fit() -> None:
    def numbers(microbatches: int) -> int:
        table = make_table("1f1b", stages=2, microbatches=microbatches)
        root = ET.fromstring(as_svg(lockstep(table, uniform(2))))
        return sum(group.find("text") is not None for group in root.iter("g"))

    assert numbers(8) == 2 * 2 * 8
    assert numbers(512) < 2 * 2 * 512


def test_a_file_of_its_own_brings_its_style_and_says_what_colors_mean() -> None:
    """Only kinds and chunks that are there are in the key; what a user wrote is escaped."""
    timeline = lockstep(
        make_table("interleaved", stages=2, microbatches=2, chunks=2), uniform(2, 2)
    )
    document = as_document(timeline, "a <b> & c", "7 ticks")
    texts = [text.text for text in ET.fromstring(document).iter(f"{SVG}text")]
    assert texts[:6] == ["a <b> & c", "7 ticks", "forward", "backward", "chunk 1", "idle"]
    assert schedule_style() in document
    assert "http" not in document.replace('xmlns="http://www.w3.org/2000/svg"', "")


@pytest.mark.parametrize(
    ("chunks", "shades"), [(2, [0, 1]), (4, [0, 1, 2, 3]), (8, [0, 0, 1, 1, 2, 2, 3, 3])]
)
def test_later_chunks_are_paler(chunks: int, shades: list[int]) -> None:
    table = make_table("interleaved", stages=1, microbatches=1, chunks=chunks)
    groups = ET.fromstring(as_svg(lockstep(table, uniform(1, chunks)))).iter("g")
    forward = [group.attrib["class"] for group in groups if group.attrib["class"].startswith("F")]
    assert forward == [f"F shade{shade}" for shade in shades]


def test_the_legend_in_words() -> None:
    """3 of 11 parts are idle: .2727. 2p - 1 slots; stages keep 2 (p - 1 - i) + 1."""
    table = make_table("1f1b", stages=4, microbatches=8)
    words = "14 ticks, bubble 27.3%, 7 residual slots; stages keep 7, 5, 3, 1"
    assert legend(table, uniform(4)) == words
    forward = forward_table(stages=4, microbatches=8)
    assert legend(forward, uniform(4)) == "11 ticks, bubble 27.3%"


@pytest.mark.parametrize(
    ("stages", "microbatches", "shown"),
    [(4, 64, 8), (16, 512, 32), (2, 64, 8), (8, 8, 8), (3, 4, 4)],
)
def test_many_microbatches_are_cut_to_whole_groups(
    stages: int, microbatches: int, shown: int
) -> None:
    assert shown_microbatches(stages, microbatches) == shown
