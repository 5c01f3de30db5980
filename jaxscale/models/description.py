"""The description of a model: one `ParamSpec` a parameter, read off an abstract trace, before any array exists.

Initialization, shardings, memory and FLOP counts, checkpoint targets, import and export all read this one tree. It is a
flat mapping from logical path (`layers/attention/query`) to spec, and parameters travel as a flat mapping from the same
paths to arrays.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxscale.errors import UserError

Build = Callable[[nnx.Rngs], nnx.Module]
Params = dict[str, jax.Array]
Path = tuple[Any, ...]

# Flax spells the names of a parameter's dims in several ways; ours comes first.
_AXES_METADATA = ("axes", "sharding_names", "out_sharding", "sharding")


@dataclass(frozen=True)
class ParamSpec:
    """One parameter: shape, dtype, the logical axis of each dim (None: never split), the name of its initializer."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axes: tuple[str | None, ...]
    init: str = "custom"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.size * self.dtype.itemsize


Description = Mapping[str, ParamSpec]


@dataclass(frozen=True)
class Blueprint:
    """A module's structure without its arrays.

    description: one spec a parameter, by path.
    streams: abstract random streams (dropout); every other kind of state is refused.
    """

    build: Build
    description: Description
    graph: nnx.GraphDef[Any]
    variables: Mapping[Path, Any]
    streams: Mapping[Path, Any]


def blueprint(build: Build) -> Blueprint:
    """Trace `build` abstractly: 405B parameters take about a second and no memory.

    Raises UserError if a parameter lacks logical axes, or the module keeps state that is neither a parameter nor a
    random stream.
    """
    with nnx.use_eager_sharding(False):
        module = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graph, *states = nnx.split(module, nnx.Param, ...)
    params, rest = states
    variables, streams = dict(nnx.to_flat_state(params)), dict(nnx.to_flat_state(rest))
    _refuse_other_state(streams)
    description = {join(path): _spec(join(path), variable) for path, variable in variables.items()}
    return Blueprint(build, description, graph, variables, streams)


def init_params(model: Blueprint, key: jax.Array) -> Params:
    """Fresh parameters by path. Trace it under `jax.jit` with output shardings to create them in place."""
    with nnx.use_eager_sharding(False):
        state = nnx.state(model.build(nnx.Rngs(key)), nnx.Param)
    return {join(path): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def bind(
    model: Blueprint, params: Mapping[str, jax.Array], key: jax.Array | None = None
) -> nnx.Module:
    """The module holding `params` (arrays or tracers, of any dtype); `key` seeds its random streams, if it has any."""
    bound = {
        path: variable.replace(params[join(path)]) for path, variable in model.variables.items()
    }
    streams = _fresh_streams(model.streams, jax.random.key(0) if key is None else key)
    return cast("nnx.Module", nnx.merge(model.graph, nnx.from_flat_state({**bound, **streams})))


def join(path: Path) -> str:
    """`("layers", "attention", "query")` as `layers/attention/query`."""
    return "/".join(str(part) for part in path)


def _fresh_streams(streams: Mapping[Path, Any], key: jax.Array) -> dict[Path, Any]:
    return {
        path: stream.replace(
            jax.random.fold_in(key, index)
            if isinstance(stream, nnx.RngKey)
            else jnp.zeros((), jnp.uint32)
        )
        for index, (path, stream) in enumerate(streams.items())
    }


def _refuse_other_state(streams: Mapping[Path, Any]) -> None:
    for path, variable in streams.items():
        if not isinstance(variable, nnx.RngState):
            raise UserError(
                f"the model keeps {type(variable).__name__} at {join(path)!r}: only parameters (nnx.Param) and random "
                "streams are trained and checkpointed. Make it an nnx.Param or compute it in the forward pass."
            )


def _spec(path: str, variable: Any) -> ParamSpec:
    value, metadata = variable.get_value(), variable.get_metadata()
    axes = next((metadata[name] for name in _AXES_METADATA if metadata.get(name) is not None), None)
    if axes is None and value.ndim > 0:
        raise UserError(
            f"parameter {path!r} of shape {list(value.shape)} has no logical axes: declare one name (or None) a dim, "
            f"for example nnx.Param(value, axes=({', '.join(['None'] * value.ndim)},))"
        )
    axes = tuple(axes or ())
    if len(axes) != value.ndim:
        raise UserError(
            f"parameter {path!r} has {value.ndim} dims {list(value.shape)} but {len(axes)} logical axes {axes}"
        )
    return ParamSpec(
        tuple(value.shape), np.dtype(value.dtype), axes, metadata.get("init", "custom")
    )
