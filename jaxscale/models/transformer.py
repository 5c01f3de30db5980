"""The decoder transformer, one for all families."""

from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxscale.errors import UserError
from jaxscale.models.architecture import Architecture, LayerKind
from jaxscale.models.attention import Attention, LayerInputs
from jaxscale.models.cache import KVCache
from jaxscale.models.context import constrain, forward_context
from jaxscale.models.layer_scan import Step, scan_layers
from jaxscale.models.layers import MLP, Table, named, residual_norm, softcap
from jaxscale.models.rope import rotation

ACTIVATION_AXES = (
    "batch",
    "sequence",
    "norm_sequence",
    "embed_activation",
    "heads",
    "kv_heads",
    "head_dim",
    "mlp",
    "vocab",
)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); Gemma normalizes the additions too.

    Parameters are stacked over layers; it is called on one layer's slice.
    """

    def __init__(self, arch: Architecture, rngs: nnx.Rngs, *, stack: int) -> None:
        self.post_norms = arch.post_norms
        self.attention_norm = residual_norm(arch, rngs, stack=stack)
        self.attention = Attention(arch, rngs, stack=stack)
        self.mlp_norm = residual_norm(arch, rngs, stack=stack)
        self.mlp = MLP(arch, rngs, stack=stack)
        if self.post_norms:
            self.attention_post_norm = residual_norm(arch, rngs, stack=stack)
            self.mlp_post_norm = residual_norm(arch, rngs, stack=stack)

    def __call__(
        self, x: Float[Array, "batch sequence embed"], kind: LayerKind, inputs: LayerInputs
    ) -> tuple[Float[Array, "batch sequence embed"], KVCache | None]:
        """The residual stream after the block, and this layer's cache with the new tokens in it."""
        x = named(_residual(x), "block_in")
        added, cache = self.attention(_residual(self.attention_norm(x)), kind, inputs)
        x = _residual(x + (self.attention_post_norm(added) if self.post_norms else added))
        added = named(self.mlp(_residual(self.mlp_norm(x))), "mlp_out")
        return _residual(x + (self.mlp_post_norm(added) if self.post_norms else added)), cache


