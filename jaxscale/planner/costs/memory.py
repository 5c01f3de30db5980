"""Bytes of the fullest device, by component."""

from collections.abc import Sequence

from jaxscale.planner.costs.remat import kept_bytes, layer_bytes, score_bytes
from jaxscale.planner.costs.schedules import microbatches_in_flight
from jaxscale.planner.costs.tables import where_copied
from jaxscale.planner.model.parameters import (
    ParameterGroup,
    end_elements,
    largest_matrix,
    layer_elements,
    local_elements,
)
from jaxscale.planner.model.shape import ModelShape
from jaxscale.planner.model.sizes import Sizes
from jaxscale.planner.vocabulary.formula import (
    Formula,
    Named,
    Number,
    if_less,
    if_split,
    larger,
    smaller,
)
from jaxscale.planner.vocabulary.layout import Remat, Schedule, ZeroStage
from jaxscale.planner.vocabulary.stack import Stack
from jaxscale.planner.vocabulary.terms import Term

SHARDED = ("fsdp", "expert", "context", "tensor")


def memory_terms(
    shape: ModelShape,
    groups: Sequence[ParameterGroup],
    sizes: Sizes,
    stack: Stack,
    remat: Remat,
    schedule: Schedule,
    zero: ZeroStage,
) -> list[Term]:
    """Terms that add up to the peak: what is there all the time, and what the backward pass of one layer needs."""
    return [
        *state_terms(groups, sizes, stack, zero),
        *_activations(shape, sizes, stack, remat, schedule),
        _gathered(groups, sizes, stack),
        Term("framework", Number(stack.overhead_bytes, "B")),
    ]


def state_terms(
    groups: Sequence[ParameterGroup], sizes: Sizes, stack: Stack, zero: ZeroStage
) -> list[Term]:
    """Parameters, optimizer and gradients; ZeRO stages 1 and 2 split the optimizer, then gradients, over `data` too."""
    local = Named(local_elements(groups, sizes.mesh, SHARDED), "parameters here")
    of_state = Named(optimizer_elements(groups, sizes, stack, zero), "parameters here")
    of_gradients = _over_repeats(local, sizes, stack) / sizes.mesh.data if zero >= 2 else local
    # The gradients of one pass stand beside their sum.
    again = if_less(1, sizes.mesh.microbatches, 2, 1) if stack.adds_apart else Number(1)
    copies = Named(again, "of them")
    return [
        Term("parameters", local * Number(stack.param_bytes, "B each")),
        Term("optimizer state", of_state * Number(stack.moments_bytes, "B each")),
        Term("gradients", copies * of_gradients * Number(stack.gradient_bytes, "B each")),
    ]


def optimizer_elements(
    groups: Sequence[ParameterGroup], sizes: Sizes, stack: Stack, zero: ZeroStage
) -> Formula:
    """Parameters whose optimizer state a device has: what every device of an axis has is split over it too."""
    if stack.expert_shares or not zero:
        whole = local_elements(groups, sizes.mesh, SHARDED)
    else:
        routed, shared = (
            local_elements([one for one in groups if one.routed == is_routed], sizes.mesh, SHARDED)
            for is_routed in (True, False)
        )
        whole = routed + shared / sizes.mesh.expert
    return over_data(_over_repeats(whole, sizes, stack) if zero else whole, sizes, zero)


def _over_repeats(elements: Formula, sizes: Sizes, stack: Stack) -> Formula:
    """Split over `context`, where every device of it has the parameters."""
    return elements if stack.context_shares else elements / sizes.mesh.context


def over_data(elements: Formula, sizes: Sizes, zero: ZeroStage) -> Formula:
    return elements / sizes.mesh.data if zero >= 1 else elements


def _activations(
    shape: ModelShape, sizes: Sizes, stack: Stack, remat: Remat, schedule: Schedule
) -> list[Term]:
    """What waits for the backward pass; what one layer needs in it; and the logits.

    On one stage logits are gone when the first layer's backward pass begins: the larger of the two counts. In a
    pipeline the first stage has microbatches in flight and no logits, the last has one microbatch and the logits.
    """
    pipeline = sizes.mesh.pipeline
    once = kept_of_layers(shape, sizes, stack, remat)
    # What a stage sent on lies beside, where nothing frees it (Korthikanti et al. 2022, appendix B).
    sent = sizes.tokens * Number(shape.embed * stack.compute_bytes, "B of embed")
    behind = if_split(pipeline, sent) if stack.keeps_sent else Number(0)
    waiting = (once + behind) * microbatches_in_flight(schedule, sizes.mesh)
    working = Named(working_bytes(shape, sizes, stack, remat), "B of a layer at work")
    logits = Named(logit_bytes(shape, sizes, stack), "B of logits")
    last_stage = larger(once + larger(logits, working) - waiting - working, 0)
    return [
        Term("kept activations", waiting),
        Term("working set of a layer", if_split(pipeline, working, larger(working - logits, 0))),
        Term("logits", if_split(pipeline, last_stage, logits)),
    ]


