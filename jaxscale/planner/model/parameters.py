"""Parameters by what splits them: enough to say how many elements of them a device has under any mesh."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jaxscale.planner.model.flops import latent_weights
from jaxscale.planner.model.shape import Experts, ModelShape
from jaxscale.planner.model.sizes import Mesh
from jaxscale.planner.vocabulary.formula import Formula, Named, Number, if_split, larger, total

Place = Literal["layer", "embedding", "head"]
# ZeRO stage 3 is over every axis that shares no parameters otherwise: `embed` is split over all of them.
EMBED = ("fsdp", "expert", "context")
MATRIX = (*EMBED, "tensor")
# Experts live where they are: nobody gathers them over `expert`.
EXPERT = ("fsdp", "context", "tensor")
PLACES: tuple[Place, ...] = ("layer", "embedding", "head")


@dataclass(frozen=True)
class ParameterGroup:
    """elements: of one layer, or of the whole table. split: mesh axes that divide them. layers: how many have it.

    routed: experts, divided over `expert` in any case. matrices: of about equal size, that the elements make up.
    is_vector: no product reads it.
    """

    name: str
    elements: int
    split: tuple[str, ...]
    place: Place = "layer"
    layers: int = 1
    routed: bool = False
    matrices: int = 1
    is_vector: bool = False

    @property
    def is_table(self) -> bool:
        """Whether its rows are the vocabulary's; those of a table of positions are not split over `tensor`."""
        return self.place != "layer" and "tensor" in self.split

    @property
    def all_elements(self) -> int:
        return self.elements * self.layers


def parameter_groups(shape: ModelShape) -> tuple[ParameterGroup, ...]:
    """The parameters of a transformer, as DEFAULT_RULES split them."""
    dense = (
        (_mlp("mlp", shape, shape.mlp, shape.layers),)
        if shape.experts is None
        else _expert_groups(shape, shape.experts)
    )
    small = shape.norm_scales * shape.embed + shape.biases
    return (
        _attention(shape),
        *dense,
        ParameterGroup("norms and biases", small, (), layers=shape.layers, is_vector=True),
        ParameterGroup("embedding", shape.vocab * shape.embed, MATRIX, "embedding"),
        *_positions(shape),
        *_head(shape),
        ParameterGroup("last norm", shape.embed, (), "head", is_vector=True),
    )


def whole_over(axes: Sequence[str], groups: Sequence[ParameterGroup]) -> tuple[ParameterGroup, ...]:
    """The same, where nothing but experts (over `expert`) is divided over those axes."""
    return tuple(
        replace(group, split=tuple(axis for axis in group.split if axis not in axes))
        for group in groups
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


def matrices_of_a_layer(groups: Sequence[ParameterGroup], of: str) -> float:
    """How many matrices of a mean layer are split over axis `of`."""
    layers = max(group.layers for group in groups)
    listed = [group for group in groups if group.place == "layer" and of in group.split]
    return sum(group.matrices * group.layers for group in listed) / layers


def largest_matrix(groups: Sequence[ParameterGroup], mesh: Mesh, axes: Sequence[str]) -> Formula:
    """Elements of the largest matrix of a layer on one device, split over `axes` alone."""
    listed = [group for group in groups if group.place == "layer" and "fsdp" in group.split]
    return larger(
        *(_split(group, mesh, axes) / (group.layers * group.matrices) for group in listed)
    )


def end_elements(groups: Sequence[ParameterGroup], mesh: Mesh, axes: Sequence[str]) -> Formula:
    """Elements of the embedding and the head on one device, split over `axes` alone."""
    return total([_split(group, mesh, axes) for group in groups if group.place != "layer"])


def _split(group: ParameterGroup, mesh: Mesh, axes: Sequence[str]) -> Formula:
    return split_over(Named(Number(group.all_elements), group.name), group, mesh, axes)


def split_over(
    elements: Formula, group: ParameterGroup, mesh: Mesh, axes: Sequence[str]
) -> Formula:
    """Of so many elements of a group those of one device, split over those of `axes` that split them."""
    result = elements
    if group.routed:
        result = result / mesh.expert
    for axis in group.split:
        if axis in axes:
            result = result / getattr(mesh, axis)
    return result


def _mlp(name: str, shape: ModelShape, width: int, layers: int) -> ParameterGroup:
    products = shape.mlp_products
    return ParameterGroup(
        name, products * shape.embed * width, MATRIX, layers=layers, matrices=products
    )


def _attention(shape: ModelShape) -> ParameterGroup:
    if shape.latent is not None:
        elements = latent_weights(shape, shape.latent)
    else:
        elements = 2 * shape.embed * shape.head_dim * (shape.heads + shape.kv_heads)
    return ParameterGroup("attention", elements, MATRIX, layers=shape.layers, matrices=4)


def _expert_groups(shape: ModelShape, experts: Experts) -> tuple[ParameterGroup, ...]:
    routed = shape.layers - experts.dense_layers
    one = shape.mlp_products * shape.embed * experts.mlp
    groups = [
        ParameterGroup(
            "experts",
            experts.count * one,
            EXPERT,
            layers=routed,
            routed=True,
            matrices=shape.mlp_products,
        ),
        ParameterGroup("router", shape.embed * experts.count, EMBED, layers=routed),
    ]
    if experts.shared:
        groups.append(_mlp("shared experts", shape, experts.shared * experts.mlp, routed))
    if experts.dense_layers:
        groups.append(_mlp("mlp of dense layers", shape, experts.dense_mlp, experts.dense_layers))
    return tuple(groups)


def _positions(shape: ModelShape) -> tuple[ParameterGroup, ...]:
    if not shape.positions:
        return ()
    return (ParameterGroup("positions", shape.positions * shape.embed, EMBED, "embedding"),)


def _head(shape: ModelShape) -> tuple[ParameterGroup, ...]:
    if shape.tied:
        return ()
    return (ParameterGroup("head", shape.vocab * shape.embed, MATRIX, "head"),)
