"""The published schedules as each stage's order of passes, for stages that wait for each other only and not for a tick.

Nothing executes these. They are what `simulate` holds the lockstep tables against, and what published bubbles are of:
GPipe (Huang et al. 2019, arXiv:1811.06965), 1F1B and interleaved 1F1B (Narayanan et al. 2021, arXiv:2104.04473,
section 2.2), ZB-H1 and ZB-H2 (Qi et al. 2023, arXiv:2401.10241, sections 2.1 and 2.2).
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from jaxscale.parallel.pipeline.table import Operation

Classical = Literal["gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2"]
# [stage] -> operations, each as soon as its stage is free and what it waits for is done.
Orders = Sequence[Sequence[Operation]]


def classical_orders(
    schedule: Classical, *, stages: int, microbatches: int, chunks: int = 1
) -> Orders:
    """Interleaving takes microbatches in groups: a multiple of the stages. ZB-H2 takes at least 2p - 1."""
    assert chunks == 1 or schedule == "interleaved", "only interleaving has several chunks"
    assert chunks == 1 or microbatches % stages == 0, "interleaving takes microbatches in groups"
    orders = [_order(schedule, stage, stages, microbatches, chunks) for stage in range(stages)]
    if schedule.startswith("zb"):
        return [
            list(_with_weights(order, stage * _reach(schedule)))
            for stage, order in enumerate(orders)
        ]
    return orders


def _reach(schedule: Classical) -> int:
    """How many more microbatches a stage starts ahead of its first B than the next stage."""
    return 2 if schedule == "zb-h2" else 1


def _order(
    schedule: Classical, stage: int, stages: int, microbatches: int, chunks: int
) -> list[Operation]:
    """Forward passes that fill the pipeline, one of each in turns, the rest backward."""
    forward, backward = _passes(stages, microbatches, chunks)
    if schedule == "gpipe":
        ahead = len(forward)
    elif chunks == 1:
        ahead = _reach(schedule) * (stages - stage - 1)
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


def _with_weights(order: Sequence[Operation], behind: int) -> Iterator[Operation]:
    """The gradients of weights, so many microbatches behind those of inputs.

    With as many as the stages before have started ahead, every stage keeps as many microbatches as the first one.
    """
    done = 0
    for operation in order:
        yield operation
        if operation.kind == "B" and operation.microbatch >= behind:
            yield Operation("W", done)
            done += 1
    backward = sum(operation.kind == "B" for operation in order)
    yield from (Operation("W", microbatch) for microbatch in range(done, backward))
