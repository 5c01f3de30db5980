"""A pipeline schedule as data: which stage runs what in which tick. Pure Python, no arrays.

The runtime goes through a table in lockstep. In a tick every stage runs at most one F, then at most one B, then any
number of W; after that what F made goes to the next stage and what B made to the one before, for the next tick on.
A model is cut into stages x chunks pieces, dealt out in turns: piece `depth` is chunk depth // stages of stage
depth % stages. The last piece's F also runs the loss and has the gradient for its own B at once, in the same tick.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

# F: forward. B: backward, for the input alone where there is a W. W: backward for the weights.
Kind = Literal["F", "B", "W"]
RUNNING_ORDER: tuple[Kind, ...] = ("F", "B", "W")
FORWARD = "forward"


@dataclass(frozen=True)
class Operation:
    """One pass of a microbatch through a chunk of layers. chunk: of those of the stage, from 0."""

    kind: Kind
    microbatch: int
    chunk: int = 0


@dataclass(frozen=True)
class Table:
    """ticks: [tick][stage] -> operations in running order. splits_backward: there are Ws, and B is for the input alone.

    The schedule `forward` has no backward pass at all.
    """

    schedule: str
    stages: int
    microbatches: int
    chunks: int
    splits_backward: bool
    ticks: tuple[tuple[tuple[Operation, ...], ...], ...]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The passes that each microbatch makes through each chunk."""
        if self.schedule == FORWARD:
            return ("F",)
        return RUNNING_ORDER if self.splits_backward else ("F", "B")

    @property
    def depths(self) -> int:
        return self.stages * self.chunks

    def cells(self) -> Iterator[tuple[int, int, Operation]]:
        """(tick, stage, operation) of the whole table: tick by tick, stage by stage, in running order."""
        for tick, row in enumerate(self.ticks):
            for stage, operations in enumerate(row):
                for operation in operations:
                    yield tick, stage, operation


def place(
    schedule: str,
    *,
    stages: int,
    microbatches: int,
    chunks: int,
    operations: Iterable[tuple[int, int, Operation]],
) -> Table:
    """A table of (tick, stage, operation)s in any order, those of one kind, tick and stage oldest first."""
    placed = sorted(operations, key=lambda one: (one[0], one[1], RUNNING_ORDER.index(one[2].kind)))
    rows: list[list[list[Operation]]] = [
        [[] for _ in range(stages)] for _ in range(placed[-1][0] + 1)
    ]
    for tick, stage, operation in placed:
        rows[tick][stage].append(operation)
    return Table(
        schedule=schedule,
        stages=stages,
        microbatches=microbatches,
        chunks=chunks,
        splits_backward=any(one[2].kind == "W" for one in placed),
        ticks=tuple(tuple(tuple(cell) for cell in row) for row in rows),
    )


# (kind, microbatch, depth) -> tick
_Starts = Mapping[tuple[Kind, int, int], int]


def check_table(table: Table) -> None:
    """Raises ValueError where a table cannot be run in lockstep, or adds up gradients in another order than 0, 1, ...

    Every pass is there once, after what it needs, and no stage has two F or two B in a tick.
    """
    _check_cells(table)
    starts = _starts(table)
    for microbatch in range(table.microbatches):
        for depth in range(table.depths):
            _check_needs(table, starts, microbatch, depth)
    if table.schedule != FORWARD:
        _check_sums(table, starts)


def _check_cells(table: Table) -> None:
    for tick, row in enumerate(table.ticks):
        if len(row) != table.stages:
            raise ValueError(f"tick {tick} has {len(row)} stages, not {table.stages}")
        for stage, operations in enumerate(row):
            kinds = [one.kind for one in operations]
            where = f"tick {tick}, stage {stage}"
            if kinds != sorted(kinds, key=RUNNING_ORDER.index):
                raise ValueError(f"{where}: {' '.join(kinds)} does not run as F, B, W")
            for kind in ("F", "B"):
                if kinds.count(kind) > 1:
                    raise ValueError(f"{where}: {kinds.count(kind)} {kind} in one tick")


def _starts(table: Table) -> _Starts:
    """When each pass runs. Raises ValueError unless all are there, once, and no others."""
    starts: dict[tuple[Kind, int, int], int] = {}
    for tick, stage, one in table.cells():
        key = (one.kind, one.microbatch, one.chunk * table.stages + stage)
        if key in starts:
            raise ValueError(f"{_name(table, *key)} runs twice, in ticks {starts[key]} and {tick}")
        starts[key] = tick
    wanted = {
        (kind, microbatch, depth)
        for kind in table.kinds
        for microbatch in range(table.microbatches)
        for depth in range(table.depths)
    }
    for key in sorted(wanted ^ starts.keys()):
        problem = "never runs" if key in wanted else f"in tick {starts[key]} is none of this table"
        raise ValueError(f"{_name(table, *key)} {problem}")
    return starts


def _check_needs(table: Table, starts: _Starts, microbatch: int, depth: int) -> None:
    """Raises ValueError where a pass at a depth runs before what it needs."""
    last = depth + 1 == table.depths
    if depth:
        _check_after(table, starts, microbatch, ("F", depth), ("F", depth - 1), 1)
    if "B" in table.kinds:
        needed: tuple[Kind, int] = ("F", depth) if last else ("B", depth + 1)
        _check_after(table, starts, microbatch, ("B", depth), needed, 0 if last else 1)
    if "W" in table.kinds:
        _check_after(table, starts, microbatch, ("W", depth), ("B", depth), 0)


def _check_after(
    table: Table,
    starts: _Starts,
    microbatch: int,
    one: tuple[Kind, int],
    needed: tuple[Kind, int],
    least: int,
) -> None:
    (kind, depth), (other, at) = one, needed
    start, before = starts[kind, microbatch, depth], starts[other, microbatch, at]
    if start - before < least:
        names = _name(table, kind, microbatch, depth), _name(table, other, microbatch, at)
        rule = "must run in a later tick than" if least else "must not run before"
        raise ValueError(f"{names[0]} in tick {start} {rule} {names[1]} in tick {before}")


def _check_sums(table: Table, starts: _Starts) -> None:
    """Rounding depends on the order of a sum: it is the same in all schedules, so that their gradients are."""
    kind = table.kinds[-1]
    for depth in range(table.depths):
        for before, after in pairwise(range(table.microbatches)):
            ticks = starts[kind, before, depth], starts[kind, after, depth]
            if ticks[0] > ticks[1]:
                raise ValueError(
                    f"{_name(table, kind, after, depth)} in tick {ticks[1]} adds up its gradient before "
                    f"that of microbatch {before} in tick {ticks[0]}"
                )


def _name(table: Table, kind: Kind, microbatch: int, depth: int) -> str:
    chunk = f", chunk {depth // table.stages}" if table.chunks > 1 else ""
    return f"{kind} of microbatch {microbatch}{chunk} at stage {depth % table.stages}"
