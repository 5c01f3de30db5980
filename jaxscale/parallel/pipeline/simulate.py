"""How long a schedule takes and what it keeps, from the times of its passes. Any unit of time, as long as it is one.

Two clocks. In lockstep, as the runtime runs, all stages start a tick together and it lasts as long as its busiest stage
needs. Asynchronously, as published schedules run, a pass starts when its stage is free and what it waits for is there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from jaxscale.parallel.pipeline.classical import Orders
from jaxscale.parallel.pipeline.table import Kind, Operation, Table


@dataclass(frozen=True)
class Times:
    """Of one microbatch through some layers. backward: of the input's gradient; weight: of the weights' gradients.

    A backward pass that is not split takes both.
    """

    forward: float
    backward: float
    weight: float = 0.0

    def __add__(self, other: "Times") -> "Times":
        return Times(
            self.forward + other.forward,
            self.backward + other.backward,
            self.weight + other.weight,
        )


UNIT = Times(1, 1, 1)
NOTHING = Times(0, 0)


@dataclass(frozen=True)
class Costs:
    """depths: times of each piece of the model, in its order.

    send: of what goes from stage to stage: in lockstep once a tick, asynchronously before each pass that waits for it.
    all_wrap: whether, asynchronously, every microbatch waits until it is back from the last stage to the first (and the
    other way for its gradient), as is so. Without, one of each group of as many as there are stages does: the zero
    bubble paper's simulator of interleaving.
    """

    depths: tuple[Times, ...]
    send: float = 0.0
    all_wrap: bool = True

    def of(self, one: Operation, depth: int, *, split: bool) -> float:
        """How long a pass takes. split: whether there is a W, too."""
        times = self.depths[depth]
        if one.kind == "F":
            return times.forward
        if one.kind == "W":
            return times.weight
        return times.backward if split else times.backward + times.weight


def uniform(
    stages: int,
    chunks: int = 1,
    *,
    stage: Times = UNIT,
    embedding: Times = NOTHING,
    head: Times = NOTHING,
    send: float = 0.0,
    all_wrap: bool = True,
) -> Costs:
    """stage: times of all chunks of one together. embedding, head: what the first and the last piece take on top.

    The runtime has the head's gradients with its F, so that is where their time belongs.
    """
    part = Times(stage.forward / chunks, stage.backward / chunks, stage.weight / chunks)
    depths = [part] * (stages * chunks)
    depths[0] += embedding
    depths[-1] += head
    return Costs(tuple(depths), send, all_wrap)


@dataclass(frozen=True)
class Placed:
    """An operation on a stage, from `start` for `duration`."""

    stage: int
    start: float
    duration: float
    operation: Operation

    @property
    def end(self) -> float:
        return self.start + self.duration


@dataclass(frozen=True)
class Timeline:
    """placed: by stage, then by start. length: of the step. ticks: when each starts, none but in lockstep."""

    schedule: str
    stages: int
    placed: tuple[Placed, ...]
    length: float
    ticks: tuple[float, ...] = ()

    def idle(self, stage: int) -> float:
        """How long a stage has nothing to do."""
        return self.length - sum(one.duration for one in self.placed if one.stage == stage)

    @property
    def longest_stage(self) -> float:
        """The longest time from the first to the last pass of a stage.

        That is what a step takes where stages start their next one without waiting for each other.
        """
        bounds = [
            (min(one.start for one in mine), max(one.end for one in mine))
            for stage in range(self.stages)
            if (mine := [one for one in self.placed if one.stage == stage])
        ]
        return max(end - start for start, end in bounds)

    @property
    def bubble(self) -> float:
        """The share of the step that stages are idle for, on average."""
        busy = sum(one.duration for one in self.placed)
        return 1 - busy / (self.stages * self.length)


def lockstep(table: Table, costs: Costs) -> Timeline:
    """A table as the runtime goes through it."""
    split = table.splits_backward
    rows = [
        [
            [costs.of(one, one.chunk * table.stages + stage, split=split) for one in cell]
            for stage, cell in enumerate(row)
        ]
        for row in table.ticks
    ]
    lengths = (max(map(sum, row)) + costs.send for row in rows)
    starts = list(accumulate(lengths, initial=0.0))
    placed = [
        Placed(stage, begin, duration, one)
        for row, durations, start in zip(table.ticks, rows, starts, strict=False)
        for stage, cell in enumerate(row)
        for one, duration, begin in zip(
            cell, durations[stage], accumulate(durations[stage], initial=start), strict=False
        )
    ]
    placed.sort(key=lambda one: (one.stage, one.start))
    return Timeline(table.schedule, table.stages, tuple(placed), starts[-1], tuple(starts[:-1]))


def asynchronous(work: Table | Orders, costs: Costs, *, schedule: str = "") -> Timeline:
    """Every operation as early as its stage's order and what it waits for allow.

    schedule: its name; a table has its own.
    """
    orders = orders_of(work)
    split = any(one.kind == "W" for one in orders[0])
    ends: dict[tuple[int, Operation], float] = {}
    free, at = [0.0] * len(orders), [0] * len(orders)
    placed: list[Placed] = []
    while any(at[stage] < len(order) for stage, order in enumerate(orders)):
        progress = len(placed)
        for stage, order in enumerate(orders):
            while at[stage] < len(order):
                one = order[at[stage]]
                ready = _ready(one, stage, len(orders), costs, ends)
                if ready is None:
                    break
                duration = costs.of(one, one.chunk * len(orders) + stage, split=split)
                start = max(free[stage], ready)
                placed.append(Placed(stage, start, duration, one))
                free[stage] = ends[stage, one] = start + duration
                at[stage] += 1
        assert len(placed) > progress, "the stages wait for each other"
    placed.sort(key=lambda one: (one.stage, one.start))
    name = work.schedule if isinstance(work, Table) else schedule
    return Timeline(name, len(orders), tuple(placed), max(free))


def orders_of(work: Table | Orders) -> Orders:
    """What each stage runs, in its order."""
    if not isinstance(work, Table):
        return work
    return [[one for row in work.ticks for one in row[stage]] for stage in range(work.stages)]


def _ready(
    one: Operation,
    stage: int,
    stages: int,
    costs: Costs,
    ends: dict[tuple[int, Operation], float],
) -> float | None:
    """When everything that an operation waits for is there; None while it is not known."""
    latest = 0.0
    for where, needed in _needs(one, stage, stages, costs):
        end = ends.get((where, needed))
        if end is None:
            return None
        latest = max(latest, end + (costs.send if where != stage else 0.0))
    return latest


def _needs(
    one: Operation, stage: int, stages: int, costs: Costs
) -> Iterator[tuple[int, Operation]]:
    """(stage, operation)s: the same pass one piece earlier in the model, or one later on the way back."""
    depth = one.chunk * stages + stage
    if one.kind == "W":
        yield stage, Operation("B", one.microbatch, one.chunk)
        return
    if one.kind == "B":
        yield stage, Operation("F", one.microbatch, one.chunk)
    other = depth - 1 if one.kind == "F" else depth + 1
    wraps = other // stages != one.chunk
    if wraps and not costs.all_wrap and one.microbatch % stages:
        return
    if 0 <= other < len(costs.depths):
        yield other % stages, Operation(one.kind, one.microbatch, other // stages)


def tick_time(table: Table, costs: Costs) -> float:
    """Length of a step in lockstep: the sum over ticks of what the busiest stage does."""
    return lockstep(table, costs).length


def asynchronous_time(work: Table | Orders, costs: Costs) -> float:
    """Length of a step whose stages wait for each other only."""
    return asynchronous(work, costs).length


def bubble(table: Table, costs: Costs) -> float:
    """The share of a lockstep step that stages are idle for, on average."""
    return lockstep(table, costs).bubble


def in_flight(work: Table | Orders, stage: int) -> int:
    """The most residuals that a stage keeps at one time, one a chunk and microbatch: from F until W, or until B."""
    order = orders_of(work)[stage]
    return _most(order, "F", "W" if any(one.kind == "W" for one in order) else "B")


def peak_pending(work: Table | Orders, stage: int) -> int:
    """The most microbatches whose weight gradients a stage still owes at one time: from B until W."""
    return _most(orders_of(work)[stage], "B", "W")


def _most(order: Sequence[Operation], opens: Kind, closes: Kind) -> int:
    steps = [(one.kind == opens) - (one.kind == closes) for one in order]
    return max(accumulate(steps, initial=0)) if closes in {one.kind for one in order} else 0
