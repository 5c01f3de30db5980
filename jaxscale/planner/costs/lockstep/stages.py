"""How many layers the stages and chunks of a pipeline have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from jaxscale.parallel.pipeline.schedules import make_table
from jaxscale.parallel.pipeline.stages import balanced
from jaxscale.planner.hlo.branches import TickShares
from jaxscale.planner.model.parameters import ParameterGroup
from jaxscale.planner.vocabulary.formula import Formula, Named, Table, Values
from jaxscale.planner.vocabulary.layout import Layout


@dataclass(frozen=True)
class Stages:
    """Numbers of layers. counts: of each chunk in the model's order, by stages and chunks a stage.

    places: that every chunk has room for. stage: of the fullest stage but the last; last: of the last.
    chunk: of the fullest chunk but the last; other: of the fullest behind the last such one; full: stages up to that.
    """

    counts: Callable[[int, int], tuple[int, ...]]

    @property
    def places(self) -> Formula:
        return self._number(lambda counts, _: max(counts), "layers of a chunk")

    @property
    def stage(self) -> Formula:
        return self._number(
            lambda counts, stages: max(sum(counts[one::stages]) for one in range(stages - 1)),
            "layers of a stage",
        )

    @property
    def last(self) -> Formula:
        return self._number(
            lambda counts, stages: sum(counts[stages - 1 :: stages]), "layers of the last stage"
        )

    @property
    def chunk(self) -> Formula:
        return self._number(lambda counts, _: max(counts[:-1]), "layers of a chunk")

    @property
    def full(self) -> Formula:
        return self._number(lambda counts, _: _full(counts), "stages as full as that")

    @property
    def other(self) -> Formula:
        return self._number(
            lambda counts, _: max(counts[_full(counts) : -1], default=0), "layers of the others"
        )

    def _number(self, number: Callable[[tuple[int, ...], int], int], name: str) -> Formula:
        return Named(_OfStages(lambda p, v: number(self.counts(p, v), p)), name)


def _full(counts: tuple[int, ...]) -> int:
    most = max(counts[:-1])
    return max(index for index, count in enumerate(counts[:-1]) if count == most) + 1


@dataclass(frozen=True, eq=False)
class _OfStages(Formula):
    """A number that follows from how many stages and chunks a stage there are."""

    number: Callable[[int, int], int]

    def compute(self, table: Table) -> Values:
        pairs, index = table.pairs("pipeline", "virtual_stages")
        found: Values = np.array([float(self.number(*one)) for one in pairs])[index]
        return found

    def text(self, table: Table, row: int) -> str:
        return f"{self.at(table, row):g}"


def stages_of(
    num_layers: int, groups: Sequence[ParameterGroup], given: tuple[int, ...] = ()
) -> Stages:
    """As `parallel.pipeline.stages` deals layers out. given: layers of each chunk where a plan says so."""
    load = head_load(groups)
    return Stages(lambda stages, chunks: given or _dealt(num_layers, stages * chunks, load))


# Every policy and ZeRO stage of a search asks for the same ones again.
_dealt = lru_cache(maxsize=4096)(balanced)


def head_load(groups: Sequence[ParameterGroup]) -> float:
    """The product with the vocabulary, in layers: by elements of matrices."""
    layers = [group for group in groups if group.place == "layer" and not group.is_vector]
    number = max((group.layers for group in layers), default=1)
    table = max((group.elements for group in groups if group.is_table), default=0)
    return table / max(1, sum(group.all_elements for group in layers) // number)


def tick_shares(
    layout: Layout, num_layers: int, groups: Sequence[ParameterGroup]
) -> TickShares | None:
    """How often the choices of a pipeline's program are made, by its table; None without a pipeline."""
    if layout.pipeline == 1:
        return None
    stages, chunks = layout.pipeline, layout.virtual_stages
    table = make_table(
        layout.schedule, stages=stages, microbatches=layout.microbatches, chunks=chunks
    )
    counts = layout.stage_layers or balanced(num_layers, stages * chunks, head_load(groups))
    return TickShares(
        passes=Fraction(layout.microbatches * chunks, len(table.ticks)),
        ends=Fraction(1, stages * chunks),
        layers=Fraction(num_layers, stages * chunks * max(counts)),
    )
