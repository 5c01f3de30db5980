"""A product of activations with a weight: which kernels run it and its gradients, and the call.

Forward, gradient by the input and gradient by the weight are three products of three layouts, chosen each for itself.
Where all three are XLA's the product is left to `xla.linear`, which JAX differentiates. Where one is a kernel, the rule
below runs them; it saves x and the weight, and with an activation the sums before it, named so that a rematerialization
policy can keep them (`kernels.residuals`).
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

from jaxscale.kernels.activations import WITH_SLOPE, activate
from jaxscale.kernels.layout import transposed_copy
from jaxscale.kernels.local import check_local
from jaxscale.kernels.matmul.epilogue import Epilogue, after
from jaxscale.kernels.matmul.form import IMPLEMENTATIONS, LAYOUTS, Role, product_of
from jaxscale.kernels.matmul.reference import reference_matmul
from jaxscale.kernels.matmul.xla import linear
from jaxscale.kernels.registry import Choice, choose
from jaxscale.kernels.residuals import product_residual, together
from jaxscale.kernels.target import Target, asked_for, target_of
from jaxscale.kernels.tiles import contracted
from jaxscale.kernels.tuning import Entry, read

__all__ = ["TUNING", "Kernels", "choose_kernels", "matmul", "product", "weight_gradient"]

TUNING = Path(__file__).parent / "tuning"


@dataclass(frozen=True)
class Kernels:
    """What runs each of a layer's three products, on which target."""

    forward: Choice
    input_gradient: Choice
    weight_gradient: Choice
    target: Target

    @property
    def are_xla(self) -> bool:
        return {self.forward.name, self.input_gradient.name, self.weight_gradient.name} == {"xla"}


def choose_kernels(
    rows: int,
    inward: int,
    outward: int,
    dtype: Any,
    target: Target,
    wanted: str = "auto",
    table: Sequence[Entry] | None = None,
) -> Kernels:
    """The kernels of a layer that takes [rows, inward] to [rows, outward], all three of one device.

    wanted: see `registry.choose`, `interpret_tpu` and `interpret_gpu` beside. table: the committed one unless given.
    Raises UserError as `choose` does.
    """
    target, wanted = asked_for(target, wanted)
    entries = read(TUNING) if table is None else table

    def of(role: Role) -> Choice:
        call = product_of(role, rows, inward, outward, jnp.dtype(dtype).name)
        return choose("matmul", IMPLEMENTATIONS, target, call, wanted, entries)

    return Kernels(of("forward"), of("input_gradient"), of("weight_gradient"), target)


def matmul(
    x: Float[Array, "*rows inward"],
    weight: Float[Array, "inward *outward"],
    bias: Float[Array, "*outward"] | None = None,
    activation: str | None = None,
    residual: Float[Array, "..."] | None = None,
    *,
    num_inward: int = 1,
    kernels: Kernels | str = "auto",
    target: Target | None = None,
    local: bool = True,
) -> Float[Array, "..."]:
    """activation(x weight + bias) + residual over the last `num_inward` dims of x, summed in fp32, in x's dtype.

    kernels: as `choose_kernels` gives them, or what is wanted of it. local: the arrays are this device's own, which
    Pallas kernels need. activation: a name in `activations`. Raises UserError for kernels on arrays of a whole mesh.
    """
    target = target_of() if target is None else target
    inward, outward = weight.shape[:num_inward], weight.shape[num_inward:]
    rows = x.shape[: x.ndim - num_inward]
    if isinstance(kernels, str):
        sizes = math.prod(rows), math.prod(inward), math.prod(outward)
        kernels = choose_kernels(*sizes, x.dtype, target, kernels)
    if kernels.are_xla:
        out = linear(x, weight, num_inward=num_inward, local=local, platform=target.platform)
        return after(out, Epilogue(x.dtype, bias, activation, residual))
    check_local("matmul", x, weight)
    assert x.shape[len(rows) :] == inward, f"{x.shape} does not end in {inward}"
    flat = math.prod(rows), math.prod(outward)
    result: jax.Array = _differentiable(kernels, activation)(
        x.reshape(flat[0], -1),
        weight.reshape(-1, flat[1]),
        None if bias is None else bias.reshape(-1),
        None if residual is None else residual.reshape(flat),
    )
    return result.reshape(*rows, *outward)


