"""States with their layers in the model's order, as checkpoints have them, and in the order of a pipeline's stages."""

from typing import Any

import jax

from jaxscale.models.description import Description, Params, ParamSpec
from jaxscale.parallel.placement import Placement


def is_stored_as_described(placement: Placement) -> bool:
    """Whether both orders are one: no pipeline, or even stages in the model's order."""
    return placement.stages is None or placement.stages.is_identity


def logical_specs(specs: Any, placement: Placement) -> Any:
    """Specs of stored arrays (a tree of `ParamSpec`) as they are in the model's order."""
    layout = placement.stages
    return specs if layout is None else jax.tree.map(layout.logical_spec, specs, is_leaf=_is_spec)


def in_model_order(tree: Any, specs: Any, placement: Placement) -> Any:
    """Arrays in the model's order, sharded by `placement.unstaged()`; the same arrays where they are stored so.

    specs: of the stored arrays, in the same tree. Otherwise it holds every array that has layers a second time.
    """
    layout = placement.stages
    if layout is None or layout.is_identity:
        return tree

    def reorder(spec: ParamSpec, array: jax.Array) -> jax.Array:
        return layout.logical(array, spec.axes.index("layers")) if _is_stacked(spec) else array

    shardings = _shardings(logical_specs(specs, placement), placement.unstaged())
    return _reordered(reorder, specs, tree, shardings, placement)


def in_stage_order(tree: Any, specs: Any, placement: Placement) -> Any:
    """The inverse of `in_model_order`. specs: of the stored arrays; the tree's own arrays are given up."""
    layout = placement.stages
    if layout is None or layout.is_identity:
        return tree

    def reorder(spec: ParamSpec, array: jax.Array) -> jax.Array:
        return layout.stored(array, spec.axes.index("layers")) if _is_stacked(spec) else array

    return _reordered(reorder, specs, tree, _shardings(specs, placement), placement)


def unstaged_params(
    params: Params, specs: Description, placement: Placement, inside: Placement
) -> Params:
    """Parameters for what is not pipelined, sharded by its placement `inside`; the same arrays without stages."""
    layout = placement.stages
    if layout is None:
        return params
    logical = in_model_order(params, dict(specs), placement)
    described = {path: layout.logical_spec(spec) for path, spec in specs.items()}
    moved: Params = jax.device_put(logical, inside.shardings(described))
    return moved


def stored_params(params: Params, description: Description, placement: Placement) -> Params:
    """Fresh parameters, traced, in the order of stages. description: the model's."""
    layout = placement.stages
    if layout is None:
        return params
    return {
        path: layout.stored(array, description[path].axes.index("layers"))
        if _is_stacked(description[path])
        else array
        for path, array in params.items()
    }


def _reordered(reorder: Any, specs: Any, tree: Any, shardings: Any, placement: Placement) -> Any:
    def all_of(tree: Any) -> Any:
        return jax.tree.map(reorder, specs, tree, is_leaf=_is_spec)

    with jax.set_mesh(placement.mesh):
        return jax.jit(all_of, out_shardings=shardings)(tree)


def _shardings(specs: Any, placement: Placement) -> Any:
    return jax.tree.map(
        lambda spec: placement.sharding("state", spec.shape, spec.axes), specs, is_leaf=_is_spec
    )


def _is_stacked(spec: ParamSpec) -> bool:
    return "layers" in spec.axes


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, ParamSpec)
