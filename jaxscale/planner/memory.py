"""Bytes of the fullest device, by component."""

from collections.abc import Sequence

from jaxscale.planner.formula import Formula, Named, Number, if_split, larger, smaller
from jaxscale.planner.layout import Remat, Schedule, ZeroStage
from jaxscale.planner.model_shape import ModelShape
from jaxscale.planner.parameters import (
    ParameterGroup,
    end_elements,
    layer_elements,
    local_elements,
)
from jaxscale.planner.remat_costs import kept_bytes
from jaxscale.planner.schedules import microbatches_in_flight
from jaxscale.planner.sizes import Sizes
from jaxscale.planner.stack import Stack
from jaxscale.planner.terms import Term

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
        _logits(shape, sizes, stack),
        _gathered(groups, sizes, stack),
        Term("framework", Number(stack.overhead_bytes, "B")),
    ]


def state_terms(
    groups: Sequence[ParameterGroup], sizes: Sizes, stack: Stack, zero: ZeroStage
) -> list[Term]:
    """Parameters, optimizer and gradients; ZeRO stages 1 and 2 split the optimizer, then gradients, over `data` too."""
    local = Named(local_elements(groups, sizes.mesh, SHARDED), "parameters here")
    of_state = local / sizes.mesh.data if zero >= 1 else local
    of_gradients = local / sizes.mesh.data if zero >= 2 else local
    terms = [
        Term("parameters", local * Number(stack.param_bytes, "B each")),
        Term("optimizer state", of_state * Number(stack.moments_bytes, "B each")),
        Term("gradients", of_gradients * Number(stack.gradient_bytes, "B each")),
    ]
    if stack.kept_copy:
        terms.append(Term("compute copy", local * Number(stack.compute_bytes, "B each")))
    return terms


def _activations(
    shape: ModelShape, sizes: Sizes, stack: Stack, remat: Remat, schedule: Schedule
) -> list[Term]:
    layer = Named(kept_bytes(shape, sizes, stack, remat), "B a layer")
    waiting = sizes.stage_layers * microbatches_in_flight(schedule, sizes.mesh)
    working = Named(kept_bytes(shape, sizes, stack, "none"), "B of a layer in full")
    if remat == "offload":
        kept = [Term("offloaded to the host (not counted)", Number(0))]
    else:
        kept = [Term("kept activations", layer * waiting)]
    # One layer is computed again in full, and its gradients are as large as what they belong to.
    return [*kept, Term("working set of a layer", Number(stack.working_layers, "x") * working)]


def _logits(shape: ModelShape, sizes: Sizes, stack: Stack) -> Term:
    chunk = smaller(sizes.tokens, stack.loss_chunk) if stack.loss_chunk else sizes.tokens
    width = Number(shape.vocab, "vocab") / sizes.mesh.tensor
    return Term("logits", chunk * width * Number(stack.logit_bytes, "B each"))


def _gathered(groups: Sequence[ParameterGroup], sizes: Sizes, stack: Stack) -> Term:
    """What is gathered at one time, in use and on the way, with its gradient: layers, or the largest table."""
    shards = sizes.mesh.fsdp * sizes.mesh.expert * sizes.mesh.context
    layer = layer_elements(groups, sizes.mesh, ("tensor",), of="fsdp")
    table = end_elements(groups, sizes.mesh, ("tensor",)) / 2
    each = 2 * stack.gather_bytes + stack.reduce_bytes
    size: Formula = larger(layer * each, table * (stack.gather_bytes + stack.reduce_bytes))
    return Term("gathered parameters", if_split(shards, Named(size, "B gathered")))
