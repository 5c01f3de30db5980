"""Sizes of pipelines that the properties of schedules are tested over."""

from dataclasses import dataclass

from hypothesis import strategies as st

from jaxscale.parallel.pipeline.schedules import make_table
from jaxscale.parallel.pipeline.table import Table


@dataclass(frozen=True)
class Case:
    schedule: str
    stages: int
    microbatches: int
    chunks: int

    def table(self) -> Table:
        return make_table(
            self.schedule, stages=self.stages, microbatches=self.microbatches, chunks=self.chunks
        )


@st.composite
def cases(draw: st.DrawFn, schedules: tuple[str, ...] = ()) -> Case:
    names = schedules or ("gpipe", "1f1b", "interleaved", "zb-h1")
    schedule = draw(st.sampled_from(names))
    chunks = draw(st.integers(1, 3)) if schedule == "interleaved" else 1
    return Case(schedule, draw(st.integers(1, 8)), draw(st.integers(1, 40)), chunks)
