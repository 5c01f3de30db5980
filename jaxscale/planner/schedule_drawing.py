"""Pipeline schedules as tables, (tick, stage) -> operation, and as pictures. Pure Python, no arrays.

Each stage has its operations in a fixed order; an operation starts as soon as its stage is free and what it waits for
is done. A forward pass of one chunk takes one tick, a backward pass two: half of it the gradient of the input, which
the stage before waits for, and half that of the weights, which ZB-H1 puts off.

Orders: GPipe (Huang et al. 2019), 1F1B and interleaved 1F1B (Narayanan et al. 2021, arXiv:2104.04473, section 2.2),
ZB-H1 (Qi et al. 2023, arXiv:2401.10241, section 3).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxscale.planner.layout import Schedule

# F: forward. B: backward, for the input alone where there is a W. W: backward for the weights.
Kind = Literal["F", "B", "W"]


@dataclass(frozen=True)
class Operation:
    """One pass of a microbatch through a chunk of layers. chunk: of those of the stage, from 0."""

    kind: Kind
    microbatch: int
    chunk: int = 0


@dataclass(frozen=True)
class Placed:
    """An operation on a stage, from `start` for `ticks`."""

    stage: int
    start: int
    ticks: int
    operation: Operation

    @property
    def end(self) -> int:
        return self.start + self.ticks


@dataclass(frozen=True)
class Timetable:
    """placed: by stage, then by start. All microbatches of one step."""

    stages: int
    microbatches: int
    chunks: int
    schedule: Schedule
    placed: tuple[Placed, ...]

    @property
    def ticks(self) -> int:
        """From the first operation's start to the last one's end."""
        return max(one.end for one in self.placed)

    @property
    def idle(self) -> int:
        """Ticks of a stage in which it has nothing to do; the same for all of them."""
        return self.ticks - sum(one.ticks for one in self.placed if one.stage == 0)

    def at(self, tick: int, stage: int) -> Operation | None:
        """What a stage does in a tick."""
        found = (one for one in self.placed if one.stage == stage and one.start <= tick < one.end)
        return next((one.operation for one in found), None)

    def in_flight(self, stage: int) -> int:
        """The most chunks' activations that a stage keeps at one time: from F until B, or until W."""
        last: Kind = "W" if self.schedule == "zb-h1" else "B"
        ends = {
            (o.operation.microbatch, o.operation.chunk): o.end
            for o in self.placed
            if o.stage == stage and o.operation.kind == last
        }
        starts = [
            (o.start, o.operation)
            for o in self.placed
            if o.stage == stage and o.operation.kind == "F"
        ]
        return max(
            sum(other <= start < ends[op.microbatch, op.chunk] for other, op in starts)
            for start, _ in starts
        )


def timetable(stages: int, microbatches: int, chunks: int, schedule: Schedule) -> Timetable:
    """chunks: virtual stages of a device, 1 but for interleaved, whose microbatches are a multiple of the stages."""
    assert stages >= 1 <= microbatches, "a pipeline has stages and microbatches"
    assert chunks == 1 or schedule == "interleaved", "only interleaving has several chunks"
    assert chunks == 1 or microbatches % stages == 0, "interleaving takes microbatches in groups"
    orders = [_order(schedule, stage, stages, microbatches, chunks) for stage in range(stages)]
    if schedule == "zb-h1":
        orders = [list(_with_weights(order, stage)) for stage, order in enumerate(orders)]
    backward = 1 if schedule == "zb-h1" else 2
    placed = _placed(orders, stages, chunks, backward)
    kept = sorted(placed, key=lambda one: (one.stage, one.start))
    return Timetable(stages, microbatches, chunks, schedule, tuple(kept))


def _order(
    schedule: Schedule, stage: int, stages: int, microbatches: int, chunks: int
) -> list[Operation]:
    """The operations of a stage: forward passes that fill the pipeline, one of each in turns, the rest backward."""
    forward, backward = _passes(stages, microbatches, chunks)
    if schedule == "gpipe":
        ahead = len(forward)
    elif chunks == 1:
        ahead = stages - stage - 1
    else:
        ahead = 2 * (stages - stage - 1) + (chunks - 1) * stages
    ahead = min(ahead, len(forward))
    turns = [one for pair in zip(forward[ahead:], backward, strict=False) for one in pair]
    return [*forward[:ahead], *turns, *backward[len(forward) - ahead :]]


def _passes(stages: int, microbatches: int, chunks: int) -> tuple[list[Operation], list[Operation]]:
    """All forward and all backward passes of a stage: groups of `stages` microbatches go through chunk after chunk."""
    groups = [range(at, min(at + stages, microbatches)) for at in range(0, microbatches, stages)]
    order = range(chunks)
    forward = [Operation("F", m, chunk) for group in groups for chunk in order for m in group]
    backward = [
        Operation("B", m, chunk) for group in groups for chunk in reversed(order) for m in group
    ]
    return forward, backward


