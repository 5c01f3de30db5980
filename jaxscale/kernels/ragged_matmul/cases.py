"""The three ragged products of routed tokens, to be measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.kernels.cases import Case, moved_bytes, normals
from jaxscale.kernels.choice import Choice
from jaxscale.kernels.ragged_matmul.api import IMPLEMENTATIONS, product
from jaxscale.kernels.ragged_matmul.form import RaggedCall
from jaxscale.kernels.target import Target
from jaxscale.kernels.tiles import Layout
from jaxscale.kernels.tuning import Config

# A router's shares of the groups are drawn from a Dirichlet distribution: uneven, but none of them empty.
_CONCENTRATION = 2.0
_TPU_BY_MATRICES: Sequence[Config] = (
    {"m": 128, "n": 1024, "k": 1024},
    {"m": 256, "n": 1024, "k": 1024},
    {"m": 256, "n": 2048, "k": 1024},
    {"m": 512, "n": 2048, "k": 512},
    {"m": 1024, "n": 1024, "k": 512},
)
_GPU_BY_MATRICES: Sequence[Config] = (
    {"m": 64, "n": 256, "stages": 3},
    {"m": 64, "n": 128, "stages": 6},
    {"m": 64, "n": 128, "k": 128, "stages": 3},
    {"m": 128, "n": 128},
    {"m": 128, "n": 128, "stages": 3},
)
# In "tn" m and n are of a group's matrix, and k is of the tokens that are summed. The default is tried beside these.
CANDIDATES: Mapping[Layout, Mapping[str, Sequence[Config]]] = {
    "nn": {"pallas_tpu": _TPU_BY_MATRICES, "pallas_gpu": _GPU_BY_MATRICES},
    "nt": {"pallas_tpu": _TPU_BY_MATRICES, "pallas_gpu": _GPU_BY_MATRICES},
    "tn": {
        "pallas_tpu": (
            {"m": 512, "n": 1024, "k": 512},
            {"m": 1024, "n": 1024, "k": 256},
            {"m": 1024, "n": 1024, "k": 512},
            {"m": 1024, "n": 1024, "k": 1024},
        ),
        "pallas_gpu": (
            {"stages": 6},
            {"m": 128, "n": 128, "k": 128, "stages": 3},
            {"m": 64, "n": 256},
            {"m": 64, "n": 128, "stages": 6},
        ),
    },
}


def cases(tokens: int, inward: int, outward: int, groups: int, dtype: str) -> Iterator[Case]:
    """Forward, and the gradients by rows and by matrices. tokens: routed rows, those of all groups together."""
    for layout in CANDIDATES:
        call = RaggedCall(layout, dtype, tokens, inward, outward, groups)
        left, right, out = shapes(call)
        sizes = jax.ShapeDtypeStruct((groups,), jnp.dtype("int32"))
        yield Case(
            op="ragged_matmul",
            call=call,
            implementations=IMPLEMENTATIONS,
            flops=2.0 * tokens * inward * outward,
            moved=moved_bytes((left, right, sizes, out)),
            operands=(left, right, sizes),
            run=_runner(layout),
            candidates=CANDIDATES[layout],
            draw=_drawer(left, right, groups),
        )


def shapes(call: RaggedCall) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Left, right and result of a product."""
    rows, others = (call.tokens, call.inward), (call.tokens, call.outward)
    matrices = call.groups, call.inward, call.outward
    of_layout: Mapping[Layout, tuple[tuple[int, ...], ...]] = {
        "nn": (rows, matrices, others),
        "nt": (others, matrices, rows),
        "tn": (rows, others, matrices),
    }
    dtype = jnp.dtype(call.dtype)
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in of_layout[call.layout])


def group_sizes(key: jax.Array, tokens: int, groups: int) -> jax.Array:
    """How many tokens go to each group: uneven, and all of them."""
    of_shares, of_tokens = jax.random.split(key)
    shares = jax.random.dirichlet(of_shares, jnp.full(groups, _CONCENTRATION))
    chosen = jax.random.choice(of_tokens, groups, (tokens,), p=shares)
    return jnp.bincount(chosen, length=groups).astype(jnp.int32)


def _drawer(
    left: jax.ShapeDtypeStruct, right: jax.ShapeDtypeStruct, groups: int
) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
    def draw(key: jax.Array) -> tuple[jax.Array, ...]:
        of_operands, of_sizes = jax.random.split(key)
        return *normals(of_operands, (left, right)), group_sizes(of_sizes, left.shape[0], groups)

    return draw


def _runner(layout: Layout) -> Callable[[Choice, Target], Callable[..., Any]]:
    def run(choice: Choice, target: Target) -> Callable[..., Any]:
        def once(left: jax.Array, right: jax.Array, sizes: jax.Array) -> jax.Array:
            return product(layout, left, right, sizes, choice, target)

        return once

    return run
