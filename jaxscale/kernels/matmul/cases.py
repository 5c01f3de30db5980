"""The three products of a layer, to be measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.kernels.cases import Case, moved_bytes
from jaxscale.kernels.choice import Choice
from jaxscale.kernels.matmul.api import product
from jaxscale.kernels.matmul.epilogue import Epilogue
from jaxscale.kernels.matmul.form import IMPLEMENTATIONS, LAYOUTS, Product, Role, product_of
from jaxscale.kernels.target import Target
from jaxscale.kernels.tuning import Config

# Around what JAX's own Hopper kernel and the arithmetic of each chip suggest; the default is tried beside them.
CANDIDATES: Mapping[str, Sequence[Config]] = {
    "pallas_gpu": (
        {"m": 128, "n": 128, "width": 4},
        {"m": 128, "n": 128, "width": 16},
        {"m": 128, "n": 128, "delay": 1},
        {"m": 64, "n": 256},
        {"m": 64, "n": 256, "width": 16},
        {"m": 64, "n": 128, "stages": 6},
    ),
    "pallas_tpu": (
        {"m": 512, "n": 1024, "k": 1024},
        {"m": 2048, "n": 1024, "k": 512},
        {"m": 1024, "n": 2048, "k": 512},
        {"m": 1024, "n": 1024, "k": 1024},
        {"m": 512, "n": 512, "k": 2048},
    ),
}


def cases(rows: int, inward: int, outward: int, dtype: str) -> Iterator[Case]:
    """Forward, and the gradients by input and by weight."""
    for role in LAYOUTS:
        call = product_of(role, rows, inward, outward, dtype)
        left, right, out = shapes(call)
        yield Case(
            op="matmul",
            call=call,
            implementations=[each for each in IMPLEMENTATIONS if each.name != "reference"],
            flops=2.0 * call.m * call.n * call.k,
            moved=moved_bytes((left, right, out)),
            operands=(left, right),
            run=_runner(role),
            candidates=CANDIDATES,
        )


def shapes(call: Product) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Left, right and result of a product."""
    left = (call.k, call.m) if call.layout[0] == "t" else (call.m, call.k)
    right = (call.n, call.k) if call.layout[1] == "t" else (call.k, call.n)
    dtype = jnp.dtype(call.dtype)
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in (left, right, (call.m, call.n)))


def _runner(role: Role) -> Callable[[Choice, Target], Callable[..., Any]]:
    def run(choice: Choice, target: Target) -> Callable[..., Any]:
        def once(left: jax.Array, right: jax.Array) -> jax.Array:
            return product(role, left, right, Epilogue(left.dtype), choice, target)

        return once

    return run
