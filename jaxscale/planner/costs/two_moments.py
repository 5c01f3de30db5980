"""Memory of our step on a TPU, as its compiler lays it out: the larger of two moments.

At the loss there are its table, whole, the table's gradient and a chunk's logits, but no gradient of a layer yet. In
the backward pass of a layer there are gradients of others, in the compute dtype, what the layer works on, and the
scores of its attention. Parameters, optimizer state, the parameters' copy in the compute dtype, activations and, where
microbatches are added up, the sum so far are there at both. Compared with compiled steps: docs/planner.md.
"""

from collections.abc import Sequence

from jaxscale.planner.costs.memory import (
    SHARDED,
    kept_of_layers,
    logit_bytes,
    loss_table_bytes,
    state_terms,
    unit_in_use,
    working_bytes,
)
from jaxscale.planner.model.parameters import ParameterGroup, local_elements
from jaxscale.planner.model.shape import ModelShape
from jaxscale.planner.model.sizes import Sizes
from jaxscale.planner.vocabulary.formula import Formula, Named, Number, if_less
from jaxscale.planner.vocabulary.layout import Remat, ZeroStage
from jaxscale.planner.vocabulary.stack import Stack
from jaxscale.planner.vocabulary.terms import Term


def two_moments_terms(
    shape: ModelShape,
    groups: Sequence[ParameterGroup],
    sizes: Sizes,
    stack: Stack,
    remat: Remat,
    zero: ZeroStage,
) -> list[Term]:
    """Terms that add up to the peak: what is there at both moments, and the larger of what each has besides."""
    parameters, optimizer, gradients = state_terms(groups, sizes, stack, zero)
    local = Named(local_elements(groups, sizes.mesh, SHARDED), "parameters here")
    narrow = stack.compute_bytes if stack.compute_bytes < stack.param_bytes else 0
    of_layers = local * Number(stack.reduce_bytes, "B each")
    layer = Named(_layer_bytes(shape, sizes, stack, remat), "B of a layer at work")
    unit, table = unit_in_use(groups, sizes, stack), loss_table_bytes(groups, sizes, stack)
    logits = Named(logit_bytes(shape, sizes, stack), "B of logits")
    at_loss, at_layer = logits + table, of_layers + layer + unit

    def larger(in_layer: Formula | float, at_the_loss: Formula | float) -> Formula:
        return if_less(at_loss, at_layer, in_layer, at_the_loss)

    summed = if_less(1, sizes.mesh.microbatches, local * Number(stack.gradient_bytes, "B each"), 0)
    return [
        parameters,
        optimizer,
        Term("compute copy", local * Number(narrow, "B each")),
        Term(gradients.component, summed + larger(of_layers, 0)),
        Term("kept activations", kept_of_layers(shape, sizes, stack, remat)),
        Term("working set of a layer", larger(layer, 0)),
        Term("logits", larger(0, logits)),
        Term("gathered parameters", larger(unit, table)),
        Term("framework", Number(stack.overhead_bytes, "B")),
    ]


def _layer_bytes(shape: ModelShape, sizes: Sizes, stack: Stack, remat: Remat) -> Formula:
    """With the scores of one block of queries of each sequence, and all its keys."""
    mesh, block = sizes.mesh, Number(stack.query_block, "queries")
    keys = sizes.tokens * mesh.context  # Of all sequences of a microbatch here.
    scores = keys * block * Number(shape.heads * stack.score_bytes, "B of heads") / mesh.tensor
    return working_bytes(shape, sizes, stack, remat) + Named(scores, "B of scores")
