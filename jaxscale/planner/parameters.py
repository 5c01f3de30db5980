"""Parameters by what splits them: enough to say how many elements of them a device has under any mesh."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxscale.planner.formula import Formula, Named, Number, if_split, larger, total
from jaxscale.planner.model_flops import latent_weights
from jaxscale.planner.model_shape import Experts, ModelShape
from jaxscale.planner.sizes import Mesh

Place = Literal["layer", "embedding", "head"]
# ZeRO stage 3 is over every axis that shares no parameters otherwise: `embed` is split over all of them.
EMBED = ("fsdp", "expert", "context")
MATRIX = (*EMBED, "tensor")
# Experts live where they are: nobody gathers them over `expert`.
EXPERT = ("fsdp", "context", "tensor")
PLACES: tuple[Place, ...] = ("layer", "embedding", "head")


@dataclass(frozen=True)
class ParameterGroup:
    """elements: of one layer, or of the whole table. split: mesh axes that divide them. layers: how many have it."""

    name: str
    elements: int
    split: tuple[str, ...]
    place: Place = "layer"
    layers: int = 1
    routed: bool = False

    @property
    def all_elements(self) -> int:
        return self.elements * self.layers


def parameter_groups(shape: ModelShape) -> tuple[ParameterGroup, ...]:
    """The parameters of a transformer, as DEFAULT_RULES split them."""
    dense = (
        (_group("mlp", shape.mlp_products * shape.embed * shape.mlp, shape.layers),)
        if shape.experts is None
        else _expert_groups(shape, shape.experts)
    )
    small = shape.norm_scales * shape.embed + shape.biases
    return (
        _attention(shape),
        *dense,
        ParameterGroup("norms and biases", small, (), layers=shape.layers),
        ParameterGroup("embedding", shape.vocab * shape.embed, MATRIX, "embedding"),
        *_positions(shape),
        *_head(shape),
        ParameterGroup("last norm", shape.embed, (), "head"),
    )


def num_parameters(groups: Sequence[ParameterGroup]) -> int:
    return sum(group.all_elements for group in groups)


def local_elements(groups: Sequence[ParameterGroup], mesh: Mesh, axes: Sequence[str]) -> Formula:
    """Elements on the fullest device, split over those of `axes` that split them: its layers and the larger table.

    A pipeline's first stage has the embedding, its last the head; a tied table is on both.
    """
    layers, first, last = (
        total([_split(group, mesh, axes) for group in groups if group.place == place])
        for place in PLACES
    )
    tied = not any(group.name == "head" for group in groups)
    whole = first + last
    ends = if_split(mesh.pipeline, larger(first, first + last if tied else last), whole)
    return layers / mesh.pipeline + ends


def layer_elements(
    groups: Sequence[ParameterGroup], mesh: Mesh, axes: Sequence[str], *, of: str
) -> Formula:
    """Elements of one mean layer on one device, split over `axes` alone, that are split over axis `of` at all."""
    layers = max(group.layers for group in groups)
    listed = [group for group in groups if group.place == "layer" and of in group.split]
    return total([_split(group, mesh, axes) / layers for group in listed])


def end_elements(groups: Sequence[ParameterGroup], mesh: Mesh, axes: Sequence[str]) -> Formula:
    """Elements of the embedding and the head on one device, split over `axes` alone."""
    return total([_split(group, mesh, axes) for group in groups if group.place != "layer"])


def _split(group: ParameterGroup, mesh: Mesh, axes: Sequence[str]) -> Formula:
    result: Formula = Named(Number(group.all_elements), group.name)
    if group.routed:
        result = result / mesh.expert
    for axis in group.split:
        if axis in axes:
            result = result / getattr(mesh, axis)
    return result


def _group(name: str, elements: int, layers: int, *split: str) -> ParameterGroup:
    return ParameterGroup(name, elements, split or MATRIX, layers=layers)


def _attention(shape: ModelShape) -> ParameterGroup:
    if shape.latent is not None:
        return _group("attention", latent_weights(shape, shape.latent), shape.layers)
    heads = 2 * shape.heads + 2 * shape.kv_heads
    return _group("attention", shape.embed * shape.head_dim * heads, shape.layers)


def _expert_groups(shape: ModelShape, experts: Experts) -> tuple[ParameterGroup, ...]:
    routed = shape.layers - experts.dense_layers
    one = shape.mlp_products * shape.embed * experts.mlp
    groups = [
        ParameterGroup("experts", experts.count * one, EXPERT, layers=routed, routed=True),
        ParameterGroup("router", shape.embed * experts.count, EMBED, layers=routed),
    ]
    if experts.shared:
        groups.append(_group("shared experts", experts.shared * one, routed))
    if experts.dense_layers:
        dense = shape.mlp_products * shape.embed * experts.dense_mlp
        groups.append(_group("mlp of dense layers", dense, experts.dense_layers))
    return tuple(groups)


def _positions(shape: ModelShape) -> tuple[ParameterGroup, ...]:
    if not shape.positions:
        return ()
    return (ParameterGroup("positions", shape.positions * shape.embed, EMBED, "embedding"),)


def _head(shape: ModelShape) -> tuple[ParameterGroup, ...]:
    if shape.tied:
        return ()
    return (ParameterGroup("head", shape.vocab * shape.embed, MATRIX, "head"),)