def kept_of_layers(shape: ModelShape, sizes: Sizes, stack: Stack, remat: Remat) -> Formula:
    """Of all layers of a stage, for one microbatch."""
    kept = kept_bytes(shape, sizes, stack, remat)
    layer = Named(kept * Number(1 - stack.hosted, "here") if stack.hosted else kept, "B a layer")
    return sizes.stage_layers * layer if remat != "offload" else Number(0)


def working_bytes(shape: ModelShape, sizes: Sizes, stack: Stack, remat: Remat) -> Formula:
    """What one layer computes again, gradients half as large as all that it has, and over `tensor` the gathered inputs
    of
    its two pairs of split products and their gradients."""
    arrays = layer_bytes(shape, sizes, stack)
    if stack.attention == "unfused":
        arrays = arrays + score_bytes(shape, sizes, stack)
    full = Named(arrays, "B of a layer in full")
    kept = smaller(Named(kept_bytes(shape, sizes, stack, remat), "B of it kept"), full)
    stream = sizes.tokens * Number(shape.embed * stack.compute_bytes, "B of embed")
    gathered = if_split(sizes.mesh.tensor, 4 * stream) if stack.sequence_parallel else Number(0)
    return full - kept + 0.5 * full + gathered


def logit_bytes(shape: ModelShape, sizes: Sizes, stack: Stack) -> Formula:
    """Of a chunk; where devices of `fsdp` split the vocabulary, of a chunk of all their tokens."""
    tokens, width = sizes.tokens, Number(shape.vocab, "vocab") / sizes.mesh.tensor
    if sizes.splits_logits:
        tokens, width = tokens * sizes.mesh.fsdp, width / sizes.mesh.fsdp
    chunk = smaller(tokens, stack.loss_chunk) if stack.loss_chunk else tokens
    return chunk * width * Number(stack.held_logit_bytes or stack.logit_bytes, "B each")


def _gathered(groups: Sequence[ParameterGroup], sizes: Sizes, stack: Stack) -> Term:
    """What is whole over `fsdp` at one time: the unit in use and the next, and the gradient of one; or the head's
    table."""
    if not stack.regather:
        # Everything stays whole between the passes, and so do the gradients until they are scattered.
        local = local_elements(groups, sizes.mesh, ("tensor",))
        whole: Formula = local * Number(stack.gather_bytes + stack.reduce_bytes, "B each")
    else:
        whole = larger(unit_in_use(groups, sizes, stack), loss_table_bytes(groups, sizes, stack))
    gathered = if_split(_shards(sizes, stack), Named(whole, "B gathered"))
    return Term("gathered parameters", gathered)


def _shards(sizes: Sizes, stack: Stack) -> Formula:
    shards = sizes.mesh.fsdp
    if stack.context_shares:
        shards = shards * sizes.mesh.context
    if stack.expert_shares:
        shards = shards * sizes.mesh.expert
    return shards


def unit_in_use(groups: Sequence[ParameterGroup], sizes: Sizes, stack: Stack) -> Formula:
    """The unit that is gathered and the next one, and the gradient of one; nothing where none is split."""
    unit = (
        largest_matrix(groups, sizes.mesh, ("tensor",))
        if stack.gathers == "matrix"
        else layer_elements(groups, sizes.mesh, ("tensor",), of="fsdp")
    )
    in_use = unit * Number(2 * stack.gather_bytes + stack.reduce_bytes, "B each")
    return if_split(_shards(sizes, stack), Named(in_use, "B in use"))


def loss_table_bytes(groups: Sequence[ParameterGroup], sizes: Sizes, stack: Stack) -> Formula:
    """The loss's table, where it is gathered, and its gradient; of both a part where the loss splits them."""
    table = _table(groups, sizes)
    gradient = table * Number(stack.table_gradient_bytes, "B each")
    gathered = table * Number(stack.gather_bytes, "B each")
    if sizes.splits_logits:
        return Named((gradient + gathered) / sizes.mesh.fsdp, "B of the loss's table")
    # A second time, the other way round.
    gathered = if_split(_shards(sizes, stack), gathered + where_copied(sizes, stack, gathered))
    return Named(gradient + gathered, "B of the loss's table")


def _table(groups: Sequence[ParameterGroup], sizes: Sizes) -> Formula:
    tables = [group for group in groups if group.place != "layer" and group.elements > 10**6]
    return end_elements(tables, sizes.mesh, ("tensor",)) / max(len(tables), 1)
