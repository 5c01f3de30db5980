"""Seconds of a step of a pipeline in lockstep, by component."""

from dataclasses import dataclass, replace

from jaxscale.planner.costs.communication import Compute, hide
from jaxscale.planner.costs.compute import Part, Speeds
from jaxscale.planner.costs.lockstep.counts import (
    Load,
    Passes,
    step_seconds,
    ticks,
    ticks_alone,
    ticks_with_both,
)
from jaxscale.planner.costs.lockstep.elements import layer_elements, table_elements
from jaxscale.planner.costs.lockstep.memory import chunk_bytes, pending_bytes
from jaxscale.planner.costs.lockstep.setting import Pipeline
from jaxscale.planner.costs.lockstep.stages import Stages
from jaxscale.planner.costs.lockstep.traffic import lockstep_traffic, tensor_seconds
from jaxscale.planner.costs.lockstep.turns import InTurns
from jaxscale.planner.costs.passes import backward_seconds, compute_terms
from jaxscale.planner.vocabulary.formula import Formula, Named, Number, larger, total
from jaxscale.planner.vocabulary.terms import Term

# Half of the backward pass of all other parts of a layer is weight gradients.
_WITHOUT_WEIGHTS = ("attention", "elementwise and norms")
_FP32 = 4
# Of the collectives of a layer, about: the forward pass has one gather and one scatter for each pair of products, the
# backward pass twice as many.
_FORWARD_SHARE = 1 / 3
# What layers move among themselves can hide behind compute; the rest moves before, between and behind ticks.
_INSIDE_TICKS = ("tensor", "keys", "tokens")


@dataclass(frozen=True)
class Work:
    """Seconds of one microbatch: a layer, the head; adding up gradients of a layer, of the head, of the embedding."""

    layer: Passes
    head: Formula
    adding: Formula
    adding_table: Formula
    embedding: Formula

    @property
    def ends(self) -> Formula:
        return self.head + self.adding_table + self.embedding


def lockstep_time_terms(
    pipeline: Pipeline, speeds: Speeds, parts: list[Part], head: Part
) -> list[Term]:
    """Terms that add up to the step, but for optimizer and host: what stages do on average, then what they wait.

    parts, head: of a microbatch, as without a pipeline.
    """
    mesh = pipeline.mesh
    work = work_of(pipeline, speeds, parts, head)
    layers = Number(pipeline.sizes.num_layers, "layers") / mesh.pipeline
    adding = layers * work.adding + (work.adding_table + work.embedding) / mesh.pipeline
    mean = Named(layers * work.layer.all + work.ends / mesh.pipeline, "s of the mean stage")
    busiest = _busiest(work, pipeline)
    waiting = _step(work, pipeline) - mesh.microbatches * busiest
    compute = compute_terms(parts, head, pipeline.sizes, pipeline.stack, pipeline.remat)
    return [
        *compute,
        Term("adding gradients", mesh.microbatches * adding),
        *_traffic(pipeline, compute),
        Term("uneven stages", mesh.microbatches * larger(busiest - mean, 0)),
        Term("pipeline bubble", waiting),
        _rings(pipeline, speeds),
    ]


def _busiest(work: Work, pipeline: Pipeline) -> Formula:
    """Seconds a microbatch: the first stage has the embedding, the last the head."""
    stage = pipeline.stages.stage * work.layer.all + work.embedding
    last = pipeline.stages.last * work.layer.all + work.head + work.adding_table
    return Named(larger(stage, last), "s of the busiest stage")


def _step(work: Work, pipeline: Pipeline) -> Formula:
    """Seconds of a step, of what runs in ticks."""
    schedule, mesh, stages = pipeline.schedule, pipeline.mesh, pipeline.stages
    if schedule == "interleaved":
        return InTurns(
            stages.counts,
            forward=work.layer.forward,
            backward=work.layer.whole_backward,
            head=work.head + work.adding_table,
            embedding=work.embedding,
            alone=ticks_alone(mesh),
            both=ticks_with_both(mesh),
        )
    return step_seconds(schedule, mesh, _load(work, stages))


def work_of(pipeline: Pipeline, speeds: Speeds, parts: list[Part], head: Part) -> Work:
    """Gradients are added up in fp32: read, written, and the new ones read; the head's are fp32, too."""
    stack, remat, each = pipeline.stack, pipeline.remat, pipeline.stack.compute_bytes
    adding = layer_elements(pipeline, ("tensor",)) * Number(2 * _FP32 + each, "B each")
    table = table_elements(pipeline, ("tensor",), pipeline.tables[-1:]) / speeds.memory
    sent = tensor_seconds(pipeline)
    forward = total([one.forward for one in parts])
    backward = total([backward_seconds(one, remat, stack) for one in parts])
    weight = total([0.5 * one.backward for one in parts if one.component not in _WITHOUT_WEIGHTS])
    layer = Passes(
        Named(forward + _FORWARD_SHARE * sent, "s forward of a layer"),
        Named(backward - weight + (1 - _FORWARD_SHARE) * sent, "s backward of a layer"),
        Named(weight + adding / speeds.memory, "s of weight gradients of a layer"),
    )
    return Work(
        layer=layer,
        head=Named(head.forward + head.backward, "s of the head"),
        adding=adding / speeds.memory,
        adding_table=table * (3 * _FP32),
        # Rows scattered into zeros, then added up.
        embedding=table * (2 * _FP32 + 2 * each),
    )


def _load(work: Work, stages: Stages) -> Load:
    """The fullest stage is the first, if no other: with the embedding's gradient."""
    chunk = _chunk(work, stages.chunk, "a chunk")
    backward = Named(chunk.backward + work.embedding, "s backward of a chunk")
    last = _chunk(work, stages.last, "the last chunk")
    forward = Named(last.forward + work.head + work.adding_table, "s forward of the last chunk")
    return Load(
        chunk=replace(chunk, backward=backward),
        other=_chunk(work, stages.other, "another chunk"),
        last=replace(last, forward=forward),
        full=stages.full,
    )


def _chunk(work: Work, layers: Formula, name: str) -> Passes:
    layer = work.layer
    return Passes(
        Named(layers * layer.forward, f"s forward of {name}"),
        Named(layers * layer.backward, f"s backward of {name}"),
        Named(layers * layer.weight, f"s of weight gradients of {name}"),
    )


def _traffic(pipeline: Pipeline, compute: list[Term]) -> list[Term]:
    overlap = pipeline.stack.overlap
    inside = {name: share for name, share in overlap.items() if name in _INSIDE_TICKS}
    behind = Named(total([term.amount for term in compute]), "s of compute")
    stack = replace(pipeline.stack, overlap=inside)
    return hide(lockstep_traffic(pipeline), stack, Compute(behind, Number(0), Number(0)))


def _rings(pipeline: Pipeline, speeds: Speeds) -> Term:
    """In every tick each stage copies what a chunk leaves into its ring, or what stands for nothing."""
    left = chunk_bytes(pipeline)
    if pipeline.schedule == "zb-h1":
        left = left + pending_bytes(pipeline)
    often = Named(ticks(pipeline.schedule, pipeline.mesh), "ticks")
    return Term("writing rings", 2 * often * left / speeds.memory)
