"""Parameters with logical axes, norms, embedding and MLP.

Arrays keep the dtype of the parameters a module holds (mixed precision is cast from outside); norms compute in fp32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from jaxscale.models.architecture import Architecture
from jaxscale.models.context import constrain, forward_context, take_rows
from jaxscale.models.products import fused_mlp, project, project_each

STANDARD_DEVIATION = 0.02
# Intermediates of a block that a rematerialization policy can keep or offload, by name.
CHECKPOINT_NAMES = (
    "block_in",
    "query",
    "key",
    "value",
    "attention_out",
    "mlp_gate",
    "mlp_up",
    "mlp_out",
)


@dataclass(frozen=True)
class Init:
    """Normal with this standard deviation around `mean`; with none, every element is `mean`."""

    standard_deviation: float = 0.0
    mean: float = 0.0

    @property
    def name(self) -> str:
        """How the description spells it: normal(0.02), zeros, ones."""
        if self.standard_deviation:
            return f"normal({self.standard_deviation:.6g})"
        return {0.0: "zeros", 1.0: "ones"}.get(self.mean, f"constant({self.mean:.6g})")

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """A fresh fp32 array."""
        if not self.standard_deviation:
            return jnp.full(shape, self.mean, jnp.float32)
        return self.mean + self.standard_deviation * jax.random.normal(key, shape, jnp.float32)


ZEROS, ONES, NORMAL = Init(), Init(mean=1.0), Init(STANDARD_DEVIATION)


def residual_init(arch: Architecture) -> Init:
    """For what is added to the residual stream: shrunk by sqrt(number of additions), GPT-2 paper section 2.3."""
    return Init(STANDARD_DEVIATION / math.sqrt(2 * arch.num_layers))


def parameter(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    init: Init,
    *,
    stack: int | None = None,
) -> nnx.Param[jax.Array]:
    """A parameter with the logical axis of each dim; `stack` adds a leading `layers` dim with one key per layer."""
    key = rngs.params()
    if stack is None:
        return nnx.Param(init(key, shape), axes=axes, init=init.name)
    value = jax.vmap(lambda layer_key: init(layer_key, shape))(jax.random.split(key, stack))
    return nnx.Param(value, axes=("layers", *axes), init=init.name)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last dim (arXiv:1910.07467); with `offset` the scale is stored minus one."""

    def __init__(
        self,
        arch: Architecture,
        rngs: nnx.Rngs,
        *,
        width: int,
        axis: str = "norm",
        stack: int | None = None,
    ) -> None:
        self.epsilon, self.offset = arch.norm_epsilon, float(arch.norm_offset)
        init = ZEROS if arch.norm_offset else ONES
        self.scale = parameter(rngs, (width,), (axis,), init, stack=stack)

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        scale = self.scale[...].astype(jnp.float32) + self.offset
        return (wide * inverse * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / deviation * scale + bias over the last dim (arXiv:1607.06450)."""

    def __init__(
        self, arch: Architecture, rngs: nnx.Rngs, *, width: int, stack: int | None = None
    ) -> None:
        self.epsilon = arch.norm_epsilon
        self.scale = parameter(rngs, (width,), ("norm",), ONES, stack=stack)
        self.bias = parameter(rngs, (width,), ("norm",), ZEROS, stack=stack)

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        wide = x.astype(jnp.float32)
        centered = wide - jnp.mean(wide, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + self.epsilon)
        scale, bias = self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        return (centered * inverse * scale + bias).astype(x.dtype)


def residual_norm(
    arch: Architecture, rngs: nnx.Rngs, *, stack: int | None = None
) -> RMSNorm | LayerNorm:
    """The family's norm over the residual stream."""
    kind = RMSNorm if arch.norm == "rms" else LayerNorm
    return kind(arch, rngs, width=arch.embed_dim, stack=stack)


class Table(nnx.Module):
    """One row of width `embed` per token or position."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs, *, rows: int, axis: str | None) -> None:
        self.axis = axis
        self.table = parameter(rngs, (rows, arch.embed_dim), (axis, "embed"), NORMAL)

    def __call__(self, rows: Int[Array, "batch sequence"]) -> Float[Array, "batch sequence embed"]:
        look_up = forward_context().on_blocks.look_up if self.axis == "vocab" else take_rows
        return look_up(self.table[...], rows)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class MLP(nnx.Module):
    """down(activation(gate x) * up x) (arXiv:2002.05202), or down(activation(up x)) without a gate."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs, *, stack: int) -> None:
        embed, mlp = arch.embed_dim, arch.mlp_dim
        inward, axes = (embed, mlp), ("embed", "mlp")
        self.activation, self.gated, self.biased = (
            arch.activation,
            arch.gated_mlp,
            arch.output_biases,
        )
        if self.gated:
            self.gate = parameter(rngs, inward, axes, NORMAL, stack=stack)
        self.up = parameter(rngs, inward, axes, NORMAL, stack=stack)
        self.down = parameter(
            rngs, (mlp, embed), ("mlp", "embed"), residual_init(arch), stack=stack
        )
        if self.biased:
            self.up_bias = parameter(rngs, (mlp,), ("mlp",), ZEROS, stack=stack)
            self.down_bias = parameter(rngs, (embed,), ("norm",), ZEROS, stack=stack)

    def __call__(
        self, x: Float[Array, "batch sequence embed"]
    ) -> Float[Array, "batch sequence embed"]:
        if self.gated and not self.biased:
            weights = self.gate[...], self.up[...], self.down[...]
            fused = fused_mlp(x, *weights, self.activation)
            if fused is not None:
                return fused
        down = project(self._hidden(x), self.down[...], ("mlp", "embed"))
        return down + self.down_bias[...] if self.biased else down

    def _hidden(self, x: jax.Array) -> jax.Array:
        activation = ACTIVATIONS[self.activation]
        inward = [self.up, self.gate] if self.gated else [self.up]
        up, *gates = project_each(x, [(weight[...], ("embed", "mlp")) for weight in inward])
        up = up + self.up_bias[...] if self.biased else up
        up = named(constrain(up, "batch", "sequence", "mlp"), "mlp_up")
        if not self.gated:
            return activation(up)
        gate = constrain(gates[0], "batch", "sequence", "mlp")
        return activation(named(gate, "mlp_gate")) * up


_mark: Callable[[jax.Array, str], jax.Array] = checkpoint_name


def named(x: jax.Array, name: str) -> jax.Array:
    """The same array under one of CHECKPOINT_NAMES."""
    assert name in CHECKPOINT_NAMES, name
    return _mark(x, name)


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """Squash into (-cap, cap): cap * tanh(x / cap), keeping x within (-cap, cap); x unchanged without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)
