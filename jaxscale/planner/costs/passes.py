"""Seconds of the passes of a layer under a rematerialization policy."""

from jaxscale.planner.costs.compute import Part
from jaxscale.planner.costs.remat import recomputed_share
from jaxscale.planner.model.sizes import Sizes
from jaxscale.planner.vocabulary.formula import Formula, Number
from jaxscale.planner.vocabulary.layout import Remat
from jaxscale.planner.vocabulary.stack import Stack
from jaxscale.planner.vocabulary.terms import Term


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
    if remat == "dots" and stack.keeps_latent and part.behind_latent is not None:
        return part.backward + part.behind_latent
    share = recomputed_share(part.component, remat, stack)
    if not share:
        return part.backward
    return part.backward + (part.recomputation if share == 1 else share * part.forward)
