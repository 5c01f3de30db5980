"""Ticks, ring slots and the length of a step in lockstep, as formulas over candidates.

They are what `parallel.pipeline`'s tables, programs and simulation give, in closed form, since a search has too many
sizes to make tables of (tests hold the two together). m microbatches, p stages, v chunks a stage.
"""

from dataclasses import dataclass

from jaxscale.planner.model.sizes import Mesh
from jaxscale.planner.vocabulary.formula import Formula, Number, larger, rounded_up, smaller
from jaxscale.planner.vocabulary.layout import Schedule


@dataclass(frozen=True)
class Passes:
    """Seconds of one microbatch through a chunk. weight: of its weight gradients.

    Where a schedule does not run these apart, a backward pass takes both.
    """

    forward: Formula
    backward: Formula
    weight: Formula

    @property
    def whole_backward(self) -> Formula:
        return self.backward + self.weight

    @property
    def all(self) -> Formula:
        return self.forward + self.backward + self.weight


@dataclass(frozen=True)
class Load:
    """Of a pipeline with one chunk a stage. last: has the head. chunk: the fullest of the others.

    full: stages up to the last such one. other: the fullest behind it.
    """

    chunk: Passes
    other: Passes
    last: Passes
    full: Formula


@dataclass(frozen=True)
class Slots:
    """Of the rings of a stage: residuals and pending hold what a chunk leaves, streams hold its input or output."""

    residual: Formula
    pending: Formula
    streams: Formula


def ticks(schedule: Schedule, mesh: Mesh) -> Formula:
    """Ticks of a step."""
    stages, microbatches = mesh.pipeline, mesh.microbatches
    there_and_back = 2 * (stages - 1)
    if schedule == "gpipe":
        return 2 * microbatches - 1 + there_and_back
    if schedule == "zb-h1":
        return microbatches + there_and_back + smaller(microbatches, stages - 1)
    if schedule == "interleaved":
        return ticks_with_both(mesh) + 2 * ticks_alone(mesh)
    return microbatches + there_and_back


def ticks_with_both(mesh: Mesh) -> Formula:
    """Of interleaving: ticks with forward and backward passes."""
    return mesh.virtual_stages * mesh.microbatches - (mesh.virtual_stages - 1) * _group(mesh)


def ticks_alone(mesh: Mesh) -> Formula:
    """Of interleaving: ticks before the first backward pass, as many as behind the last forward pass.

    Chunks of fewer than p microbatches start p ticks apart, when the first is back at the first stage.
    """
    turn = (mesh.virtual_stages - 1) * larger(_group(mesh), mesh.pipeline)
    return turn + mesh.pipeline - 1


def slots(schedule: Schedule, mesh: Mesh) -> Slots:
    """Rings are as large on every stage as on the one that keeps most: the first, 2p - 1 microbatches of 1F1B."""
    stages, microbatches, chunks = mesh.pipeline, mesh.microbatches, mesh.virtual_stages
    deep = smaller(2 * stages - 1, microbatches + 1)
    if schedule == "gpipe":
        return Slots(microbatches + 1, Number(0), 1 + larger(microbatches, 2))
    if schedule == "interleaved":
        group = _group(mesh)
        kept = 2 * stages - 1 + (chunks - 1) * group
        waiting = larger(group - stages + 1, 1)
        return Slots(smaller(kept, chunks * microbatches + 1), Number(0), 2 * waiting + 1)
    return Slots(deep, deep if schedule == "zb-h1" else Number(0), Number(3))


def step_seconds(schedule: Schedule, mesh: Mesh, load: Load) -> Formula:
    """How long a step of one chunk a stage takes, of what runs in ticks.

    In 1F1B, p - 1 ticks have forward passes alone, then m have both, in 2 (p - k) of which none of the k stages up to
    the last of the fullest has, then p - 1 have backward passes alone. GPipe's last stage has the head's time in F, the
    others theirs in B: nobody's wait hides another's. In ZB-H1 stages run F and B together, F, B and W together, then
    B or W, and W alone.
    """
    if schedule == "zb-h1":
        return _zero_bubble(mesh, load.chunk, load.last)
    before, microbatches, chunk, last = mesh.pipeline - 1, mesh.microbatches, load.chunk, load.last
    alone = before * (chunk.forward + chunk.whole_backward)
    if schedule == "gpipe":
        apart = larger(chunk.forward, last.forward) + larger(
            chunk.whole_backward, last.whole_backward
        )
        return alone + (microbatches - 1) * apart + last.all
    turning = smaller(microbatches, 2 * (mesh.pipeline - load.full))
    less = larger(last.all, load.other.all, chunk.forward, chunk.whole_backward)
    return alone + turning * less + (microbatches - turning) * larger(chunk.all, last.all)


def _zero_bubble(mesh: Mesh, chunk: Passes, last: Passes) -> Formula:
    """Seconds of a step of ZB-H1."""
    before, microbatches = mesh.pipeline - 1, mesh.microbatches
    together = larger(chunk.forward + chunk.backward, last.forward + last.backward)
    late = smaller(microbatches, before) * larger(chunk.weight, last.weight)
    return (
        before * chunk.forward
        + smaller(microbatches, 2 * before) * together
        + larger(microbatches - 2 * before, 0) * larger(chunk.all, last.all)
        + before * larger(chunk.backward, chunk.weight, last.weight)
        + late
    )


def _group(mesh: Mesh) -> Formula:
    """Microbatches of the largest group that interleaving takes through its chunks together."""
    groups = larger(_rounded_down(mesh.microbatches / mesh.pipeline), 1)
    return rounded_up(mesh.microbatches / groups)


def _rounded_down(value: Formula) -> Formula:
    return 0 - rounded_up(0 - value)
