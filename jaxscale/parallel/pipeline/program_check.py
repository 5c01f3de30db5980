"""Plays a program with names in place of arrays, garbage included, as the runtime does with arrays."""

from itertools import count

from jaxscale.parallel.pipeline.program import Program
from jaxscale.parallel.pipeline.table import Kind

# What a slot holds: (name, microbatch, depth). Garbage is (`garbage`, a number of its own, -1).
Content = tuple[str, int, int]


def check_program(program: Program) -> None:
    """AssertionError where a pass would read anything but what it needs, or where passes are missing or run twice."""
    player = _Player(program)
    for tick in range(len(program.table.ticks)):
        player.play(tick)
    wanted = [
        (one.kind, one.microbatch, one.chunk * program.table.stages + stage)
        for _, stage, one in program.table.cells()
    ]
    assert sorted(player.done) == sorted(wanted), "not the passes of the table"


class _Player:
    """The rings of all stages, [stage][slot], and what has run."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.numbers = count()
        self.inbox = self._ring(program.inbox_slots)
        self.gradient = self._ring(program.gradient_slots)
        self.residual = self._ring(program.residual_slots)
        self.pending = self._ring(program.pending_slots)
        self.done: list[tuple[Kind, int, int]] = []

    def play(self, tick: int) -> None:
        """Every stage's passes; then both sends, in which everyone receives, garbage or not."""
        stages = range(self.program.table.stages)
        sent = []
        for stage in stages:
            sent.append((self._forward(tick, stage), self._backward(tick, stage)))
            self._weights(tick, stage)
        for stage in stages:
            column, at = self.program.columns, (tick, stage)
            before, after = sent[stage - 1], sent[(stage + 1) % len(stages)]
            self.inbox[stage][column["f_arrival"][at]] = before[0]
            self.gradient[stage][column["b_arrival"][at]] = after[1]

    def _forward(self, tick: int, stage: int) -> Content:
        column, at = self.program.columns, (tick, stage)
        on, microbatch, depth = self._what("f", at)
        last = on and depth + 1 == self.program.table.depths
        if on and depth:
            found = self.inbox[stage][column["f_inbox"][at]]
            _same(found, ("output", microbatch, depth - 1), "F", at)
        residual = ("residual", microbatch, depth) if on else self._garbage()
        self.residual[stage][column["f_residual"][at]] = residual
        gradient = ("gradient", microbatch, depth) if last else self._garbage()
        self.gradient[stage][column["f_gradient"][at]] = gradient
        return self._ran("F", "output", microbatch, depth) if on else self._garbage()

    def _backward(self, tick: int, stage: int) -> Content:
        column, at = self.program.columns, (tick, stage)
        on, microbatch, depth = self._what("b", at)
        if on:
            found = self.gradient[stage][column["b_gradient"][at]]
            _same(found, ("gradient", microbatch, depth), "B", at)
            found = self.residual[stage][column["b_residual"][at]]
            _same(found, ("residual", microbatch, depth), "B", at)
        if self.program.pending_slots:
            pending = ("pending", microbatch, depth) if on else self._garbage()
            self.pending[stage][column["b_pending"][at]] = pending
        if not on:
            return self._garbage()
        self._ran("B", "", microbatch, depth)
        return "gradient", microbatch, depth - 1

    def _weights(self, tick: int, stage: int) -> None:
        column = self.program.columns
        for place in range(column["w_on"].shape[2]):
            at = (tick, stage, place)
            on, microbatch, depth = self._what("w", at)
            if not on:
                continue
            found = self.residual[stage][column["w_residual"][at]]
            _same(found, ("residual", microbatch, depth), "W", at)
            found = self.pending[stage][column["w_pending"][at]]
            _same(found, ("pending", microbatch, depth), "W", at)
            self._ran("W", "", microbatch, depth)

    def _what(self, kind: str, at: tuple[int, ...]) -> tuple[bool, int, int]:
        """Whether a pass runs, of which microbatch, at which depth."""
        column = self.program.columns
        depth = int(column[f"{kind}_chunk"][at]) * self.program.table.stages + at[1]
        return bool(column[f"{kind}_on"][at]), int(column[f"{kind}_microbatch"][at]), depth

    def _ran(self, kind: Kind, made: str, microbatch: int, depth: int) -> Content:
        self.done.append((kind, microbatch, depth))
        return made, microbatch, depth

    def _garbage(self) -> Content:
        return "garbage", next(self.numbers), -1

    def _ring(self, slots: int) -> list[list[Content]]:
        return [[self._garbage() for _ in range(slots)] for _ in range(self.program.table.stages)]


def _same(found: Content, wanted: Content, kind: Kind, at: tuple[int, ...]) -> None:
    assert found == wanted, f"{kind} at {at} reads {found}, not {wanted}"