def _placed(
    orders: Sequence[Sequence[Operation]], stages: int, chunks: int, backward: int
) -> list[Placed]:
    """Every operation as early as its stage's order and what it waits for allow."""
    ends: dict[tuple[int, Operation], int] = {}
    free, at = [0] * stages, [0] * stages
    placed: list[Placed] = []
    while any(at[stage] < len(orders[stage]) for stage in range(stages)):
        progress = len(placed)
        for stage, order in enumerate(orders):
            while at[stage] < len(order):
                operation = order[at[stage]]
                ready = _ready(operation, stage, stages, chunks, ends)
                if ready is None:
                    break
                ticks = backward if operation.kind == "B" else 1
                start = max(free[stage], ready)
                placed.append(Placed(stage, start, ticks, operation))
                free[stage] = ends[stage, operation] = start + ticks
                at[stage] += 1
        assert len(placed) > progress, "the stages wait for each other"
    return placed


def _ready(
    operation: Operation,
    stage: int,
    stages: int,
    chunks: int,
    ends: dict[tuple[int, Operation], int],
) -> int | None:
    """When everything that an operation waits for is done; None while it is not known."""
    known = [ends.get(each) for each in _needs(operation, stage, stages, chunks)]
    return None if None in known else max((end for end in known if end is not None), default=0)


def _needs(
    operation: Operation, stage: int, stages: int, chunks: int
) -> Iterator[tuple[int, Operation]]:
    """The same pass one chunk earlier in the model, or one later on the way back."""
    depth = operation.chunk * stages + stage
    kind, microbatch = operation.kind, operation.microbatch
    if kind == "F":
        before = depth - 1
    elif kind == "B":
        yield stage, Operation("F", microbatch, operation.chunk)
        before = depth + 1
    else:
        yield stage, Operation("B", microbatch, operation.chunk)
        return
    if 0 <= before < stages * chunks:
        yield before % stages, Operation(kind, microbatch, before // stages)


def _with_weights(order: Sequence[Operation], stage: int) -> Iterator[Operation]:
    """1F1B with the gradients of weights apart, as many microbatches behind as there are stages before: ZB-H1.

    So every stage keeps as many microbatches as the first one of 1F1B does.
    """
    done = 0
    for operation in order:
        yield operation
        if operation.kind == "B" and operation.microbatch >= stage:
            yield Operation("W", done)
            done += 1
    backward = sum(operation.kind == "B" for operation in order)
    yield from (Operation("W", microbatch) for microbatch in range(done, backward))


def as_text(table: Timetable) -> str:
    """A line a stage, two characters a tick: `F0F1  B0`; a backward pass of two ticks is `B0B0`."""
    lines = []
    for stage in range(table.stages):
        cells = (table.at(tick, stage) for tick in range(table.ticks))
        lines.append("".join(f"{one.kind}{one.microbatch % 10}" if one else "  " for one in cells))
    return "\n".join(line.rstrip() for line in lines)


_ROW, _LABEL, _WIDTH = 20, 64, 1100
_NARROWEST, _WIDEST, _LEGIBLE = 2.5, 20, 13
_GROUPS = 2


def shown_microbatches(stages: int, microbatches: int) -> int:
    """How many are drawn of many: a schedule repeats itself once the pipeline is full."""
    return min(microbatches, max(_GROUPS * stages, 8) // stages * stages or microbatches)


def as_svg(table: Timetable) -> str:
    """A row a stage, time to the right. Classes F, B, W are for the page to color; later chunks are `late`."""
    tick = max(_NARROWEST, min(_WIDEST, (_WIDTH - _LABEL) / table.ticks))
    width, height = _LABEL + table.ticks * tick, table.stages * _ROW
    rows = "".join(
        f'<text class="row" x="0" y="{stage * _ROW + 14}">stage {stage}</text>'
        for stage in range(table.stages)
    )
    cells = "".join(_cell(one, tick) for one in table.placed)
    return (
        f'<svg class="schedule" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" role="img" '
        f'aria-label="{table.schedule} schedule of {table.stages} stages">{rows}{cells}</svg>'
    )


def _cell(one: Placed, tick: float) -> str:
    operation = one.operation
    x, y, width = _LABEL + one.start * tick, one.stage * _ROW, one.ticks * tick
    late = " late" if operation.chunk else ""
    name = f"{operation.kind} of microbatch {operation.microbatch}, chunk {operation.chunk}"
    text = f'<text x="{x + width / 2:.1f}" y="{y + 13.5}">{operation.microbatch}</text>'
    shown = width - min(1, tick / 4)
    return (
        f'<g class="{operation.kind}{late}"><title>{name}</title>'
        f'<rect x="{x:.1f}" y="{y}" width="{shown:.1f}" height="{_ROW - 2}" rx="{min(2, tick / 4):.1f}"/>'
        f"{text if tick >= _LEGIBLE else ''}</g>"
    )
