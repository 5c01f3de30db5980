"""Seconds that a pipeline in lockstep spends in collectives, by mesh axis, mean over its stages.

Layers gather and scatter activations as without a pipeline; parameters and gradients move once a step, before and
behind the loop over ticks, where there is nothing to hide behind; in every tick, busy or not, a residual stream goes
one stage on and a gradient one stage back, both at a time.
"""

from jaxscale.planner.costs.communication import (
    GATHERED,
    GRADIENTS,
    axis_term,
    context_term,
    expert_term,
    tensor_term,
)
from jaxscale.planner.costs.lockstep.counts import ticks
from jaxscale.planner.costs.lockstep.elements import (
    split_elements,
    stored_elements,
    table_elements,
    table_shares,
)
from jaxscale.planner.costs.lockstep.memory import stream_bytes
from jaxscale.planner.costs.lockstep.setting import Pipeline
from jaxscale.planner.costs.memory import SHARDED
from jaxscale.planner.costs.network import gather_seconds, reduce_seconds
from jaxscale.planner.vocabulary.formula import Column, Formula, Named, Number, if_less
from jaxscale.planner.vocabulary.terms import Term

_BETWEEN_STAGES = "activations over pipeline"
_TABLES = "vocabulary tables over pipeline"
# Gradients are summed as they are added up.
_FP32 = 4


def lockstep_traffic(pipeline: Pipeline) -> list[Term]:
    """A term for each axis that moves something."""
    shape, sizes, stack, remat = pipeline.shape, pipeline.sizes, pipeline.stack, pipeline.remat
    microbatches, stages = pipeline.mesh.microbatches, pipeline.mesh.pipeline
    passes = microbatches * (Number(sizes.num_layers, "layers") / stages)
    terms = [
        tensor_term(shape, sizes, stack, remat, passes, microbatches / stages, staged=True),
        *(_once(axis, pipeline) for axis in GATHERED),
        _data(pipeline),
        context_term(shape, sizes, stack, passes),
        _between_stages(pipeline),
        _tables(pipeline),
    ]
    if shape.experts is not None:
        each = shape.experts.per_token
        terms.append(expert_term(shape, each, sizes, stack, remat, passes))
    return terms


def tensor_seconds(pipeline: Pipeline) -> Formula:
    """Seconds of one layer and microbatch over `tensor` that compute does not hide."""
    shape, sizes, stack = pipeline.shape, pipeline.sizes, pipeline.stack
    once, never = Number(1), Number(0)
    whole = tensor_term(shape, sizes, stack, pipeline.remat, once, never, staged=True).amount
    return (1 - stack.overlap.get("tensor", 0.0)) * whole


def _once(axis: str, pipeline: Pipeline) -> Term:
    """Parameters gathered over one axis and their gradients scattered: axes further in have not been gathered yet.

    A scatter is one on every backend: the map over stages asks for it.
    """
    kept = ("tensor", *GATHERED[GATHERED.index(axis) + 1 :])
    each = pipeline.stack.gather_bytes + _FP32
    volume = Named(split_elements(pipeline, axis, kept) * each, "B")
    component = f"parameters and gradients over {axis}"
    return axis_term(component, axis, pipeline.sizes, gather_seconds(volume, axis), volume)


def _data(pipeline: Pipeline) -> Term:
    """With ZeRO gradients are scattered and parameters gathered: as many bytes, and nothing hides either way."""
    volume = Named(stored_elements(pipeline, SHARDED) * _FP32, "B of gradients")
    seconds = reduce_seconds(volume, "data")
    return axis_term(GRADIENTS, "data", pipeline.sizes, seconds, 2 * volume)


def _between_stages(pipeline: Pipeline) -> Term:
    """In every tick there and back at a time, also where nobody waits for it; the ring closes, so all send."""
    often = Named(ticks(pipeline.schedule, pipeline.mesh), "ticks")
    stream = stream_bytes(pipeline)
    link = Column("pipeline_neighbor_bandwidth", "B/s to the next")
    return Term(_BETWEEN_STAGES, often * stream / link, "pipeline", 2 * often * stream)


def _tables(pipeline: Pipeline) -> Term:
    """Where stages share them gathered, and their gradients scattered; else gradients are summed on every stage."""
    shared = pipeline.stack.gather_bytes + _FP32
    each = if_less(1, table_shares(pipeline), shared, 2 * _FP32)
    volume = Named(table_elements(pipeline, ("tensor",)) * each, "B")
    seconds = gather_seconds(volume, "pipeline")
    return axis_term(_TABLES, "pipeline", pipeline.sizes, seconds, volume)
