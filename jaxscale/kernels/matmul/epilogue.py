"""What may follow a product before it is written: activation(sum + bias) + residual."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.kernels.activations import activate
from jaxscale.kernels.tiles import Finish


@dataclass(frozen=True)
class Epilogue:
    """bias: [n]. residual: [m, n]. in_place: the result takes the residual's memory."""

    out_dtype: Any
    bias: jax.Array | None = None
    activation: str | None = None
    residual: jax.Array | None = None
    in_place: bool = False


def extras_of(epilogue: Epilogue) -> Mapping[str, jax.Array]:
    """The arrays that a kernel takes beside the operands, in this order."""
    named = {"bias": epilogue.bias, "residual": epilogue.residual}
    return {name: array for name, array in named.items() if array is not None}


def finish_of(epilogue: Epilogue) -> Finish:
    """The same on tiles, in fp32; tiles of the extras come in the order of `extras_of`."""
    names = tuple(extras_of(epilogue))
    activation = epilogue.activation

    def finish(sums: tuple[jax.Array, ...], extras: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        met = dict(zip(names, extras, strict=True))
        out = sums[0] + met["bias"] if "bias" in met else sums[0]
        out = activate(activation, out)
        return (out + met["residual"] if "residual" in met else out,)

    return finish


def after(out: jax.Array, epilogue: Epilogue) -> jax.Array:
    """The same on a whole product, left to XLA to fuse; in fp32, rounded once more."""
    if epilogue.bias is None and epilogue.activation is None and epilogue.residual is None:
        return out
    wide = out.astype(jnp.promote_types(out.dtype, jnp.float32))
    wide = wide if epilogue.bias is None else wide + epilogue.bias.astype(wide.dtype)
    wide = activate(epilogue.activation, wide)
    wide = wide if epilogue.residual is None else wide + epilogue.residual.astype(wide.dtype)
    return wide.astype(epilogue.out_dtype)
