"""A product whose three GEMMs run in fp8: forward in e4m3, with gradients in e5m2."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxscale.errors import UserError
from jaxscale.kernels.fp8_matmul.scaling import (
    BACKWARD,
    FORWARD,
    Format,
    Scaled,
    product,
    scale_of,
    scaled,
    scaled_by,
)
from jaxscale.kernels.residuals import product_residual
from jaxscale.kernels.target import Target

__all__ = [
    "Fp8State",
    "Scaling",
    "delayed_fp8_matmul",
    "fp8_matmul",
    "new_state",
    "reason_against",
]

# One scale for an operand, or one for each of its rows (columns of the right one): what is summed shares a scale.
Scaling = Literal["tensor", "row"]
X = Float[Array, "rows inward"]
Weight = Float[Array, "inward outward"]
Out = Float[Array, "rows outward"]
History = Float[Array, " steps"]

_WITH_FP8 = ("H100", "H200", "H800", "H20", "GH200", "B200", "GB200", "B300", "L40", "L4", "RTX 40")


def reason_against(target: Target) -> str | None:
    """Why fp8 is slower than bfloat16 on a target, or None. It runs everywhere: numbers are widened where it has to."""
    if target.platform == "gpu" and any(name in target.device_kind for name in _WITH_FP8):
        return None
    return (
        f"{target.device_kind} has no fp8 units that XLA uses: values are widened before they meet"
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def fp8_matmul(x: X, weight: Weight, scaling: Scaling = "tensor") -> Out:
    """The product in x's dtype, each operand scaled by its own largest magnitude (current scaling).

    Raises UserError for a scaling that there is not. The error is bounded by `reference.product_error`.
    """
    return _forward(x, weight, scaling)[0]


def _forward(x: X, weight: Weight, scaling: Scaling) -> tuple[Out, tuple[X, Weight]]:
    if scaling not in {"tensor", "row"}:
        raise UserError(f"fp8 scaling {scaling!r}: there are 'tensor' and 'row'")
    rows = scaling == "row"
    left = scaled(x, FORWARD, over=1 if rows else None)
    right = scaled(weight, FORWARD, over=0 if rows else None)
    out = product(left, right, (1, 0)).astype(x.dtype)
    return product_residual(out), (x, weight)


def _backward(scaling: Scaling, saved: tuple[X, Weight], to_out: Out) -> tuple[X, Weight]:
    x, weight = saved

    def scaled_over(array: jax.Array, to: Format, over: int) -> Scaled:
        return scaled(array, to, over=over if scaling == "row" else None)

    to_x = product(scaled_over(to_out, BACKWARD, 1), scaled_over(weight, FORWARD, 1), (1, 1))
    to_weight = product(scaled_over(x, FORWARD, 0), scaled_over(to_out, BACKWARD, 0), (0, 0))
    return to_x.astype(x.dtype), to_weight.astype(weight.dtype)


fp8_matmul.defvjp(_forward, _backward)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fp8State:
    """Largest magnitudes of the last steps, the newest first: of the input, the weight, and the output's gradient."""

    x: History
    weight: History
    to_out: History


def new_state(steps: int = 16) -> Fp8State:
    """A state that has seen nothing: the first step runs with scales of 1."""
    return Fp8State(*(jnp.zeros(steps, jnp.float32) for _ in range(3)))


@jax.custom_vjp
def delayed_fp8_matmul(x: X, weight: Weight, state: Fp8State) -> Out:
    """The product in x's dtype, with one scale an operand, known before it: the largest magnitude of the last steps.

    Saves the pass over each operand that current scaling takes to find its magnitude first. What exceeds the known
    range is cut to it. The gradient by `state` is not a derivative but the state after this step: pass it to the next.
    """
    return _delayed_forward(x, weight, state)[0]


def _delayed_forward(
    x: X, weight: Weight, state: Fp8State
) -> tuple[Out, tuple[Scaled, Scaled, Fp8State, jax.Array, jax.Array]]:
    left = scaled_by(x, FORWARD, scale_of(state.x.max(), FORWARD))
    right = scaled_by(weight, FORWARD, scale_of(state.weight.max(), FORWARD))
    seen = Fp8State(_pushed(state.x, x), _pushed(state.weight, weight), state.to_out)
    out = product_residual(product(left, right, (1, 0)).astype(x.dtype))
    # Empty arrays carry the dtypes of the results.
    return out, (left, right, seen, x[:0], weight[:0])


def _delayed_backward(
    saved: tuple[Scaled, Scaled, Fp8State, jax.Array, jax.Array], to_out: Out
) -> tuple[X, Weight, Fp8State]:
    left, right, seen, like_x, like_weight = saved
    middle = scaled_by(to_out, BACKWARD, scale_of(seen.to_out.max(), BACKWARD))
    to_x = product(middle, right, (1, 1)).astype(like_x.dtype)
    to_weight = product(left, middle, (0, 0)).astype(like_weight.dtype)
    return to_x, to_weight, Fp8State(seen.x, seen.weight, _pushed(seen.to_out, to_out))


delayed_fp8_matmul.defvjp(_delayed_forward, _delayed_backward)


def _pushed(history: History, array: jax.Array) -> History:
    """The history with an array's largest magnitude in front, without the oldest."""
    newest = jnp.abs(array).max().astype(jnp.float32)
    return jnp.concatenate([newest[None], history[:-1]])
