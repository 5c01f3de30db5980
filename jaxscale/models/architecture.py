"""What one decoder transformer is, every value explicit: families are resolved into this and nothing else."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxscale.errors import UserError

Norm = Literal["rms", "layer"]
Activation = Literal["gelu_tanh", "silu"]
Positions = Literal["learned", "rope"]


@dataclass(frozen=True)
class RopeScaling:
    """Stretched rotary positions: linear by `factor`, or by frequency as in Llama 3.1 when the other three are given.

    original_positions is in tokens; the frequency factors are turns over that length.
    """

    factor: float
    low_frequency_factor: float | None = None
    high_frequency_factor: float | None = None
    original_positions: int | None = None


@dataclass(frozen=True)
class LayerKind:
    """What differs between layers of one model, static at trace time.

    window: tokens a query sees including itself, None for all.
    rope_base: None where positions are learned.
    """

    window: int | None
    rope_base: float | None
    rope_scaling: RopeScaling | None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A decoder transformer. Sizes count elements of dims, window and max_positions count tokens.

    norm_offset: RMS scales are stored as an offset from one (Gemma).
    post_norms: what attention and MLP add to the residual stream is normalized too (Gemma 2).
    output_biases: biases on the attention output and the MLP (GPT).
    window_pattern: every how-many-th layer has no window, None when all layers are alike.
    query_scale: scores are divided by its square root.
    embed_scale: embeddings are multiplied by sqrt(embed_dim) (Gemma).
    """

    family: str
    vocab_size: int
    max_positions: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    tied_embeddings: bool
    norm: Norm
    norm_epsilon: float
    norm_offset: bool
    post_norms: bool
    activation: Activation
    gated_mlp: bool
    positions: Positions
    rope_base: float
    rope_local_base: float
    rope_scaling: RopeScaling | None
    window: int | None
    window_pattern: int | None
    attention_softcap: float | None
    logit_softcap: float | None
    query_scale: float
    qkv_bias: bool
    output_biases: bool
    qk_norm: bool
    embed_scale: bool

    def __post_init__(self) -> None:
        _check_heads(self)
        _check_window(self)

    @property
    def attention_scale(self) -> float:
        """Factor on the attention scores."""
        return 1 / math.sqrt(self.query_scale)

    @property
    def period(self) -> int:
        """Layers after which the pattern of layer kinds repeats."""
        return 1 if self.window is None else self.window_pattern or 1

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kinds of one period of layers, in order."""
        return tuple(self.kind(layer) for layer in range(self.period))

    def kind(self, layer: int) -> LayerKind:
        """What layer number `layer` (from 0) is."""
        is_global = self.window_pattern is not None and (layer + 1) % self.window_pattern == 0
        window = None if is_global else self.window
        if self.positions == "learned":
            return LayerKind(window, None, None)
        if window is None:
            return LayerKind(None, self.rope_base, self.rope_scaling)
        # A window is far shorter than the trained length, so only layers without one are stretched.
        return LayerKind(window, self.rope_local_base, None)


def _check_heads(arch: Architecture) -> None:
    if arch.num_heads % arch.num_kv_heads:
        divisors = [n for n in range(1, arch.num_heads + 1) if arch.num_heads % n == 0]
        raise UserError(
            f"num_heads {arch.num_heads} is not a multiple of num_kv_heads {arch.num_kv_heads}: every key head serves "
            f"the same number of query heads. num_kv_heads may be one of {divisors}"
        )
    if arch.positions == "rope" and arch.head_dim % 2:
        raise UserError(
            f"head_dim {arch.head_dim} is odd, but rotary positions turn pairs of dims: use {arch.head_dim - 1} or "
            f"{arch.head_dim + 1}"
        )


def _check_window(arch: Architecture) -> None:
    if arch.window_pattern is not None and arch.window is None:
        raise UserError(
            f"window_pattern {arch.window_pattern} without a window: give window in tokens, or window_pattern: 0"
        )
    if arch.window_pattern == 1:
        raise UserError(
            "window_pattern 1 makes every layer global: leave the window out, or use 2 or more"
        )
