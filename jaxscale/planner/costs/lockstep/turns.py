"""How long a step takes whose stages hold several chunks each, and go through them in turns.

Which chunk a stage runs in a tick follows from the tick, so a tick's length does too, for any layers of the chunks. A
step has ticks with forward passes alone; p - 1 in which one stage after the other begins with backward passes; ticks in
which all have both, which repeat after p v; and the same backwards.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from jaxscale.planner.vocabulary.formula import Formula, Table, Values

_Layers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class InTurns(Formula):
    """Seconds of a step, of what runs in ticks.

    counts: layers of each chunk in the model's order, by stages and chunks a stage. forward, backward: seconds of a
    layer, weights' gradients with the backward pass. head: on top of the last chunk's forward pass. embedding: on top
    of the first chunk's backward pass. alone: ticks with forward passes only, as many as with backward passes only.
    both: ticks with both.
    """

    counts: Callable[[int, int], tuple[int, ...]]
    forward: Formula
    backward: Formula
    head: Formula
    embedding: Formula
    alone: Formula
    both: Formula

    def compute(self, table: Table) -> Values:
        pairs, index = table.pairs("pipeline", "virtual_stages")
        parts = (self.forward, self.backward, self.head, self.embedding, self.alone, self.both)
        columns = np.stack([part.over(table) for part in parts])
        found = np.empty(table.num_rows)
        for number, (stages, chunks) in enumerate(pairs):
            rows = np.flatnonzero(index == number)
            stretches = _stretches(stages, chunks, self.counts(stages, chunks))
            found[rows] = _seconds(stretches, stages, columns[:, rows])
        return found

    def text(self, table: Table, row: int) -> str:
        return f"{self.at(table, row):.4g} s of ticks"


# What a stage runs in a tick: layers forward and backward, and whether head and embedding come on top.
_Work = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Stretch:
    """Some ticks, as what stages run in them. shares: of the ticks, by the work of which one must be the longest."""

    shares: Mapping[frozenset[_Work], float]

    def seconds(self, columns: Values) -> Values:
        """Of a tick of these, mean: the busiest stage's. columns: [of a layer's passes, head, embedding] by row."""
        total = np.zeros(columns.shape[1])
        for works, share in self.shares.items():
            total += share * (np.array(sorted(works)) @ columns).max(axis=0)
        return total


@cache
def _stretches(stages: int, chunks: int, counts: tuple[int, ...]) -> tuple[_Stretch, ...]:
    """Ticks with forward passes alone, on the way to both, with both, on the way from both, with backward passes alone.

    Backward passes end as forward passes begin: the first stage's last.
    """
    layers = np.array(counts, np.float64).reshape(chunks, stages)
    turn, period = stages * chunks - 1, stages * chunks
    # Any tick with both, in which the first stage begins with its first chunk.
    later = 4 * period
    alone = _passes(layers, np.arange(turn))
    parts = (
        alone,
        _passes(layers, np.arange(turn, turn + stages - 1)),
        _passes(layers, np.arange(later, later + period)),
        _passes(layers, np.arange(later, later + stages - 1), ends=later),
        _reversed(alone),
    )
    return tuple(_Stretch(_shares(part)) for part in parts)


def _passes(layers: _Layers, ticks: NDArray[np.int64], ends: int | None = None) -> _Layers:
    """[ticks, stages, 4]: the work of each stage.

    Stage s runs F of chunk (t - s) // p, from tick s on, and B of the mirrored one from tick v p - 1 + p - 1 - s on.
    ends: the tick before which the first stage has its last forward pass.
    """
    chunks, stages = layers.shape
    stage = np.arange(stages)
    since = ticks[:, None] - stage
    back = ticks[:, None] - (stages * chunks - 1) - (stages - 1 - stage)
    forward, backward = since // stages % chunks, chunks - 1 - back // stages % chunks
    has_forward, has_backward = since >= 0, back >= 0
    if ends is not None:
        has_forward &= since < ends
    parts = (
        np.where(has_forward, layers[forward, stage], 0.0),
        np.where(has_backward, layers[backward, stage], 0.0),
        has_forward & (stage == stages - 1) & (forward == chunks - 1),
        has_backward & (stage == 0) & (backward == 0),
    )
    return np.stack([part.astype(np.float64) for part in parts], axis=2)


def _reversed(alone: _Layers) -> _Layers:
    """Backward passes where there were forward passes, the embedding's with those of the first chunk."""
    stages = alone.shape[1]
    turned = np.zeros_like(alone)
    turned[:, :, 1] = alone[:, :, 0]
    turned[:stages, 0, 3] = 1.0
    return turned


def _shares(passes: _Layers) -> dict[frozenset[_Work], float]:
    found = Counter(_longest({tuple(work) for work in tick}) for tick in passes.tolist())
    return {works: number / len(passes) for works, number in found.items()}


def _longest(works: set[_Work]) -> frozenset[_Work]:
    """Without those that another one is never shorter than."""

    def is_within(work: _Work, other: _Work) -> bool:
        return all(a <= b for a, b in zip(work, other, strict=True))

    return frozenset(
        work
        for work in works
        if not any(other != work and is_within(work, other) for other in works)
    )


def _seconds(stretches: tuple[_Stretch, ...], stages: int, columns: Values) -> Values:
    """columns: of forward, backward, head, embedding, alone, both, by row. Of few ticks with both all come and go."""
    alone, both = columns[4], columns[5]
    first, coming, steady, going, last = (one.seconds(columns[:4]) for one in stretches)
    between = np.minimum(stages - 1, both / 2)
    steady_ticks = both - 2 * between
    seconds: Values = alone * (first + last) + between * (coming + going) + steady_ticks * steady
    return seconds
