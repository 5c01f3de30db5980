"""Muon (Jordan et al. 2024): Nesterov momentum, orthogonalized matrix by matrix.

optax.contrib.scale_by_muon is not used: it corrects the bias of the two terms of the Nesterov sum
separately, which turns the first updates away from the published rule, keeps the iteration's
coefficients in its state, and flattens stacked dims into one, which a sharded stack cannot follow
without communication.
"""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxscale.models.description import Description, Params
from jaxscale.training.parameter_kinds import hidden_matrix_shape

# Chosen for a large slope at zero: small singular values arrive in five steps (Jordan et al. 2024).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MIN_NORM = 1e-7
# RMS of AdamW's updates in practice (Liu et al. 2025, "Muon is Scalable for LLM Training", section
# 2.2): with it, AdamW's learning rate and weight decay carry over.
_UPDATE_RMS = 0.2


def matrix_shapes(description: Description) -> dict[str, tuple[int, ...]]:
    """(stack..., rows, columns) of the parameters that Muon updates; the rest is AdamW's."""
    shapes = {path: hidden_matrix_shape(path, spec) for path, spec in description.items()}
    return {path: shape for path, shape in shapes.items() if shape is not None}


def muon_steps(
    description: Description, momentum: float
) -> list[tuple[str, optax.GradientTransformation]]:
    """The two steps of Muon by name, for the parameters of `matrix_shapes(description)` only.

    Updates have RMS 0.2 and ascent direction, before the learning rate:
    m <- momentum m + g; update = 0.2 sqrt(max(rows, columns)) orthogonalize(g + momentum m).
    """
    shapes = matrix_shapes(description)

    def direction(updates: Params, _params: Params | None) -> Params:
        # Parameters of the other group arrive as optax.MaskedNode and pass through.
        return {
            path: _matched_rms(update, shapes[path]) if path in shapes else update
            for path, update in updates.items()
        }

    return [
        ("momentum", optax.trace(momentum, nesterov=True)),
        ("orthogonalize", optax.stateless(direction)),
    ]


def orthogonalize(
    matrix: Float[Array, "*stack rows columns"],
) -> Float[Array, "*stack rows columns"]:
    """About U V^T of each matrix U S V^T, by five quintic Newton-Schulz iterations.

    Singular values above 0.002 of the Frobenius norm end between 0.68 and 1.21, smaller ones below.
    """
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = jnp.matrix_transpose(matrix) if tall else matrix
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=(-2, -1), keepdims=True), _MIN_NORM)
    for _ in range(_ITERATIONS):
        gram = x @ jnp.matrix_transpose(x)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return jnp.matrix_transpose(x) if tall else x


def _matched_rms(update: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Orthogonal directions have RMS 1 / sqrt(max(rows, columns)); scale that to `_UPDATE_RMS`."""
    scale = _UPDATE_RMS * math.sqrt(max(shape[-2:]))
    return scale * orthogonalize(update.reshape(shape)).reshape(update.shape)
