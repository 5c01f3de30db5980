"""A transformer in the parts that the stages of a pipeline run: embedding, single layers, and the end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxscale.errors import UserError
from jaxscale.models.architecture import LayerKind
from jaxscale.models.attention import LayerInputs
from jaxscale.models.context import constrain, forward_context
from jaxscale.models.description import Blueprint, Params, bind, join
from jaxscale.models.rope import rotation
from jaxscale.models.transformer import Block, Transformer, default_positions

# What a model reads of some rows: tokens, and positions and segment_ids, which may be None.
Rows = Mapping[str, Any]
# (one layer's parameters, what `prepare` gave, x) -> (x, auxiliary loss: none of our layers has one).
LayerFunction = Callable[[Params, Any, jax.Array], tuple[jax.Array, jax.Array]]

LAYERS = "layers"
# Of the residual stream, between layers and between stages.
STREAM_AXES = ("batch", "norm_sequence", "embed_activation")


@dataclass(frozen=True)
class StagedModel:
    """Functions over parameters by path. They are traced under a forward context, as the whole model is.

    kinds: of every layer, as an index into `layers`.
    prepare(rows): what layers read beside the residual stream.
    embed(parameters, rows): the residual stream before the first layer; reads no layer's parameters.
    layers: one function a kind of layer; parameters by path, without their `layers` dim.
    finish(parameters, x): hidden states and the output table; reads no layer's parameters.
    """

    kinds: tuple[int, ...]
    logit_softcap: float | None
    prepare: Callable[[Rows], Any]
    embed: Callable[[Params, Rows], jax.Array]
    layers: tuple[LayerFunction, ...]
    finish: Callable[[Params, jax.Array], tuple[jax.Array, jax.Array]]


def staged(model: Blueprint) -> StagedModel:
    """The parts of one of our transformers. Raises UserError for another module."""
    abstract = nnx.merge(model.graph, nnx.from_flat_state({**model.variables, **model.streams}))
    if not isinstance(abstract, Transformer):
        raise UserError(
            f"{type(abstract).__name__} cannot be pipelined: its parts are not known. plan.pipeline works with the "
            "built-in families; use plan.pipeline=1 (fsdp and tensor work with any module)"
        )
    arch, graph = abstract.arch, nnx.graphdef(abstract.layers)
    # Of the six in Gemma 3's pattern, two: each is compiled for itself.
    different = tuple(dict.fromkeys(arch.kinds))

    def prepare(rows: Rows) -> tuple[LayerInputs, ...]:
        positions = _positions(rows)
        return tuple(
            LayerInputs(rotation(positions, arch.head_dim, kind), rows["segment_ids"])
            for kind in different
        )

    def embed(params: Params, rows: Rows) -> jax.Array:
        return _bound(model, params).embed(rows["tokens"], _positions(rows))

    def finish(params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        module = _bound(model, params)
        hidden = constrain(module.final_norm(x), *STREAM_AXES)
        return hidden, module.output_table()

    return StagedModel(
        kinds=tuple(
            different.index(arch.kinds[layer % arch.period]) for layer in range(arch.num_layers)
        ),
        logit_softcap=arch.logit_softcap,
        prepare=prepare,
        embed=embed,
        layers=tuple(_layer(model, graph, index, kind) for index, kind in enumerate(different)),
        finish=finish,
    )


def is_of_layers(path: str) -> bool:
    """Whether a parameter belongs to the stacked layers."""
    return path.split("/", maxsplit=1)[0] == LAYERS


def _layer(
    model: Blueprint, graph: nnx.GraphDef[Block], index: int, kind: LayerKind
) -> LayerFunction:
    paths = {path: join(path) for path in model.variables if path[0] == LAYERS}

    def layer(
        params: Params, inputs: tuple[LayerInputs, ...], x: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def block(params: Params, x: jax.Array, inputs: LayerInputs) -> jax.Array:
            held = {
                path[1:]: model.variables[path].replace(params[name])
                for path, name in paths.items()
            }
            y, _ = nnx.merge(graph, nnx.from_flat_state(held))(x, kind, inputs)
            return y

        y: jax.Array = forward_context().wrap_block(block)(params, x, inputs[index])
        return y, jnp.zeros((), jnp.float32)

    return layer


def _bound(model: Blueprint, params: Params) -> Transformer:
    """The module with shapes in place of the layers' arrays: only its ends are asked."""
    shapes = {join(path): variable.get_value() for path, variable in model.variables.items()}
    module = bind(model, {**shapes, **params})
    assert isinstance(module, Transformer)
    return module


def _positions(rows: Rows) -> jax.Array:
    positions: jax.Array | None = rows["positions"]
    if positions is not None:
        return positions
    return default_positions(rows["tokens"].shape[1], rows["segment_ids"])
