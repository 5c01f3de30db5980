"""Rotary positions (arXiv:2104.09864), stretched linearly or by frequency (Llama 3.1, arXiv:2407.21783)."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxscale.models.architecture import LayerKind, RopeScaling

FloatArray = np.ndarray[tuple[int], np.dtype[np.float32]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rotation:
    """Cosines and sines in fp32, one pair per position and pair of dims."""

    cosine: Float[Array, "#batch sequence half"]
    sine: Float[Array, "#batch sequence half"]


def frequencies(head_dim: int, base: float, scaling: RopeScaling | None) -> FloatArray:
    """Radians per token for each of head_dim / 2 pairs, fp32.

    The exponent is rounded to fp32 before the power, as every published implementation does.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain: FloatArray = np.asarray(1.0 / np.float32(base) ** exponents, np.float32)
    if scaling is None:
        return plain
    if scaling.low_frequency_factor is None:
        return plain / np.float32(scaling.factor)
    return _by_frequency(plain, scaling)


def _by_frequency(plain: FloatArray, scaling: RopeScaling) -> FloatArray:
    """Slow turns are stretched, fast ones kept, between them a linear blend in turns over the original length."""
    assert scaling.original_positions is not None
    assert scaling.low_frequency_factor is not None
    assert scaling.high_frequency_factor is not None
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_positions * plain / np.float32(2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray((1 - kept) * plain / scaling.factor + kept * plain, np.float32)


def rotation(
    positions: Int[Array, "#batch sequence"], head_dim: int, kind: LayerKind
) -> Rotation | None:
    """The rotation of a kind of layer at these positions; None where positions are learned."""
    if kind.rope_base is None:
        return None
    per_token = frequencies(head_dim, kind.rope_base, kind.rope_scaling)
    angles = positions[..., None].astype(jnp.float32) * per_token
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(
    x: Float[Array, "batch sequence heads head_dim"],
    by: Rotation | None,
    platform: str | None = None,
) -> Float[Array, "batch sequence heads head_dim"]:
    """Turn dim i against dim i + head_dim / 2, in fp32. platform: `jax.default_backend()` unless given.

    Differentiable in x alone; positions have no gradient.
    """
    if by is None:
        return x
    if (platform or jax.default_backend()) == "tpu":
        turned: Float[Array, "batch sequence heads head_dim"] = _joined(x, by)
        return turned
    return _rolled(x, by)


def _rolled(x: jax.Array, by: Rotation) -> jax.Array:
    """A product with the dims moved round by half: on CPU, joining wide arrays costs 6 times as much."""
    wide = x.astype(jnp.float32)
    cosine = jnp.concatenate([by.cosine, by.cosine], axis=-1)[:, :, None, :]
    sine = jnp.concatenate([-by.sine, by.sine], axis=-1)[:, :, None, :]
    turned = wide * cosine + jnp.roll(wide, x.shape[-1] // 2, axis=-1) * sine
    return turned.astype(x.dtype)


@jax.custom_vjp
def _joined(x: jax.Array, by: Rotation) -> jax.Array:
    """Two halves joined again. Of a roll a TPU writes the halves, in fp32, their 32 dims padded to 128."""
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cosine, sine = by.cosine[:, :, None, :], by.sine[:, :, None, :]
    turned = jnp.concatenate([low * cosine - high * sine, high * cosine + low * sine], axis=-1)
    return turned.astype(x.dtype)


def _joined_forward(x: jax.Array, by: Rotation) -> tuple[jax.Array, Rotation]:
    return _joined(x, by), by


def _joined_backward(by: Rotation, gradient: jax.Array) -> tuple[jax.Array, None]:
    """The transpose of a turn is the turn back: one pass too, where JAX's own transposition pads halves and adds."""
    return _joined(gradient, Rotation(by.cosine, -by.sine)), None


_joined.defvjp(_joined_forward, _joined_backward)
