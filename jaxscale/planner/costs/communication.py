"""Seconds of a step that a device spends in collectives, by mesh axis.

What each axis moves, a microbatch and a layer (V as in `network`): `tensor` gathers and scatters the residual stream
around two pairs of split products (Shoeybi et al. 2019; Korthikanti et al. 2022); `fsdp` gathers parameters for each
pass and scatters gradients (Rajbhandari et al. 2020, ZeRO stage 3); `context` gathers keys and values; `expert` sends
tokens to their experts and back (Lepikhin et al. 2020); `pipeline` hands the residual stream on. `data` sums gradients
once a step; with ZeRO stages 1 and 2 it scatters them, and gathers the parameters that come of them (Rajbhandari et al.
2020, sections 5 and 7).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxscale.planner.costs.network import (
    distinct_nodes,
    exchange_seconds,
    gather_seconds,
    reduce_seconds,
    wire_share,
)
from jaxscale.planner.costs.remat import recomputes_products
from jaxscale.planner.costs.tables import gradient_bytes, loss_tokens, slowed, table_traffic
from jaxscale.planner.model.parameters import (
    ParameterGroup,
    layer_elements,
    local_elements,
    matrices_of_a_layer,
)
from jaxscale.planner.model.shape import ModelShape
from jaxscale.planner.model.sizes import Sizes
from jaxscale.planner.vocabulary.formula import (
    Column,
    Formula,
    Named,
    Number,
    if_less,
    if_split,
    larger,
    smaller,
)
from jaxscale.planner.vocabulary.layout import Remat, ZeroStage
from jaxscale.planner.vocabulary.stack import Stack
from jaxscale.planner.vocabulary.terms import Term

# Axes that parameters are gathered over, outermost first: each gathers what the ones before have gathered.
GATHERED = ("fsdp", "expert", "context")
GRADIENTS, KEYS_AND_VALUES, TOKENS = (
    "gradients over data",
    "keys and values over context",
    "tokens over expert",
)
# Axes whose devices may all have the same parameters.
REPEATING = ("data", "context", "expert")
# What moves once a step: behind the last microbatch's backward pass, and behind the first one's forward pass.
_BEHIND_BACKWARD = tuple(f"gradients over {axis}" for axis in REPEATING)
_BEHIND_FORWARD = tuple(f"parameters over {axis}" for axis in REPEATING)
# Under which name a stack says how much of a collective it overlaps, where that is not its axis.
OVERLAP_KEYS = {
    KEYS_AND_VALUES: "keys",
    TOKENS: "tokens",
    **dict.fromkeys(_BEHIND_BACKWARD, "data"),
    **dict.fromkeys(_BEHIND_FORWARD, "parameters"),
}


def gathered_axes(stack: Stack) -> tuple[str, ...]:
    """Those that the stack gathers parameters over."""
    return tuple(axis for axis in GATHERED if axis not in stack.whole_axes)


@dataclass(frozen=True)
class Compute:
    """Seconds behind which collectives may hide: those of a step, of the first microbatch's forward pass, and of the
    last one's backward pass."""

    all: Formula
    first_forward: Formula
    last_backward: Formula


def communication_terms(
    shape: ModelShape,
    groups: Sequence[ParameterGroup],
    sizes: Sizes,
    stack: Stack,
    remat: Remat,
    zero: ZeroStage,
    compute: Compute,
) -> list[Term]:
    """A term for each axis that moves something; two where ZeRO makes two collectives of one."""
    passes = sizes.mesh.microbatches * sizes.stage_layers
    terms = [
        tensor_term(shape, sizes, stack, remat, passes, sizes.mesh.microbatches),
        *(_gathered(axis, shape, groups, sizes, stack, passes) for axis in gathered_axes(stack)),
        *_once("data", groups, sizes, stack, zero),
        context_term(shape, sizes, stack, passes),
        _pipeline(shape, sizes, stack),
    ]
    if sizes.splits_logits:
        terms.append(loss_tokens(shape, sizes, stack))
    if shape.experts is not None and "expert" in stack.whole_axes:
        shared = [group for group in groups if not group.routed]
        terms.extend(_once("expert", shared, sizes, stack, zero))
    if "context" in stack.whole_axes:
        terms.extend(_once("context", groups, sizes, stack, zero))
    if shape.experts is not None:
        terms.append(expert_term(shape, shape.experts.per_token, sizes, stack, remat, passes))
    return hide(terms, stack, compute)


