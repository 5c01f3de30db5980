"""Bytes of a device of a pipeline in lockstep, by component. All stages are alike: they run one program.

Parameters are gathered over `fsdp`, and tables over the stages, once before the loop over ticks, and gradients are
added up in arrays of that size and reduced once behind it. Rings hold what passes leave for later ones.
"""

from jaxscale.planner.costs.lockstep.counts import slots
from jaxscale.planner.costs.lockstep.elements import (
    other_elements,
    stage_elements,
    stored_elements,
    table_elements,
    table_shares,
)
from jaxscale.planner.costs.lockstep.setting import Pipeline
from jaxscale.planner.costs.memory import SHARDED, logit_bytes, working_bytes
from jaxscale.planner.costs.remat import attention_bytes, kept_bytes, mlp_width
from jaxscale.planner.vocabulary.formula import Formula, Named, Number, if_split, larger
from jaxscale.planner.vocabulary.layout import ZeroStage
from jaxscale.planner.vocabulary.terms import Term

# Of a layer that rematerializes nothing, as its trace has them: of both norms the input and the result, and in fp32 the
# normalized input; before and behind the activation and the product with its gate.
_PLAIN_STREAMS, _PLAIN_FP32, _PLAIN_MLP = 4, 2, 6
_FP32 = 4
# On the way in and out of the passes of a tick, and from stage to stage.
_STREAMS_AT_WORK = 3
_WHOLE = ("tensor",)


def lockstep_memory_terms(pipeline: Pipeline, zero: ZeroStage) -> list[Term]:
    """Terms that add up to the peak, which is in the loop over ticks."""
    stack = pipeline.stack
    stored = Named(stored_elements(pipeline, SHARDED), "parameters here")
    of_state = stored / pipeline.mesh.data if zero else stored
    return [
        Term("parameters", stored * Number(stack.param_bytes, "B each")),
        Term("optimizer state", of_state * Number(stack.moments_bytes, "B each")),
        Term("gradients", _gradients(pipeline) * Number(_FP32, "B each")),
        Term("gathered parameters", _gathered(pipeline) * Number(stack.gather_bytes, "B each")),
        *_rings(pipeline),
        *_at_work(pipeline),
        Term("framework", Number(stack.overhead_bytes, "B")),
    ]


def _gradients(pipeline: Pipeline) -> Formula:
    """Of everything that is gathered. A tied table has two: the head's, in forward passes, and the embedding's."""
    uses = 2 if pipeline.shape.tied else 1
    tables = uses * table_elements(pipeline, _WHOLE)
    return stage_elements(pipeline, _WHOLE) + tables + other_elements(pipeline, ())


def _gathered(pipeline: Pipeline) -> Formula:
    """Copies in the compute dtype; where that is the parameters' own, only of what is split."""
    layers, tables = stage_elements(pipeline, _WHOLE), table_elements(pipeline, _WHOLE)
    if pipeline.stack.compute_bytes < pipeline.stack.param_bytes:
        return layers + tables
    mesh = pipeline.mesh
    shards = mesh.fsdp * mesh.expert * mesh.context
    return if_split(shards, layers) + if_split(shards * table_shares(pipeline), tables)


def _rings(pipeline: Pipeline) -> list[Term]:
    """What passes leave, and one slot more of each while it is written."""
    rings = slots(pipeline.schedule, pipeline.mesh)
    kept = (Named(rings.residual, "slots") + 1) * chunk_bytes(pipeline)
    terms = [Term("kept activations", kept)]
    if pipeline.schedule == "zb-h1":
        waiting = (Named(rings.pending, "slots") + 1) * pending_bytes(pipeline)
        terms.append(Term("waiting for weight gradients", waiting))
    between = (rings.streams + _STREAMS_AT_WORK) * stream_bytes(pipeline)
    return [*terms, Term("between stages", between)]


def _at_work(pipeline: Pipeline) -> list[Term]:
    """The backward pass of a layer, or the head with its table's gradient, whichever needs more."""
    shape, sizes, stack = pipeline.shape, pipeline.sizes, pipeline.stack
    working = Named(working_bytes(shape, sizes, stack, pipeline.remat), "B of a layer at work")
    table = table_elements(pipeline, _WHOLE, pipeline.tables[-1:]) * stack.table_gradient_bytes
    logits = Named(logit_bytes(shape, sizes, stack), "B of logits")
    head = logits + Named(table, "B of their table's gradient")
    return [Term("working set of a layer", larger(working - head, 0)), Term("logits", head)]


def chunk_bytes(pipeline: Pipeline) -> Formula:
    """What a forward pass through a chunk leaves for the backward pass of its microbatch."""
    shape, sizes, stack = pipeline.shape, pipeline.sizes, pipeline.stack
    layer = (
        _plain_bytes(pipeline)
        if pipeline.remat == "none"
        else kept_bytes(shape, sizes, stack, pipeline.remat)
    )
    return Named(pipeline.stages.places * layer, "B of a chunk")


def _plain_bytes(pipeline: Pipeline) -> Formula:
    shape, stack = pipeline.shape, pipeline.stack
    streams = (_PLAIN_STREAMS * stack.compute_bytes + _PLAIN_FP32 * _FP32) * shape.embed
    split = attention_bytes(shape, stack) + _PLAIN_MLP * mlp_width(shape) * stack.compute_bytes
    return _token_bytes(pipeline, streams, split)


def pending_bytes(pipeline: Pipeline) -> Formula:
    """What the weight gradients of a chunk read of its backward pass.

    As traced: the gradient of each product's result; and its input, where the policy does not keep it. `dots` makes the
    norms' results again from what is normalized in fp32.
    """
    shape, stack, remat = pipeline.shape, pipeline.stack, pipeline.remat
    each = stack.compute_bytes
    streams = {"none": 2 * each, "dots": 2 * each + 2 * _FP32}.get(remat, 4 * each)
    mlp = shape.mlp_products - 1 + (0 if remat == "none" else 2)
    result = 0 if remat == "full" else shape.heads * shape.head_dim * each
    attention = attention_bytes(shape, stack) - 4 * shape.heads - result
    split = attention + mlp * mlp_width(shape) * each
    layer = _token_bytes(pipeline, streams * shape.embed, split)
    return Named(pipeline.stages.places * layer, "B of a chunk")


def _token_bytes(pipeline: Pipeline, streams: float, split: float) -> Formula:
    """Of a microbatch. streams: bytes a token of what is split as the residual stream; split: of what `tensor` does."""
    sizes = pipeline.sizes
    inner = Number(split, "B of attention and mlp") / sizes.mesh.tensor
    return sizes.tokens * (Number(streams, "B of embed") * sizes.share + inner)


def stream_bytes(pipeline: Pipeline) -> Formula:
    """What goes from stage to stage for a microbatch."""
    width = pipeline.shape.embed * pipeline.stack.compute_bytes
    return Named(_token_bytes(pipeline, width, 0), "B of a stage's input")
