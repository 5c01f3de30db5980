"""What to say of a pipeline that idles more than it needs to."""

from bisect import bisect_left

from jaxscale.parallel.pipeline.schedules import make_table
from jaxscale.parallel.pipeline.simulate import bubble, uniform

_ROUNDING = 1e-9


def few_microbatches(
    schedule: str, *, stages: int, microbatches: int, chunks: int = 1
) -> str | None:
    """A warning where there are fewer microbatches than stages, which are then never busy all at once; else None.

    It names the idle share, of stages that all take the same time, and the fewest microbatches that halve it.
    """
    if microbatches >= stages:
        return None
    idle = _idle(schedule, stages, microbatches, chunks)
    # 1F1B halves its share p - 1 of m + p - 1 with 2m + p - 1, the others with fewer.
    enough = bisect_left(
        range(2 * microbatches + stages),
        -idle / 2 - _ROUNDING,
        lo=microbatches,
        key=lambda number: -_idle(schedule, stages, number, chunks),
    )
    return (
        f"microbatches={microbatches} for pipeline={stages}: stages are idle for {idle:.0%} of a step; "
        f"microbatches={enough} would halve that"
    )


def _idle(schedule: str, stages: int, microbatches: int, chunks: int) -> float:
    table = make_table(schedule, stages=stages, microbatches=microbatches, chunks=chunks)
    return bubble(table, uniform(stages, chunks))