def hide(terms: Sequence[Term], stack: Stack, compute: Compute) -> list[Term]:
    """The same terms with what of them hides: the share that the stack overlaps, as far as there is compute left.

    Compute hides only once: what one axis hides behind is gone for the next. What moves once a step hides behind one
    pass: gradients behind the last backward pass, parameters that ZeRO gathers behind the first forward pass.
    """
    left, hidden_terms = compute.all, []
    passes = {_BEHIND_FORWARD: compute.first_forward, _BEHIND_BACKWARD: compute.last_backward}
    for term in terms:
        share = Number(stack.overlap.get(OVERLAP_KEYS.get(term.component, term.axis or ""), 0.0))
        behind = next((names for names in passes if term.component in names), None)
        window = left if behind is None else smaller(passes[behind], left)
        hidden = smaller(share * term.amount, window)
        left = Named(left - hidden, "s of compute left")
        if behind is not None:
            passes[behind] = Named(passes[behind] - hidden, "s of that pass left")
        hidden_terms.append(replace(term, hidden=hidden))
    return hidden_terms


def axis_term(component: str, axis: str, sizes: Sizes, seconds: Formula, moved: Formula) -> Term:
    """moved: V; a device takes (n - 1) / n of it from others."""
    size = getattr(sizes.mesh, axis)
    wire = if_split(size, moved * wire_share(size))
    return Term(component, if_split(size, seconds), axis, wire)


def _stream(shape: ModelShape, sizes: Sizes, stack: Stack) -> Formula:
    """Bytes of the residual stream of a microbatch, whole over `tensor`."""
    return Named(sizes.tokens * (shape.embed * stack.compute_bytes), "B of activations")


def tensor_term(
    shape: ModelShape,
    sizes: Sizes,
    stack: Stack,
    remat: Remat,
    passes: Formula,
    ends: Formula,
    *,
    staged: bool = False,
) -> Term:
    """With activations split between the products, a layer gathers at both inputs and scatters at both outputs;
    backward
    it gathers the gradients of the outputs, gathers the inputs again for the weights' gradients, and scatters theirs.
    Recomputing gathers no more than that, and scatters what a later product needs. Without the split, gather and
    scatter make one all-reduce, forward and backward.

    passes: of microbatches through layers; ends: through embedding and head. staged: in a lockstep pipeline.
    """
    stream = _stream(shape, sizes, stack)
    again = recomputes_products(remat)
    each = scatter_cost(stack) if staged else 1.0
    if stack.sequence_parallel:
        gathers, sums = stack.staged_moves if staged else (6.0, 2)
        scatters = 2.0 + sums
        scatters += (1 if stack.prunes else 2) * again
    else:
        gathers = scatters = 6.0 if again else 4.0
    # The embedding's rows are summed; the head's input is gathered, and its gradient summed: ours by an all-reduce, and
    # the gradient of the embedding's rows is gathered.
    at_ends = 5.0 if stack.looks_up and not staged else 2 + scatter_cost(stack)
    moves = gathers * passes + each * scatters * passes + at_ends * ends
    return axis_term(
        "activations over tensor",
        "tensor",
        sizes,
        moves * gather_seconds(stream, "tensor"),
        moves * stream,
    )


def scatter_cost(stack: Stack) -> float:
    """Gathers that a scatter costs as much as."""
    return 1.0 if stack.scatters else 2.0


def _gathered(
    axis: str,
    shape: ModelShape,
    groups: Sequence[ParameterGroup],
    sizes: Sizes,
    stack: Stack,
    passes: Formula,
) -> Term:
    """Parameters gathered over one axis, and gradients scattered: axes further in have not been gathered yet.

    Layers are gathered forward and (stage 3) backward, tables once.
    """
    inner = GATHERED[GATHERED.index(axis) + 1 :]
    kept = ("tensor", *inner)
    layer = layer_elements(groups, sizes.mesh, kept, of=axis)
    tables = table_traffic(axis, shape, groups, sizes, stack, kept)
    gathers = 2 if stack.regather else 1
    each = gathers * stack.gather_bytes + _gradient_scatters(sizes, stack) * stack.reduce_bytes
    if axis == "fsdp":
        each = _unless_in_windows(each, gathers, sizes, stack)
    volume = Named(each * layer, "B a layer")
    microbatches = sizes.mesh.microbatches
    units = 1 if stack.gathers == "layer" else matrices_of_a_layer(groups, axis)
    seconds = passes * gather_seconds(slowed(volume, stack), axis, (gathers + 1) * units)
    seconds = seconds + microbatches * tables.seconds
    component = f"parameters and gradients over {axis}"
    moved = passes * volume + microbatches * tables.moved
    return axis_term(component, axis, sizes, seconds, moved)


