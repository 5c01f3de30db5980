"""A gated MLP whose inward products share one read of x, and whose hidden layer is rebuilt instead of kept.

What is kept for the backward pass: x, and the sums gate and up (`product` residuals, see `kernels.residuals`), not h.
That is two thirds of what three would take; h costs no pass over memory when it comes out of the epilogue that forms
the gradients of gate and up. With `remat: full` they too are formed again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxscale.kernels.glu.finish import finish_down_gradient, finish_up
from jaxscale.kernels.glu.form import IMPLEMENTATIONS, GatedProduct, Part
from jaxscale.kernels.local import check_local
from jaxscale.kernels.matmul import api as matmul
from jaxscale.kernels.matmul.epilogue import Epilogue
from jaxscale.kernels.registry import Choice, choose
from jaxscale.kernels.residuals import product_residual, together
from jaxscale.kernels.target import Target, asked_for
from jaxscale.kernels.tiles import Finish, Layout, contracted
from jaxscale.kernels.tuning import Entry, read

__all__ = ["TUNING", "Kernels", "choose_kernels", "gated_mlp", "gated_product"]

TUNING = Path(__file__).parent / "tuning"


@dataclass(frozen=True)
class Kernels:
    """What runs the two gated kernels, and the products of the layer that are plain ones."""

    up: Choice
    down_gradient: Choice
    inward: matmul.Kernels
    outward: matmul.Kernels
    target: Target

    @property
    def are_xla(self) -> bool:
        """Whether the layer is better left to XLA as a whole: no gated kernel was chosen."""
        return {self.up.name, self.down_gradient.name} == {"xla"}


def choose_kernels(
    rows: int,
    embed: int,
    mlp: int,
    dtype: Any,
    target: Target,
    *,
    wanted: str = "auto",
    wanted_matmul: str = "auto",
    table: Sequence[Entry] | None = None,
) -> Kernels:
    """The kernels of an MLP of one device's sizes. See `matmul.api.choose_kernels`."""
    asked, wanted = asked_for(target, wanted)
    entries = read(TUNING) if table is None else table

    def of(part: Part) -> Choice:
        call = GatedProduct(rows, mlp, embed, jnp.dtype(dtype).name, part)
        return choose("glu", IMPLEMENTATIONS, asked, call, wanted, entries)

    return Kernels(
        of("up"),
        of("down_gradient"),
        matmul.choose_kernels(rows, embed, mlp, dtype, target, wanted_matmul),
        matmul.choose_kernels(rows, mlp, embed, dtype, target, wanted_matmul),
        asked,
    )


def gated_mlp(
    x: Float[Array, "*rows embed"],
    gate: Float[Array, "embed mlp"],
    up: Float[Array, "embed mlp"],
    down: Float[Array, "mlp embed"],
    *,
    activation: str,
    kernels: Kernels,
) -> Float[Array, "*rows embed"]:
    """(activation(x gate) * (x up)) down, of this device's own arrays, summed in fp32, in x's dtype.

    Raises UserError for arrays of a whole mesh.
    """
    check_local("glu", x, gate, up, down)
    rows = x.shape[:-1]
    flat = x.reshape(math.prod(rows), -1)
    out: jax.Array = _differentiable(kernels, activation)(flat, gate, up, down)
    return out.reshape(*rows, down.shape[1])


def gated_product(
    layout: Layout,
    finish: Finish,
    left: jax.Array,
    rights: tuple[jax.Array, ...],
    extras: tuple[jax.Array, ...],
    choice: Choice,
    target: Target,
    *,
    in_place: bool = False,
) -> tuple[jax.Array, ...]:
    """Products of one left operand, finished together to three results in its dtype, by the kernel that was chosen.

    in_place: the first results take the memory of the extras, which must be of that dtype (a TPU's kernel; elsewhere
    XLA decides). An extra that is read again is copied first.
    """
    if choice.name == "pallas_tpu":
        from jaxscale.kernels.glu import pallas_tpu

        return pallas_tpu.product(
            layout, finish, left, rights, extras, choice, target, in_place=in_place
        )
    if choice.name == "pallas_gpu":
        from jaxscale.kernels.glu import pallas_gpu

        return pallas_gpu.product(layout, finish, left, rights, extras, choice, target)
    wide = jnp.promote_types(left.dtype, jnp.float32)
    dot = partial(
        jax.lax.dot_general, dimension_numbers=contracted(layout), preferred_element_type=wide
    )
    results = finish(
        tuple(dot(left, right) for right in rights), tuple(e.astype(wide) for e in extras)
    )
    return tuple(result.astype(left.dtype) for result in results)


def _differentiable(kernels: Kernels, activation: str) -> Any:
    target = kernels.target
    inward, outward = kernels.inward, kernels.outward

    def inner(x: Any, gate: Any, up: Any) -> tuple[jax.Array, ...]:
        finish = finish_up(activation)
        return gated_product("nn", finish, x, (gate, up), (), kernels.up, target)

    def outer(hidden: Any, down: Any) -> jax.Array:
        last = Epilogue(hidden.dtype)
        return matmul.product("forward", hidden, down, last, outward.forward, outward.target)

    @jax.custom_vjp
    def whole(x: Any, gate: Any, up: Any, down: Any) -> jax.Array:
        return outer(inner(x, gate, up)[0], down)

    def remember(x: Any, gate: Any, up: Any, down: Any) -> tuple[jax.Array, Any]:
        hidden, *sums = inner(x, gate, up)
        kept = tuple(product_residual(each) for each in sums)
        return product_residual(outer(hidden, down)), (x, gate, up, down, *kept)

    def differentiate(saved: Any, to_out: jax.Array) -> tuple[jax.Array, ...]:
        x, gate, up, down, *kept = saved
        to_gate_sum, to_up_sum, hidden = gated_product(
            "nt",
            finish_down_gradient(activation),
            to_out,
            (down,),
            tuple(kept),
            kernels.down_gradient,
            target,
            in_place=True,
        )
        last = Epilogue(down.dtype), outward.weight_gradient, outward.target
        to_down = matmul.product("weight_gradient", hidden, to_out, *last)
        # First, so that neither the hidden layer nor the gradient of the result is held beside what follows.
        to_gate_sum, to_up_sum, to_down = together(to_gate_sum, to_up_sum, to_down)
        by_x, by_weight = inward.input_gradient, inward.weight_gradient
        of_inward = partial(matmul.product, target=inward.target)
        part = of_inward("input_gradient", to_gate_sum, gate, Epilogue(x.dtype), by_x)
        both = Epilogue(x.dtype, residual=part)
        to_x = of_inward("input_gradient", to_up_sum, up, both, by_x)
        to_gate = of_inward("weight_gradient", x, to_gate_sum, Epilogue(gate.dtype), by_weight)
        to_up = of_inward("weight_gradient", x, to_up_sum, Epilogue(up.dtype), by_weight)
        return *together(to_x, to_gate, to_up), to_down

    whole.defvjp(remember, differentiate)
    return whole
