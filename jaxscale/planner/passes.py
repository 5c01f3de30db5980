"""Seconds of the passes of a layer under a rematerialization policy."""

from jaxscale.planner.compute import Part
from jaxscale.planner.formula import Formula, Number
from jaxscale.planner.layout import Remat
from jaxscale.planner.remat_costs import is_recomputed
from jaxscale.planner.sizes import Sizes
from jaxscale.planner.stack import Stack
from jaxscale.planner.terms import Term


def compute_terms(
    parts: list[Part], head: Part, sizes: Sizes, stack: Stack, remat: Remat
) -> list[Term]:
    """Mean over the stages: layers and head are shared out."""
    microbatches, pipeline = sizes.mesh.microbatches, sizes.mesh.pipeline
    layers = Number(sizes.num_layers, "layers") / pipeline
    terms = [
        Term(part.component, microbatches * layers * _seconds(part, remat, stack)) for part in parts
    ]
    return [*terms, Term(head.component, microbatches * (head.forward + head.backward) / pipeline)]


def _seconds(part: Part, remat: Remat, stack: Stack) -> Formula:
    return backward_seconds(part, remat, stack) + part.forward


def backward_seconds(part: Part, remat: Remat, stack: Stack) -> Formula:
    return (
        part.backward + part.recomputation
        if is_recomputed(part.component, remat, stack)
        else part.backward
    )