def _unless_in_windows(each: Formula, gathers: int, sizes: Sizes, stack: Stack) -> Formula:
    """Bytes an element of a layer; more where the compiler cuts products and what they gather or scatter into windows.

    It does so where `fsdp` is the only axis, over some numbers of devices: pieces of a matrix go both ways round a
    ring, n + 1 of them where n - 1 would do (`Stack.windows`).
    """
    least, most = stack.windows
    mesh = sizes.mesh
    pieces = Named((mesh.fsdp + 1) / larger(mesh.fsdp - 1, 1), "in windows")
    windows = (gathers * stack.gather_bytes + stack.reduce_bytes) * pieces
    inside = if_less(mesh.fsdp, least, each, if_less(most, mesh.fsdp, each, windows))
    return if_split(mesh.beside_fsdp, each, inside) if most else each


def _gradient_scatters(sizes: Sizes, stack: Stack) -> Formula:
    """Gathers that a scatter of gradients costs as much as: two where the compiler sums them over a whole slice."""
    each: Formula = Number(scatter_cost(stack))
    if not stack.scatters:
        # Where `tensor` splits layers, their collectives are written out, those of parameters too.
        each = each - if_split(sizes.mesh.tensor, Number(1))
    if not sizes.summed:
        return each
    shards = sizes.mesh.fsdp * sizes.mesh.expert * sizes.mesh.context
    return if_less(shards, sizes.summed, each, 2.0)


def _once(
    axis: str, groups: Sequence[ParameterGroup], sizes: Sizes, stack: Stack, zero: ZeroStage
) -> list[Term]:
    """Gradients of what every device of an axis has, once a step: summed.

    With ZeRO stages 1 and 2 each device updates its part: their gradients are scattered, and what comes of it is
    gathered, as wide as parameters are stored.
    """
    elements = local_elements(groups, sizes.mesh, ("tensor", *GATHERED))
    summed = gradient_bytes(groups, sizes, stack, ("tensor", *GATHERED))
    gradients = Named(summed, "B of gradients")
    name = f"gradients over {axis}"
    if not zero:
        return [axis_term(name, axis, sizes, reduce_seconds(gradients, axis), 2 * gradients)]
    parameters = Named(elements * stack.param_bytes, "B of parameters")
    return [
        axis_term(component, axis, sizes, gather_seconds(volume, axis), volume)
        for component, volume in ((name, gradients), (f"parameters over {axis}", parameters))
    ]


def context_term(shape: ModelShape, sizes: Sizes, stack: Stack, passes: Formula) -> Term:
    width = (
        2 * shape.kv_heads * shape.head_dim
        if shape.latent is None
        else shape.latent.kv_rank + shape.latent.rope_dim
    )
    volume = Named(
        sizes.tokens * sizes.mesh.context * (width * stack.compute_bytes) / sizes.mesh.tensor,
        "B of keys and values",
    )
    seconds = 3 * passes * gather_seconds(volume, "context")
    return axis_term(KEYS_AND_VALUES, "context", sizes, seconds, 3 * passes * volume)


def expert_term(
    shape: ModelShape,
    per_token: int,
    sizes: Sizes,
    stack: Stack,
    remat: Remat,
    passes: Formula,
) -> Term:
    routed = sizes.tokens * sizes.mesh.expert * Number(per_token, "experts each")
    each = shape.embed * min(stack.token_bytes, stack.compute_bytes)
    volume = Named(routed * each * sizes.share, "B of tokens")
    count = (6 if recomputes_products(remat) else 4) * passes
    seconds = count * exchange_seconds(volume, "expert", _sent_once(per_token, stack))
    return axis_term(TOKENS, "expert", sizes, seconds, count * volume)


def _sent_once(per_token: int, stack: Stack) -> Formula | None:
    """The part of a token's copies that remain where each node gets one; None: all.

    Where routing has a limit of nodes, they are no more than that.
    """
    if not stack.expert_nodes:
        return None
    nodes = smaller(stack.expert_nodes, distinct_nodes("expert", per_token))
    return Named(nodes, "nodes a token") / Number(per_token, "experts each")


def _pipeline(shape: ModelShape, sizes: Sizes, stack: Stack) -> Term:
    whole = _stream(shape, sizes, stack)
    sends = 2 * sizes.mesh.microbatches * sizes.mesh.virtual_stages
    share = 1 / sizes.mesh.tensor if stack.splits_sends else sizes.share
    moved = sends * whole * share
    seconds = moved / Column("pipeline_neighbor_bandwidth", "B/s to the next")
    if stack.splits_sends and not stack.sequence_parallel:
        gathers = sends * gather_seconds(whole, "tensor")
        seconds = seconds + if_split(sizes.mesh.tensor, gathers)
    return axis_term("activations over pipeline", "pipeline", sizes, seconds, moved)