def weight_gradient(
    x: Float[Array, "rows inward"],
    to_out: Float[Array, "rows outward"],
    *,
    into: Float[Array, "inward outward"] | None = None,
    wanted: str = "auto",
    target: Target | None = None,
) -> Float[Array, "inward outward"]:
    """Transposed x times to_out, in fp32, added to `into`, whose memory it takes where the caller donates it."""
    target = target_of() if target is None else target
    kernels = choose_kernels(x.shape[0], x.shape[1], to_out.shape[1], x.dtype, target, wanted)
    epilogue = Epilogue(jnp.float32, residual=into, in_place=into is not None)
    return product("weight_gradient", x, to_out, epilogue, kernels.weight_gradient, kernels.target)


def product(
    role: Role,
    left: jax.Array,
    right: jax.Array,
    epilogue: Epilogue,
    choice: Choice,
    target: Target,
) -> jax.Array:
    """One product by the kernel that was chosen for it."""
    layout = LAYOUTS[role]
    if choice.name == "pallas_tpu":
        from jaxscale.kernels.matmul import pallas_tpu

        return pallas_tpu.product(layout, left, right, epilogue, choice, target)
    if choice.name == "pallas_gpu":
        from jaxscale.kernels.matmul import pallas_gpu

        return pallas_gpu.product(layout, left, right, epilogue, choice, target)
    if choice.name == "reference":
        left = left.T if layout[0] == "t" else left
        right = right.T if layout[1] == "t" else right
        parts = epilogue.bias, epilogue.activation, epilogue.residual
        return reference_matmul(left, right, *parts).astype(epilogue.out_dtype)
    return after(_xla_product(role, left, right, epilogue.out_dtype), epilogue)


def _xla_product(role: Role, left: jax.Array, right: jax.Array, out_dtype: Any) -> jax.Array:
    """The product with an fp32 result, as the backends beside kernels want it."""
    layout = LAYOUTS[role]
    if layout[0] == "t" and jax.default_backend() == "cpu":
        left, layout = transposed_copy(left), "nn"
    wide = jnp.promote_types(left.dtype, jnp.float32)
    dims = contracted(layout)
    return jax.lax.dot_general(left, right, dims, preferred_element_type=wide).astype(out_dtype)


def _differentiable(kernels: Kernels, activation: str | None) -> Any:
    """(x, weight, bias, residual) -> result on matrices, with the rule for its gradients."""
    run = partial(product, target=kernels.target)

    def forward(x: Any, weight: Any, bias: Any, activation: str | None, residual: Any) -> jax.Array:
        epilogue = Epilogue(x.dtype, bias, activation, residual)
        return run("forward", x, weight, epilogue, kernels.forward)

    @jax.custom_vjp
    def whole(x: Any, weight: Any, bias: Any, residual: Any) -> jax.Array:
        return forward(x, weight, bias, activation, residual)

    def remember(x: Any, weight: Any, bias: Any, residual: Any) -> tuple[jax.Array, Any]:
        if activation is None:
            out = product_residual(forward(x, weight, bias, None, residual))
            return out, (x, weight, bias, residual, None)
        sums = product_residual(forward(x, weight, bias, None, None))
        out = activate(activation, sums.astype(jnp.float32))
        out = out if residual is None else out + residual.astype(jnp.float32)
        return out.astype(x.dtype), (x, weight, bias, residual, sums)

    def differentiate(saved: Any, to_out: jax.Array) -> tuple[Any, ...]:
        x, weight, bias, residual, sums = saved
        to_sums = to_out if activation is None else _through(activation, sums, to_out)
        by_x, by_weight = kernels.input_gradient, kernels.weight_gradient
        to_x = run("input_gradient", to_sums, weight, Epilogue(x.dtype), by_x)
        to_weight = run("weight_gradient", x, to_sums, Epilogue(weight.dtype), by_weight)
        to_x, to_weight = together(to_x, to_weight)
        to_bias = None if bias is None else _summed_rows(to_sums).astype(bias.dtype)
        return to_x, to_weight, to_bias, None if residual is None else to_out

    whole.defvjp(remember, differentiate)
    return whole


def _summed_rows(array: jax.Array) -> jax.Array:
    return array.sum(0, dtype=jnp.promote_types(array.dtype, jnp.float32))


def _through(activation: str, sums: jax.Array, to_out: jax.Array) -> jax.Array:
    slope = WITH_SLOPE[activation](sums.astype(jnp.float32))[1]
    return (to_out.astype(jnp.float32) * slope).astype(to_out.dtype)
