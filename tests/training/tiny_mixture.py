"""A tiny Llama with a mixture of experts behind it, so that a step meets every kernel there is."""

import jax
import jax.numpy as jnp
from flax import nnx
from tiny import tiny_model

from jaxscale.kernels.ragged_matmul.api import ragged_matmul
from jaxscale.models.context import forward_context
from jaxscale.models.families import resolve
from jaxscale.models.layers import NORMAL, parameter
from jaxscale.models.transformer import Transformer

EXPERTS = 4


class TinyMixture(nnx.Module):
    """A token's id decides its expert: rounding must not. Of each four experts one gets no token at all."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        arch = resolve(
            tiny_model(
                "llama3",
                num_layers=1,
                num_heads=2,
                num_kv_heads=1,
                head_dim=16,
                max_positions=128,
                tied_embeddings=True,
            )
        )
        self.llama = Transformer(arch, rngs)
        self.logit_softcap = arch.logit_softcap
        embed, mlp = arch.embed_dim, arch.mlp_dim
        self.inward = parameter(rngs, (EXPERTS, embed, mlp), (None, "embed", "mlp"), NORMAL)
        self.outward = parameter(rngs, (EXPERTS, mlp, embed), (None, "mlp", "embed"), NORMAL)

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> jax.Array:
        states = self.llama.hidden(tokens, positions, segment_ids)
        flat, expert = states.reshape(-1, states.shape[-1]), tokens.ravel() % (EXPERTS - 1)
        order = jnp.argsort(expert)
        sizes = jnp.bincount(expert, length=EXPERTS)
        kernels = forward_context().wanted("ragged_matmul")
        inner = ragged_matmul(flat[order], self.inward[...], sizes, kernels=kernels)
        outer = ragged_matmul(jax.nn.silu(inner), self.outward[...], sizes, kernels=kernels)
        return states + outer[jnp.argsort(order)].reshape(states.shape)

    def output_table(self) -> jax.Array:
        return self.llama.output_table()