class Transformer(nnx.Module):
    """Tokens to hidden states and logits. Implements LanguageModel, and `extend` for decoding with a cache."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        self.arch = arch
        self.logit_softcap = arch.logit_softcap
        self.embedding = Table(arch, rngs, rows=arch.vocab_size, axis="vocab")
        if arch.positions == "learned":
            self.positions = Table(arch, rngs, rows=arch.max_positions, axis=None)
        self.layers = Block(arch, rngs, stack=arch.num_layers)
        self.final_norm = residual_norm(arch, rngs)
        if not arch.tied_embeddings:
            self.head = Table(arch, rngs, rows=arch.vocab_size, axis="vocab")

    def __call__(
        self,
        tokens: Int[Array, "batch sequence"],
        positions: Int[Array, "#batch sequence"] | None = None,
        segment_ids: Int[Array, "batch sequence"] | None = None,
    ) -> Float[Array, "batch sequence vocab"]:
        """Logits in fp32, soft-capped where the family does."""
        return self.logits(self.hidden(tokens, positions, segment_ids))

    def hidden(
        self,
        tokens: Int[Array, "batch sequence"],
        positions: Int[Array, "#batch sequence"] | None = None,
        segment_ids: Int[Array, "batch sequence"] | None = None,
    ) -> Float[Array, "batch sequence embed"]:
        """States after the final norm. See LanguageModel for positions and segments."""
        if positions is None:
            positions = default_positions(tokens.shape[1], segment_ids)
        x = self.embed(tokens, positions)
        x, _ = self.run_layers(x, positions, segment_ids)
        return _residual(self.final_norm(x))

    def extend(
        self,
        tokens: Int[Array, "batch new"],
        positions: Int[Array, "batch new"],
        cache: KVCache,
    ) -> tuple[Float[Array, "batch new embed"], KVCache]:
        """States of new tokens that also see what the cache holds, and the cache with them in it."""
        x = self.embed(tokens, positions)
        x, extended = self.run_layers(x, positions, cache=cache)
        assert extended is not None
        return _residual(self.final_norm(x)), extended

    def output_table(self) -> Float[Array, "vocab embed"]:
        """The embedding table where they are tied."""
        return (self.embedding if self.arch.tied_embeddings else self.head).table[...]

    def logits(
        self, hidden: Float[Array, "batch sequence embed"]
    ) -> Float[Array, "batch sequence vocab"]:
        """Logits of every position in fp32, soft-capped where the family does."""
        table = self.output_table()
        plain = jnp.einsum("bse,ve->bsv", hidden, table, preferred_element_type=jnp.float32)
        return constrain(softcap(plain, self.logit_softcap), "batch", "sequence", "vocab")

    def embed(
        self, tokens: Int[Array, "batch sequence"], positions: Int[Array, "#batch sequence"]
    ) -> Float[Array, "batch sequence embed"]:
        """The residual stream before the first block."""
        x = self.embedding(tokens)
        if self.arch.embed_scale:
            # Rounded to the parameters' dtype before the product, as the published weights expect.
            x = x * jnp.asarray(self.arch.embed_dim**0.5, x.dtype)
        if self.arch.positions == "learned":
            _check_length(tokens.shape[1], self.arch)
            x = x + self.positions(positions)
        return _residual(x)

    def run_layers(
        self,
        x: Float[Array, "batch sequence embed"],
        positions: Int[Array, "#batch sequence"],
        segment_ids: Int[Array, "batch sequence"] | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "batch sequence embed"], KVCache | None]:
        """The residual stream through all blocks of the stack, without the final norm."""
        graph, state = nnx.split(self.layers)
        decoding = None if cache is None else positions
        rotations = {
            kind: rotation(positions, self.arch.head_dim, kind) for kind in self.arch.kinds
        }
        steps = [
            _step(graph, kind, LayerInputs(rotations[kind], segment_ids, decoding))
            for kind in self.arch.kinds
        ]
        return scan_layers(steps, (state, cache), x, unroll=forward_context().layer_unroll)


def default_positions(
    length: int, segment_ids: Int[Array, "batch sequence"] | None
) -> Int[Array, "#batch sequence"]:
    """Positions from 0 within each segment: what a token's place in its own document is."""
    places = jnp.arange(length, dtype=jnp.int32)[None]
    if segment_ids is None:
        return places
    starts = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1] - 1) != 0
    return places - jax.lax.cummax(jnp.where(starts, places, 0), axis=1)


def _step(graph: nnx.GraphDef[Block], kind: LayerKind, inputs: LayerInputs) -> Step:
    """One layer of a kind for `scan_layers`, under the rematerialization of the surroundings."""

    def block(
        state: nnx.State[Any, Any], x: jax.Array, inputs: LayerInputs
    ) -> tuple[jax.Array, KVCache | None]:
        return nnx.merge(graph, state)(x, kind, inputs)

    wrapped = forward_context().wrap_block(block)

    def step(
        layer: tuple[nnx.State[Any, Any], KVCache | None], x: jax.Array
    ) -> tuple[jax.Array, KVCache | None]:
        state, cache = layer
        return cast(
            "tuple[jax.Array, KVCache | None]", wrapped(state, x, replace(inputs, cache=cache))
        )

    return step


def _residual(x: jax.Array) -> jax.Array:
    return constrain(x, "batch", "norm_sequence", "embed_activation")


def _check_length(length: int, arch: Architecture) -> None:
    if length > arch.max_positions:
        raise UserError(
            f"a sequence of {length} tokens, but {arch.family} learned {arch.max_positions} positions (max_positions): "
            "shorten the sequences or raise max_positions before training"
        )
