"""Logical axes of an optimizer's state: every array inherits those of its parameter."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey, GetAttrKey, keystr

from jaxscale.models.description import Description, Params, ParamSpec
from jaxscale.training.adafactor import factored_dims


def optimizer_state_specs(optimizer: optax.GradientTransformation, description: Description) -> Any:
    """`jax.eval_shape(optimizer.init, params)` with a `ParamSpec` in place of each array.

    Arrays of a parameter's shape have its axes, Adafactor's means those of the dims they keep,
    scalars none. Anything else would have to be guessed and fails an assertion: a transformation
    with such state needs a rule here.
    """
    state = jax.eval_shape(lambda: optimizer.init(_zeros(description)))
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: ParamSpec(
            leaf.shape, leaf.dtype, _axes(keys, leaf.shape, description), "zeros"
        ),
        state,
    )


def _zeros(description: Description) -> Params:
    return {path: jnp.zeros(spec.shape, spec.dtype) for path, spec in description.items()}


def _axes(
    keys: tuple[Any, ...], shape: tuple[int, ...], description: Description
) -> tuple[str | None, ...]:
    if not shape:
        return ()
    path = _parameter(keys, description)
    assert path is not None, f"optimizer state {keystr(keys)} of shape {shape} names no parameter"
    spec = description[path]
    dropped = _averaged_dim(keys, spec)
    kept = [dim for dim in range(len(spec.shape)) if dim != dropped]
    assert tuple(spec.shape[dim] for dim in kept) == shape, (
        f"optimizer state {keystr(keys)} has shape {shape} where {path!r} has {spec.shape}: "
        "its axes are unknown"
    )
    return tuple(spec.axes[dim] for dim in kept)


def _parameter(keys: tuple[Any, ...], description: Description) -> str | None:
    """The parameter that the innermost mapping names."""
    names = [key.key for key in keys if isinstance(key, DictKey)]
    return next((name for name in reversed(names) if name in description), None)


def _averaged_dim(keys: tuple[Any, ...], spec: ParamSpec) -> int | None:
    """The dim that an Adafactor mean lacks: by rule, for a square matrix's shape does not tell."""
    fields = {key.name for key in keys if isinstance(key, GetAttrKey)}
    dims = factored_dims(spec)
    if dims is None or not fields & {"row", "column"}:
        return None
    return dims.largest if "row" in fields else dims.second
