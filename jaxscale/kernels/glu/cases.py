"""The two gated kernels of an MLP, to be measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.kernels.cases import Case, moved_bytes
from jaxscale.kernels.choice import Choice
from jaxscale.kernels.glu.api import gated_product
from jaxscale.kernels.glu.finish import finish_down_gradient, finish_up
from jaxscale.kernels.glu.form import IMPLEMENTATIONS, GatedProduct, Part
from jaxscale.kernels.target import Target
from jaxscale.kernels.tuning import Config

CANDIDATES: Mapping[str, Sequence[Config]] = {
    "pallas_gpu": (
        {"m": 128, "n": 64, "width": 16},
        {"m": 128, "n": 64, "delay": 1},
        {"m": 64, "n": 128},
        {"m": 64, "n": 128, "width": 16},
    ),
    "pallas_tpu": (
        {"m": 512, "n": 512, "k": 1024},
        {"m": 1024, "n": 1024, "k": 512},
        {"m": 512, "n": 1024, "k": 512},
    ),
}


def cases(rows: int, embed: int, mlp: int, dtype: str, activation: str = "silu") -> Iterator[Case]:
    """Both inward products with their activation, and the gradient of the outward one with theirs."""
    kind = jnp.dtype(dtype)

    def of(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind)

    hidden, weight = of(rows, mlp), of(embed, mlp)
    operands = {
        "up": (of(rows, embed), weight, weight),
        "down_gradient": (of(rows, embed), of(mlp, embed), hidden, hidden),
    }
    runs = {"up": _up(activation), "down_gradient": _down_gradient(activation)}
    products = {"up": 2, "down_gradient": 1}
    parts: tuple[Part, ...] = ("up", "down_gradient")
    for part in parts:
        yield Case(
            op="glu",
            call=GatedProduct(rows, mlp, embed, dtype, part),
            implementations=IMPLEMENTATIONS,
            flops=2.0 * products[part] * rows * mlp * embed,
            moved=moved_bytes((*operands[part], hidden, hidden, hidden)),
            operands=operands[part],
            run=runs[part],
            candidates=CANDIDATES,
        )


Runner = Callable[[Choice, Target], Callable[..., Any]]


def _up(activation: str) -> Runner:
    def run(choice: Choice, target: Target) -> Callable[..., Any]:
        def once(x: jax.Array, gate: jax.Array, up: jax.Array) -> Any:
            return gated_product("nn", finish_up(activation), x, (gate, up), (), choice, target)

        return once

    return run


def _down_gradient(activation: str) -> Runner:
    def run(choice: Choice, target: Target) -> Callable[..., Any]:
        finish = finish_down_gradient(activation)

        def once(to_out: jax.Array, down: jax.Array, *kept: jax.Array) -> Any:
            return gated_product("nt", finish, to_out, (down,), kept, choice, target)

        return once

    return run
