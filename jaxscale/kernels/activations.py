"""Activations and their slopes as plain formulas, which every kernel can put behind its products."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

# gelu(x) = x/2 (1 + tanh(c (x + a x^3))), arXiv:1606.08415.
_GELU_C, _GELU_A = (2 / jnp.pi) ** 0.5, 0.044715


def _silu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate = 1 / (1 + jnp.exp(-x))
    return x * gate, gate * (1 + x * (1 - gate))


def _gelu_tanh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    curve = jnp.tanh(_GELU_C * (x + _GELU_A * x * x * x))
    slope = _GELU_C * (1 + 3 * _GELU_A * x * x) * (1 - curve * curve)
    return 0.5 * x * (1 + curve), 0.5 * (1 + curve) + 0.5 * x * slope


# x -> (activation of x, its slope at x), elementwise, in x's dtype.
WITH_SLOPE: Mapping[str, Callable[[jax.Array], tuple[jax.Array, jax.Array]]] = MappingProxyType(
    {"silu": _silu, "gelu_tanh": _gelu_tanh}
)


def activate(name: str | None, x: jax.Array) -> jax.Array:
    """The activation called `name`; None is the identity."""
    return x if name is None else WITH_SLOPE[name](x)[0]
